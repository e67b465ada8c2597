//! The table function through which DuckDB reads a relation: columns as the statement needs them, several
//! threads, at most one vector of rows a call. Errors stay typed in the query's state; no panic crosses.

use std::any::Any;
use std::collections::VecDeque;
use std::ffi::{CStr, CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use arrow::array::RecordBatch;
use arrow::datatypes::DataType;
use duckdb::ffi;

use super::{Batches, RELATION, Relation, Unit, fill};
use crate::base::error::{Error, Result};
use crate::base::process::lock;

const NAME: &CStr = c"pageviews";

/// What DuckDB is told when the real error waits in [`QueryState`].
const FAILED: &CStr = c"the page views could not be read";

/// One running statement, shared by the caller and DuckDB's threads.
pub(super) struct QueryState {
    relation: Arc<dyn Relation>,
    threads: usize,
    error: Mutex<Option<Error>>,
    stopped: Arc<AtomicBool>,
}

impl QueryState {
    pub(super) fn new(relation: Arc<dyn Relation>, threads: usize) -> Self {
        Self {
            relation,
            threads,
            error: Mutex::new(None),
            stopped: Arc::default(),
        }
    }

    /// Keeps the first error; those after it are mostly its consequences.
    fn fail(&self, error: Error) {
        lock(&self.error).get_or_insert(error);
    }

    pub(super) fn take_error(&self) -> Option<Error> {
        lock(&self.error).take()
    }

    /// Set to end the scans at their next vector of rows.
    pub(super) fn stopped(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stopped)
    }
}

/// Where an instance's table function finds the statement that runs on the instance.
#[derive(Default)]
pub(super) struct Slot(Mutex<Option<Arc<QueryState>>>);

impl Slot {
    pub(super) fn set(&self, state: Option<Arc<QueryState>>) {
        let before = std::mem::replace(&mut *lock(&self.0), state);
        drop(before);
    }

    fn get(&self) -> Option<Arc<QueryState>> {
        lock(&self.0).clone()
    }
}

/// One use of the relation in a statement (a self-join has two).
struct Scan {
    state: Arc<QueryState>,
    /// For each column that DuckDB asked for its place in a batch; none for a row number that it never reads.
    places: Vec<Option<usize>>,
    /// The types that every batch has to have.
    types: Vec<DataType>,
    units: Mutex<VecDeque<Unit>>,
    /// Units that were begun and have more rows; whichever thread comes next goes on with one.
    begun: Mutex<Vec<Begun>>,
}

struct Begun {
    batches: Batches,
    batch: RecordBatch,
    next_row: usize,
}

/// Registers the table function, and makes it what the name `pageviews` means.
pub(super) fn register(
    database: ffi::duckdb_database,
    connection: ffi::duckdb_connection,
    slot: &Arc<Slot>,
) -> Result<()> {
    let extra = Box::into_raw(Box::new(Arc::clone(slot))).cast::<c_void>();
    // SAFETY: the handles are open; the function is destroyed after DuckDB has copied it, and the extra
    // information is freed by DuckDB with the type it was made of.
    let state = unsafe {
        let mut function = ffi::duckdb_create_table_function();
        ffi::duckdb_table_function_set_name(function, NAME.as_ptr());
        ffi::duckdb_table_function_supports_projection_pushdown(function, true);
        ffi::duckdb_table_function_set_bind(function, Some(bind));
        ffi::duckdb_table_function_set_init(function, Some(init));
        ffi::duckdb_table_function_set_function(function, Some(scan));
        ffi::duckdb_table_function_set_extra_info(function, extra, Some(drop_boxed::<Arc<Slot>>));
        let state = ffi::duckdb_register_table_function(connection, function);
        ffi::duckdb_destroy_table_function(&mut function);
        ffi::duckdb_add_replacement_scan(database, Some(replace), std::ptr::null_mut(), None);
        state
    };
    if state == ffi::DuckDBSuccess {
        Ok(())
    } else {
        Err(Error::internal("DuckDB refused the table function"))
    }
}

