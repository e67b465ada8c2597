//! Exporting, for `parquet_analytics.exporter`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use chrono::{NaiveDate, SecondsFormat};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::archive::claim::Claim;
use crate::archive::copies::CopyPlan;
use crate::archive::copies::stale;
use crate::archive::delete::{self, DeleteOptions, DeleteProgress};
use crate::archive::erase::record;
use crate::archive::erase::{self, Which};
use crate::archive::export::{self, ExportOptions, Exported, OnConflict, Planned, Progress};
use crate::archive::verify::{self, Verified};
use crate::base::error::{Error, Result};
use crate::base::keys::{Day, Prefix, Scope};
use crate::base::runtime::{Cancel, block_on};
use crate::file::footer::MAX_GROUP_ROWS;
use crate::file::position::{Identity, Relation};
use crate::file::sort::SortOptions;
use crate::file::tally::Tally;
use crate::scan::erased;
use crate::source::postgres::deletion::Limits;
use crate::source::{BadRows, LeftRow};

use super::errors::OrRaise;
use super::run::{run, run_quietly};
use super::sources::{AnySource, PyPostgresSource};
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
    let tell = teller(progress.as_ref(), || counter.rows());
    let raised = source.raised();
    let mut source = source.open()?;
    let cancel = Cancel::new();
    let work = || export::export(source.as_mut(), &store.inner, day, &options, &counter, &cancel);
    let exported = run(py, &cancel, work, tell).map_err(|error| raised.as_cause_of(py, error))?;
    describe(py, &exported)
}

/// How long a caller hears nothing while nothing changes.
const SILENCE: Duration = Duration::from_secs(1);

/// Calls `progress` with what `now` gives when that has changed, and at least once a second.
fn teller<'py, T: PartialEq + Copy + pyo3::call::PyCallArgs<'py>>(
    progress: Option<&Bound<'py, PyAny>>,
    now: impl Fn() -> T,
) -> impl FnMut(Python<'_>) -> PyResult<()> {
    let mut told: Option<(T, Instant)> = None;
    move |_| {
        let now = now();
        if let Some(progress) = progress
            && told.is_none_or(|(told, when)| told != now || when.elapsed() >= SILENCE)
        {
            told = Some((now, Instant::now()));
            progress.call1(now)?;
        }
        Ok(())
    }
}

/// Bad rows and ids that are listed one by one.
const LISTED_ROWS: usize = 100;
const LISTED_IDS: usize = 1000;

fn describe<'py>(py: Python<'py>, exported: &Exported) -> PyResult<Bound<'py, PyDict>> {
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

fn first_ids(ids: &[i64]) -> &[i64] {
    &ids[..ids.len().min(LISTED_IDS)]
}

/// Adds projects, with their slugs, to the erased ones; gives those that were not among them.
#[pyfunction]
#[allow(clippy::needless_pass_by_value)]
pub fn erase_projects(
    py: Python<'_>,
    store: &PyStore,
    prefix: &str,
    projects: Vec<(i32, Option<String>)>,
    owner: Option<PyIdentity>,
    accept_moved_database: bool,
) -> PyResult<Vec<i32>> {
    let (prefix, claim) = (prefix.parse().or_raise()?, claim(owner, accept_moved_database));
    run_quietly(py, |cancel| {
        block_on(cancel, record::add(&store.inner, &prefix, &projects, &claim))
    })
}

/// Takes projects off the erased ones; gives those that were among them.
#[pyfunction]
#[allow(clippy::needless_pass_by_value)]
pub fn unerase_projects(
    py: Python<'_>,
    store: &PyStore,
    prefix: &str,
    projects: Vec<i32>,
    owner: Option<PyIdentity>,
    accept_moved_database: bool,
) -> PyResult<Vec<i32>> {
    let (prefix, claim) = (prefix.parse().or_raise()?, claim(owner, accept_moved_database));
    run_quietly(py, |cancel| {
        block_on(cancel, record::remove(&store.inner, &prefix, &projects, &claim))
    })
}

