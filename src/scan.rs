//! Reads the rows of many days that pass a filter. What is not remembered of footers is asked for at once, then all byte
//! ranges that can matter, on condition of the footers' versions; rows are decoded from memory and filtered exactly. Small
//! questions take one round trip for footers, unless all are remembered, and one for data; large ones are fetched ahead
//! within a budget of bytes, so that memory does not grow with the answer.
//!
//! A plan may be made from any footer, however old, since every read asks for its version, and a file of which nothing is
//! read is asked about in the same round trip: an answer is of the versions that were stored while it was made.
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

pub(crate) use decode::Sparse;
pub use decode::WholeFile;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::sync::Semaphore;

use crate::base::error::{Error, Result};
use crate::base::keys::{Day, Prefix, Scope};
use crate::base::process::lock;
use crate::base::runtime::{self, Cancel};
use crate::base::schema;
use crate::engine::{Batches, Relation, Unit};
use crate::file::footer::GroupPlan;
use crate::scan::cache::Provenance;
use crate::scan::plan::Filter;
use crate::store::{Kind, Store};

use fetch::{Object, Part};
use stats::Counters;
pub use stats::{DayPlan, State, Stats};
use version::Version;

/// How a scan reads; the defaults suit object storage, see [`Options::of`].
#[derive(Debug, Clone)]
pub struct Options {
    /// How long the store is believed to be as it was, without asking: what needs no data, and what was absent.
    pub max_age: Duration,
    /// The same for what is looked up beside questions: which days have a file, of which rows were deleted, and which
    /// projects are erased.
    pub lookup_max_age: Duration,
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
    /// Reports may be answered by what is derived from the files.
    pub derived: bool,
    /// When a project is named by id alone and so many rows of a file may be its, its ids are read first.
    pub narrow_rows: u64,
}

/// Where a request costs as much as reading a few pages, and no more.
const NEARBY_GAP: u64 = 16 << 10;

