//! DuckDB: runs one read-only SQL statement over a relation of Arrow batches that we read ourselves.
//!
//! DuckDB sees no file, no network and no setting it could change: rows come in through a table function
//! of ours and go out as record batches while the caller iterates. What the rows are, and which stored
//! objects they come from, is the relation's business.

mod fill;
mod instance;
mod parameters;
mod result;
mod statement;
mod table_function;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use crate::base::error::{Error, Result};
use crate::base::runtime::Cancel;

pub use statement::Rows;

/// The name under which a statement reads the relation.
pub const RELATION: &str = "pageviews";

/// Longer statements are refused before DuckDB sees them.
pub const MAX_SQL_BYTES: usize = 1 << 20;

/// What a query reads under the name `pageviews`.
pub trait Relation: Send + Sync {
    /// All columns that a query may name.
    fn schema(&self) -> SchemaRef;

    /// Begins reading, once DuckDB has said which columns it needs (indexes into [`Self::schema`], in the
    /// order in which every batch has to hold them; may be empty when only rows are counted). The units
    /// are independent of one another and may be read by several threads at once, in any order.
    fn open(&self, projection: &[usize]) -> Result<Vec<Unit>>;

    /// [`Self::open`], for whoever can make use of rows that are in order of the columns asked for, but for the last.
    fn open_in_order(&self, projection: &[usize]) -> Result<Opened> {
        Ok(Opened {
            ordered: Vec::new(),
            rest: self.open(projection)?,
        })
    }
}

/// What was begun to be read.
#[derive(Default)]
pub struct Opened {
    /// Units whose rows are in order (by bytes, nulls first), also from one to the next.
    pub ordered: Vec<Vec<Unit>>,
    /// Those that are in no order.
    pub rest: Vec<Unit>,
}

/// A piece of work that yields batches: typically one row group.
pub type Unit = Box<dyn FnOnce() -> Result<Batches> + Send>;

pub type Batches = Box<dyn Iterator<Item = Result<RecordBatch>> + Send>;

/// A value for a placeholder of the statement. Values never become SQL text.
#[derive(Debug, Clone, PartialEq)]
pub enum Param {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    /// Days since 1970-01-01.
    Date(i32),
    Blob(Vec<u8>),
}

/// Values for `?` and `$1` by position, or for `$name` by name (names are compared without case, as SQL does).
#[derive(Debug, Clone, PartialEq)]
pub enum Params {
    Positional(Vec<Param>),
    Named(BTreeMap<String, Param>),
}

impl Params {
    pub fn none() -> Self {
        Self::Positional(Vec::new())
    }
}

impl Default for Params {
    fn default() -> Self {
        Self::none()
    }
}

impl From<Vec<Param>> for Params {
    fn from(values: Vec<Param>) -> Self {
        Self::Positional(values)
    }
}

/// What one statement may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Threads that work on one statement, the caller's among them.
    pub threads: usize,
    /// Memory that DuckDB may hold for one statement; nothing is spilled to disk.
    pub memory_bytes: u64,
    /// Time that DuckDB may work on one statement. Time in which the caller works on rows it has does not count.
    pub timeout: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            threads: cores.min(4),
            memory_bytes: 1 << 30,
            timeout: Some(Duration::from_secs(60)),
        }
    }
}

/// The rows of a statement. They are computed while they are iterated; dropping them stops the statement.
pub struct Answer {
    pub schema: SchemaRef,
    pub batches: Rows,
}

impl Answer {
    /// All rows at once.
    pub fn collect(self) -> Result<Vec<RecordBatch>> {
        self.batches.collect()
    }
}

/// Runs one `SELECT` over the relation, which it reads as `pageviews`.
///
/// Blocks until the first rows can be computed; never call it from async code. An error of the relation
/// comes back as it is; what DuckDB refuses or cannot do is [`Error::Query`], and a stop that was asked
/// for is [`Error::Interrupted`].
pub fn query(
    relation: Arc<dyn Relation>,
    sql: &str,
    params: &Params,
    limits: &Limits,
    cancel: &Cancel,
) -> Result<Answer> {
    cancel.check()?;
    if sql.len() > MAX_SQL_BYTES {
        return Err(refused(format!(
            "the statement has {} bytes; at most {MAX_SQL_BYTES} are accepted",
            sql.len()
        )));
    }
    let batches = statement::start(relation, sql, params, limits, cancel)?;
    Ok(Answer {
        schema: batches.schema(),
        batches,
    })
}

/// A statement that has to be changed.
pub(crate) fn refused(message: impl Into<String>) -> Error {
    Error::Query {
        message: message.into(),
        retryable: false,
    }
}

pub(crate) fn timed_out(timeout: Duration) -> Error {
    refused(format!(
        "the query was stopped by its timeout of {} s; ask for fewer days, projects or columns, or allow more time",
        timeout.as_secs_f64()
    ))
}
