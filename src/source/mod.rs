//! Where a day's rows come from. A source hands over batches in any order; sorting, checking against
//! the day and writing are not its business.

pub mod arrow;
pub mod postgres;

use std::collections::HashMap;

use ::arrow::array::RecordBatch;
use chrono::{DateTime, Utc};

use crate::error::Result;
use crate::keys::Day;
use crate::runtime::Cancel;

/// Takes a source's batches: either [`crate::schema::pageviews`] whole, or [`crate::schema::facts`]
/// when the slugs come at the end, in [`Summary::slugs`].
pub type Sink<'a> = dyn FnMut(RecordBatch) -> Result<()> + 'a;

pub trait Source: Send {
    /// Hands every row of `day` to `sink`. Values that do not fit the schema are errors that name the row's
    /// id and column.
    fn read(&mut self, day: Day, sink: &mut Sink<'_>, cancel: &Cancel) -> Result<Summary>;

    /// How many rows `day` has, without copying them; `None` when only reading them would tell.
    fn count(&mut self, day: Day, cancel: &Cancel) -> Result<Option<u64>>;
}

/// What a source knows once it has handed over everything.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Where the rows came from, without any secret: `postgresql://host:port/database/table`.
    pub source: String,
    /// The time of the snapshot that the rows belong to.
    pub snapshot_time: DateTime<Utc>,
    /// Rows and sum of views as the source itself counts them, where it can (PostgreSQL, in SQL).
    pub counted: Option<Counted>,
    /// Slugs by id, when the batches came without them.
    pub slugs: Option<Slugs>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    pub rows: u64,
    pub views: i64,
}

#[derive(Debug, Clone, Default)]
pub struct Slugs {
    pub projects: HashMap<i32, String>,
    pub versions: HashMap<i32, String>,
}
