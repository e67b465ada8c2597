//! Sample traffic, for `parquet_analytics.sample`.

use pyo3::prelude::*;
use pyo3_arrow::{PyRecordBatch, PyRecordBatchReader};

use crate::base::keys::Day;
use crate::base::runtime::Cancel;
use crate::sample::{LoadOptions, Sample, SampleOptions, load_postgres};
use crate::source::postgres::Target;

use super::errors::OrRaise;
use super::run::run;

/// Deterministic traffic of documentation sites.
#[pyclass(frozen, name = "Sample", module = "parquet_analytics._native")]
pub struct PySample {
    inner: Sample,
}

#[pymethods]
impl PySample {
    #[new]
    fn new(rows_per_day: u64, projects: u32, seed: u64, growth: f64, weekly_rhythm: bool) -> PyResult<Self> {
        let options = SampleOptions {
            rows_per_day,
            projects,
            seed,
            growth,
            weekly_rhythm,
        };
        Ok(Self {
            inner: Sample::new(options).or_raise()?,
        })
    }

    fn rows(&self, day: &str) -> PyResult<u64> {
        Ok(self.inner.rows(day.parse().or_raise()?))
    }

    fn day(&self, day: &str) -> PyResult<PyRecordBatchReader> {
        let day: Day = day.parse().or_raise()?;
        Ok(PyRecordBatchReader::new(Box::new(self.inner.day(day))))
    }

    fn projects(&self) -> PyResult<PyRecordBatch> {
        Ok(PyRecordBatch::new(self.inner.projects_batch().or_raise()?))
    }

    fn versions(&self) -> PyResult<PyRecordBatch> {
        Ok(PyRecordBatch::new(self.inner.versions_batch().or_raise()?))
    }

    fn organizations(&self) -> PyResult<PyRecordBatch> {
        Ok(PyRecordBatch::new(self.inner.organizations_batch().or_raise()?))
    }

    /// Slugs of the largest project, the one with only 404s, the one without versions and the tiny one.
    fn special(&self) -> [String; 4] {
        let special = self.inner.special();
        [
            special.largest,
            special.only_not_found,
            special.without_versions,
            special.tiny,
        ]
        .map(|project| project.slug.clone())
    }

    /// Loads the days from `since` to `until` with COPY, and says how many rows that were.
    fn load_postgres(
        &self,
        py: Python<'_>,
        url: &str,
        since: &str,
        until: &str,
        schema: Option<String>,
        create_tables: bool,
    ) -> PyResult<u64> {
        let target: Target = url.parse().or_raise()?;
        let (since, until) = (since.parse().or_raise()?, until.parse().or_raise()?);
        let schema = schema.map(|name| name.parse()).transpose().or_raise()?;
        let options = LoadOptions { schema, create_tables };
        let cancel = Cancel::new();
        let load = || load_postgres(&self.inner, &target, since, until, &options, &mut |_, _| (), &cancel);
        Ok(run(py, &cancel, load, |_| Ok(()))?.rows)
    }
}
