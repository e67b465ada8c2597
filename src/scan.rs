//! Reads the rows of many days that pass a filter. All footers are asked for at once, then all byte ranges
//! that can matter, on condition of the footers' versions; rows are decoded from memory and filtered
//! exactly. Small questions take one round trip for footers and one for data; large ones are fetched
//! ahead within a budget of bytes, so that memory does not grow with the answer.
//!
//! Which ranges matter is decided in [`crate::scan::plan`], what is remembered in [`crate::scan::cache`].

pub mod cache;
mod decode;
mod delta;
pub mod erased;
mod fetch;
mod narrow;
mod pages;
pub mod plan;
mod stats;
mod version;

pub use decode::WholeFile;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arrow::datatypes::SchemaRef;
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::sync::Semaphore;

use crate::base::error::{Error, Result};
use crate::base::keys::{Day, Prefix, Scope};
use crate::base::runtime::{self, Cancel};
use crate::base::schema;
use crate::engine::{Batches, Relation, Unit};
use crate::file::footer::GroupPlan;
use crate::scan::cache::{Freshness, Provenance};
use crate::scan::plan::Filter;
use crate::store::Store;

use fetch::{Object, Part};
use stats::Counters;
pub use stats::{DayPlan, State, Stats};
use version::Version;

/// How a scan reads; the defaults suit object storage.
#[derive(Debug, Clone)]
pub struct Options {
    pub freshness: Freshness,
    /// Ranges at most so many bytes apart become one request.
    pub gap: u64,
    /// Requests above so many bytes are split.
    pub request_bytes: u64,
    /// Bytes that are fetched ahead of their use.
    pub ahead_bytes: u64,
    /// Requests under way at once.
    pub concurrency: usize,
    /// Most rows of a batch.
    pub batch_rows: usize,
    /// Rows of erased projects pass too: for whoever takes them out.
    pub with_erased: bool,
    /// Bytes of small files that are kept from when their footers were read.
    pub tail_bytes: u64,
    /// Of more days than these, no whole footers are kept.
    pub whole_footers: usize,
    /// When a project is named by id alone and so many rows of a file may be its, its ids are read first.
    pub narrow_rows: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            freshness: Freshness::default(),
            gap: 1 << 20,
            request_bytes: 16 << 20,
            ahead_bytes: 256 << 20,
            concurrency: 64,
            batch_rows: 8192,
            with_erased: false,
            tail_bytes: 64 << 20,
            whole_footers: 366,
            narrow_rows: 2 * 8192,
        }
    }
}

/// What all parts of a scan share.
struct Context {
    store: Store,
    prefix: Prefix,
    /// As it was asked for.
    given: Filter,
    /// With the erased projects, once they are known.
    filter: OnceLock<Filter>,
    options: Options,
    cancel: Cancel,
    today: Day,
    /// Keep of footers only what will be read.
    reduced: bool,
    /// Bytes of the ends of objects that are kept.
    tails: AtomicU64,
    requests: Semaphore,
    counters: Counters,
}

/// The rows of some days that pass a filter, read when asked for. All readings of one scan see the same
/// version of every file.
pub struct Scan {
    context: Arc<Context>,
    /// The newest first.
    files: Vec<(Day, String)>,
    objects: Mutex<Option<Vec<Arc<Object>>>>,
}

impl Scan {
    /// Does no I/O. `days` may come in any order; a day counts once.
    pub fn new(
        store: Store,
        prefix: &Prefix,
        days: impl IntoIterator<Item = Day>,
        filter: Filter,
        options: Options,
        cancel: Cancel,
    ) -> Self {
        let mut days: Vec<Day> = days.into_iter().collect();
        days.sort_unstable_by(|a, b| b.cmp(a));
        days.dedup();
        let reduced = days.len() > options.whole_footers;
        let files = days
            .into_iter()
            .map(|day| (day, prefix.key(&Scope::Day, day)))
            .collect();
        let requests = Semaphore::new(options.concurrency.max(1));
        let (today, counters) = (Day::today(), Counters::default());
        let context = Arc::new(Context {
            store,
            prefix: prefix.clone(),
            given: filter.sorted(),
            filter: OnceLock::new(),
            options,
            cancel,
            today,
            reduced,
            tails: AtomicU64::new(0),
            requests,
            counters,
        });
        Self {
            context,
            files,
            objects: Mutex::default(),
        }
    }

    /// Finds out which days have a file, and what can matter in it. Reading does it by itself.
    pub fn prepare(&self) -> Result<()> {
        self.objects().map(drop)
    }