/// Refuses what [`erase_projects`] would refuse, and changes nothing.
#[pyfunction]
pub fn check_erasure(
    py: Python<'_>,
    store: &PyStore,
    prefix: &str,
    owner: Option<PyIdentity>,
    accept_moved_database: bool,
) -> PyResult<()> {
    let (prefix, claim) = (prefix.parse().or_raise()?, claim(owner, accept_moved_database));
    run_quietly(py, |cancel| {
        block_on(cancel, record::check(&store.inner, &prefix, &claim))
    })
}

/// A database's identity, as `PostgresSource.identity` gives it.
pub struct PyIdentity(Identity);

impl<'a, 'py> FromPyObject<'a, 'py> for PyIdentity {
    type Error = PyErr;

    fn extract(given: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        let given = given.cast::<PyDict>()?;
        let missing = || Error::invalid("an owner is a dict with database, timeline, relation and table");
        let item = |name: &str| -> PyResult<Option<Bound<'py, PyAny>>> {
            Ok(given.get_item(name)?.filter(|value| !value.is_none()))
        };
        let database: Option<String> = item("database")?.map(|value| value.extract()).transpose()?;
        let timeline: Option<u32> = item("timeline")?.map(|value| value.extract()).transpose()?;
        let oid: Option<u32> = item("relation")?.map(|value| value.extract()).transpose()?;
        let table: Option<String> = item("table")?.map(|value| value.extract()).transpose()?;
        Ok(Self(Identity {
            database: database.ok_or_else(missing).or_raise()?,
            timeline,
            relation: oid.map(|oid| Relation {
                oid,
                name: table.unwrap_or_default(),
            }),
        }))
    }
}

fn claim(owner: Option<PyIdentity>, accept_moved: bool) -> Claim {
    Claim {
        owner: owner.map(|owner| owner.0),
        accept_moved,
    }
}

/// The ids of the erased projects, asked anew.
#[pyfunction]
pub fn erased_projects(py: Python<'_>, store: &PyStore, prefix: &str) -> PyResult<Vec<i32>> {
    let prefix: Prefix = prefix.parse().or_raise()?;
    let asked = run_quietly(py, |cancel| {
        block_on(cancel, erased::ids(&store.inner, &prefix, Duration::ZERO))
    });
    Ok(asked?.0.to_vec())
}

fn scopes<'a>(
    slugs: impl IntoIterator<Item = &'a String>,
    organizations: impl IntoIterator<Item = &'a String>,
) -> Result<Vec<Scope>> {
    let projects = slugs.into_iter().map(|slug| slug.parse().map(Scope::Project));
    let organizations = organizations
        .into_iter()
        .map(|slug| slug.parse().map(Scope::Organization));
    projects.chain(organizations).collect()
}

/// Those of the days of which a copy of one of these slugs or organizations has rows of erased projects.
#[pyfunction]
#[allow(clippy::needless_pass_by_value)]
pub fn days_with_erased_copies(
    py: Python<'_>,
    store: &PyStore,
    prefix: &str,
    days: Vec<String>,
    slugs: Vec<String>,
    organizations: Vec<String>,
) -> PyResult<Vec<NaiveDate>> {
    let prefix: Prefix = prefix.parse().or_raise()?;
    let days: Result<Vec<Day>> = days.iter().map(|day| day.parse()).collect();
    let (days, scopes) = (days.or_raise()?, scopes(&slugs, &organizations).or_raise()?);
    // Nothing is changed, so it does not matter whose they are.
    let claim = claim(None, true);
    let stale = run_quietly(py, |cancel| {
        block_on(
            cancel,
            stale::stale_copies(&store.inner, &prefix, &days, &scopes, &claim),
        )
    })?;
    let mut found: Vec<NaiveDate> = stale.into_iter().map(|(day, _)| day.date()).collect();
    found.dedup();
    Ok(found)
}

/// The days that have a file, as the store lists them.
#[pyfunction]
pub fn stored_days(py: Python<'_>, store: &PyStore, prefix: &str) -> PyResult<Vec<NaiveDate>> {
    let prefix: Prefix = prefix.parse().or_raise()?;
    let days = run_quietly(py, |cancel| block_on(cancel, erase::stored_days(&store.inner, &prefix)))?;
    Ok(days.into_iter().map(Day::date).collect())
}

