//! Exporting, for `parquet_analytics.exporter`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use chrono::SecondsFormat;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::copies::CopyPlan;
use crate::error::Error;
use crate::export::{self, ExportOptions, Exported, Planned, Progress};
use crate::keys::{Day, Prefix, Scope};
use crate::runtime::Cancel;
use crate::sort::SortOptions;

use super::errors::OrRaise;
use super::run::{run, run_quietly};
use super::sources::AnySource;
use super::store::PyStore;

/// The key of a day's file or of a copy.
#[pyfunction]
pub fn parquet_path(prefix: &str, day: &str, organization: Option<&str>, project: Option<&str>) -> PyResult<String> {
    let scope = match (organization, project) {
        (Some(slug), _) => Scope::Organization(slug.parse().or_raise()?),
        (None, Some(slug)) => Scope::Project(slug.parse().or_raise()?),
        (None, None) => Scope::Day,
    };
    Ok(prefix
        .parse::<Prefix>()
        .or_raise()?
        .key(&scope, day.parse().or_raise()?))
}

/// What an export would do; writes nothing.
#[pyfunction]
pub fn plan_export<'py>(
    py: Python<'py>,
    store: &PyStore,
    source: AnySource,
    prefix: &str,
    day: &str,
    allow_open_day: bool,
) -> PyResult<Bound<'py, PyDict>> {
    let day: Day = day.parse().or_raise()?;
    let options = ExportOptions {
        prefix: prefix.parse().or_raise()?,
        allow_open_day,
        ..ExportOptions::default()
    };
    let mut source = source.open()?;
    let planned: Planned = run_quietly(py, |cancel| export::plan(source.as_mut(), day, &options, cancel))?;
    let result = PyDict::new(py);
    result.set_item("date", day.to_string())?;
    result.set_item("dry_run", true)?;
    result.set_item("total_records", planned.rows)?;
    let files = PyDict::new(py);
    files.set_item(&planned.key, planned.rows)?;
    result.set_item("files", files)?;
    result.set_item("url", store.inner.url_of(&planned.key))?;
    Ok(result)
}

/// Exports a day and says what was written.
#[pyfunction]
#[pyo3(signature = (store, source, prefix, day, *, per_project, organizations, replace, discard_stored, allow_empty,
                    allow_open_day, progress, sort_memory, temp_dir, row_group_rows))]
#[allow(clippy::too_many_arguments, clippy::fn_params_excessive_bools)]
pub fn export_day<'py>(
    py: Python<'py>,
    store: &PyStore,
    source: AnySource,
    prefix: &str,
    day: &str,
    per_project: bool,
    organizations: Option<BTreeMap<String, Vec<String>>>,
    replace: bool,
    discard_stored: bool,
    allow_empty: bool,
    allow_open_day: bool,
    progress: Option<Bound<'py, PyAny>>,
    sort_memory: usize,
    temp_dir: Option<PathBuf>,
    row_group_rows: usize,
) -> PyResult<Bound<'py, PyDict>> {
    let day: Day = day.parse().or_raise()?;
    if row_group_rows == 0 {
        return Err(Error::invalid("a row group holds at least one row")).or_raise();
    }
    let options = ExportOptions {
        prefix: prefix.parse().or_raise()?,
        copies: CopyPlan {
            per_project,
            organizations,
        },
        replace,
        discard_stored,
        allow_empty,
        allow_open_day,
        sort: SortOptions {
            memory_bytes: sort_memory,
            temp_dir,
        },
        row_group_rows,
    };
    let counter = if progress.is_some() {
        Progress::with_total()
    } else {
        Progress::default()
    };
    let mut told = None;
    let tell = |_: Python<'_>| -> PyResult<()> {
        let now = counter.rows();
        if let Some(progress) = &progress
            && told != Some(now)
        {
            told = Some(now);
            progress.call1(now)?;
        }
        Ok(())
    };
    let raised = source.raised();
    let mut source = source.open()?;
    let cancel = Cancel::new();
    let work = || export::export(source.as_mut(), &store.inner, day, &options, &counter, &cancel);
    let exported = run(py, &cancel, work, tell).map_err(|error| raised.as_cause_of(py, error))?;
    describe(py, &exported)
}

fn describe<'py>(py: Python<'py>, exported: &Exported) -> PyResult<Bound<'py, PyDict>> {
    let result = PyDict::new(py);
    let files = PyDict::new(py);
    files.set_item(&exported.key, exported.file.rows)?;
    result.set_item("date", exported.day.to_string())?;
    result.set_item("dry_run", false)?;
    result.set_item("total_records", exported.file.rows)?;
    result.set_item("total_views", exported.file.views)?;
    result.set_item("files", files)?;
    result.set_item("project_files", exported.project_copies)?;
    result.set_item("organization_files", exported.organization_copies)?;
    result.set_item("bytes", exported.file.bytes)?;
    result.set_item("sha256", &exported.file.sha256)?;
    result.set_item("etag", &exported.etag)?;
    result.set_item("run_id", &exported.run_id)?;
    result.set_item("source", &exported.source)?;
    result.set_item(
        "snapshot_time",
        exported.snapshot_time.to_rfc3339_opts(SecondsFormat::Micros, true),
    )?;
    Ok(result)
}
