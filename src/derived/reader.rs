//! Page views of many days, added up by what a report needs of them: from series files where the manifest says that these
//! are what the days hold, and from the days' own files elsewhere. Manifest and indexes once seen, however old, do for a
//! plan: the manifest is asked about in the same round trip as the data, and a file that a manifest names never changes.

mod indexes;
mod pieces;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow::datatypes::SchemaRef;
use futures::future::{BoxFuture, FutureExt, join_all};
use futures::stream::{self, StreamExt, TryStreamExt};

use crate::archive::manifest::{self, INDEX, Known, Object, SERIES};
use crate::base::error::{Error, Result};
use crate::base::keys::{Day, Prefix, Scope};
use crate::base::process::lock;
use crate::base::runtime::{self, Cancel};
use crate::base::schema;
use crate::engine::{Opened, Relation, Unit};
use crate::scan::cache::{self, Lookup};
use crate::scan::erased::{self, Ids};
use crate::scan::plan::Filter;
use crate::scan::{Coverage, DayVersion, Options, Scan, Stats};
use crate::store::{Part, Precondition, Response, Store};

use indexes::{on_disk, remember_index, remembered_index};
use pieces::{Fetched, Passing, Pieces, Wanted, allowed, fetch, passing, unit};

use super::compact::{index_hint, month_of, read_index};
use super::group;
use super::index::Index;

/// How often a plan that was overtaken is made anew, before the days' own files are read.
const REPLANS: u32 = 4;
/// Indexes that are asked for by a guess of their names, in the wave in which the manifest is read first.
const GUESSES: usize = 40;

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

/// Of what an answer was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Basis {
    /// Series files, with the days that they answer for.
    derived: Vec<(Object, Vec<Day>)>,
    /// The versions of the other days' files.
    days: Vec<(Day, Option<String>)>,
    /// Projects that were not shown, in order.
    hidden: Vec<i32>,
}

impl Basis {
    pub fn memory_size(&self) -> usize {
        let derived = self
            .derived
            .iter()
            .map(|(object, days)| object.key.len() + object.etag.len() + 8 * days.len() + 100);
        derived.sum::<usize>() + self.days.len() * 100 + self.hidden.len() * 4
    }
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

/// Which series files answer for which days.
struct Plan {
    /// The manifest and the list of erased projects were read for this question.
    fresh: bool,
    erased: Ids,
    slots: Vec<Source>,
    /// The days whose own files are read.
    rest: Vec<Day>,
}

/// A series file, and the days that it answers for.
struct Source {
    object: Object,
    index: Arc<Index>,
    days: Vec<Day>,
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

    /// Of what the answer was made, once it was.
    pub fn basis(&self) -> Result<Basis> {
        let (scan, derived, hidden) = {
            let used = lock(&self.used);
            (used.scan.clone(), used.files.clone(), used.hidden.clone())
        };
        let versions = scan
            .as_ref()
            .map(|scan| scan.versions())
            .transpose()?
            .unwrap_or_default();
        let version = |(day, version): DayVersion| (day, version.map(|(etag, _)| etag));
        let hidden = hidden.or(scan.map(|scan| scan.hidden()));
        Ok(Basis {
            derived,
            days: versions.into_iter().map(version).collect(),
            hidden: self.hidden(&hidden.unwrap_or_default()),
        })
    }

    /// Projects that are not shown, when these are erased.
    fn hidden(&self, erased: &[i32]) -> Vec<i32> {
        let mut hidden: Vec<i32> = self.filter.hidden.iter().chain(erased).copied().collect();
        hidden.sort_unstable();
        hidden.dedup();
        hidden
    }