unsafe extern "C" fn replace(info: ffi::duckdb_replacement_scan_info, table: *const c_char, _: *mut c_void) {
    // SAFETY: DuckDB gives a valid C string and a handle that lives for this call.
    unsafe {
        if !table.is_null()
            && CStr::from_ptr(table)
                .to_bytes()
                .eq_ignore_ascii_case(RELATION.as_bytes())
        {
            ffi::duckdb_replacement_scan_set_function_name(info, NAME.as_ptr());
        }
    }
}

unsafe extern "C" fn bind(info: ffi::duckdb_bind_info) {
    // SAFETY: DuckDB calls with a valid handle, whose extra information is the slot that was registered.
    unsafe {
        let slot = &*ffi::duckdb_bind_get_extra_info(info).cast::<Arc<Slot>>();
        let outcome = slot
            .get()
            .filter(|state| contained(state, || describe(info, state)).is_ok());
        match outcome {
            Some(state) => {
                let data = Box::into_raw(Box::new(state)).cast::<c_void>();
                ffi::duckdb_bind_set_bind_data(info, data, Some(drop_boxed::<Arc<QueryState>>));
            }
            None => ffi::duckdb_bind_set_error(info, FAILED.as_ptr()),
        }
    }
}

/// # Safety
/// The handle must be that of a running bind call.
unsafe fn describe(info: ffi::duckdb_bind_info, state: &QueryState) -> Result<()> {
    for field in state.relation.schema().fields() {
        let unusable = || {
            Error::internal(format!(
                "column {} of type {} cannot be queried",
                field.name(),
                field.data_type()
            ))
        };
        let duckdb_type = fill::duckdb_type(field.data_type()).ok_or_else(unusable)?;
        let name = CString::new(field.name().as_str()).map_err(|_| unusable())?;
        // SAFETY: the caller vouches for the handle; DuckDB copies the name and the type.
        unsafe {
            let mut logical = ffi::duckdb_create_logical_type(duckdb_type);
            ffi::duckdb_bind_add_result_column(info, name.as_ptr(), logical);
            ffi::duckdb_destroy_logical_type(&mut logical);
        }
    }
    Ok(())
}

unsafe extern "C" fn init(info: ffi::duckdb_init_info) {
    // SAFETY: DuckDB calls with a valid handle, whose bind data `bind` has set.
    unsafe {
        let state = &*ffi::duckdb_init_get_bind_data(info).cast::<Arc<QueryState>>();
        let count = ffi::duckdb_init_get_column_count(info);
        let columns: Vec<u64> = (0..count)
            .map(|index| ffi::duckdb_init_get_column_index(info, index))
            .collect();
        match contained(state, || open(state, &columns)) {
            Ok(scan) => {
                let units = lock(&scan.units).len();
                ffi::duckdb_init_set_max_threads(info, units.clamp(1, state.threads.max(1)) as u64);
                let data = Box::into_raw(Box::new(scan)).cast::<c_void>();
                ffi::duckdb_init_set_init_data(info, data, Some(drop_boxed::<Scan>));
            }
            Err(_) => ffi::duckdb_init_set_error(info, FAILED.as_ptr()),
        }
    }
}

fn open(state: &Arc<QueryState>, columns: &[u64]) -> Result<Scan> {
    let schema = state.relation.schema();
    let mut projection = Vec::with_capacity(columns.len());
    let mut types = Vec::with_capacity(columns.len());
    let mut places = Vec::with_capacity(columns.len());
    for column in columns {
        // Beyond the columns are DuckDB's virtual ones, which it asks for when it only counts rows.
        let column = usize::try_from(*column)
            .ok()
            .filter(|column| *column < schema.fields().len());
        places.push(column.map(|column| {
            projection.push(column);
            types.push(schema.field(column).data_type().clone());
            projection.len() - 1
        }));
    }
    let units = state.relation.open(&projection)?;
    Ok(Scan {
        state: Arc::clone(state),
        places,
        types,
        units: Mutex::new(units.into()),
        begun: Mutex::new(Vec::new()),
    })
}

