//! One error type for the whole core. Each variant says what went wrong and carries what a caller needs
//! to act on (day, key, row, column); [`Error::kind`] says what to do about it.
//!
//! Messages are complete sentences in themselves: causes are written into them after secrets were
//! taken out, so there is no cause chain that could print a password.

use crate::base::keys::Day;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller should do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Try again later, unchanged.
    Retry,
    /// Change an argument, a setting, a permission or the data first.
    Fix,
    /// It is not known whether the operation took effect. Change nothing until that is known.
    Unknown,
    /// The caller asked for it to stop.
    Interrupted,
    /// A defect in this library.
    Bug,
}

#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument that no call could accept: a malformed date, a hostile slug, a negative limit.
    #[error("{message}")]
    InvalidInput { message: String },

    /// A URL, option or credential that has to be changed.
    #[error("{message}")]
    Configuration { message: String },

    /// A table or column of the source is missing or has a type that cannot be copied without loss.
    #[error("{message}")]
    SourceSchema { column: Option<String>, message: String },

    /// A value that does not fit the schema: NULL in a required column, out of range, invalid text.
    #[error("{message}")]
    BadRow {
        row_id: Option<i64>,
        column: &'static str,
        message: String,
    },

    /// The source has no rows for the day.
    #[error("{message}")]
    NoRows { message: String },

    /// The source shows an older state than the stored file has, or another database.
    #[error("{message}")]
    Stale { message: String },

    /// The source and the stored file have the same id for different page views.
    #[error("{message}")]
    IdConflict { row_id: i64, message: String },

    /// The database refused, failed or went away.
    #[error("{message}")]
    Database {
        message: String,
        sqlstate: Option<String>,
        retryable: bool,
    },

    /// A stream that rows are read from failed in its producer: an exception, a lost connection.
    #[error("{message}")]
    Source { message: String, retryable: bool },

    /// The store answered that the credentials may not do this.
    #[error("{message}")]
    Permission { key: String, message: String },

    /// The store failed, or could not be reached.
    #[error("{message}")]
    Store {
        key: Option<String>,
        message: String,
        retryable: bool,
    },

    /// A condition on a write was not met: somebody else wrote the object first.
    #[error("{message}")]
    Conflict { key: String, message: String },

    /// A stored object is not a Parquet file of ours: truncated, another schema, a newer format.
    #[error("{message}")]
    CorruptFile { key: String, message: String },

    /// There is no such object, and there has to be.
    #[error("{message}")]
    NotStored { key: String, message: String },

    /// A day's file is gone, and rows that it held are in the database no more.
    #[error("{message}")]
    Lost { key: String, message: String },

    /// What was read back from the store is not what was written, or not what the database counted.
    #[error("{message}")]
    Mismatch { key: String, message: String },

    /// Rows are not deleted, because it is not certain that they are safe in the store.
    #[error("{message}")]
    DeletionRefused {
        message: String,
        /// Days that have to be exported again before.
        export_first: Vec<Day>,
    },

    /// Nothing is erased, because what is stored belongs to another database.
    #[error("{message}")]
    ErasureRefused { key: String, message: String },

    /// A write may or may not have taken effect, and it could not be found out which.
    #[error("{message}")]
    CommitStateUnknown {
        key: String,
        run_id: String,
        message: String,
    },

    /// SQL that is refused, wrong, or took longer than allowed.
    #[error("{message}")]
    Query { message: String, retryable: bool },

    /// A local file or folder failed: a full disk, a read-only temporary folder.
    #[error("{message}")]
    Io { message: String },

    /// The caller asked for it to stop.
    #[error("stopped on request; nothing was published after that")]
    Interrupted,

    /// A defect in this library.
    #[error("{message} (this is a defect in parquet-analytics; please report it)")]
    Internal { message: String },

    /// An error with the day it happened on.
    #[error("{day}: {error}")]
    OnDay { day: Day, error: Box<Error> },
}

impl Error {
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::InvalidInput {
            message: message.into(),
        }
    }

    pub fn configuration(message: impl Into<String>) -> Self {
        Self::Configuration {
            message: message.into(),
        }
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::Internal {
            message: message.into(),
        }
    }

    pub fn corrupt(key: impl Into<String>, message: impl std::fmt::Display) -> Self {
        let key = key.into();
        let message = format!("{key} is not a page-view file that this version can read: {message}");
        Self::CorruptFile { key, message }
    }

    pub fn refused(message: impl Into<String>) -> Self {
        Self::DeletionRefused {
            message: message.into(),
            export_first: Vec::new(),
        }
    }

    /// An I/O failure on a local path, named.
    pub fn io(what: impl std::fmt::Display, error: std::io::Error) -> Self {
        Self::Io {
            message: format!("{what}: {error}"),
        }
    }

    /// The same error, with the day it concerns.
    #[must_use]
    pub fn on_day(self, day: Day) -> Self {
        match self {
            already @ Self::OnDay { .. } => already,
            error => Self::OnDay {
                day,
                error: Box::new(error),
            },
        }
    }

    /// The error without the day around it.
    pub fn inner(&self) -> &Self {
        match self {
            Self::OnDay { error, .. } => error.inner(),
            error => error,
        }
    }

    pub fn day(&self) -> Option<Day> {
        match self {
            Self::OnDay { day, .. } => Some(*day),
            _ => None,
        }
    }

    pub fn key(&self) -> Option<&str> {
        match self.inner() {
            Self::Store { key, .. } => key.as_deref(),
            Self::Permission { key, .. }
            | Self::Conflict { key, .. }
            | Self::CorruptFile { key, .. }
            | Self::NotStored { key, .. }
            | Self::Lost { key, .. }
            | Self::Mismatch { key, .. }
            | Self::ErasureRefused { key, .. }
            | Self::CommitStateUnknown { key, .. } => Some(key),
            _ => None,
        }
    }

    pub fn kind(&self) -> Kind {
        match self.inner() {
            Self::Database { retryable: true, .. }
            | Self::Source { retryable: true, .. }
            | Self::Store { retryable: true, .. }
            | Self::Query { retryable: true, .. }
            | Self::Conflict { .. }
            | Self::Stale { .. } => Kind::Retry,
            Self::CommitStateUnknown { .. } => Kind::Unknown,
            Self::Interrupted => Kind::Interrupted,
            Self::Internal { .. } => Kind::Bug,
            _ => Kind::Fix,
        }
    }
}
