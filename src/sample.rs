//! Believable documentation traffic of any size, for the demo, tests, benches and notebooks. The same options
//! give the same rows on every machine, whatever the batch size; memory does not grow with the day.
//!
//! A day has a fixed number of places, and a row is computed from its place alone: first the project (Zipf),
//! then the version, then the page. Rows come out in a shuffled order, as a table's heap holds them.

mod catalog;
mod paths;
mod postgres;
mod random;
mod traffic;

use std::sync::Arc;

use arrow::array::RecordBatch;

pub use self::catalog::{Organization, Project, Special, Version};
pub use self::postgres::{LoadOptions, Loaded, load_postgres};
pub use self::traffic::DayReader;

use self::catalog::Catalog;
use crate::base::error::{Error, Result};
use crate::base::keys::Day;

/// Row ids of a day lie in a range of this size of their own.
pub(crate) const IDS_PER_DAY: i64 = 1 << 32;

/// How much traffic there is, and of whom.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleOptions {
    /// Rows of an ordinary Wednesday at the start of 2026.
    pub rows_per_day: u64,
    pub projects: u32,
    pub seed: u64,
    /// Share of `rows_per_day` that a year adds: 0.3 is 30 % a year. Days before 2026 have fewer rows.
    pub growth: f64,
    /// Fewer rows at the weekend. Without rhythm and with no growth every day has exactly `rows_per_day` rows.
    pub weekly_rhythm: bool,
}

impl Default for SampleOptions {
    fn default() -> Self {
        Self {
            rows_per_day: 10_000,
            projects: 200,
            seed: 0,
            growth: 0.3,
            weekly_rhythm: true,
        }
    }
}

/// The generator. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Sample {
    options: SampleOptions,
    catalog: Arc<Catalog>,
}

impl Sample {
    /// At least 8 projects (some are special, see [`Special`]) and at most one million; at most 2^32 rows a day.
    pub fn new(options: SampleOptions) -> Result<Self> {
        if !(8..=1_000_000).contains(&options.projects) {
            return Err(Error::invalid(format!(
                "projects is {}; give 8 to 1,000,000",
                options.projects
            )));
        }
        if options.rows_per_day > 1 << 31 {
            return Err(Error::invalid(format!(
                "rows_per_day is {}; give at most 2^31",
                options.rows_per_day
            )));
        }
        if !(0.0..=10.0).contains(&options.growth) {
            return Err(Error::invalid(format!(
                "growth is {}; give 0 to 10, where 0.3 is 30 % a year",
                options.growth
            )));
        }
        let catalog = Arc::new(Catalog::new(options.projects, options.seed));
        Ok(Self { options, catalog })
    }

    pub fn options(&self) -> &SampleOptions {
        &self.options
    }

    /// How many rows `day` has.
    pub fn rows(&self, day: Day) -> u64 {
        traffic::rows(&self.options, day)
    }

    /// The rows of a day, in batches of [`crate::base::schema::pageviews`] of 65,536 rows.
    pub fn day(&self, day: Day) -> DayReader {
        self.day_in_batches(day, 65_536)
    }

    pub fn day_in_batches(&self, day: Day, batch_rows: usize) -> DayReader {
        DayReader::new(Arc::clone(&self.catalog), &self.options, day, batch_rows.max(1))
    }

    pub fn projects(&self) -> &[Project] {
        &self.catalog.projects
    }

    pub fn versions(&self) -> &[Version] {
        &self.catalog.versions
    }

    /// Organizations with the ids of their projects; about half of the projects belong to one.
    pub fn organizations(&self) -> &[Organization] {
        &self.catalog.organizations
    }

    /// The projects that stand for an edge case.
    pub fn special(&self) -> Special<'_> {
        self.catalog.special()
    }

    /// Columns `id`, `slug`, `name`, `language`, `main_language_project_id`.
    pub fn projects_batch(&self) -> Result<RecordBatch> {
        catalog::projects_batch(&self.catalog.projects)
    }

    /// Columns `id`, `project_id`, `slug`.
    pub fn versions_batch(&self) -> Result<RecordBatch> {
        catalog::versions_batch(&self.catalog.versions)
    }

    /// One row a membership: columns `organization_id`, `organization_slug`, `organization_name`,
    /// `project_id`, `project_slug`.
    pub fn organizations_batch(&self) -> Result<RecordBatch> {
        catalog::organizations_batch(&self.catalog.organizations, &self.catalog.projects)
    }
}