    /// The days that have a file, the newest first.
    pub fn covered(&self) -> Result<Vec<Day>> {
        Ok(self
            .objects()?
            .iter()
            .filter(|object| object.version().footer.is_some())
            .map(|object| object.day)
            .collect())
    }

    /// What is known of the days once they were looked at: the rows of each file, `None` where there is none. Nothing when no
    /// day was looked at.
    pub fn coverage(&self) -> Option<Vec<(Day, Option<u64>)>> {
        let objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let rows = |object: &Arc<Object>| object.version().footer.as_ref().map(|footer| footer.rows());
        Some(objects.iter().map(|object| (object.day, rows(object))).collect())
    }

    pub fn stats(&self) -> Stats {
        let objects = self
            .objects
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
            .unwrap_or_default();
        let versions: Vec<_> = objects.iter().map(|object| object.version()).collect();
        let footers = versions.iter().filter_map(|version| version.footer.as_ref());
        let present = footers.clone().count() as u64;
        Stats {
            objects: self.files.len() as u64,
            present,
            absent: versions.len() as u64 - present,
            row_groups: footers.map(|footer| footer.row_groups() as u64).sum(),
            ..self.context.counters.read()
        }
    }

    /// What reading these columns (indexes into [`schema::pageviews`]) would fetch, day by day, the newest
    /// first. Reads footers, but no data.
    pub fn explain(&self, projection: &[usize]) -> Result<Vec<DayPlan>> {
        let objects = self.objects()?;
        let columns = self.needed(projection)?;
        let options = &self.context.options;
        let describe = |object: &Arc<Object>| {
            let version = object.version();
            let ranges = version.ranges(&version.groups, &columns);
            let requests = if version.in_tail(&ranges) {
                Vec::new()
            } else {
                plan::coalesce(ranges, options.gap, options.request_bytes)
            };
            let footer = version.footer.as_ref();
            DayPlan {
                day: object.day,
                key: object.key.clone(),
                state: match (footer, version.provenance) {
                    (None, _) => State::Absent,
                    (Some(_), Provenance::Cached) => State::Cached,
                    (Some(_), Provenance::Revalidated) => State::Confirmed,
                    (Some(_), Provenance::Fetched) => State::Read,
                },
                size: footer.map_or(0, |footer| footer.size),
                rows: footer.map_or(0, |footer| footer.rows()),
                row_groups: footer.map_or(0, |footer| footer.row_groups()),
                row_groups_selected: version.groups.len(),
                rows_selected: version.groups.iter().map(GroupPlan::selected).sum(),
                requests: requests.len(),
                bytes: requests.iter().map(|range| range.end - range.start).sum(),
            }
        };
        Ok(objects.iter().map(describe).collect())
    }

    /// Batches of these columns in order: the newest day first, and within a day as the file is sorted
    /// (status, path, version, id for one project).
    pub fn batches(&self, projection: &[usize]) -> Result<Batches> {
        let units = self.open(projection)?;
        let mut failed = false;
        // Dropped in this order: what is being read makes room for fetching the next, which nobody wants then.
        let mut reading: (std::vec::IntoIter<Unit>, Option<Batches>) = (units.into_iter(), None);
        Ok(Box::new(std::iter::from_fn(move || {
            let (units, current) = &mut reading;
            while !failed {
                let batch = match current {
                    Some(batches) => match batches.next() {
                        None => {
                            *current = None;
                            continue;
                        }
                        Some(batch) => batch,
                    },
                    None => match units.next()?() {
                        Ok(batches) => {
                            *current = Some(batches);
                            continue;
                        }
                        Err(error) => Err(error),
                    },
                };
                failed = batch.is_err();
                return Some(batch);
            }
            None
        })))
    }

    /// The columns to fetch for a projection: its own and those that the filter looks at.
    fn needed(&self, projection: &[usize]) -> Result<Vec<usize>> {
        let width = schema::pageviews().fields().len();
        if let Some(column) = projection.iter().find(|column| **column >= width) {
            return Err(Error::internal(format!("column {column} of {width} was asked for")));
        }
        let mut columns = self.context.filter().columns();
        columns.extend_from_slice(projection);
        columns.sort_unstable();
        columns.dedup();
        Ok(columns)
    }

    /// Bytes in memory once these row groups of a version are fetched, with what lies between their pages.
    fn fetched(&self, version: &Version, groups: Range<usize>, columns: &[usize]) -> u64 {
        let ranges = version.ranges(version.groups.get(groups).unwrap_or_default(), columns);
        if version.in_tail(&ranges) {
            return 0;
        }
        let requests = plan::coalesce(ranges, self.context.options.gap, self.context.options.request_bytes);
        requests.iter().map(|range| range.end - range.start).sum()
    }

