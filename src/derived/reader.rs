//! Page views of many days, added up by what a report needs of them: from series files where the manifest says that these
//! are what the days hold, and from the days' own files elsewhere. Manifest and indexes once seen, however old, do for a
//! plan: the manifest is asked about in the same round trip as the data, and a file that a manifest names never changes.

mod basis;
mod indexes;
mod pieces;
mod planned;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow::datatypes::SchemaRef;
use futures::future::{BoxFuture, join_all};

use crate::archive::manifest::{self, Object};
use crate::base::error::{Error, Result};
use crate::base::keys::{Day, Prefix};
use crate::base::process::lock;
use crate::base::runtime::{self, Cancel};
use crate::base::schema;
use crate::engine::{Opened, Relation, Unit};
use crate::scan::erased;
use crate::scan::plan::Filter;
use crate::scan::{Coverage, Options, Scan, Stats};
use crate::store::Store;

pub use basis::Basis;
use pieces::{Fetched, Passing, Pieces, Wanted, allowed, fetch, passing, unit};
use planned::{Plan, Source};

use super::group;

/// How often a plan that was overtaken is made anew, before the days' own files are read.
const REPLANS: u32 = 4;

/// Rows of some days, added up. Its batches have the columns asked for, `view_count` as int64; a row stands for one or more
/// rows of page views that are alike in these columns.
pub struct Reader {
    store: Store,
    prefix: Prefix,
    filter: Filter,
    options: Options,
    cancel: Cancel,
    /// In order.
    days: Vec<Day>,
    used: Mutex<Used>,
    /// Nothing derived is read any more.
    days_alone: AtomicBool,
    counters: Arc<Counters>,
}

/// What the last opening has read.
#[derive(Default)]
struct Used {
    /// Of the days whose own files are read.
    scan: Option<Arc<Scan>>,
    /// The rows of the other days' files, and the series files that were read instead.
    derived: Vec<(Day, Option<u64>)>,
    files: Vec<(Object, Vec<Day>)>,
    /// The projects that were not shown, where the scan of days does not know them.
    hidden: Option<Vec<i32>>,
}

#[derive(Default)]
struct Counters {
    manifest_requests: AtomicU64,
    index_requests: AtomicU64,
    erasure_requests: AtomicU64,
    data_requests: AtomicU64,
    footer_requests: AtomicU64,
    answers_remembered: AtomicU64,
    days_derived: AtomicU64,
    /// Round trips before data, and those for data of series files.
    waves: AtomicU64,
    data_waves: AtomicU64,
    bytes: AtomicU64,
    rows_decoded: AtomicU64,
    rows: AtomicU64,
}

fn add(counter: &AtomicU64, number: u64) {
    counter.fetch_add(number, Ordering::Relaxed);
}

impl Reader {
    /// Does no I/O. `days` may come in any order; a day counts once.
    pub fn new(
        store: Store,
        prefix: &Prefix,
        days: impl IntoIterator<Item = Day>,
        filter: Filter,
        options: Options,
        cancel: Cancel,
    ) -> Self {
        let days: BTreeSet<Day> = days.into_iter().collect();
        Self {
            store,
            prefix: prefix.clone(),
            filter: filter.sorted(),
            options,
            cancel,
            days: days.into_iter().collect(),
            used: Mutex::default(),
            days_alone: AtomicBool::new(false),
            counters: Arc::default(),
        }
    }

    pub fn stats(&self) -> Stats {
        let used = lock(&self.used);
        let mut stats = used.scan.as_ref().map(|scan| scan.stats()).unwrap_or_default();
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        let present = used.derived.iter().filter(|(_, rows)| rows.is_some()).count() as u64;
        stats.objects += used.derived.len() as u64;
        stats.present += present;
        stats.absent += used.derived.len() as u64 - present;
        stats.days_derived = used.derived.len() as u64 + read(&counters.days_derived);
        stats.answers_remembered = read(&counters.answers_remembered);
        stats.footer_requests += read(&counters.footer_requests);
        stats.manifest_requests = read(&counters.manifest_requests);
        stats.index_requests = read(&counters.index_requests);
        stats.erasure_requests += read(&counters.erasure_requests);
        stats.data_requests += read(&counters.data_requests);
        stats.requests += read(&counters.manifest_requests)
            + read(&counters.index_requests)
            + read(&counters.erasure_requests)
            + read(&counters.data_requests)
            + read(&counters.footer_requests);
        // Days and months are read at the same time.
        stats.waves = read(&counters.waves) + stats.waves.max(read(&counters.data_waves));
        stats.bytes += read(&counters.bytes);
        stats.rows_decoded += read(&counters.rows_decoded);
        stats.rows += read(&counters.rows);
        stats
    }