    /// Asks the store, in one wave and without data, whether an answer that was made of this would be made of it again.
    ///
    /// # Errors
    /// When it is stopped. What the store refuses is told by whoever reads anew.
    pub fn holds(&self, basis: &Basis) -> Result<bool> {
        add(&self.counters.waves, 1);
        let manifest = async {
            if basis.derived.is_empty() {
                return None;
            }
            self.ask_manifest().await.map(|known| known.manifest)
        };
        let guess = cache::tail_guess(&self.store, basis.days.len());
        let days = stream::iter(basis.days.clone())
            .map(|(day, etag)| self.is_still(day, etag, guess))
            .buffered(self.options.concurrency.max(1))
            .try_fold(true, |all, same| async move { Ok(all && same) });
        let asked = async { Ok(futures::join!(manifest, self.ask_erased(), days)) };
        let (manifest, erased, days) = runtime::block_on(&self.cancel, asked)?;
        let answers = |(object, days): &(Object, Vec<Day>)| {
            let manifest = manifest.as_ref();
            manifest.is_some_and(|manifest| days.iter().all(|day| manifest.series_of(*day) == Some(object)))
        };
        let holds = matches!(days, Ok(true))
            && erased.is_ok_and(|erased| self.hidden(&erased) == basis.hidden)
            && basis.derived.iter().all(answers);
        if holds {
            self.note_remembered(basis);
        }
        Ok(holds)
    }

    /// Counts an answer that is given again.
    pub fn note_remembered(&self, basis: &Basis) {
        add(&self.counters.answers_remembered, 1);
        let derived = basis.derived.iter().map(|(_, days)| days.len()).sum::<usize>();
        add(&self.counters.days_derived, derived as u64);
    }

    async fn is_still(&self, day: Day, etag: Option<String>, guess: u64) -> Result<bool> {
        let key = self.prefix.key(&Scope::Day, day);
        let loaded = cache::load(&self.store, &key, Duration::ZERO, guess).await?;
        add(&self.counters.footer_requests, loaded.requests.into());
        add(&self.counters.bytes, loaded.bytes);
        Ok(match (&loaded.lookup, etag) {
            (Lookup::Present(footer), Some(etag)) => footer.etag == etag,
            (Lookup::Absent, None) => true,
            _ => false,
        })
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
        let again = spawn(async move { manifest::load(&store, &prefix).await.map(drop) })?;
        let units = self.open_days(projection);
        add(&self.counters.manifest_requests, 1);
        // The days are right whatever it says.
        if let Err(error) = runtime::block_on(&self.cancel, again) {
            log::debug!("{error}");
        }
        units
    }

    /// Plans with what is remembered, and asks for what is not; `None` when nothing derived can be used.
    async fn plan(&self) -> Result<Option<Plan>> {
        let remembered = manifest::peek(&self.store, &self.prefix).map(|(_, known)| known);
        let remembered = remembered.filter(|known| !known.manifest.slots.is_empty());
        let (known, erased, fresh) = match remembered {
            // Most archives have no list of erased projects; it is asked for with the data.
            Some(known) => (
                known,
                erased::peek(&self.store, &self.prefix).unwrap_or_default(),
                false,
            ),
            None => {
                add(&self.counters.waves, 1);
                let guess = self.guess_indexes();
                let (known, erased, ()) = futures::join!(self.ask_manifest(), self.ask_erased(), guess);
                // Whoever reads the days says better what is wrong.
                let (Some(known), Ok(erased)) = (known, erased) else {
                    return Ok(None);
                };
                (known, erased, true)
            }
        };
        let mut by_slot: BTreeMap<&str, Vec<Day>> = BTreeMap::new();
        let mut rest = Vec::new();
        for day in &self.days {
            match known.manifest.slot_of(*day) {
                Some(name) => by_slot.entry(name).or_default().push(*day),
                None => rest.push(*day),
            }
        }
        let found = self.indexes(&known, by_slot.keys().copied()).await;
        if !fresh && found.iter().any(Option::is_none) {
            // What is remembered may name files that others have replaced since.
            add(&self.counters.waves, 1);
            let now = self.ask_manifest().await;
            if now.is_some_and(|now| now.etag != known.etag) {
                return Box::pin(self.plan()).await;
            }
        }
        let mut slots = Vec::new();
        for ((name, days), found) in by_slot.into_iter().zip(found) {
            let usable = found.filter(|(object, index)| {
                object.key == index.key && index.without.iter().all(|id| erased.binary_search(id).is_ok())
            });
            match usable {
                Some((object, index)) => slots.push(Source { object, index, days }),
                None => {
                    log::debug!("{name}: its series file cannot be used");
                    rest.extend(days);
                }
            }
        }
        Ok((!slots.is_empty()).then_some(Plan {
            fresh,
            erased,
            slots,
            rest,
        }))
    }

