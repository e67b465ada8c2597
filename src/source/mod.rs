//! Where a day's rows come from. A source hands over batches in any order; sorting, checking against
//! the day and writing are not its business.

pub mod arrow;
pub mod postgres;

use std::sync::Arc;

use ::arrow::array::{AsArray, RecordBatch};
use ::arrow::datatypes::Int32Type;
use chrono::{DateTime, Utc};

use crate::base::error::{Error, Result};
use crate::base::keys::Day;
use crate::base::runtime::Cancel;
use crate::base::schema;
use crate::file::position::Position;
pub use crate::file::sort::Slugs;
use crate::file::tally::Tally;

/// Takes a source's batches: either [`crate::base::schema::pageviews`] whole, or [`crate::base::schema::facts`]
/// when the slugs come at the end, in [`Summary::slugs`].
pub type Sink<'a> = dyn FnMut(RecordBatch) -> Result<()> + 'a;

pub trait Source: Send {
    /// Projects, by id, whose rows are from now on neither handed over nor counted. A source that hands them over
    /// all the same has to be one that does not count.
    fn exclude(&mut self, _projects: &[i32]) {}

    /// Ids, ascending, that are stored of the day: of those that are read no more, a database says which live on another
    /// date, in [`Summary::elsewhere`].
    fn look_for(&mut self, _ids: Arc<[i64]>) {}

    /// Rows, by id ascending, that are from now on neither handed over nor counted, as far as the source counts.
    fn leave_out(&mut self, _ids: &[i64]) {}

    /// Hands every row of `day` to `sink`. Values that do not fit the schema are errors that name the row's
    /// id and column, or are left out and listed, as `bad_rows` says.
    fn read(&mut self, day: Day, bad_rows: BadRows, sink: &mut Sink<'_>, cancel: &Cancel) -> Result<Summary>;

    /// How many rows `day` has, without copying them; `None` when only reading them would tell.
    fn count(&mut self, day: Day, cancel: &Cancel) -> Result<Option<u64>>;
}

/// What becomes of a row with a value that does not fit the schema.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BadRows {
    /// The export fails with [`crate::base::error::Error::BadRow`].
    #[default]
    Fail,
    /// The row is left where it is, and listed in [`Summary::left`].
    Leave,
}

/// A row that was left in the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftRow {
    pub id: i64,
    pub column: &'static str,
    pub reason: String,
}

/// More bad rows than this are no accident: reading them all fails.
pub const MOST_LEFT: usize = 10_000;

/// Leaves a bad row, where that is wanted and possible.
pub(crate) fn leave(bad_rows: BadRows, left: &mut Vec<LeftRow>, error: Error) -> Result<()> {
    match error {
        Error::BadRow {
            row_id: Some(id),
            column,
            message,
        } if bad_rows == BadRows::Leave && column != schema::DATE => {
            if left.len() >= MOST_LEFT {
                return Err(Error::BadRow {
                    row_id: Some(id),
                    column,
                    message: format!("more than {MOST_LEFT} rows cannot be exported; the last one: {message}"),
                });
            }
            left.push(LeftRow {
                id,
                column,
                reason: message,
            });
            Ok(())
        }
        error => Err(error),
    }
}

/// What a source knows once it has handed over everything.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Where the rows came from, without any secret: `postgresql://host:port/database/table`.
    pub source: String,
    /// The time of the snapshot that the rows belong to.
    pub snapshot_time: DateTime<Utc>,
    /// The snapshot's place in the database's history, where there is one.
    pub position: Option<Position>,
    /// What the rows handed over add up to as the source itself computes it, where it can (PostgreSQL, in SQL).
    pub counted: Option<Tally>,
    /// Whether there are rows of an earlier day; `None` when that is not known, or `day` has rows.
    pub earlier_rows: Option<bool>,
    /// Rows that were not handed over, because a value does not fit.
    pub left: Vec<LeftRow>,
    /// Of the expected ids, those that live on another date; in order of ids.
    pub elsewhere: Vec<Elsewhere>,
    /// Slugs by id, when the batches came without them.
    pub slugs: Option<Slugs>,
}

/// A row that lives on another date than the day that was read.
#[derive(Debug, Clone)]
pub struct Elsewhere {
    pub id: i64,
    /// On a date that no file can have.
    pub adrift: bool,
    pub project_id: Option<i32>,
    pub path: Option<String>,
}

impl Elsewhere {
    /// Whether it has the project and path of a row of a batch.
    pub fn is_page_of(&self, batch: &RecordBatch, row: usize) -> bool {
        let column = |name| batch.column_by_name(name);
        let projects = column(schema::PROJECT_ID).and_then(|column| column.as_primitive_opt::<Int32Type>());
        let paths = column(schema::PATH).and_then(|column| column.as_string_opt::<i32>());
        self.project_id.is_some()
            && self.path.is_some()
            && self.project_id == projects.map(|projects| projects.value(row))
            && self.path.as_deref() == paths.map(|paths| paths.value(row))
    }
}
