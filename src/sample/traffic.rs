//! A day's rows: how many there are, how they spread over projects, versions and pages, and each one.

use std::fmt::Write;
use std::sync::Arc;

use arrow::array::{
    Date32Array, Int16Builder, Int32Builder, Int64Array, RecordBatch, RecordBatchReader, StringBuilder,
};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use chrono::Datelike;

use super::catalog::{Catalog, Kind, Version};
use super::random::{Shuffle, hash};
use super::{IDS_PER_DAY, SampleOptions, paths};
use crate::base::keys::Day;
use crate::base::schema;

/// 2026-01-01, where growth begins.
const START: i32 = 20_454;

/// Rows of each weekday, Monday first, in thousandths of a Wednesday's.
const WEEK: [u64; 7] = [960, 1_010, 1_000, 985, 890, 540, 570];

const OK: i16 = 200;
const NOT_FOUND: i16 = 404;

// Only +, -, *, / and square roots of floating point numbers are used here: these give the same bits everywhere.

pub fn rows(options: &SampleOptions, day: Day) -> u64 {
    let years = f64::from(day.to_date32() - START) / 365.0;
    let grown = options.rows_per_day as f64 * (1.0 + options.growth * years).max(0.02);
    if !options.weekly_rhythm {
        return grown as u64;
    }
    let date = day.date();
    let week = WEEK[date.weekday().num_days_from_monday() as usize];
    let holidays = if date.month() == 12 && date.day() >= 23 || date.ordinal() == 1 {
        600
    } else {
        1_000
    };
    let weather = 970 + hash([options.seed, 7, day.to_date32() as u64]) % 61;
    (grown * (week * holidays * weather) as f64 / 1e9) as u64
}

/// Where each project's places begin, and one more entry for the end.
fn starts(catalog: &Catalog, seed: u64, day: Day, total: u64) -> Vec<u64> {
    let count = catalog.projects.len();
    let mut left = total;
    let mut take = |wanted: u64| {
        let taken = wanted.min(left / 2);
        left -= taken;
        taken
    };
    // The special projects have their rows on every day that has any to spare.
    let special: Vec<u64> = (0..count)
        .filter_map(|rank| match catalog.kind(rank) {
            Kind::Ordinary => None,
            Kind::OnlyNotFound => Some(take((total / 400).max(4))),
            Kind::WithoutVersions => Some(take((total / 300).max(4))),
            Kind::Tiny => Some(take(1)),
        })
        .collect();

    let weight = |rank: usize| {
        let noise = 0.9 + (hash([seed, 8, day.to_date32() as u64, rank as u64]) % 1_024) as f64 / 5_120.0;
        let lead = if rank == 0 { 2.0 } else { 1.0 };
        lead * noise / (rank + 1) as f64
    };
    let ordinary = count - special.len();
    let sum: f64 = (0..ordinary).map(weight).sum();
    let mut starts = Vec::with_capacity(count + 1);
    let (mut reached, mut end) = (0.0, 0);
    for rank in 0..ordinary {
        starts.push(end);
        reached += weight(rank);
        end = if rank + 1 == ordinary {
            left
        } else {
            ((reached / sum * left as f64) as u64).min(left)
        };
    }
    for rows in special {
        starts.push(end);
        end += rows;
    }
    starts.push(end);
    starts
}

/// The rows of one day, in batches.
#[derive(Debug)]
pub struct DayReader {
    catalog: Arc<Catalog>,
    /// For every number of versions, which share of the hits the versions before each have.
    version_shares: Vec<Vec<f64>>,
    starts: Vec<u64>,
    shuffle: Shuffle,
    seed: u64,
    day: Day,
    next: u64,
    total: u64,
    batch_rows: usize,
}

impl DayReader {
    pub(super) fn new(catalog: Arc<Catalog>, options: &SampleOptions, day: Day, batch_rows: usize) -> Self {
        let total = rows(options, day).min(IDS_PER_DAY as u64);
        let starts = starts(&catalog, options.seed, day, total);
        let shuffle = Shuffle::new(total, hash([options.seed, 9, day.to_date32() as u64]));
        let most_versions = (0..catalog.projects.len())
            .map(|rank| catalog.versions_of(rank).len())
            .max()
            .unwrap_or(0);
        let version_shares = (0..=most_versions).map(shares).collect();
        Self {
            catalog,
            version_shares,
            starts,
            shuffle,
            seed: options.seed,
            day,
            next: 0,
            total,
            batch_rows,
        }
    }

    /// How many rows the reader has in all.
    pub fn total_rows(&self) -> u64 {
        self.total
    }

    fn row(&self, place: u64, row: &mut Row) {
        let rank = self.starts.partition_point(|&start| start <= place) - 1;
        let index = place - self.starts[rank];
        let rows = self.starts[rank + 1] - self.starts[rank];
        let versions = self.catalog.versions_of(rank);
        row.rank = rank;

        // Ordinary projects: 91 % hits, 6 % pages missing from a version, 3 % requests that no version answers.
        let (missing, unrouted) = match self.catalog.kind(rank) {
            Kind::Ordinary | Kind::Tiny => (rows * 6 / 100, rows * 3 / 100),
            Kind::OnlyNotFound => (rows - rows / 4, rows / 4),
            Kind::WithoutVersions => (0, rows / 5),
        };
        let hits = rows - missing - unrouted;
        let project_seed = hash([self.seed, 10, rank as u64]);
        if index < hits {
            let (version, index, size) = self.version(versions, index, hits);
            let page = self.page(project_seed, version, index, size);
            paths::page(project_seed, page, &mut row.path);
            row.version = version;
            row.status = OK;
            row.views = self.views(project_seed, version, page, index, 12 * size);
        } else if index < hits + missing {
            let (version, index, size) = self.version(versions, index - hits, missing);
            paths::missing(project_seed, index, &mut row.path);
            row.version = version;
            row.status = NOT_FOUND;
            row.views = self.views(project_seed, version, index, index, 4 * size);
        } else {
            let index = index - hits - missing;
            paths::missing(project_seed, index, &mut row.path);
            row.version = None;
            row.status = NOT_FOUND;
            row.views = self.views(project_seed, None, index, index, 6 * unrouted);
        }
    }