    /// The series file of each slot with its index; `None` for one that cannot be had.
    async fn indexes(&self, known: &Known, names: impl Iterator<Item = &str>) -> Vec<Option<(Object, Arc<Index>)>> {
        let waited = AtomicU64::new(0);
        let slots = names.map(|name| known.manifest.slots.get(name));
        let found = slots.map(|slot| {
            let waited = &waited;
            async move {
                let (series, object) = slot.and_then(|slot| slot.files.get(SERIES).zip(slot.files.get(INDEX)))?;
                let name = self.prefix.derived_key(&series.key);
                // Whichever index of the file: they differ in the versions of days alone.
                if let Some(index) = remembered_index(&self.store, &name) {
                    return Some((series.clone(), index));
                }
                waited.store(1, Ordering::Relaxed);
                add(&self.counters.index_requests, 1);
                match read_index(&self.store, &self.prefix, object).await {
                    Ok(found) => {
                        let (index, bytes) = found?;
                        add(&self.counters.bytes, bytes.len() as u64);
                        let index = Arc::new(index);
                        self.store
                            .remember(&on_disk(&name), &object.etag, bytes.len() as u64, &bytes);
                        remember_index(&self.store, name, &index);
                        Some((series.clone(), index))
                    }
                    Err(error) => {
                        instead(&error);
                        None
                    }
                }
            }
        });
        let found = join_all(found).await;
        add(&self.counters.waves, waited.into_inner());
        found
    }

    /// Asks for indexes by the names that they have if there are any, so that they come with the manifest. What fails here
    /// is asked for again by its right name.
    async fn guess_indexes(&self) {
        let mut names: Vec<String> = self.days.iter().rev().map(|day| month_of(*day)).collect();
        names.dedup();
        names.truncate(GUESSES);
        let asked = names.iter().map(|name| async move {
            let key = self.prefix.derived_key(&index_hint(name));
            add(&self.counters.index_requests, 1);
            if let Ok(Response::Found(found)) = self.store.get(&key, Part::All, Precondition::None).await {
                add(&self.counters.bytes, found.bytes.len() as u64);
                if let Ok(index) = Index::parse(&key, &found.bytes) {
                    let name = self.prefix.derived_key(&index.key);
                    self.store
                        .remember(&on_disk(&name), &found.etag, found.size, &found.bytes);
                    remember_index(&self.store, name, &Arc::new(index));
                }
            }
        });
        join_all(asked).await;
    }

    /// The manifest; one that cannot be read is as none: the days are what counts.
    async fn ask_manifest(&self) -> Option<Known> {
        add(&self.counters.manifest_requests, 1);
        match manifest::load(&self.store, &self.prefix).await {
            Ok(loaded) => {
                add(&self.counters.bytes, loaded.bytes);
                Some(loaded.known)
            }
            Err(error) => {
                instead(&error);
                None
            }
        }
    }

    async fn ask_erased(&self) -> Result<Ids> {
        add(&self.counters.erasure_requests, 1);
        Ok(erased::ids(&self.store, &self.prefix, Duration::ZERO).await?.0)
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
        let fetched = ahead.map(|part| spawn(fetch(Arc::clone(part))));
        let fetched: Vec<BoxFuture<'static, Result<Fetched>>> = fetched.collect::<Result<_>>()?;
        let asked = {
            let (store, prefix) = (self.store.clone(), self.prefix.clone());
            let fresh = plan.fresh;
            spawn(async move {
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
        let names = projection
            .iter()
            .filter_map(|column| schema::pageviews().fields().get(*column).cloned());
        if names.map(|field| field.name().clone()).next().as_deref() != Some(schema::PATH) {
            opened
                .rest
                .extend(std::mem::take(&mut opened.ordered).into_iter().flatten());
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

fn spawn<T: Send + 'static>(
    future: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<BoxFuture<'static, Result<T>>> {
    let task = tokio_util::task::AbortOnDropHandle::new(runtime::handle()?.spawn(future));
    let joined = async move {
        match task.await {
            Ok(result) => result,
            Err(error) if error.is_cancelled() => Err(Error::Interrupted),
            Err(_) => Err(Error::internal("a task that reads has panicked")),
        }
    };
    Ok(joined.boxed())
}
