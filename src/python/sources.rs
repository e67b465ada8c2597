//! Sources of rows, for `parquet_analytics.exporter`: PostgreSQL, or a Python callable that gives an Arrow
//! stream for a day.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::TimeDelta;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use pyo3_arrow::PyRecordBatchReader;

use crate::base::error::{Error, Result};
use crate::base::keys::Day;
use crate::source::Source;
use crate::source::arrow::{ArrowSource, Stream};
use crate::source::postgres::config::{Identifier, SlugTable, Table};
use crate::source::postgres::{PostgresOptions, PostgresSource};

use super::errors::{OrRaise, Secret};
use super::run::run_quietly;

/// PostgreSQL, read natively: one binary COPY without join or sort in a short read-only transaction.
#[pyclass(frozen, name = "PostgresSource", module = "parquet_analytics._native")]
pub struct PyPostgresSource {
    options: PostgresOptions,
}

fn table(schema: Option<&str>, name: &str) -> Result<Table> {
    Ok(Table {
        schema: schema.map(str::parse).transpose()?,
        name: name.parse()?,
    })
}

fn time(name: &str, seconds: f64) -> Result<Duration> {
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if time >= Duration::from_millis(1) => Ok(time),
        _ => Err(Error::configuration(format!(
            "{name} is {seconds}; pass seconds, more than zero"
        ))),
    }
}

/// Days of a zone west of UTC end up to half a day later.
fn grace(seconds: f64) -> Result<TimeDelta> {
    let limit = 7.0 * 86_400.0;
    if !(-limit..=limit).contains(&seconds) {
        return Err(Error::configuration(format!(
            "standby_grace is {seconds}; pass seconds, at most a week"
        )));
    }
    Ok(TimeDelta::milliseconds((seconds * 1000.0) as i64))
}

impl PyPostgresSource {
    pub fn source(&self) -> PostgresSource {
        PostgresSource::new(self.options.clone())
    }

    #[allow(clippy::too_many_arguments)]
    fn options(
        url: &str,
        schemas: [Option<&str>; 3],
        tables: [Option<&str>; 3],
        columns: &BTreeMap<String, Option<String>>,
        statement_timeout: f64,
        lock_timeout: f64,
    ) -> Result<PostgresOptions> {
        let mut options = PostgresOptions::new(url)?;
        let [pageviews, projects, versions] = tables;
        let [schema, of_projects, of_versions] = schemas;
        if let Some(name) = pageviews {
            options.table = table(schema, name)?;
        } else {
            options.table.schema = schema.map(str::parse).transpose()?;
        }
        let slugs = |schema: Option<&str>, name: &str| {
            Ok::<_, Error>(SlugTable {
                table: table(schema, name)?,
                ..SlugTable::named(name)?
            })
        };
        options.projects = slugs(of_projects, projects.unwrap_or("projects_project"))?;
        options.versions = versions.map(|name| slugs(of_versions, name)).transpose()?;
        options.organizations.organizations.schema = schema.map(str::parse).transpose()?;
        options.organizations.members.schema = schema.map(str::parse).transpose()?;
        for (name, column) in columns {
            let given = column.as_deref().map(str::parse::<Identifier>).transpose()?;
            let required = || {
                given.clone().ok_or_else(|| {
                    Error::configuration(format!("columns[{name:?}] is None, but page views have to have it"))
                })
            };
            let ours = &mut options.columns;
            match name.as_str() {
                "id" => ours.id = required()?,
                "project_id" => ours.project_id = required()?,
                "version_id" => ours.version_id = given,
                "path" => ours.path = required()?,
                "full_path" => ours.full_path = given,
                "view_count" => ours.view_count = required()?,
                "date" => ours.date = required()?,
                "status" => ours.status = given,
                "project_slug" => options.projects.slug = required()?,
                "project_key" => options.projects.id = required()?,
                "version_slug" => {
                    let slug = required()?;
                    if let Some(versions) = &mut options.versions {
                        versions.slug = slug;
                    }
                }
                "version_key" => {
                    let key = required()?;
                    if let Some(versions) = &mut options.versions {
                        versions.id = key;
                    }
                }
                _ => {
                    let shown: String = name.chars().take(60).collect();
                    return Err(Error::configuration(format!(
                        "columns names {shown:?}; choose from id, project_id, version_id, path, full_path, view_count, date, \
                         status, project_key, project_slug, version_key and version_slug"
                    )));
                }
            }
        }
        options.statement_timeout = time("statement_timeout", statement_timeout)?;
        options.lock_timeout = time("lock_timeout", lock_timeout)?;
        Ok(options)
    }
}

