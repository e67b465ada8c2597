//! Exporting and verifying, for `parquet_analytics.exporter`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use chrono::SecondsFormat;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::archive::copies::CopyPlan;
use crate::archive::export::{self, ExportOptions, Exported, OnConflict, Planned, Progress};
use crate::archive::verify::{self, Verified};
use crate::base::error::Error;
use crate::base::keys::{Day, Prefix, Scope};
use crate::base::runtime::{Cancel, block_on};
use crate::file::footer::MAX_GROUP_ROWS;
use crate::file::sort::SortOptions;
use crate::file::tally::Tally;
use crate::scan::erased;
use crate::source::{BadRows, LeftRow};

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
                    allow_open_day, leave_bad_rows, on_id_conflict, expect_stored, accept_moved_database, progress, count_first, sort_memory,
                    temp_dir, row_group_rows))]
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
    leave_bad_rows: bool,
    on_id_conflict: &str,
    expect_stored: bool,
    accept_moved_database: bool,
    progress: Option<Bound<'py, PyAny>>,
    count_first: bool,
    sort_memory: usize,
    temp_dir: Option<PathBuf>,
    row_group_rows: usize,
) -> PyResult<Bound<'py, PyDict>> {
    let day: Day = day.parse().or_raise()?;
    if !(1..=MAX_GROUP_ROWS as usize).contains(&row_group_rows) {
        return Err(Error::invalid(format!(
            "row_group_rows is {row_group_rows}; a row group holds 1 to {MAX_GROUP_ROWS} rows"
        )))
        .or_raise();
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
        on_conflict: match on_id_conflict {
            "leave" => OnConflict::Leave,
            "database" => OnConflict::Database,
            _ => OnConflict::Fail,
        },
        expect_stored,
        bad_rows: if leave_bad_rows { BadRows::Leave } else { BadRows::Fail },
        accept_moved_database,
        sort: SortOptions {
            memory_bytes: sort_memory,
            temp_dir,
        },
        row_group_rows,
        ..ExportOptions::default()
    };
    let counter = if progress.is_some() && count_first {
        Progress::with_total()
    } else {
        Progress::default()
    };
    let report = progress_reporter(progress.as_ref(), || counter.rows());
    let raised = source.raised();
    let mut source = source.open()?;
    let cancel = Cancel::new();
    let work = || export::export(source.as_mut(), &store.inner, day, &options, &counter, &cancel);
    let exported = run(py, &cancel, work, report).map_err(|error| raised.as_cause_of(py, error))?;
    describe(py, &exported)
}

/// How long a caller hears nothing while nothing changes.
const SILENCE: Duration = Duration::from_secs(1);

/// Calls `progress` with what `now` gives when that has changed, and at least once a second.
pub(super) fn progress_reporter<'py, T: PartialEq + Copy + pyo3::call::PyCallArgs<'py>>(
    progress: Option<&Bound<'py, PyAny>>,
    now: impl Fn() -> T,
) -> impl FnMut(Python<'_>) -> PyResult<()> {
    let mut reported: Option<(T, Instant)> = None;
    move |_| {
        let now = now();
        if let Some(progress) = progress
            && reported.is_none_or(|(last, when)| last != now || when.elapsed() >= SILENCE)
        {
            reported = Some((now, Instant::now()));
            progress.call1(now)?;
        }
        Ok(())
    }
}

/// Bad rows and ids that are listed one by one.
const LISTED_ROWS: usize = 100;
const LISTED_IDS: usize = 1000;