    /// Footers of all days, asked for in one wave, the first time that they are needed.
    fn objects(&self) -> Result<Vec<Arc<Object>>> {
        let mut slot = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(objects) = &*slot {
            return Ok(objects.clone());
        }
        let context = &self.context;
        let age = |day| context.options.freshness.of(day, context.today);
        let unknown = self
            .files
            .iter()
            .filter(|(day, key)| cache::peek(&context.store, key, age(*day)).is_none())
            .count();
        let guess = cache::tail_guess(&context.store, unknown);
        let loads = self.files.iter().map(|(day, key)| {
            let (context, day, key) = (Arc::clone(context), *day, key.clone());
            async move {
                if let Some(known) = cache::peek(&context.store, &key, context.options.freshness.of(day, context.today))
                {
                    let mut version = Version::new(&context, 0, known, Provenance::Cached, None);
                    if narrow::is_settled(&context, &mut version) {
                        return Ok(Arc::new(Object::new(day, key, version.kept(&context))));
                    }
                }
                // A task of its own, so that footers are parsed on all threads of the runtime.
                let task = async move {
                    let version = fetch::load(&context, day, &key, guess, 0).await?;
                    Ok(Arc::new(Object::new(day, key, version)))
                };
                fetch::spawn(task)?.await
            }
        });
        let all = stream::iter(loads)
            .buffered(context.options.concurrency.max(1))
            .try_collect();
        let erased = async {
            // Who asks about no day reads nothing.
            if self.files.is_empty() || context.options.with_erased {
                return Ok(context.given.hidden.clone());
            }
            let age = context.options.freshness.recent;
            let (mut hidden, asked) = erased::ids(&context.store, &context.prefix, age)
                .await
                .map(|(ids, asked)| (ids.to_vec(), asked))?;
            context.count(|counters| &counters.erasure_requests, asked.into());
            hidden.extend_from_slice(&context.given.hidden);
            Ok::<_, Error>(hidden)
        };
        // Of two errors, the one about a day says more.
        let (objects, hidden): (Result<Vec<Arc<Object>>>, Result<Vec<i32>>) =
            runtime::block_on(&context.cancel, async { Ok(futures::join!(all, erased)) })?;
        let (objects, hidden) = (objects?, hidden?);
        let filter = Filter {
            hidden,
            ..context.given.clone()
        };
        // Nobody else sets it: this happens under the lock.
        let _ = context.filter.set(filter.sorted());
        *slot = Some(objects.clone());
        Ok(objects)
    }
}

impl Relation for Scan {
    fn schema(&self) -> SchemaRef {
        schema::pageviews()
    }

    fn open(&self, projection: &[usize]) -> Result<Vec<Unit>> {
        // What is known of erased projects decides about the columns.
        let objects = self.objects()?;
        let needed: Arc<[usize]> = self.needed(projection)?.into();
        let projection: Arc<[usize]> = projection.into();
        let output = decode::Output::new(&projection, &needed)?;
        let mut parts = Vec::new();
        let mut units: Vec<Unit> = Vec::new();
        for object in objects {
            let version = object.version();
            let total = version.groups.len();
            let bytes = |group: &GroupPlan| {
                version
                    .ranges(std::slice::from_ref(group), &needed)
                    .iter()
                    .map(|range| range.end - range.start)
                    .sum::<u64>()
            };
            let mut first = 0;
            while first < total {
                // Row groups that are fetched together: neighbours share requests.
                let mut size = bytes(&version.groups[first]);
                let mut end = first + 1;
                while let Some(group) = version.groups.get(end) {
                    let more = bytes(group);
                    if size + more > self.context.options.request_bytes {
                        break;
                    }
                    (size, end) = (size + more, end + 1);
                }
                let size = self.fetched(&version, first..end, &needed);
                let part = Part::new(&self.context, &object, first..end, total, Arc::clone(&needed), size);
                parts.push(Arc::downgrade(&part));
                for unit in first..end {
                    let (part, output) = (Arc::clone(&part), output.clone());
                    units.push(Box::new(move || decode::unit(&part, unit, output)));
                }
                first = end;
            }
        }
        fetch::ahead(&self.context, parts)?;
        Ok(units)
    }
}

impl Context {
    /// The filter to decode with.
    fn filter(&self) -> &Filter {
        self.filter.get().unwrap_or(&self.given)
    }

    fn count(&self, counter: impl Fn(&Counters) -> &AtomicU64, more: u64) {
        counter(&self.counters).fetch_add(more, Ordering::Relaxed);
    }
}