impl Options {
    /// The defaults for a store: on a disk, what lies between pages costs more to read than to leave out.
    pub fn of(store: &Store) -> Self {
        let mut options = Self::default();
        if matches!(store.kind(), Kind::Local | Kind::Memory) {
            options.gap = NEARBY_GAP;
        }
        options
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_age: Duration::from_secs(2),
            lookup_max_age: Duration::from_secs(60),
            gap: 1 << 20,
            request_bytes: 16 << 20,
            ahead_bytes: 256 << 20,
            concurrency: 64,
            batch_rows: 8192,
            with_erased: false,
            tail_bytes: 64 << 20,
            whole_footers: 366,
            derived: true,
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
    /// With the erased projects, as far as they are known.
    filter: Mutex<Arc<Filter>>,
    /// Whether the store was asked for them, which it is once.
    hidden: AtomicBool,
    options: Options,
    cancel: Cancel,
    /// Keep of footers only what will be read.
    reduced: bool,
    /// Bytes of the ends of objects that are kept.
    tails: AtomicU64,
    requests: Semaphore,
    counters: Counters,
}

/// A day with the ETag of its file and the rows in it; `None` for one that has none.
pub type DayVersion = (Day, Option<(String, u64)>);

/// Days, each with the rows of its file; `None` for one that has none.
pub type Coverage = Vec<(Day, Option<u64>)>;

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
        let given = filter.sorted();
        let context = Arc::new(Context {
            store,
            prefix: prefix.clone(),
            filter: Mutex::new(Arc::new(given.clone())),
            hidden: AtomicBool::new(false),
            given,
            options,
            cancel,
            reduced,
            tails: AtomicU64::new(0),
            requests,
            counters: Counters::default(),
        });
        Self {
            context,
            files,
            objects: Mutex::default(),
        }
    }

    /// Finds out which days have a file, and what can matter in it. Reading does it by itself.
    pub fn prepare(&self) -> Result<()> {
        self.confirmed().map(drop)
    }

    /// The days that have a file, the newest first.
    pub fn covered(&self) -> Result<Vec<Day>> {
        Ok(self
            .confirmed()?
            .iter()
            .filter(|object| object.version().footer.is_some())
            .map(|object| object.day)
            .collect())
    }

    /// What is stored of the days once they were looked at: the rows of each file, `None` where there is none. Nothing when
    /// no day was looked at. What has not been read is asked about.
    pub fn coverage(&self) -> Result<Option<Coverage>> {
        if lock(&self.objects).is_none() {
            return Ok(None);
        }
        let objects = self.confirmed()?;
        let rows = |object: &Arc<Object>| object.version().footer.as_ref().map(|footer| footer.rows());
        Ok(Some(objects.iter().map(|object| (object.day, rows(object))).collect()))
    }

    /// The version of each day's file that was read, and its rows; `None` where there is no file.
    pub fn versions(&self) -> Result<Vec<DayVersion>> {
        let version = |object: &Arc<Object>| {
            let version = object.version();
            let footer = version.footer.as_ref();
            (object.day, footer.map(|footer| (footer.etag.clone(), footer.rows())))
        };
        Ok(self.confirmed()?.iter().map(version).collect())
    }

    /// The ids of projects whose rows do not pass.
    pub fn hidden(&self) -> Vec<i32> {
        self.context.filter().hidden.clone()
    }

    pub fn stats(&self) -> Stats {
        let objects = lock(&self.objects).clone().unwrap_or_default();
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
        let objects = self.confirmed()?;
        let columns = self.needed(projection, &self.context.filter())?;
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
                state: match (footer, object.provenance()) {
                    (None, _) => State::Absent,
                    (Some(_), Provenance::Cached | Provenance::Assumed) => State::Cached,
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
    fn needed(&self, projection: &[usize], filter: &Filter) -> Result<Vec<usize>> {
        let width = schema::pageviews().fields().len();
        if let Some(column) = projection.iter().find(|column| **column >= width) {
            return Err(Error::internal(format!("column {column} of {width} was asked for")));
        }
        let mut columns = filter.columns();
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

    /// What is stored of all days, as the store says now.
    fn confirmed(&self) -> Result<Vec<Arc<Object>>> {
        let objects = self.objects()?;
        let context = &self.context;
        let unsure = objects.iter().filter(|object| !object.is_confirmed());
        let asked = unsure.map(|object| {
            let (context, object) = (Arc::clone(context), Arc::clone(object));
            async move { runtime::spawn(async move { object.confirm(&context).await })?.await }
        });
        let asked = stream::iter(asked.collect::<Vec<_>>())
            .buffered(context.options.concurrency.max(1))
            .try_fold(0, |most, waves| async move { Ok(waves.max(most)) });
        let waves = runtime::block_on(&context.cancel, asked)?;
        context.counters.footer_waves.fetch_max(waves, Ordering::Relaxed);
        Ok(objects)
    }

    /// What is stored of all days, as far as it is remembered; footers that are not are asked for in one wave, and the
    /// list of erased projects with them.
    fn objects(&self) -> Result<Vec<Arc<Object>>> {
        let mut slot = lock(&self.objects);
        if let Some(objects) = &*slot {
            return Ok(objects.clone());
        }
        let context = &self.context;
        let remembered = |key: &str| cache::peek(&context.store, key, context.options.max_age);
        let unknown = self.files.iter().filter(|(_, key)| remembered(key).is_none()).count();
        let guess = cache::tail_guess(&context.store, unknown);
        let loads = self.files.iter().map(|(day, key)| {
            let (context, day, key) = (Arc::clone(context), *day, key.clone());
            async move {
                if let Some((known, provenance)) = remembered(&key) {
                    let mut version = Version::new(&context, 0, known, provenance, None);
                    if narrow::is_settled(&context, &mut version) {
                        return Ok((Arc::new(Object::new(day, key, version.kept(&context))), 0));
                    }
                }
                // A task of its own, so that footers are parsed on all threads of the runtime.
                let task = async move {
                    let (version, waves) = fetch::load(&context, day, &key, guess, 0).await?;
                    Ok((Arc::new(Object::new(day, key, version)), waves))
                };
                runtime::spawn(task)?.await
            }
        });
        let all = stream::iter(loads)
            .buffered(context.options.concurrency.max(1))
            .try_collect();
        let erased = async {
            // Who asks about no day reads nothing.
            if self.files.is_empty() || context.options.with_erased {
                return Ok(());
            }
            match erased::peek(&context.store, &context.prefix).filter(|_| unknown == 0) {
                Some(ids) => {
                    context.hide(&ids);
                    Ok(())
                }
                None => context.hide_erased().await.map(|_| ()),
            }
        };
        // Of two errors, the one about a day says more.
        type Loaded = Result<Vec<(Arc<Object>, u64)>>;
        let (loaded, erased): (Loaded, Result<()>) =
            runtime::block_on(&context.cancel, async { Ok(futures::join!(all, erased)) })?;
        let mut objects = Vec::with_capacity(self.files.len());
        for (object, waves) in loaded? {
            context.counters.footer_waves.fetch_max(waves, Ordering::Relaxed);
            objects.push(object);
        }
        erased?;
        *slot = Some(objects.clone());
        Ok(objects)
    }

    /// Begins to read; `None` when another project was erased meanwhile, so that other rows are to be read.
    fn begin(&self, objects: &[Arc<Object>], projection: &Arc<[usize]>) -> Result<Option<Vec<Unit>>> {
        let filter = self.context.filter();
        let needed: Arc<[usize]> = self.needed(projection, &filter)?.into();
        let output = decode::Output::new(projection, &needed)?;
        let mut parts = Vec::new();
        let mut units: Vec<Unit> = Vec::new();
        for object in objects {
            let version = object.version();
            // One of which nothing is to be read may have changed.
            let total = version.groups.len().max(usize::from(!object.is_confirmed()));
            let bytes = |group: usize| {
                let groups = version.groups.get(group..=group).unwrap_or_default();
                let ranges = version.ranges(groups, &needed);
                ranges.iter().map(|range| range.end - range.start).sum::<u64>()
            };
            let mut first = 0;
            while first < total {
                // Row groups that are fetched together: neighbours share requests.
                let mut size = bytes(first);
                let mut end = first + 1;
                while end < total {
                    let more = bytes(end);
                    if size + more > self.context.options.request_bytes {
                        break;
                    }
                    (size, end) = (size + more, end + 1);
                }
                let size = self.fetched(&version, first..end, &needed);
                let (needed, filter) = (Arc::clone(&needed), Arc::clone(&filter));
                let part = Part::new(&self.context, object, first..end, total, needed, filter, size);
                for unit in first..end {
                    let (part, output) = (Arc::clone(&part), output.clone());
                    units.push(Box::new(move || decode::unit(&part, unit, output)));
                }
                parts.push(part);
                first = end;
            }
        }
        fetch::ahead(&self.context, parts.iter().map(Arc::downgrade).collect())?;
        let same = runtime::block_on(&self.context.cancel, self.context.hide_erased());
        match same {
            Ok(same) => Ok(same.then_some(units)),
            // Of two errors, the one about a day says more.
            Err(error) => match parts.first().map(|part| part.wait()) {
                Some(Err(of_day)) => Err(of_day),
                _ => Err(error),
            },
        }
    }
}

impl Relation for Scan {
    fn schema(&self) -> SchemaRef {
        schema::pageviews()
    }

    fn open(&self, projection: &[usize]) -> Result<Vec<Unit>> {
        let objects = self.objects()?;
        if objects.is_empty() {
            return Ok(Vec::new());
        }
        let projection: Arc<[usize]> = projection.into();
        loop {
            // The list is asked for once, so that this ends.
            if let Some(units) = self.begin(&objects, &projection)? {
                return Ok(units);
            }
        }
    }
}

impl Context {
    /// The filter to decode with.
    fn filter(&self) -> Arc<Filter> {
        Arc::clone(&lock(&self.filter))
    }

    /// Lets no row of the projects pass that are erased by now. Whether that was so before.
    async fn hide_erased(&self) -> Result<bool> {
        if self.options.with_erased || self.hidden.load(Ordering::Relaxed) {
            return Ok(true);
        }
        let (ids, asked) = erased::ids(&self.store, &self.prefix, self.options.max_age).await?;
        self.count(|counters| &counters.erasure_requests, asked.into());
        self.hidden.store(true, Ordering::Relaxed);
        Ok(self.hide(&ids))
    }

    fn hide(&self, ids: &[i32]) -> bool {
        let filter = Filter {
            hidden: ids.iter().chain(&self.given.hidden).copied().collect(),
            ..self.given.clone()
        };
        let filter = filter.sorted();
        let mut current = lock(&self.filter);
        let same = **current == filter;
        if !same {
            *current = Arc::new(filter);
        }
        same
    }

    fn count(&self, counter: impl Fn(&Counters) -> &AtomicU64, more: u64) {
        counter(&self.counters).fetch_add(more, Ordering::Relaxed);
    }
}
