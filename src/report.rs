//! The named reports: views added up by page, or by day. They need no SQL: rows are added up as they are decoded, on
//! several threads, and within a bound of memory.

mod merged;

use std::cmp::Ordering;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::Builder;
use std::time::Duration;

use ahash::RandomState;
use arrow::array::{Array, ArrayRef, AsArray, Date32Array, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{Date32Type, Field, Int32Type, Int64Type, Schema};
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::base::error::{Error, Result};
use crate::base::keys::Day;
use crate::base::process::lock;
use crate::base::runtime::{self, Cancel};
use crate::base::schema;
use crate::engine::{Limits, Opened, Relation, Unit, refused, timed_out};
use merged::merged;

/// What the views of a page are summed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// Path below the version.
    Path,
    /// The same, each version apart.
    PathAndVersion,
    /// Path with language and version.
    FullPath,
}

const COUNT: &str = "count";

/// Paths by views, the most viewed first and ties by path: columns path or full_path (utf8), count (int64) and, per
/// version, version_slug.
///
/// # Errors
/// Of the relation; [`Error::Query`] when the pages take more memory than is allowed.
pub fn top_pages(
    relation: &dyn Relation,
    pages: Pages,
    (limit, offset): (usize, usize),
    limits: &Limits,
    cancel: &Cancel,
) -> Result<RecordBatch> {
    let columns: &[&str] = match pages {
        Pages::Path => &[schema::PATH, schema::VIEW_COUNT],
        Pages::PathAndVersion => &[schema::PATH, schema::VERSION_SLUG, schema::VIEW_COUNT],
        Pages::FullPath => &[schema::FULL_PATH, schema::VIEW_COUNT],
    };
    let memory = Memory {
        taken: AtomicU64::new(0),
        most: limits.memory_bytes,
    };
    let Opened { ordered, rest } = relation.open_in_order(&projection(relation, columns)?)?;
    let parts = sums(rest, limits, cancel, || Views::new(&memory))?;
    let views = parts.into_iter().try_fold(Views::new(&memory), Views::plus)?;
    let wanted = offset.saturating_add(limit);
    let found = if ordered.is_empty() {
        let mut found: Vec<Page> = views.pages.into_iter().collect();
        if wanted < found.len() {
            found.select_nth_unstable_by(wanted, |page, other| page.order(other));
            found.truncate(wanted);
        }
        found.sort_unstable_by(|page, other| page.order(other));
        found
    } else {
        merged(ordered, views, wanted, limits, cancel)?
    };
    let shown = found.get(offset.min(found.len())..).unwrap_or_default();
    if shown.iter().map(|page| page.text()).sum::<u64>() > i32::MAX as u64 {
        return Err(refused(
            "the answer has more than 2 GiB of text; ask for fewer pages at once",
        ));
    }
    let paths: StringArray = shown.iter().map(|page| page.path.as_deref()).collect();
    let counts: Int64Array = shown.iter().map(|page| Some(page.count)).collect();
    let mut columns: Vec<(&str, ArrayRef)> = vec![(columns[0], Arc::new(paths)), (COUNT, Arc::new(counts))];
    if pages == Pages::PathAndVersion {
        let versions: StringArray = shown.iter().map(|page| page.version.as_deref()).collect();
        columns.push((schema::VERSION_SLUG, Arc::new(versions)));
    }
    table(columns)
}

/// Views by day, the oldest first: columns date (date32) and count (int64). Days without views are left out unless
/// `fill`.
///
/// # Errors
/// Of the relation.
pub fn daily_totals(
    relation: &dyn Relation,
    (since, until): (Day, Day),
    fill: bool,
    limits: &Limits,
    cancel: &Cancel,
) -> Result<RecordBatch> {
    let first = since.to_date32();
    let days = usize::try_from(until.to_date32() - first + 1).unwrap_or_default();
    let columns = [schema::DATE, schema::VIEW_COUNT];
    let units = relation.open(&projection(relation, &columns)?)?;
    let parts = sums(units, limits, cancel, || Days {
        first,
        counts: vec![None; days],
    })?;
    let mut counts: Vec<Option<i64>> = vec![fill.then_some(0); days];
    for part in parts {
        for (sum, more) in counts.iter_mut().zip(part.counts) {
            if let Some(more) = more {
                *sum = Some(plus(sum.unwrap_or_default(), more)?);
            }
        }
    }
    let found = (first..).zip(counts).filter_map(|(date, count)| Some((date, count?)));
    let (dates, counts): (Vec<i32>, Vec<i64>) = found.unzip();
    table(vec![
        (schema::DATE, Arc::new(Date32Array::from(dates))),
        (COUNT, Arc::new(Int64Array::from(counts))),
    ])
}

