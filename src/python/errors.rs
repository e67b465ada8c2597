//! Maps the core's errors to the exceptions of `parquet_analytics.exceptions`.

use pyo3::exceptions::PyUnicodeEncodeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::base::error::{Error, Kind, Result};

/// The exception's class for an error.
fn class_of(error: &Error) -> &'static str {
    match error.inner() {
        Error::InvalidInput { .. } => "InvalidInput",
        Error::Configuration { .. } => "ConfigurationError",
        Error::Source { .. } => "SourceError",
        Error::SourceSchema { .. } => "SourceSchemaError",
        Error::BadRow { .. } => "BadRow",
        Error::NoRows { .. } => "DayHasNoRows",
        Error::Stale { .. } => "StaleSnapshot",
        Error::IdConflict { .. } => "IdConflict",
        Error::Database { .. } => "DatabaseError",
        Error::Permission { .. } => "PermissionDenied",
        Error::Store { .. } => "StoreError",
        Error::Conflict { .. } => "Conflict",
        Error::CorruptFile { .. } => "CorruptFile",
        Error::NotStored { .. } => "DayNotStored",
        Error::Lost { .. } => "DayLost",
        Error::Mismatch { .. } => "VerificationFailed",
        Error::DeletionRefused { .. } => "DeletionRefused",
        Error::ErasureRefused { .. } => "ErasureRefused",
        Error::CommitStateUnknown { .. } => "CommitStateUnknown",
        Error::Query { .. } => "QueryError",
        Error::Io { .. } => "LocalFileError",
        Error::Interrupted => "Interrupted",
        Error::Internal { .. } | Error::OnDay { .. } => "InternalError",
    }
}

fn build<'py>(py: Python<'py>, error: &Error) -> PyResult<Bound<'py, PyAny>> {
    let class = py
        .import(intern!(py, "parquet_analytics.exceptions"))?
        .getattr(class_of(error))?;
    let attributes = PyDict::new(py);
    attributes.set_item("retryable", error.kind() == Kind::Retry)?;
    if let Some(day) = error.day() {
        attributes.set_item("day", day.date())?;
    }
    if let Some(key) = error.key() {
        attributes.set_item("key", key)?;
    }
    match error.inner() {
        Error::BadRow { row_id, column, .. } => {
            attributes.set_item("row_id", row_id)?;
            attributes.set_item("column", column)?;
        }
        Error::DeletionRefused { export_first, .. } => {
            let days: Vec<_> = export_first.iter().map(|day| day.date()).collect();
            attributes.set_item("export_first", PyTuple::new(py, days)?)?;
        }
        Error::IdConflict { row_id, .. } => attributes.set_item("row_id", row_id)?,
        Error::SourceSchema { column, .. } => attributes.set_item("column", column)?,
        Error::Database { sqlstate, .. } => attributes.set_item("sqlstate", sqlstate)?,
        Error::CommitStateUnknown { run_id, .. } => attributes.set_item("run_id", run_id)?,
        _ => {}
    }
    class.call((error.to_string(),), Some(&attributes))
}

pub fn to_exception(py: Python<'_>, error: &Error) -> PyErr {
    match build(py, error) {
        Ok(exception) => PyErr::from_value(exception),
        Err(failed) => failed,
    }
}

/// Text that may hold a secret. Python's own error for text that is no Unicode (an environment variable that is not
/// UTF-8) would repeat all of it.
pub struct Secret(pub String);

impl<'a, 'py> FromPyObject<'a, 'py> for Secret {
    type Error = PyErr;

    fn extract(given: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        given.extract::<String>().map(Self).map_err(|error| {
            let py = given.py();
            if error.is_instance_of::<PyUnicodeEncodeError>(py) {
                let why =
                    "a connection string or storage option holds bytes that are not UTF-8; correct where it comes from";
                return to_exception(py, &Error::configuration(why));
            }
            error
        })
    }
}

/// Turns the core's results into Python's.
pub trait OrRaise<T> {
    fn or_raise(self) -> PyResult<T>;
}

impl<T> OrRaise<T> for Result<T> {
    fn or_raise(self) -> PyResult<T> {
        self.map_err(|error| Python::attach(|py| to_exception(py, &error)))
    }
}
