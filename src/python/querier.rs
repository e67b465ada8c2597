//! Questions, for `parquet_analytics.querier`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use chrono::NaiveDate;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyString};
use pyo3_arrow::{PyRecordBatch, PySchema, PyTable};

use crate::base::error::{Error, Result};
use crate::base::keys::Day;
use crate::base::runtime::Cancel;
use crate::engine::{Limits, Param, Params};
use crate::query::{Extent, Pages, Querier, Span, Stream, Table};
use crate::scan::plan::Filter;
use crate::scan::{Coverage, Options, State, Stats};

use super::errors::{OrRaise, to_exception};
use super::run::{run, run_quietly};
use super::store::PyStore;

#[pyclass(frozen, name = "Querier", module = "parquet_analytics._native")]
pub struct PyQuerier {
    inner: Querier,
}

/// Bytes below which DuckDB cannot do much.
const LEAST_MEMORY: u64 = 16 << 20;

/// More threads than cores only get in each other's way.
const MOST_THREADS: usize = 256;

/// A project by slug, id or both.
type Project = (Option<String>, Option<i32>);
/// Versions by id, `None` among them for rows outside of versions.
type Versions = Option<Vec<Option<i32>>>;

/// An answer, what it took, and the rows of each day's file, newest first (`None`: no file).
type Answer<'py> = (PyTable, Bound<'py, PyDict>, Option<PyCoverage>);
type PyCoverage = Vec<(NaiveDate, Option<u64>)>;

/// First and last day.
type Days = (String, String);
/// The days whose files are read, when not all.
type Archived = Option<Vec<String>>;
/// First and last day, the days whose files are read, rows from elsewhere, and the ids of projects that are not shown,
/// beside the erased ones.
type Asked = (String, String, Archived, Option<PyTable>, Vec<i32>);