pub(super) fn describe<'py>(py: Python<'py>, exported: &Exported) -> PyResult<Bound<'py, PyDict>> {
    let result = PyDict::new(py);
    let files = PyDict::new(py);
    let Tally { rows, views, ids, .. } = exported.file.tally;
    files.set_item(&exported.key, rows)?;
    result.set_item("date", exported.day.to_string())?;
    result.set_item("dry_run", false)?;
    result.set_item("outcome", exported.outcome.to_string())?;
    result.set_item("total_records", rows)?;
    result.set_item("total_views", views)?;
    result.set_item("ids", ids)?;
    result.set_item("files", files)?;
    result.set_item("project_files", exported.project_copies)?;
    result.set_item("organization_files", exported.organization_copies)?;
    result.set_item("added", exported.merged.added)?;
    result.set_item("changed", exported.merged.changed)?;
    let kept = &exported.merged.kept;
    result.set_item("kept", kept.rows)?;
    result.set_item("moved", exported.merged.moved)?;
    result.set_item("source_records", rows - kept.rows)?;
    result.set_item("source_views", views - kept.views)?;
    result.set_item("left", exported.left.len())?;
    result.set_item("left_rows", left_rows(py, &exported.left)?)?;
    result.set_item("bytes", exported.file.bytes)?;
    result.set_item("sha256", &exported.file.sha256)?;
    result.set_item("etag", &exported.etag)?;
    result.set_item("run_id", &exported.run_id)?;
    result.set_item("source", &exported.source)?;
    result.set_item(
        "snapshot_time",
        exported.snapshot_time.to_rfc3339_opts(SecondsFormat::Micros, true),
    )?;
    let position = exported.position.as_ref();
    result.set_item("standby", position.map(|position| position.standby))?;
    result.set_item("position", position.map(ToString::to_string))?;
    result.set_item("verified", true)?;
    Ok(result)
}

fn left_rows<'py>(py: Python<'py>, left: &[LeftRow]) -> PyResult<Vec<Bound<'py, PyDict>>> {
    left.iter()
        .take(LISTED_ROWS)
        .map(|row| {
            let described = PyDict::new(py);
            described.set_item("id", row.id)?;
            described.set_item("column", row.column)?;
            described.set_item("reason", &row.reason)?;
            Ok(described)
        })
        .collect()
}

pub(super) fn first_ids(ids: &[i64]) -> &[i64] {
    &ids[..ids.len().min(LISTED_IDS)]
}

/// Reads a day's file back and verifies it; with a source, says how the two differ.
#[pyfunction]
pub fn verify_day<'py>(
    py: Python<'py>,
    store: &PyStore,
    prefix: &str,
    day: &str,
    source: Option<AnySource>,
) -> PyResult<Bound<'py, PyDict>> {
    let day: Day = day.parse().or_raise()?;
    let prefix: Prefix = prefix.parse().or_raise()?;
    let raised = source.as_ref().map(AnySource::raised).unwrap_or_default();
    let mut source = source.map(AnySource::open).transpose()?;
    let work = |cancel: &Cancel| {
        let verified = verify::verify(&store.inner, &prefix, day, cancel)?;
        if let Some(source) = &mut source {
            let (erased, _) = block_on(cancel, erased::ids(&store.inner, &prefix, Duration::ZERO))?;
            source.exclude(&erased);
        }
        let differences = source
            .as_mut()
            .map(|source| verify::compare(&verified.stored, source.as_mut(), cancel))
            .transpose()?;
        Ok((verified, differences))
    };
    let (Verified { stored, tally }, differences) =
        run_quietly(py, work).map_err(|error| raised.as_cause_of(py, error))?;
    let result = PyDict::new(py);
    result.set_item("date", day.to_string())?;
    result.set_item("key", &stored.key)?;
    result.set_item("etag", &stored.etag)?;
    result.set_item("run_id", &stored.run_id)?;
    result.set_item("bytes", stored.bytes.len())?;
    result.set_item("sha256", &stored.sha256)?;
    result.set_item("total_records", tally.rows)?;
    result.set_item("total_views", tally.views)?;
    result.set_item("statuses", tally.statuses)?;
    if let Some(found) = differences {
        for (name, ids) in [
            ("missing", &found.missing),
            ("changed", &found.changed),
            ("archive_only", &found.archive_only),
        ] {
            result.set_item(name, ids.len())?;
            result.set_item(format!("{name}_ids"), first_ids(ids))?;
        }
        result.set_item("left", found.left.len())?;
        result.set_item("left_rows", left_rows(py, &found.left)?)?;
    }
    Ok(result)
}