    /// What is stored of the days, the newest first, once they were looked at.
    pub fn coverage(&self) -> Result<Option<Coverage>> {
        let (scan, mut days) = {
            let used = lock(&self.used);
            (used.scan.clone(), used.derived.clone())
        };
        match scan.map(|scan| scan.coverage()).transpose()?.flatten() {
            Some(rest) => days.extend(rest),
            None if days.is_empty() => return Ok(None),
            None => {}
        }
        days.sort_unstable_by_key(|(day, _)| std::cmp::Reverse(*day));
        Ok(Some(days))
    }

    /// Projects that are not shown, when these are erased.
    fn hidden(&self, erased: &[i32]) -> Vec<i32> {
        let mut hidden: Vec<i32> = self.filter.hidden.iter().chain(erased).copied().collect();
        hidden.sort_unstable();
        hidden.dedup();
        hidden
    }

    /// Whether an error is one of derived files.
    pub fn is_of_derived(&self, error: &Error) -> bool {
        let folder = self.prefix.derived_key("");
        let key = error.inner().key().unwrap_or_default();
        let files = lock(&self.used).files.clone();
        key.starts_with(&folder) || files.iter().any(|(object, _)| object.key == key)
    }

    /// From now on the days' own files are read.
    pub fn read_days(&self) {
        self.days_alone.store(true, Ordering::Relaxed);
    }

    /// The days' own files alone.
    fn scan(&self, days: Vec<Day>, filter: Filter, options: Options) -> Arc<Scan> {
        Arc::new(Scan::new(
            self.store.clone(),
            &self.prefix,
            days,
            filter,
            options,
            self.cancel.clone(),
        ))
    }

    fn open_days(&self, projection: &[usize]) -> Result<Vec<Unit>> {
        let scan = self.scan(self.days.clone(), self.filter.clone(), self.options.clone());
        *lock(&self.used) = Used {
            scan: Some(Arc::clone(&scan)),
            ..Used::default()
        };
        scan.open(projection)
    }

    /// Reads days of which nothing is derived, as far as is remembered; whether that is so still is asked beside it, now and
    /// then.
    fn open_underived(&self, asked: Option<Instant>, projection: &[usize]) -> Result<Vec<Unit>> {
        if asked.is_some_and(|asked| asked.elapsed() <= self.options.lookup_max_age) {
            return self.open_days(projection);
        }
        let (store, prefix) = (self.store.clone(), self.prefix.clone());
        let again = runtime::spawn(async move { manifest::load(&store, &prefix).await.map(drop) })?;
        let units = self.open_days(projection);
        add(&self.counters.manifest_requests, 1);
        // The days are right whatever it says.
        if let Err(error) = runtime::block_on(&self.cancel, again) {
            log::debug!("{error}");
        }
        units
    }

