//! The steps of an export and of a deletion, by name. Each is logged when it begins: the last one that was logged tells what
//! a process was doing when it died, and docs/reliability.md what that leaves behind.

use std::fmt;

use crate::base::keys::Day;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    ReadingStored,
    ReadingDatabase,
    WritingFile,
    Publishing,
    Published,
    Verifying,
    Verified,
    Copying,
    Copied,
    DeleteVerifying,
    DeleteStamping,
    DeleteLocking,
    DeleteDeleting,
    DeleteCommitting,
    DeleteCommitted,
    DeleteReporting,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReadingStored => "reading-stored",
            Self::ReadingDatabase => "reading-database",
            Self::WritingFile => "writing-file",
            Self::Publishing => "publishing",
            Self::Published => "published",
            Self::Verifying => "verifying",
            Self::Verified => "verified",
            Self::Copying => "copying",
            Self::Copied => "copied",
            Self::DeleteVerifying => "delete-verifying",
            Self::DeleteStamping => "delete-stamping",
            Self::DeleteLocking => "delete-locking",
            Self::DeleteDeleting => "delete-deleting",
            Self::DeleteCommitting => "delete-committing",
            Self::DeleteCommitted => "delete-committed",
            Self::DeleteReporting => "delete-reporting",
        })
    }
}

/// Logs that `day` has come to a step.
pub fn reached(day: Day, step: Step) {
    log::debug!(target: "parquet_analytics::steps", "{day} {step}");
}