fn table(columns: Vec<(&str, ArrayRef)>) -> Result<RecordBatch> {
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, column)| Field::new(*name, column.data_type().clone(), true))
        .collect();
    let columns = columns.into_iter().map(|(_, column)| column).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(|error| Error::internal(error.to_string()))
}

fn plus(sum: i64, more: i64) -> Result<i64> {
    sum.checked_add(more)
        .ok_or_else(|| refused("a sum of views goes beyond 64 bits"))
}

/// What rows are added up in.
trait Sum: Send {
    fn add(&mut self, batch: &RecordBatch) -> Result<()>;
}

/// Bytes that the pages of all threads take, and may take.
struct Memory {
    taken: AtomicU64,
    most: u64,
}

/// Views of each page.
struct Views<'a> {
    pages: HashTable<Page>,
    hasher: RandomState,
    memory: &'a Memory,
}

/// A path, perhaps missing, in some reports a version, and its views.
struct Page {
    path: Option<Box<str>>,
    version: Option<Box<str>>,
    count: i64,
}

type Name<'a> = (Option<&'a str>, Option<&'a str>);

impl Page {
    fn text(&self) -> u64 {
        let texts = [&self.path, &self.version].into_iter().flatten();
        texts.map(|text| text.len() as u64).sum()
    }

    /// What it takes, with its share of the table.
    fn bytes(&self) -> u64 {
        2 * size_of::<Self>() as u64 + self.text()
    }

    fn name(&self) -> Name<'_> {
        (self.path.as_deref(), self.version.as_deref())
    }

    /// Most views first; then as names are in order, missing ones first.
    fn order(&self, other: &Self) -> Ordering {
        other
            .count
            .cmp(&self.count)
            .then_with(|| self.name().cmp(&other.name()))
    }
}

impl<'a> Views<'a> {
    fn new(memory: &'a Memory) -> Self {
        Self {
            pages: HashTable::new(),
            hasher: RandomState::new(),
            memory,
        }
    }

    fn more(&mut self, name: Name<'_>, count: i64) -> Result<()> {
        let hash = self.hasher.hash_one(name);
        let hasher = |page: &Page| self.hasher.hash_one(page.name());
        match self.pages.entry(hash, |page| page.name() == name, hasher) {
            Entry::Occupied(mut page) => {
                let page = page.get_mut();
                page.count = plus(page.count, count)?;
                Ok(())
            }
            Entry::Vacant(vacant) => {
                let (path, version) = name;
                let page = Page {
                    path: path.map(Box::from),
                    version: version.map(Box::from),
                    count,
                };
                let bytes = page.bytes();
                vacant.insert(page);
                self.memory.take(bytes)
            }
        }
    }

    fn plus(mut self, other: Self) -> Result<Self> {
        for page in other.pages {
            self.memory.taken.fetch_sub(page.bytes(), Relaxed);
            self.more((page.path.as_deref(), page.version.as_deref()), page.count)?;
        }
        Ok(self)
    }
}

impl Sum for Views<'_> {
    /// The first column is the path, the last the views; between them may be the version.
    fn add(&mut self, batch: &RecordBatch) -> Result<()> {
        let columns = batch.columns();
        let (Some(paths), Some(counts)) = (columns.first(), columns.last()) else {
            return Err(shape());
        };
        let paths = paths.as_string_opt::<i32>().ok_or_else(shape)?;
        let counts = Counts::of(counts)?;
        let versions = match columns {
            [_, versions, _] => Some(versions.as_string_opt::<i32>().ok_or_else(shape)?),
            _ => None,
        };
        let name = |row: usize| -> Name<'_> { (text(paths, row), versions.and_then(|versions| text(versions, row))) };
        // Rows of a page stand together: there is one look for all of them.
        let mut row = 0;
        while row < counts.len() {
            let page = name(row);
            let mut count = counts.value(row);
            row += 1;
            while row < counts.len() && name(row) == page {
                count = plus(count, counts.value(row))?;
                row += 1;
            }
            self.more(page, count)?;
        }
        Ok(())
    }
}