#[pymethods]
impl PyQuerier {
    #[new]
    #[pyo3(signature = (store, prefix, *, timeout, memory_limit, threads, max_age, months=true, cache=None))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        store: &PyStore,
        prefix: &str,
        timeout: Option<f64>,
        memory_limit: u64,
        threads: Option<usize>,
        max_age: Option<f64>,
        months: bool,
        cache: Option<(PathBuf, u64)>,
    ) -> PyResult<Self> {
        if memory_limit < LEAST_MEMORY {
            let message = format!("memory_limit is {memory_limit} bytes; DuckDB needs at least {LEAST_MEMORY}");
            return Err(Error::invalid(message)).or_raise();
        }
        let mut limits = Limits {
            memory_bytes: memory_limit,
            ..Limits::default()
        };
        limits.timeout = timeout.map(|value| seconds("timeout", value)).transpose().or_raise()?;
        if let Some(threads) = threads {
            if !(1..=MOST_THREADS).contains(&threads) {
                let message = format!("threads is {threads}; pass 1 to {MOST_THREADS}");
                return Err(Error::invalid(message)).or_raise();
            }
            limits.threads = threads;
        }
        let mut options = Options::of(&store.inner);
        options.derived = months;
        if let Some(age) = max_age {
            options.max_age = seconds("max_age", age).or_raise()?;
            options.lookup_max_age = options.max_age;
        }
        let store = match cache {
            Some((folder, bytes)) => store.inner.remembered_in(&folder, bytes),
            None => store.inner.clone(),
        };
        let inner = Querier::new(store, prefix.parse().or_raise()?, limits, options);
        Ok(Self { inner })
    }

    #[getter]
    fn url(&self) -> &str {
        self.inner.store().url()
    }

    #[getter]
    fn prefix(&self) -> &str {
        self.inner.prefix().as_str()
    }

    fn url_of(&self, key: &str) -> String {
        self.inner.store().url_of(key)
    }

    /// `by` is `path`, `version` or `full_path`.
    #[pyo3(signature = (project, extent, page, status, by, versions=None))]
    #[allow(clippy::too_many_arguments)]
    fn top_pages<'py>(
        &self,
        py: Python<'py>,
        project: Project,
        extent: Asked,
        page: (usize, usize),
        status: Option<i16>,
        by: &str,
        versions: Versions,
    ) -> PyResult<Answer<'py>> {
        let (filter, extent) = whole(filter(project, status, versions), extent)?;
        let pages = match by {
            "version" => Pages::PathAndVersion,
            "full_path" => Pages::FullPath,
            _ => Pages::Path,
        };
        answer(
            py,
            run_quietly(py, |cancel| self.inner.top_pages(filter, extent, page, pages, cancel))?,
        )
    }

    #[pyo3(signature = (project, extent, status, fill, versions=None))]
    fn daily_totals<'py>(
        &self,
        py: Python<'py>,
        project: Project,
        extent: Asked,
        status: Option<i16>,
        fill: bool,
        versions: Versions,
    ) -> PyResult<Answer<'py>> {
        let (filter, extent) = whole(filter(project, status, versions), extent)?;
        answer(
            py,
            run_quietly(py, |cancel| self.inner.daily_totals(filter, extent, fill, cancel))?,
        )
    }

    #[pyo3(signature = (query, params, extent, projects, project_id, status=None, versions=None))]
    #[allow(clippy::too_many_arguments)]
    fn sql<'py>(
        &self,
        py: Python<'py>,
        query: &str,
        params: Values,
        extent: Asked,
        projects: Option<Vec<String>>,
        project_id: Option<i32>,
        status: Option<i16>,
        versions: Versions,
    ) -> PyResult<Answer<'py>> {
        let filter = Filter {
            projects,
            ..filter((None, project_id), status, versions)
        };
        let (filter, extent) = whole(filter, extent)?;
        answer(
            py,
            run_quietly(py, |cancel| self.inner.sql(filter, extent, query, params.0, cancel))?,
        )
    }

    fn erased(&self, py: Python<'_>) -> PyResult<Vec<i32>> {
        run_quietly(py, |cancel| self.inner.erased(cancel))
    }

    /// Days of which rows were deleted from the database; `fresh` asks the store whatever is remembered.
    fn days_with_deleted_rows(&self, py: Python<'_>, fresh: bool) -> PyResult<Vec<NaiveDate>> {
        let days = run_quietly(py, |cancel| self.inner.days_with_deleted_rows(fresh, cancel))?;
        Ok(days.into_iter().map(Day::date).collect())
    }

    /// Those of the days that have a file; `fresh` asks the store whatever is remembered.
    #[allow(clippy::needless_pass_by_value)]
    fn present(&self, py: Python<'_>, days: Vec<String>, fresh: bool) -> PyResult<Vec<NaiveDate>> {
        let days = parsed(&days)?;
        let present = run_quietly(py, |cancel| self.inner.present(days, fresh, cancel))?;
        Ok(present.into_iter().map(Day::date).collect())
    }

    #[pyo3(signature = (project, extent, status, columns, versions=None))]
    fn pageviews(
        &self,
        py: Python<'_>,
        project: Project,
        extent: Asked,
        status: Option<i16>,
        columns: Option<Vec<String>>,
        versions: Versions,
    ) -> PyResult<Pageviews> {
        let (filter, extent) = whole(filter(project, status, versions), extent)?;
        let cancel = Cancel::new();
        let start = || self.inner.pageviews(filter, extent, columns.as_deref(), &cancel);
        let stream = run(py, &cancel, start, |_| Ok(()))?;
        Ok(Pageviews {
            stream: Mutex::new(stream),
            cancel,
        })
    }

    fn explain<'py>(
        &self,
        py: Python<'py>,
        project: Project,
        days: Days,
        status: Option<i16>,
        columns: Vec<String>,
    ) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let (filter, span) = (filter(project, status, None), span(&days)?);
        let plans = run_quietly(py, |cancel| self.inner.explain(filter, span, &columns, cancel))?;
        plans
            .into_iter()
            .map(|plan| {
                let row = PyDict::new(py);
                row.set_item("date", plan.day.date())?;
                row.set_item("key", plan.key)?;
                let state = match plan.state {
                    State::Absent => "absent",
                    State::Cached => "cached",
                    State::Confirmed => "confirmed",
                    State::Read => "read",
                };
                row.set_item("state", state)?;
                row.set_item("size", plan.size)?;
                row.set_item("rows", plan.rows)?;
                row.set_item("row_groups", plan.row_groups)?;
                row.set_item("row_groups_selected", plan.row_groups_selected)?;
                row.set_item("rows_selected", plan.rows_selected)?;
                row.set_item("requests", plan.requests)?;
                row.set_item("bytes", plan.bytes)?;
                Ok(row)
            })
            .collect()
    }
}

/// Rows of a project, batch by batch.
#[pyclass(frozen, module = "parquet_analytics._native")]
pub struct Pageviews {
    stream: Mutex<Stream>,
    cancel: Cancel,
}

impl Pageviews {
    fn with<T: Send>(&self, py: Python<'_>, work: impl FnOnce(&mut Stream) -> Result<T> + Send) -> PyResult<T> {
        let work = || work(&mut self.stream.lock().unwrap_or_else(PoisonError::into_inner));
        run(py, &self.cancel, work, |_| Ok(()))
    }
}

#[pymethods]
impl Pageviews {
    fn schema(&self, py: Python<'_>) -> PyResult<PySchema> {
        self.with(py, |stream| Ok(PySchema::new(stream.schema.clone())))
    }

    fn next_batch(&self, py: Python<'_>) -> PyResult<Option<PyRecordBatch>> {
        Ok(self
            .with(py, |stream| stream.batches.next().transpose())?
            .map(PyRecordBatch::new))
    }

