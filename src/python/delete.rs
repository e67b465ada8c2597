//! Deleting exported rows, for `parquet_analytics.exporter`.

use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::archive::delete::{self, DeleteOptions, DeleteProgress};
use crate::base::error::{Error, Result};
use crate::base::keys::Day;
use crate::base::runtime::Cancel;
use crate::source::postgres::deletion::Limits;

use super::errors::OrRaise;
use super::export::{first_ids, progress_reporter};
use super::run::run;
use super::sources::PyPostgresSource;
use super::store::PyStore;

/// Deletes a day's exported rows from a database and says what was kept.
#[pyfunction]
#[pyo3(signature = (store, source, prefix, day, *, etag, allow_local, accept_moved_database, allow_cascades, lose_columns, batch_rows,
                    pause, max_rows_per_second, max_replica_lag, lock_timeout, statement_timeout, progress))]
#[allow(clippy::too_many_arguments)]
pub fn delete_day<'py>(
    py: Python<'py>,
    store: &PyStore,
    source: &PyPostgresSource,
    prefix: &str,
    day: &str,
    etag: Option<String>,
    allow_local: bool,
    accept_moved_database: bool,
    allow_cascades: bool,
    lose_columns: Vec<String>,
    batch_rows: usize,
    pause: f64,
    max_rows_per_second: Option<f64>,
    max_replica_lag: Option<f64>,
    lock_timeout: f64,
    statement_timeout: f64,
    progress: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let day: Day = day.parse().or_raise()?;
    let options = DeleteOptions {
        prefix: prefix.parse().or_raise()?,
        allow_local,
        accept_moved_database,
        allow_cascades,
        lose_columns,
        etag,
        batch_rows,
        pause: seconds("pause", pause).or_raise()?,
        max_rows_per_second,
        max_replica_lag: max_replica_lag
            .map(|lag| seconds("max_replica_lag", lag))
            .transpose()
            .or_raise()?,
        limits: Limits {
            statement: seconds("statement_timeout", statement_timeout).or_raise()?,
            lock: seconds("lock_timeout", lock_timeout).or_raise()?,
        },
    };
    let counter = DeleteProgress::default();
    let report = progress_reporter(progress.as_ref(), || counter.rows());
    let source = source.source();
    let cancel = Cancel::new();
    let work = || delete::delete(&source, &store.inner, day, &options, &counter, &cancel);
    let deleted = run(py, &cancel, work, report)?;
    let result = PyDict::new(py);
    result.set_item("date", day.to_string())?;
    result.set_item("key", &deleted.key)?;
    result.set_item("etag", &deleted.etag)?;
    result.set_item("bytes", deleted.bytes)?;
    result.set_item("deleted", deleted.deleted)?;
    for (name, ids) in [
        ("changed", &deleted.rest.changed),
        ("late", &deleted.rest.missing),
        ("busy", &deleted.rest.unchanged),
        ("moved", &deleted.rest.elsewhere),
    ] {
        result.set_item(name, ids.len())?;
        result.set_item(format!("{name}_ids"), first_ids(ids))?;
    }
    result.set_item("left", deleted.rest.left.len())?;
    result.set_item("batches", deleted.batches)?;
    result.set_item("seconds", deleted.time.as_secs_f64())?;
    Ok(result)
}

fn seconds(name: &str, given: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(given)
        .map_err(|_| Error::invalid(format!("{name} is {given}; pass seconds, zero or more")))
}