/// The views of rows, or of several rows each.
enum Counts<'a> {
    OfRows(&'a Int32Array),
    Added(&'a Int64Array),
}

impl<'a> Counts<'a> {
    fn of(column: &'a ArrayRef) -> Result<Self> {
        let of_rows = column.as_primitive_opt::<Int32Type>().map(Self::OfRows);
        let added = || column.as_primitive_opt::<Int64Type>().map(Self::Added);
        of_rows.or_else(added).ok_or_else(shape)
    }

    fn len(&self) -> usize {
        match self {
            Self::OfRows(counts) => counts.len(),
            Self::Added(counts) => counts.len(),
        }
    }

    fn value(&self, row: usize) -> i64 {
        match self {
            Self::OfRows(counts) => counts.value(row).into(),
            Self::Added(counts) => counts.value(row),
        }
    }
}

fn text(column: &StringArray, row: usize) -> Option<&str> {
    column.is_valid(row).then(|| column.value(row))
}

/// Views of each day.
struct Days {
    /// Of the first count.
    first: i32,
    counts: Vec<Option<i64>>,
}

impl Sum for Days {
    fn add(&mut self, batch: &RecordBatch) -> Result<()> {
        let [dates, counts] = batch.columns() else {
            return Err(shape());
        };
        let dates = dates.as_primitive_opt::<Date32Type>().ok_or_else(shape)?;
        let counts = Counts::of(counts)?;
        for (row, date) in dates.values().iter().enumerate() {
            let day = usize::try_from(i64::from(*date) - i64::from(self.first))
                .ok()
                .and_then(|day| self.counts.get_mut(day));
            let Some(sum) = day else {
                return Err(Error::internal("a row is of a day that was not asked for"));
            };
            *sum = Some(plus(sum.unwrap_or_default(), counts.value(row))?);
        }
        Ok(())
    }
}

fn shape() -> Error {
    Error::internal("a batch has other columns than were asked for")
}

fn projection(relation: &dyn Relation, columns: &[&str]) -> Result<Vec<usize>> {
    let all = relation.schema();
    let column = |name: &&str| all.index_of(name).map_err(|error| Error::internal(error.to_string()));
    columns.iter().map(column).collect()
}

/// Adds up the rows of units, on as many threads as are allowed; gives the sums of each.
fn sums<S: Sum>(units: Vec<Unit>, limits: &Limits, cancel: &Cancel, new: impl Fn() -> S + Sync) -> Result<Vec<S>> {
    let threads = limits.threads.clamp(1, units.len().max(1));
    let units = Mutex::new(units.into_iter());
    let add_up = || -> Result<S> {
        let mut sum = new();
        while let Some(unit) = next(&units) {
            for batch in unit()? {
                cancel.check()?;
                sum.add(&batch?)?;
            }
        }
        Ok(sum)
    };
    let work = || {
        let sum = catch_unwind(AssertUnwindSafe(add_up));
        let sum = sum.unwrap_or_else(|_| Err(Error::internal("a thread that adds up views has panicked")));
        if sum.is_err() {
            // Nobody begins another.
            lock(&units).by_ref().for_each(drop);
        }
        sum
    };
    std::thread::scope(|scope| {
        // Where no more threads can be had, those that there are do the work.
        let others: Vec<_> = (1..threads)
            .map_while(|_| Builder::new().spawn_scoped(scope, work).ok())
            .collect();
        let own = work();
        let others = others
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        std::iter::once(own).chain(others).collect()
    })
}

fn next(units: &Mutex<std::vec::IntoIter<Unit>>) -> Option<Unit> {
    lock(units).next()
}

impl Memory {
    fn take(&self, bytes: u64) -> Result<()> {
        if self.taken.fetch_add(bytes, Relaxed) + bytes <= self.most {
            return Ok(());
        }
        Err(refused(format!(
            "Out of Memory Error: the pages of the answer take more than {} bytes; ask for fewer days, projects or \
             columns, or allow more memory",
            self.most
        )))
    }
}

/// Runs work that is stopped when its time is up.
///
/// # Errors
/// Of the work; [`Error::Query`] when it was stopped.
pub fn within<T>(timeout: Option<Duration>, cancel: &Cancel, work: impl FnOnce(&Cancel) -> Result<T>) -> Result<T> {
    let Some(timeout) = timeout else {
        return work(cancel);
    };
    let own = cancel.child();
    let clock = runtime::handle()?.spawn({
        let own = own.clone();
        async move {
            tokio::time::sleep(timeout).await;
            own.cancel();
        }
    });
    let done = work(&own);
    clock.abort();
    match done {
        Err(error) if matches!(error.inner(), Error::Interrupted) && cancel.check().is_ok() => Err(timed_out(timeout)),
        done => done,
    }
}