    /// The version that place `index` of `size` belongs to, and its place among how many within that version.
    fn version(&self, versions: &[Version], index: u64, size: u64) -> (Option<usize>, u64, u64) {
        let shares = &self.version_shares[versions.len()];
        if versions.is_empty() {
            return (None, index, size);
        }
        let start = |version: usize| (shares[version] * size as f64) as u64;
        let version = (1..versions.len())
            .take_while(|&version| start(version) <= index)
            .count();
        let end = if version + 1 == versions.len() {
            size
        } else {
            start(version + 1)
        };
        (Some(version), index - start(version), end - start(version))
    }

    /// Popular pages are seen every day; of the rest, one of four neighbours is.
    fn page(&self, project_seed: u64, version: Option<usize>, index: u64, size: u64) -> u64 {
        let popular = size - size * 2 / 5;
        if index < popular {
            return index;
        }
        let group = index - popular;
        let version = version.map_or(u64::MAX, |version| version as u64);
        popular + group * 4 + hash([project_seed, 11, self.day.to_date32() as u64, version, group]) % 4
    }

    fn views(&self, project_seed: u64, version: Option<usize>, page: u64, rank: u64, scale: u64) -> i32 {
        let version = version.map_or(u64::MAX, |version| version as u64);
        let noise = 512 + hash([project_seed, 12, self.day.to_date32() as u64, version, page]) % 1_024;
        i32::try_from(scale * noise / 1_024 / (rank + 1))
            .unwrap_or(i32::MAX)
            .max(1)
    }

    fn batch(&mut self) -> Result<RecordBatch, ArrowError> {
        let rows = (self.total - self.next).min(self.batch_rows as u64) as usize;
        let first_id = i64::from(self.day.to_date32()) * IDS_PER_DAY + self.next as i64;
        let mut project_ids = Int32Builder::with_capacity(rows);
        let mut project_slugs = StringBuilder::with_capacity(rows, rows * 16);
        let mut version_ids = Int32Builder::with_capacity(rows);
        let mut version_slugs = StringBuilder::with_capacity(rows, rows * 8);
        let mut all_paths = StringBuilder::with_capacity(rows, rows * 48);
        let mut full_paths = StringBuilder::with_capacity(rows, rows * 64);
        let mut view_counts = Int32Builder::with_capacity(rows);
        let mut statuses = Int16Builder::with_capacity(rows);

        let mut row = Row::default();
        for place in self.next..self.next + rows as u64 {
            self.row(self.shuffle.place(place), &mut row);
            let project = &self.catalog.projects[row.rank];
            let version = row.version.map(|version| &self.catalog.versions_of(row.rank)[version]);
            project_ids.append_value(project.id);
            project_slugs.append_value(&project.slug);
            version_ids.append_option(version.map(|version| version.id));
            version_slugs.append_option(version.map(|version| &version.slug));
            all_paths.append_value(&row.path);
            if hash([self.seed, 13, place]) % 400 == 0 {
                full_paths.append_null();
            } else {
                if let Some(version) = version {
                    let _ = write!(full_paths, "/{}/{}", project.language, version.slug);
                }
                full_paths.append_value(&row.path);
            }
            view_counts.append_value(row.views);
            statuses.append_value(row.status);
        }
        self.next += rows as u64;

        RecordBatch::try_new(
            schema::pageviews(),
            vec![
                Arc::new(Int64Array::from_iter_values(first_id..first_id + rows as i64)),
                Arc::new(project_ids.finish()),
                Arc::new(project_slugs.finish()),
                Arc::new(version_ids.finish()),
                Arc::new(version_slugs.finish()),
                Arc::new(all_paths.finish()),
                Arc::new(full_paths.finish()),
                Arc::new(view_counts.finish()),
                Arc::new(Date32Array::from_value(self.day.to_date32(), rows)),
                Arc::new(statuses.finish()),
            ],
        )
    }
}

#[derive(Default)]
struct Row {
    rank: usize,
    version: Option<usize>,
    path: String,
    views: i32,
    status: i16,
}

/// Half of the views go to the first version, ever fewer to the next.
fn shares(versions: usize) -> Vec<f64> {
    let weight = |version: usize| 1.0 / ((version + 1) as f64 * ((version + 1) as f64).sqrt());
    let sum: f64 = (0..versions).map(weight).sum();
    (0..versions)
        .map(|version| (0..version).map(weight).sum::<f64>() / sum)
        .collect()
}

impl Iterator for DayReader {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        (self.next < self.total).then(|| self.batch())
    }
}

impl RecordBatchReader for DayReader {
    fn schema(&self) -> SchemaRef {
        schema::pageviews()
    }
}