    /// Begins to read by a plan.
    fn begin(&self, plan: &Plan, wanted: &Wanted, projection: &[usize]) -> Result<Begun> {
        let filter = Arc::new(Filter {
            hidden: self.hidden(&plan.erased),
            ..self.filter.clone()
        });
        let mut parts = Vec::new();
        let mut opened = Opened::default();
        for source in &plan.slots {
            let (of_source, in_order) = self.parts(source, &filter, wanted)?;
            let units = of_source.iter().flat_map(units_of);
            if in_order {
                opened.ordered.push(units.collect());
            } else {
                opened.rest.extend(units);
            }
            parts.extend(of_source);
        }
        let mut budget = self.options.ahead_bytes;
        let ahead = parts.iter().take_while(|part| {
            let fits = part.size <= budget;
            budget = budget.saturating_sub(part.size);
            fits
        });
        let fetched = ahead.map(|part| runtime::spawn(fetch(Arc::clone(part))));
        let fetched: Vec<BoxFuture<'static, Result<Fetched>>> = fetched.collect::<Result<_>>()?;
        let asked = {
            let (store, prefix) = (self.store.clone(), self.prefix.clone());
            let fresh = plan.fresh;
            runtime::spawn(async move {
                if fresh {
                    return Ok(None);
                }
                let (manifest, erased) = futures::join!(
                    manifest::load(&store, &prefix),
                    erased::ids(&store, &prefix, Duration::ZERO)
                );
                Ok(Some((manifest?, erased?.0)))
            })?
        };
        // While those are on their way: what is not derived.
        let scan = (!plan.rest.is_empty()).then(|| {
            let options = Options {
                with_erased: true,
                ..self.options.clone()
            };
            self.scan(plan.rest.clone(), Filter::clone(&filter), options)
        });
        let rest = scan.as_ref().map(|scan| scan.open(projection)).transpose();
        // Of a plan that is overtaken the waves come before those of the next.
        add(
            &self.counters.waves,
            self.counters.data_waves.swap(1, Ordering::Relaxed),
        );
        let (asked, fetched) = runtime::block_on(&self.cancel, async { Ok(futures::join!(asked, join_all(fetched))) })?;
        if !plan.fresh {
            add(&self.counters.manifest_requests, 1);
            add(&self.counters.erasure_requests, 1);
        }
        let asked = match asked {
            Ok(asked) => asked,
            Err(error) => {
                instead(&error);
                return Ok(Begun::Unusable);
            }
        };
        if let Some((loaded, erased)) = asked {
            add(&self.counters.bytes, loaded.bytes);
            let manifest = loaded.known.manifest;
            let answers = |source: &Source| {
                let days = &mut source.days.iter();
                days.all(|day| manifest.series_of(*day) == Some(&source.object))
            };
            if erased != plan.erased || !plan.slots.iter().all(answers) {
                return Ok(Begun::Overtaken);
            }
        }
        for found in fetched {
            match found {
                Ok(Fetched::Whole) => {}
                // The manifest names it still.
                Ok(Fetched::Gone) if !plan.fresh => return Ok(Begun::Unusable),
                Ok(Fetched::Gone) => {
                    manifest::forget(&self.store, &self.prefix);
                    return Ok(Begun::Overtaken);
                }
                Err(error) => {
                    instead(&error);
                    return Ok(Begun::Unusable);
                }
            }
        }
        let derived = plan.slots.iter().flat_map(|source| {
            let rows = |day: &Day| source.index.rows_of(*day);
            source.days.iter().map(move |day| (*day, rows(day)))
        });
        let files = plan
            .slots
            .iter()
            .map(|source| (source.object.clone(), source.days.clone()));
        *lock(&self.used) = Used {
            scan,
            derived: derived.collect(),
            files: files.collect(),
            hidden: Some(filter.hidden.clone()),
        };
        opened.rest.extend(rest?.unwrap_or_default());
        Ok(Begun::Reading(opened))
    }

