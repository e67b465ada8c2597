//! One statement from its text to its rows: exactly one, of type SELECT, prepared, bound, executed
//! streaming, and fetched while the caller iterates.

use std::mem::ManuallyDrop;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use duckdb::ffi;

use super::instance::{self, Connection, Instance, c_string, text};
use super::parameters;
use super::result::{Failure, QueryResult};
use super::table_function::QueryState;
use super::watch::Watch;
use super::{Limits, Params, Relation, refused};
use crate::base::error::Result;
use crate::base::runtime::Cancel;

/// DuckDB answers in vectors of 2,048 rows; they are put together into batches of about this size.
const BATCH_ROWS: usize = 65_536;
const BATCH_BYTES: usize = 16 << 20;

/// The rows of a running statement, computed as they are asked for. Dropping it stops the statement.
pub struct Rows {
    schema: SchemaRef,
    /// None at the end, after an error too. Left alone, not freed, in a child process after a fork.
    running: Option<ManuallyDrop<Box<Running>>>,
    process: u32,
}

/// What a running statement holds. The fields are freed in this order.
struct Running {
    result: QueryResult,
    _prepared: Prepared,
    session: Session,
}

/// A connection to an instance that serves one statement.
struct Session {
    watch: Watch,
    state: Arc<QueryState>,
    connection: Option<Connection>,
    instance: Option<Instance>,
    healthy: bool,
}

pub(super) fn start(
    relation: Arc<dyn Relation>,
    sql: &str,
    params: &Params,
    limits: &Limits,
    cancel: &Cancel,
) -> Result<Rows> {
    begins_as_a_read(sql)?;
    let sql = c_string(sql)?;
    let state = Arc::new(QueryState::new(relation, limits.threads));
    let mut session = Session::open(state, limits, cancel)?;
    let connection = session.raw();
    let prepared = session.step(|| Prepared::new(connection, &sql))?;
    parameters::bind(prepared.0, params)?;
    let mut result = session.step(|| prepared.execute())?;
    let schema = result.schema()?;
    let running = Box::new(Running {
        result,
        _prepared: prepared,
        session,
    });
    Ok(Rows {
        schema,
        running: Some(ManuallyDrop::new(running)),
        process: std::process::id(),
    })
}

/// Refuses a text that begins as another statement than a read, before DuckDB looks at it: binding a COPY
/// or a PRAGMA already does things. What is let through here is still checked by its type.
fn begins_as_a_read(sql: &str) -> Result<()> {
    const READS: [&str; 10] = [
        "SELECT",
        "WITH",
        "FROM",
        "VALUES",
        "TABLE",
        "DESCRIBE",
        "SHOW",
        "SUMMARIZE",
        "PIVOT",
        "UNPIVOT",
    ];
    let mut rest = sql;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == '(' || c == ';');
        rest = if let Some(comment) = rest.strip_prefix("--") {
            comment.split_once('\n').map_or("", |(_, after)| after)
        } else if let Some(comment) = rest.strip_prefix("/*") {
            comment.split_once("*/").map_or("", |(_, after)| after)
        } else {
            break;
        };
    }
    let end = rest.find(|c: char| !c.is_alphabetic()).unwrap_or(rest.len());
    let word = rest.get(..end).unwrap_or_default();
    if READS.iter().any(|read| read.eq_ignore_ascii_case(word)) {
        return Ok(());
    }
    let found = match word {
        "" => "it does not begin with a word of SQL".to_owned(),
        word => format!("it begins with {}", word.chars().take(30).collect::<String>()),
    };
    Err(refused(format!(
        "only one reading statement is allowed (SELECT, WITH, FROM, VALUES, DESCRIBE ...), but {found}"
    )))
}

impl Rows {
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn end(&mut self) {
        if let Some(running) = self.running.take()
            && self.process == std::process::id()
        {
            drop(ManuallyDrop::into_inner(running));
        }
    }
}

impl Iterator for Rows {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.process != std::process::id() {
            self.end();
            return None;
        }
        let batch = self.running.as_mut()?.next_batch(&self.schema).transpose();
        if !matches!(batch, Some(Ok(_))) {
            self.end();
        }
        batch
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        self.end();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Threads of the instance may still be reading; freeing the result waits for them.
        self.session.watch.finish();
    }
}

impl Running {
    fn next_batch(&mut self, schema: &SchemaRef) -> Result<Option<RecordBatch>> {
        let (mut batches, mut rows, mut bytes) = (Vec::new(), 0, 0);
        while rows < BATCH_ROWS && bytes < BATCH_BYTES {
            let result = &mut self.result;
            let Some(batch) = self.session.step(|| result.fetch(schema))? else {
                break;
            };
            rows += batch.num_rows();
            bytes += batch.get_array_memory_size();
            batches.push(batch);
        }
        match batches.len() {
            0 => Ok(None),
            1 => Ok(batches.pop()),
            _ => concat_batches(schema, &batches)
                .map(Some)
                .map_err(|error| refused(error.to_string())),
        }
    }
}

