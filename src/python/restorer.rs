//! The file of a day whose rows go back into a table, for `parquet_analytics.django.restore`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::types::PyDict;
use pyo3_arrow::PyRecordBatchReader;

use crate::archive::export::ExportOptions;
use crate::archive::restore;
use crate::archive::stored::StoredDay;
use crate::base::keys::{Day, Prefix};
use crate::base::runtime::Cancel;
use crate::file::sort::SortOptions;

use super::errors::OrRaise;
use super::run::run;
use super::sources::{AnySource, PyPostgresSource};
use super::store::PyStore;

/// Calls `alive` about once a second.
fn heartbeat<'py>(alive: &'py Bound<'py, PyAny>) -> impl FnMut(Python<'_>) -> PyResult<()> + 'py {
    let mut last: Option<Instant> = None;
    move |_| {
        if last.is_none_or(|last| last.elapsed() >= Duration::from_secs(1)) {
            last = Some(Instant::now());
            alive.call0()?;
        }
        Ok(())
    }
}

fn describe<'py>(py: Python<'py>, stored: &StoredDay) -> PyResult<Bound<'py, PyDict>> {
    let result = PyDict::new(py);
    result.set_item("key", &stored.key)?;
    result.set_item("etag", &stored.etag)?;
    result.set_item("sha256", &stored.sha256)?;
    result.set_item("run_id", &stored.run_id)?;
    Ok(result)
}

/// One version of a day's file, verified, and its rows.
#[pyfunction]
#[pyo3(signature = (store, prefix, day, *, source, accept_moved_database, alive))]
#[allow(clippy::needless_pass_by_value)]
pub fn read_for_restoration<'py>(
    py: Python<'py>,
    store: &PyStore,
    prefix: &str,
    day: &str,
    source: Option<PyRef<'py, PyPostgresSource>>,
    accept_moved_database: bool,
    alive: Bound<'py, PyAny>,
) -> PyResult<(Bound<'py, PyDict>, PyRecordBatchReader)> {
    let day: Day = day.parse().or_raise()?;
    let prefix: Prefix = prefix.parse().or_raise()?;
    let source = source.map(|source| source.source());
    let cancel = Cancel::new();
    let work = || {
        restore::read(
            &store.inner,
            &prefix,
            day,
            source.as_ref(),
            accept_moved_database,
            &cancel,
        )
    };
    let (stored, rows) = run(py, &cancel, work, heartbeat(&alive))?;
    Ok((describe(py, &stored)?, PyRecordBatchReader::new(rows)))
}

/// Right before restored rows are committed.
#[pyfunction]
#[pyo3(signature = (store, prefix, day, *, over, rows, sort_memory, temp_dir, row_group_rows, alive))]
#[allow(clippy::too_many_arguments, clippy::needless_pass_by_value)]
pub fn prepare_restoration<'py>(
    py: Python<'py>,
    store: &PyStore,
    prefix: &str,
    day: &str,
    over: &str,
    rows: Option<AnySource>,
    sort_memory: usize,
    temp_dir: Option<PathBuf>,
    row_group_rows: usize,
    alive: Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyDict>> {
    let day: Day = day.parse().or_raise()?;
    let options = ExportOptions {
        prefix: prefix.parse().or_raise()?,
        sort: SortOptions {
            memory_bytes: sort_memory,
            temp_dir,
        },
        row_group_rows,
        ..ExportOptions::default()
    };
    let mut rows = rows.map(AnySource::open).transpose()?;
    let cancel = Cancel::new();
    let work = || match &mut rows {
        Some(rows) => restore::prepare(&store.inner, day, over, Some(rows.as_mut()), &options, &cancel),
        None => restore::prepare(&store.inner, day, over, None, &options, &cancel),
    };
    let stored = run(py, &cancel, work, heartbeat(&alive))?;
    describe(py, &stored)
}

/// Once restored rows are committed.
#[pyfunction]
#[pyo3(signature = (store, prefix, day, *, over, present, alive))]
#[allow(clippy::needless_pass_by_value)]
pub fn finish_restoration<'py>(
    py: Python<'py>,
    store: &PyStore,
    prefix: &str,
    day: &str,
    over: &str,
    present: Option<Vec<i64>>,
    alive: Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyDict>> {
    let day: Day = day.parse().or_raise()?;
    let prefix: Prefix = prefix.parse().or_raise()?;
    let cancel = Cancel::new();
    let work = || restore::finish(&store.inner, &prefix, day, over, present, &cancel);
    let stored = run(py, &cancel, work, heartbeat(&alive))?;
    describe(py, &stored)
}