unsafe extern "C" fn scan(info: ffi::duckdb_function_info, output: ffi::duckdb_data_chunk) {
    // SAFETY: DuckDB calls with valid handles, whose init data `init` has set; the chunk has the columns
    // that were asked for, was reset, and belongs to this thread.
    unsafe {
        let scan = &*ffi::duckdb_function_get_init_data(info).cast::<Scan>();
        match contained(&scan.state, || scan.emit(output)) {
            Ok(rows) => ffi::duckdb_data_chunk_set_size(output, rows as u64),
            Err(_) => ffi::duckdb_function_set_error(info, FAILED.as_ptr()),
        }
    }
}

impl Scan {
    /// Writes the next rows and returns their number; none means that this thread has nothing more to do.
    ///
    /// # Safety
    /// The chunk must be empty and have the columns that were asked for.
    unsafe fn emit(&self, output: ffi::duckdb_data_chunk) -> Result<usize> {
        let Some(mut begun) = self.next_rows()? else {
            return Ok(0);
        };
        // SAFETY: takes no argument.
        let capacity = unsafe { ffi::duckdb_vector_size() } as usize;
        let rows = capacity.min(begun.batch.num_rows() - begun.next_row);
        for (column, place) in self.places.iter().enumerate() {
            let Some(place) = *place else { continue };
            let array = begun.batch.column(place).slice(begun.next_row, rows);
            // SAFETY: the vector was declared with this column's type, which `checked` has compared, and
            // has room for a full vector of rows.
            unsafe { fill::fill(ffi::duckdb_data_chunk_get_vector(output, column as u64), &array)? };
        }
        begun.next_row += rows;
        lock(&self.begun).push(begun);
        Ok(rows)
    }

    /// A batch with rows that were not emitted yet.
    fn next_rows(&self) -> Result<Option<Begun>> {
        loop {
            if self.state.stopped.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let waiting = lock(&self.begun).pop();
            let mut begun = match waiting {
                Some(begun) => begun,
                None => {
                    let Some(unit) = lock(&self.units).pop_front() else {
                        return Ok(None);
                    };
                    Begun {
                        batches: unit()?,
                        batch: RecordBatch::new_empty(Arc::new(arrow::datatypes::Schema::empty())),
                        next_row: 0,
                    }
                }
            };
            while begun.next_row >= begun.batch.num_rows() {
                match begun.batches.next() {
                    Some(batch) => {
                        begun.batch = self.checked(batch?)?;
                        begun.next_row = 0;
                    }
                    None => break,
                }
            }
            if begun.next_row < begun.batch.num_rows() {
                return Ok(Some(begun));
            }
        }
    }

    /// The types are what makes copying into DuckDB's vectors safe.
    fn checked(&self, batch: RecordBatch) -> Result<RecordBatch> {
        if batch.columns().iter().map(|column| column.data_type()).eq(&self.types) {
            Ok(batch)
        } else {
            Err(Error::internal("a batch does not have the columns that were asked for"))
        }
    }
}

/// Runs a callback's body; its error, or its panic as an error, is kept in the query's state.
fn contained<T>(state: &QueryState, body: impl FnOnce() -> Result<T>) -> Result<T, ()> {
    let error = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error,
        Err(payload) => {
            let error = Error::internal(format!(
                "reading page views panicked: {}",
                panic_message(payload.as_ref())
            ));
            // A payload's own destructor may panic; it is not worth a second containment.
            std::mem::forget(payload);
            error
        }
    };
    state.fail(error);
    Err(())
}

fn panic_message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&'static str>().copied())
        .unwrap_or("without a message")
}

/// Frees what a callback gave to DuckDB.
unsafe extern "C" fn drop_boxed<T>(data: *mut c_void) {
    // SAFETY: DuckDB hands back, once, the pointer that was made by `Box::into_raw` of a `Box<T>`.
    let value = unsafe { Box::from_raw(data.cast::<T>()) };
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(value))) {
        std::mem::forget(payload);
    }
}