impl Session {
    fn open(state: Arc<QueryState>, limits: &Limits, cancel: &Cancel) -> Result<Self> {
        let instance = instance::check_out(limits)?;
        let connection = instance.connect()?;
        let watch = Watch::start(connection.0, &state, limits.timeout, cancel)?;
        instance.serve(Some(Arc::clone(&state)));
        Ok(Self {
            watch,
            state,
            connection: Some(connection),
            instance: Some(instance),
            healthy: true,
        })
    }

    fn raw(&self) -> ffi::duckdb_connection {
        self.connection
            .as_ref()
            .map_or(std::ptr::null_mut(), |connection| connection.0)
    }

    /// Runs a step in DuckDB. Of the reasons why it failed the first in the chain is returned: the stop
    /// that was asked for, the relation's own error, DuckDB's.
    fn step<T>(&mut self, step: impl FnOnce() -> Result<T, Failure>) -> Result<T> {
        if let Some(stopped) = self.watch.stopped() {
            return Err(stopped);
        }
        let outcome = self.watch.timed(step);
        outcome.map_err(|failure| {
            self.healthy &= !failure.fatal;
            let error = self.state.take_error();
            self.watch
                .stopped()
                .or(error)
                .unwrap_or_else(|| refused(failure.message))
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.watch.finish();
        // The one setting that a SELECT can change for the whole instance is logging; its next statement
        // must not be logged for others to read.
        let unlogged = self.connection.take().is_some_and(|connection| !connection.logs());
        if let Some(instance) = self.instance.take() {
            instance.serve(None);
            if self.healthy && unlogged {
                instance::check_in(instance);
            }
        }
    }
}

struct Prepared(ffi::duckdb_prepared_statement);

impl Prepared {
    /// Prepares the text's only statement. (DuckDB's plain prepare would execute all but the last.)
    fn new(connection: ffi::duckdb_connection, sql: &std::ffi::CStr) -> Result<Self, Failure> {
        let mut extracted = Extracted(std::ptr::null_mut());
        // SAFETY: the connection is open and the text a C string; DuckDB sets the handle in any case.
        let count = unsafe { ffi::duckdb_extract_statements(connection, sql.as_ptr(), &mut extracted.0) };
        if count == 0 {
            // SAFETY: the handle was set above; the message belongs to it.
            let message = unsafe { text(ffi::duckdb_extract_statements_error(extracted.0)) };
            let empty = "the text holds no statement; one SELECT is needed";
            return Err(Failure::new(if message.is_empty() { empty } else { &message }));
        }
        if count > 1 {
            return Err(Failure::new(&format!(
                "only one reading statement is allowed, but the text holds {count} (a PIVOT without its \
                 values, as in ON status IN (200, 404), counts as several)"
            )));
        }
        let mut prepared = Self(std::ptr::null_mut());
        // SAFETY: there is a statement at index 0, and the handle, which is set in any case, is freed on drop.
        unsafe {
            let state = ffi::duckdb_prepare_extracted_statement(connection, extracted.0, 0, &mut prepared.0);
            if state != ffi::DuckDBSuccess {
                return Err(Failure::new(&text(ffi::duckdb_prepare_error(prepared.0))));
            }
            match ffi::duckdb_prepared_statement_type(prepared.0) {
                ffi::duckdb_statement_type_DUCKDB_STATEMENT_TYPE_SELECT => Ok(prepared),
                _ => Err(Failure::new("only one reading statement is allowed")),
            }
        }
    }

    /// Begins execution. (In two steps, because DuckDB's single call can lose the message.)
    fn execute(&self) -> Result<QueryResult, Failure> {
        let mut pending = Pending(std::ptr::null_mut());
        let mut result = QueryResult::new();
        // SAFETY: the statement is prepared; the pending result and the result are initialized by DuckDB in
        // any case, and freed on drop.
        unsafe {
            if ffi::duckdb_pending_prepared_streaming(self.0, &mut pending.0) != ffi::DuckDBSuccess {
                return Err(Failure::new(&text(ffi::duckdb_pending_error(pending.0))));
            }
            match ffi::duckdb_execute_pending(pending.0, &mut result.raw) {
                ffi::DuckDBSuccess => Ok(result),
                _ => Err(Failure::new(&text(ffi::duckdb_result_error(&mut result.raw)))),
            }
        }
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        // SAFETY: made here, destroyed once; a null handle is let be.
        unsafe { ffi::duckdb_destroy_prepare(&mut self.0) };
    }
}

struct Extracted(ffi::duckdb_extracted_statements);

impl Drop for Extracted {
    fn drop(&mut self) {
        // SAFETY: made here, destroyed once; a null handle is let be.
        unsafe { ffi::duckdb_destroy_extracted(&mut self.0) };
    }
}

struct Pending(ffi::duckdb_pending_result);

impl Drop for Pending {
    fn drop(&mut self) {
        // SAFETY: made here, destroyed once; a null handle is let be.
        unsafe { ffi::duckdb_destroy_pending(&mut self.0) };
    }
}

// SAFETY: the handles belong to one connection, which only the owner of the rows uses; DuckDB binds none of
// them to a thread. They are never shared: every use takes `&mut Rows`.
unsafe impl Send for Running {}