    /// What is to be read of a series file, and whether its rows are in order: those of one run are.
    fn parts(&self, source: &Source, filter: &Arc<Filter>, wanted: &Wanted) -> Result<(Vec<Arc<Pieces>>, bool)> {
        let index = &source.index;
        let mut chosen: BTreeMap<usize, Vec<Range<u64>>> = BTreeMap::new();
        let (mut by_id, mut count) = (false, 0);
        let numbers: Vec<usize> = match &filter.projects {
            Some(slugs) => slugs.iter().flat_map(|slug| index.runs_of(slug)).collect(),
            None => (0..index.runs().len()).collect(),
        };
        for number in numbers {
            let Some(run) = index.runs().get(number) else { continue };
            let Some(passes) = passing(filter, run) else { continue };
            by_id |= passes == Passing::Some;
            count += 1;
            let Some(piece) = index.piece(number) else { continue };
            for group in piece.groups {
                let (Some(start), Some(described)) = (index.start(group), index.group(group)) else {
                    continue;
                };
                let from = piece.rows.start.max(start) - start;
                let to = piece.rows.end.min(start + described.rows) - start;
                let ranges = chosen.entry(group).or_default();
                match ranges.last_mut().filter(|last| last.end == from) {
                    Some(last) => last.end = to,
                    None => ranges.push(from..to),
                }
            }
        }
        let allowed = allowed(index, &source.days);
        let columns = wanted.columns(allowed.is_some(), by_id, filter.versions.is_some())?;
        let columns: Arc<[usize]> = columns.into();
        let mut parts: Vec<Pieces> = Vec::new();
        for (group, rows) in chosen {
            let ranges = group::ranges(index, group, &columns);
            let size: u64 = ranges.iter().map(|range| range.end - range.start).sum();
            let piece = (group, rows);
            match parts
                .last_mut()
                .filter(|part| part.size + size <= self.options.request_bytes)
            {
                Some(part) => {
                    part.size += size;
                    part.ranges.extend(ranges);
                    part.groups.push(piece);
                }
                None => parts.push(Pieces {
                    store: self.store.clone(),
                    key: self.prefix.derived_key(&source.object.key),
                    etag: source.object.etag.clone(),
                    index: Arc::clone(index),
                    allowed: allowed.clone(),
                    columns: Arc::clone(&columns),
                    wanted: wanted.clone(),
                    filter: Arc::clone(filter),
                    by_id,
                    options: self.options.clone(),
                    cancel: self.cancel.clone(),
                    counters: Arc::clone(&self.counters),
                    groups: vec![piece],
                    ranges,
                    size,
                    bytes: Mutex::default(),
                }),
            }
        }
        Ok((parts.into_iter().map(Arc::new).collect(), count <= 1))
    }

    /// Begins to read; of months as they are planned, or of days alone.
    fn begin_any(&self, projection: &[usize]) -> Result<Opened> {
        let of_days = |rest: Vec<Unit>| Opened {
            ordered: Vec::new(),
            rest,
        };
        if self.days.is_empty() || !self.options.derived || self.days_alone.load(Ordering::Relaxed) {
            return self.open_days(projection).map(of_days);
        }
        if let Some((asked, known)) = manifest::peek(&self.store, &self.prefix)
            && !self.days.iter().any(|day| known.manifest.slot_of(*day).is_some())
        {
            return self.open_underived(asked, projection).map(of_days);
        }
        let wanted = Wanted::new(projection)?;
        for _ in 0..REPLANS {
            let Some(plan) = runtime::block_on(&self.cancel, self.plan())? else {
                break;
            };
            match self.begin(&plan, &wanted, projection)? {
                Begun::Reading(opened) => return Ok(opened),
                Begun::Overtaken => {}
                Begun::Unusable => break,
            }
        }
        self.open_days(projection).map(of_days)
    }
}

fn units_of(part: &Arc<Pieces>) -> Vec<Unit> {
    let unit_of = |number: usize| -> Unit {
        let part = Arc::clone(part);
        Box::new(move || unit(&part, number))
    };
    (0..part.groups.len()).map(unit_of).collect()
}

impl Relation for Reader {
    fn schema(&self) -> SchemaRef {
        schema::pageviews()
    }

    fn open(&self, projection: &[usize]) -> Result<Vec<Unit>> {
        let Opened { ordered, rest } = self.begin_any(projection)?;
        Ok(ordered.into_iter().flatten().chain(rest).collect())
    }

    fn open_in_order(&self, projection: &[usize]) -> Result<Opened> {
        let mut opened = self.begin_any(projection)?;
        // Full paths are not what series files are in order of.
        if projection.first() != Some(&schema::column(schema::PATH)?) {
            let ordered = std::mem::take(&mut opened.ordered);
            opened.rest.extend(ordered.into_iter().flatten());
        }
        Ok(opened)
    }
}

/// What became of a plan.
enum Begun {
    Reading(Opened),
    /// Something has changed, so there may be a better one.
    Overtaken,
    /// What is derived cannot be read.
    Unusable,
}

/// Questions do not fail because of what is derived.
fn instead(error: &Error) {
    if !matches!(error.inner(), Error::Interrupted) {
        log::warn!("{error}; the days' own files are read instead");
    }
}