#[pymethods]
impl PyPostgresSource {
    #[new]
    #[pyo3(signature = (url, *, schema = None, table = None, projects_table = None,
                        versions_table = Some("builds_version"), columns = BTreeMap::new(), role = None,
                        primary = None, standby_grace = 0.0, statement_timeout = 1800.0, lock_timeout = 30.0,
                        database_id = None, projects_schema = None, versions_schema = None, relation = None,
                        user = None))]
    #[allow(clippy::too_many_arguments, clippy::needless_pass_by_value)]
    fn new(
        url: Secret,
        schema: Option<&str>,
        table: Option<&str>,
        projects_table: Option<&str>,
        versions_table: Option<&str>,
        columns: BTreeMap<String, Option<String>>,
        role: Option<&str>,
        primary: Option<Secret>,
        standby_grace: f64,
        statement_timeout: f64,
        lock_timeout: f64,
        database_id: Option<&str>,
        projects_schema: Option<&str>,
        versions_schema: Option<&str>,
        relation: Option<u32>,
        user: Option<String>,
    ) -> PyResult<Self> {
        let tables = [table, projects_table, versions_table];
        let schemas = [schema, projects_schema.or(schema), versions_schema.or(schema)];
        let mut options =
            Self::options(&url.0, schemas, tables, &columns, statement_timeout, lock_timeout).or_raise()?;
        options.role = role.map(str::parse).transpose().or_raise()?;
        options.primary = primary.map(|primary| primary.0.parse()).transpose().or_raise()?;
        options.standby_grace = grace(standby_grace).or_raise()?;
        options.database_id = database_id.map(str::parse).transpose().or_raise()?;
        options.relation = relation;
        options.user = user;
        Ok(Self { options })
    }

    fn __repr__(&self) -> String {
        format!(
            "PostgresSource({}, table={})",
            self.options.target.shown(),
            self.options.table.shown()
        )
    }

    /// The same tables and columns in another database.
    #[allow(clippy::needless_pass_by_value)]
    fn at(&self, url: Secret) -> PyResult<Self> {
        let mut options = self.options.clone();
        options.target = PostgresOptions::new(&url.0).or_raise()?.target;
        options.primary = None;
        options.relation = None;
        options.user = None;
        Ok(Self { options })
    }

    /// What the table is, whatever its name and address: `database` (the cluster's identifier and the database's oid),
    /// `timeline`, `relation` (its oid) and `table` (`schema.table`).
    fn identity<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let source = self.source();
        let found = run_quietly(py, |cancel| source.identity(cancel))?;
        let identity = PyDict::new(py);
        identity.set_item("database", found.database)?;
        identity.set_item("timeline", found.timeline)?;
        identity.set_item("relation", found.relation.as_ref().map(|relation| relation.oid))?;
        identity.set_item("table", found.relation.map(|relation| relation.name))?;
        Ok(identity)
    }

    /// What a deletion would take or change beside the rows: `columns` that no file holds, `others`, in words, and what is
    /// `holding` rows back.
    fn effects<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let source = self.source();
        let found = run_quietly(py, |cancel| source.effects(cancel))?;
        let effects = PyDict::new(py);
        effects.set_item("columns", found.columns)?;
        effects.set_item("others", found.others)?;
        effects.set_item("holding", found.holding)?;
        Ok(effects)
    }

    /// The projects' slugs of each organization, from Read the Docs' tables.
    fn organizations(&self, py: Python<'_>) -> PyResult<BTreeMap<String, Vec<String>>> {
        let source = PostgresSource::new(self.options.clone());
        run_quietly(py, |cancel| source.organizations(cancel))
    }
}

/// What Python code raised while it handed over rows on another thread.
#[derive(Clone, Default)]
pub struct Raised(Arc<Mutex<Option<PyErr>>>);

impl Raised {
    fn set(&self, error: PyErr) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    /// The error, with what was raised as its `__cause__`.
    pub fn as_cause_of(&self, py: Python<'_>, error: PyErr) -> PyErr {
        if let Some(cause) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            error.set_cause(py, Some(cause));
        }
        error
    }
}

/// What the Python package takes for a source.
pub enum AnySource {
    Postgres(Box<PostgresOptions>),
    Callable(Py<PyAny>, Raised),
}

impl<'a, 'py> FromPyObject<'a, 'py> for AnySource {
    type Error = PyErr;

    fn extract(source: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        match source.cast::<PyPostgresSource>() {
            Ok(postgres) => Ok(Self::Postgres(Box::new(postgres.get().options.clone()))),
            Err(_) => Ok(Self::Callable(source.to_owned().unbind(), Raised::default())),
        }
    }
}

impl AnySource {
    pub fn raised(&self) -> Raised {
        match self {
            Self::Postgres(_) => Raised::default(),
            Self::Callable(_, raised) => raised.clone(),
        }
    }

    pub fn open(self) -> PyResult<Box<dyn Source>> {
        Ok(match self {
            Self::Postgres(options) => Box::new(PostgresSource::new(*options)),
            Self::Callable(callable, raised) => {
                let (asked, failure) = (Python::attach(|py| callable.clone_ref(py)), raised.clone());
                let open = move |day| {
                    Python::attach(|py| stream(callable.bind(py), day).map_err(|error| failed(py, &raised, error)))
                };
                Box::new(ArrowSource::per_day(open).asking_earlier(move |day| {
                    Python::attach(|py| earlier(asked.bind(py), day).map_err(|error| failed(py, &failure, error)))
                }))
            }
        })
    }
}

fn stream(callable: &Bound<'_, PyAny>, day: Day) -> PyResult<Stream> {
    callable
        .call1((day.date(),))?
        .extract::<PyRecordBatchReader>()?
        .into_reader()
}

/// What the callable's method `has_earlier_rows` says, where it has one.
fn earlier(callable: &Bound<'_, PyAny>, day: Day) -> PyResult<Option<bool>> {
    match callable.getattr_opt("has_earlier_rows")? {
        Some(ask) => ask.call1((day.date(),))?.extract(),
        None => Ok(None),
    }
}

fn failed(py: Python<'_>, raised: &Raised, error: PyErr) -> Error {
    let message = format!("the source could not hand over its rows: {}", error.value(py));
    raised.set(error);
    Error::Source {
        message,
        retryable: false,
    }
}