/// Where rows of erased projects still are.
#[pyfunction]
#[allow(clippy::needless_pass_by_value)]
pub fn erased_rows<'py>(
    py: Python<'py>,
    store: &PyStore,
    prefix: &str,
    living: Option<BTreeSet<String>>,
    slugs: BTreeSet<String>,
    most_copies: usize,
) -> PyResult<Bound<'py, PyDict>> {
    let prefix: Prefix = prefix.parse().or_raise()?;
    let which = Which {
        living,
        slugs,
        most: most_copies,
    };
    let claim = claim(None, true);
    let look = run_quietly(py, |cancel| erase::look(&store.inner, &prefix, &which, &claim, cancel))?;
    let files = look.found.into_iter().map(|found| {
        let file = PyDict::new(py);
        file.set_item("date", found.day.date())?;
        file.set_item("key", found.key)?;
        let slug_of = |wanted: bool| match &found.scope {
            Scope::Project(slug) if wanted => Some(slug.as_str()),
            Scope::Organization(slug) if !wanted => Some(slug.as_str()),
            _ => None,
        };
        file.set_item("project", slug_of(true))?;
        file.set_item("organization", slug_of(false))?;
        let projects = PyDict::new(py);
        for (id, slugs) in &found.projects {
            projects.set_item(id, slugs.iter().collect::<Vec<_>>())?;
        }
        file.set_item("projects", projects)?;
        Ok(file)
    });
    let result = PyDict::new(py);
    result.set_item("files", files.collect::<PyResult<Vec<_>>>()?)?;
    let unreadable = PyDict::new(py);
    for (key, error) in &look.unreadable {
        unreadable.set_item(key, error.to_string())?;
    }
    result.set_item("unreadable", unreadable)?;
    result.set_item("every_copy", look.every_copy)?;
    Ok(result)
}

/// Writes a stored day again without the rows of erased projects, and deletes the copies of these slugs and
/// organizations that have some.
#[pyfunction]
#[pyo3(signature = (store, prefix, day, *, slugs, organizations, owner, accept_moved_database, sort_memory, temp_dir,
                    row_group_rows))]
#[allow(clippy::too_many_arguments, clippy::needless_pass_by_value)]
pub fn erase_from_day<'py>(
    py: Python<'py>,
    store: &PyStore,
    prefix: &str,
    day: &str,
    slugs: Vec<String>,
    organizations: Option<BTreeMap<String, Vec<String>>>,
    owner: Option<PyIdentity>,
    accept_moved_database: bool,
    sort_memory: usize,
    temp_dir: Option<PathBuf>,
    row_group_rows: usize,
) -> PyResult<Bound<'py, PyDict>> {
    let day: Day = day.parse().or_raise()?;
    let mut organizations = organizations.unwrap_or_default();
    let scopes = scopes(&slugs, organizations.keys()).or_raise()?;
    let claim = claim(owner, accept_moved_database);
    let mut options = ExportOptions {
        prefix: prefix.parse().or_raise()?,
        sort: SortOptions {
            memory_bytes: sort_memory,
            temp_dir,
        },
        row_group_rows,
        ..ExportOptions::default()
    };
    let exported = run_quietly(py, |cancel| {
        block_on(cancel, erase::check_day(&store.inner, &options.prefix, day, &claim))?;
        // First, so that a copy is found again after a crash: as long as the day's file has the rows.
        let stale = block_on(
            cancel,
            stale::stale_copies(&store.inner, &options.prefix, &[day], &scopes, &claim),
        )?;
        for (_, scope) in &stale {
            block_on(cancel, store.inner.delete(&options.prefix.key(scope, day)))?;
        }
        let is_stale = |slug: &String| {
            stale
                .iter()
                .any(|(_, scope)| matches!(scope, Scope::Organization(stale) if stale.as_str() == slug.as_str()))
        };
        organizations.retain(|slug, _| is_stale(slug));
        options.copies.organizations = Some(organizations).filter(|stale| !stale.is_empty());
        erase::erase(&store.inner, day, &options, &claim, cancel)
    })?;
    describe(py, &exported)
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
    let tell = teller(progress.as_ref(), || counter.rows());
    let source = source.source();
    let cancel = Cancel::new();
    let work = || delete::delete(&source, &store.inner, day, &options, &counter, &cancel);
    let deleted = run(py, &cancel, work, tell)?;
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
