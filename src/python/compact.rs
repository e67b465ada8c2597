//! Upkeep of what is derived, for `parquet_analytics.exporter`.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::base::keys::Day;
use crate::base::runtime::Cancel;
use crate::derived::compact::{CompactOptions, Outcome, Progress, compact};

use super::errors::OrRaise;
use super::export::progress_reporter;
use super::run::run;
use super::store::PyStore;

/// Brings the derived files of months up to date, and says what became of each.
#[pyfunction]
#[pyo3(signature = (store, prefix, since, until, *, existing, temp_dir, progress))]
#[allow(clippy::too_many_arguments)]
pub fn compact_days<'py>(
    py: Python<'py>,
    store: &PyStore,
    prefix: &str,
    since: Option<&str>,
    until: Option<&str>,
    existing: bool,
    temp_dir: Option<PathBuf>,
    progress: Option<Bound<'py, PyAny>>,
) -> PyResult<Vec<Bound<'py, PyDict>>> {
    let day = |text: Option<&str>| text.map(|text| text.parse::<Day>().or_raise()).transpose();
    let (since, until) = (day(since)?, day(until)?);
    let options = CompactOptions {
        prefix: prefix.parse().or_raise()?,
        temp_dir,
        existing,
    };
    let so_far = Progress::default();
    let report = progress_reporter(progress.as_ref(), || so_far.months());
    let cancel = Cancel::new();
    let work = || compact(&store.inner, &options, since, until, &so_far, &cancel);
    let done = run(py, &cancel, work, report)?;
    done.into_iter()
        .map(|month| {
            let result = PyDict::new(py);
            result.set_item("month", month.name)?;
            let outcome = match month.outcome {
                Outcome::Created => "created",
                Outcome::Updated => "updated",
                Outcome::Unchanged => "unchanged",
                Outcome::Removed => "removed",
                Outcome::TooLarge => "too large",
            };
            result.set_item("outcome", outcome)?;
            result.set_item("days", month.days)?;
            result.set_item("days_read", month.days_read)?;
            result.set_item("rows", month.rows)?;
            result.set_item("bytes", month.bytes)?;
            Ok(result)
        })
        .collect()
}