    fn read_all<'py>(&self, py: Python<'py>) -> PyResult<Answer<'py>> {
        let table = self.with(py, |stream| {
            let batches = stream.batches.by_ref().collect::<Result<Vec<_>>>()?;
            let coverage = stream.coverage()?;
            Ok(Table {
                schema: stream.schema.clone(),
                batches,
                stats: stream.stats(),
                coverage,
            })
        })?;
        answer(py, table)
    }

    fn coverage(&self, py: Python<'_>) -> PyResult<Option<PyCoverage>> {
        Ok(self.with(py, |stream| stream.coverage())?.map(coverage))
    }
}

fn seconds(name: &str, value: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(value)
        .map_err(|_| Error::invalid(format!("{name} is {value}; pass seconds, zero or more")))
}

fn span((since, until): &(String, String)) -> PyResult<Span> {
    let day = |text: &str| text.parse::<Day>().or_raise();
    Span::new(day(since)?, day(until)?).or_raise()
}

fn parsed(days: &[String]) -> PyResult<Vec<Day>> {
    days.iter().map(|day| day.parse::<Day>().or_raise()).collect()
}

fn whole(filter: Filter, (since, until, archived, live, hidden): Asked) -> PyResult<(Filter, Extent)> {
    let archived = archived.map(|days| parsed(&days)).transpose()?;
    let live = live.map(|table| table.into_inner().0).unwrap_or_default();
    let extent = Extent::new(span(&(since, until))?, archived, live).or_raise()?;
    Ok((Filter { hidden, ..filter }, extent))
}

fn coverage(days: Coverage) -> PyCoverage {
    days.into_iter().map(|(day, rows)| (day.date(), rows)).collect()
}

fn filter((slug, project_id): Project, status: Option<i16>, versions: Versions) -> Filter {
    Filter {
        projects: slug.map(|slug| vec![slug]),
        project_id,
        statuses: status.map(|status| vec![status]),
        versions,
        ..Filter::default()
    }
}

fn answer(py: Python<'_>, table: Table) -> PyResult<Answer<'_>> {
    let stats = stats(py, table.stats)?;
    let covered = table.coverage.map(coverage);
    Ok((PyTable::try_new(table.batches, table.schema)?, stats, covered))
}

fn stats(py: Python<'_>, stats: Stats) -> PyResult<Bound<'_, PyDict>> {
    let result = PyDict::new(py);
    for (name, value) in [
        ("objects", stats.objects),
        ("present", stats.present),
        ("absent", stats.absent),
        ("requests", stats.requests),
        ("footer_requests", stats.footer_requests),
        ("erasure_requests", stats.erasure_requests),
        ("data_requests", stats.data_requests),
        ("manifest_requests", stats.manifest_requests),
        ("index_requests", stats.index_requests),
        ("days_derived", stats.days_derived),
        ("answers_remembered", stats.answers_remembered),
        ("waves", stats.waves),
        ("bytes", stats.bytes),
        ("row_groups", stats.row_groups),
        ("row_groups_read", stats.row_groups_read),
        ("rows_decoded", stats.rows_decoded),
        ("rows", stats.rows),
    ] {
        result.set_item(name, value)?;
    }
    Ok(result)
}

/// Values for a statement: a list, or a dict by name.
struct Values(Params);

impl<'a, 'py> FromPyObject<'a, 'py> for Values {
    type Error = PyErr;

    fn extract(values: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(named) = values.cast::<PyDict>() {
            let values = named.iter().map(|(name, value)| Ok((name.extract()?, param(&value)?)));
            return Ok(Self(Params::Named(
                values.collect::<PyResult<BTreeMap<String, Param>>>()?,
            )));
        }
        let values = values.try_iter()?.map(|value| param(&value?));
        Ok(Self(Params::Positional(values.collect::<PyResult<_>>()?)))
    }
}

fn param(value: &Bound<'_, PyAny>) -> PyResult<Param> {
    Ok(if value.is_none() {
        Param::Null
    } else if value.is_instance_of::<PyBool>() {
        Param::Bool(value.extract()?)
    } else if value.is_instance_of::<PyInt>() {
        Param::Int(value.extract().map_err(|_| unfit("a whole number beyond 64 bits"))?)
    } else if value.is_instance_of::<PyFloat>() {
        Param::Float(value.extract()?)
    } else if value.is_instance_of::<PyString>() {
        Param::Text(value.extract()?)
    } else if value.is_instance_of::<PyBytes>() {
        Param::Blob(value.extract()?)
    } else if value.hasattr("hour")? {
        return Err(unfit("a datetime"));
    } else if let Ok(date) = value.extract::<NaiveDate>() {
        Param::Date(Day::new(date).or_raise()?.to_date32())
    } else {
        let name = value.get_type().name()?;
        return Err(unfit(&format!("an object of type {name}")));
    })
}

fn unfit(what: &str) -> PyErr {
    let message = format!("{what} cannot be a value of the query; pass bool, int, float, str, bytes, date or None");
    Python::attach(|py| to_exception(py, &Error::invalid(message)))
}
