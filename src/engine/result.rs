//! The result of a statement as Arrow, vector of rows by vector of rows, and what DuckDB says when it fails.

use std::sync::Arc;

use arrow::array::{RecordBatch, StructArray};
use arrow::datatypes::{Schema, SchemaRef};
use arrow::ffi::{FFI_ArrowArray, FFI_ArrowSchema, from_ffi};
use duckdb::ffi;

use super::instance::text;
use super::refused;
use crate::base::error::Result;

/// DuckDB's own messages are short, unless they repeat a long statement.
const MAX_MESSAGE: usize = 2_000;

pub(super) struct QueryResult {
    pub(super) raw: ffi::duckdb_result,
    options: ffi::duckdb_arrow_options,
    schema: FFI_ArrowSchema,
    /// DuckDB answers with an error when asked again after the end.
    ended: bool,
}

impl QueryResult {
    pub(super) fn new() -> Self {
        // SAFETY: a result is a plain record, for which zeroes mean that nothing is held.
        let raw = unsafe { std::mem::zeroed() };
        Self {
            raw,
            options: std::ptr::null_mut(),
            schema: FFI_ArrowSchema::empty(),
            ended: false,
        }
    }

    /// The Arrow schema, kept also in the form in which batches are imported.
    pub(super) fn schema(&mut self) -> Result<SchemaRef> {
        // SAFETY: the result is that of a successful execution; names and types live until the call that
        // copies them; the two declarations of Arrow's C schema have the layout of its specification.
        unsafe {
            self.options = ffi::duckdb_result_get_arrow_options(&mut self.raw);
            let count = ffi::duckdb_column_count(&mut self.raw);
            let mut types: Vec<_> = (0..count)
                .map(|i| ffi::duckdb_column_logical_type(&mut self.raw, i))
                .collect();
            let mut names: Vec<_> = (0..count).map(|i| ffi::duckdb_column_name(&mut self.raw, i)).collect();
            let target = (&raw mut self.schema).cast::<ffi::ArrowSchema>();
            let error =
                ffi::duckdb_to_arrow_schema(self.options, types.as_mut_ptr(), names.as_mut_ptr(), count, target);
            for logical in &mut types {
                ffi::duckdb_destroy_logical_type(logical);
            }
            checked(error).map_err(|failure| refused(failure.message))?;
        }
        let schema = Schema::try_from(&self.schema).map_err(|error| refused(error.to_string()))?;
        Ok(Arc::new(schema))
    }

    /// The next rows; none at the end.
    pub(super) fn fetch(&mut self, schema: &SchemaRef) -> Result<Option<RecordBatch>, Failure> {
        if self.ended {
            return Ok(None);
        }
        self.ended = true;
        // SAFETY: the result is that of a successful execution; the chunk is destroyed once, and the
        // array's ownership goes to `from_ffi`, with the schema of the same result.
        let array = unsafe {
            let mut chunk = ffi::duckdb_fetch_chunk(self.raw);
            if chunk.is_null() {
                let message = text(ffi::duckdb_result_error(&mut self.raw));
                return if message.is_empty() {
                    Ok(None)
                } else {
                    Err(Failure::new(&message))
                };
            }
            let rows = ffi::duckdb_data_chunk_get_size(chunk);
            let mut array = FFI_ArrowArray::empty();
            let target = (&raw mut array).cast::<ffi::ArrowArray>();
            let error = ffi::duckdb_data_chunk_to_arrow(self.options, chunk, target);
            ffi::duckdb_destroy_data_chunk(&mut chunk);
            checked(error)?;
            if rows == 0 {
                return Ok(None);
            }
            self.ended = false;
            from_ffi(array, &self.schema).map_err(|error| Failure::new(&error.to_string()))?
        };
        let batch = RecordBatch::from(StructArray::from(array));
        batch
            .with_schema(Arc::clone(schema))
            .map(Some)
            .map_err(|error| Failure::new(&error.to_string()))
    }
}

impl Drop for QueryResult {
    fn drop(&mut self) {
        // SAFETY: each is made by DuckDB, or null or zero, and destroyed once.
        unsafe {
            if !self.options.is_null() {
                ffi::duckdb_destroy_arrow_options(&mut self.options);
            }
            ffi::duckdb_destroy_result(&mut self.raw);
        }
    }
}

/// # Safety
/// The error must be null or come from DuckDB, and is destroyed here.
unsafe fn checked(mut error: ffi::duckdb_error_data) -> Result<(), Failure> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: not null; the message is copied before it is destroyed.
    unsafe {
        let failed = ffi::duckdb_error_data_has_error(error);
        let message = text(ffi::duckdb_error_data_message(error));
        ffi::duckdb_destroy_error_data(&mut error);
        if failed { Err(Failure::new(&message)) } else { Ok(()) }
    }
}

/// What DuckDB says.
pub(super) struct Failure {
    pub(super) message: String,
    /// The instance should not be used again.
    pub(super) fatal: bool,
}

impl Failure {
    pub(super) fn new(message: &str) -> Self {
        let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| message.starts_with(prefix));
        let full = starts(&["Out of Memory Error"]);
        let fatal = full || starts(&["INTERNAL Error", "FATAL Error"]);
        let own = message.split("\n\nStack Trace:").next().unwrap_or(message);
        let own = own
            .split("\nThis error signals an assertion failure")
            .next()
            .unwrap_or(own)
            .trim_end();
        let message = if full {
            let first = own.lines().next().unwrap_or(own);
            format!("{first}; ask for fewer days, projects or columns, or allow more memory")
        } else if own.len() > MAX_MESSAGE {
            own.chars().take(MAX_MESSAGE).chain("...".chars()).collect()
        } else {
            own.to_owned()
        };
        Self { message, fatal }
    }
}
