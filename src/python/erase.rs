//! Erasing projects, for `parquet_analytics.exporter`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use chrono::NaiveDate;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::archive::claim::Claim;
use crate::archive::copies::stale;
use crate::archive::erase::record;
use crate::archive::erase::{self, Which};
use crate::archive::export::ExportOptions;
use crate::base::error::{Error, Result};
use crate::base::keys::{Day, Prefix, Scope};
use crate::base::runtime::block_on;
use crate::derived::compact::months_with_erased;
use crate::file::position::{Identity, Relation};
use crate::file::sort::SortOptions;
use crate::scan::erased;

use super::errors::OrRaise;
use super::export::describe;
use super::run::run_quietly;
use super::store::PyStore;

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
    let (look, months) = run_quietly(py, |cancel| {
        let look = erase::look(&store.inner, &prefix, &which, &claim, cancel)?;
        Ok((look, block_on(cancel, months_with_erased(&store.inner, &prefix))?))
    })?;
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
    let of_months = PyDict::new(py);
    for (name, projects) in months {
        of_months.set_item(name, projects.into_iter().collect::<Vec<_>>())?;
    }
    result.set_item("months", of_months)?;
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
