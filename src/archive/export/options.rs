//! What an export is asked to do, how far it is, and what it says at the end.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use chrono::{DateTime, Utc};

use crate::archive::copies::CopyPlan;
use crate::archive::merge::Merged;
use crate::archive::publish::LARGEST_FILE;
use crate::base::keys::{Day, Prefix};
use crate::file::position::Position;
use crate::file::sort::SortOptions;
use crate::file::writer::{ROW_GROUP_ROWS, Written};
use crate::source::{BadRows, LeftRow};

/// What becomes of a row whose id is that of a stored row with another project or path, or of one that was deleted from
/// the database.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnConflict {
    /// The export fails with [`crate::base::error::Error::IdConflict`].
    #[default]
    Fail,
    /// It stays in the source, and the stored row in the file.
    Leave,
    /// It is a correction of the stored row, and takes its place; not of one that was deleted.
    Database,
}

#[derive(Debug, Clone)]
pub struct ExportOptions {
    pub prefix: Prefix,
    pub copies: CopyPlan,
    /// Write a stored day anew from the source's rows alone, instead of merging them into it.
    pub replace: bool,
    /// Replace also when the source lacks stored rows.
    pub discard_stored: bool,
    /// Write a file without rows also when the source has no earlier day either.
    pub allow_empty: bool,
    pub bad_rows: BadRows,
    pub on_conflict: OnConflict,
    /// Rows of the day were deleted from the database: without its file, the day is lost.
    pub expect_stored: bool,
    /// Merge also from another database than the one that the day was exported from.
    pub accept_moved_database: bool,
    /// The largest file that is uploaded, in bytes.
    pub largest_file: u64,
    /// Export a day that is not over yet.
    pub allow_open_day: bool,
    pub sort: SortOptions,
    pub row_group_rows: usize,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self {
            prefix: Prefix::default(),
            copies: CopyPlan::default(),
            replace: false,
            discard_stored: false,
            allow_empty: false,
            bad_rows: BadRows::Fail,
            on_conflict: OnConflict::Fail,
            expect_stored: false,
            accept_moved_database: false,
            largest_file: LARGEST_FILE,
            allow_open_day: false,
            sort: SortOptions::default(),
            row_group_rows: ROW_GROUP_ROWS,
        }
    }
}

/// How far an export is; read by whoever shows it, while it runs.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    /// The total plus one; zero while it is unknown.
    total: AtomicU64,
    pub(super) wants_total: bool,
}

impl Progress {
    /// Progress towards a total, for which the source counts its rows first, where it can.
    pub fn with_total() -> Self {
        Self {
            wants_total: true,
            ..Self::default()
        }
    }

    pub(super) fn expect(&self, total: u64) {
        self.total.store(total + 1, Ordering::Relaxed);
    }

    pub(super) fn done(&self, rows: u64) {
        self.done.store(rows, Ordering::Relaxed);
    }

    /// Rows read, and rows that there are, where known.
    pub fn rows(&self) -> (u64, Option<u64>) {
        (
            self.done.load(Ordering::Relaxed),
            self.total.load(Ordering::Relaxed).checked_sub(1),
        )
    }
}

/// What became of the day's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Created,
    Merged,
    Replaced,
    /// The stored file holds what would have been written.
    Unchanged,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Merged => "merged",
            Self::Replaced => "replaced",
            Self::Unchanged => "unchanged",
        })
    }
}

/// What an export did. The file was read back and verified.
#[derive(Debug, Clone)]
pub struct Exported {
    pub day: Day,
    pub key: String,
    pub outcome: Outcome,
    pub run_id: String,
    pub etag: String,
    pub file: Written,
    pub source: String,
    pub snapshot_time: DateTime<Utc>,
    pub position: Option<Position>,
    pub merged: Merged,
    /// Rows with a value that does not fit, which stay in the source.
    pub left: Vec<LeftRow>,
    pub project_copies: u64,
    pub organization_copies: u64,
}

/// What an export would do.
#[derive(Debug, Clone)]
pub struct Planned {
    pub day: Day,
    pub key: String,
    /// `None` when the source cannot count without reading.
    pub rows: Option<u64>,
}
