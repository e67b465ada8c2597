//! Upkeep of what is derived: for each month a series file of its days, with an index, made of the last one and of the
//! days that have changed since, in one pass and within bounds of memory. Whatever it is broken off by, what is stored
//! stays right: files have names of their own, and the manifest names them once they are there.

mod leftovers;
mod rows;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::Int32Type;
use bytes::Bytes;
use chrono::{DateTime, Datelike, Utc};
use futures::stream::{self, StreamExt, TryStreamExt};
use parquet::file::metadata::KeyValue;

use crate::archive::erase::stored_days;
use crate::archive::manifest::{self, INDEX, Known, MARKS_HOLD, Manifest, Object, SERIES, Slot};
use crate::archive::merge::without;
use crate::archive::publish::{LARGEST_FILE, ignored_conditions, publish};
use crate::base::error::{Error, Result};
use crate::base::keys::{Day, Prefix, Scope};
use crate::base::process::lock;
use crate::base::runtime::{Cancel, block_on};
use crate::base::schema::{self, meta};
use crate::engine::Batches;
use crate::file::spool::Spool;
use crate::scan::cache::{self, Lookup};
use crate::scan::erased::{self, Ids};
use crate::scan::plan::Filter;
use crate::scan::{Options, Scan, Sparse};
use crate::store::{Part, Precondition, Response, Store, Write};

pub use leftovers::months_with_erased;
use leftovers::{NAME_TIME, collect_garbage};
use rows::SeriesRows;

use super::index::{DayFile, Index};
use super::merge::{Input, Which, merge};
use super::series::{self, SeriesWriter};

/// The folder of series files and their indexes, below the one of derived files.
const FOLDER: &str = "series";
/// Days that are asked about at once.
const AT_ONCE: usize = 32;
/// How often the manifest is written again, when days are written meanwhile.
const ROUNDS: u32 = 16;
/// Bytes of an input that are held in memory: there may be 32 of them.
const INPUT_BYTES: u64 = 4 << 20;

/// How what is derived is made.
#[derive(Debug, Clone, Default)]
pub struct CompactOptions {
    pub prefix: Prefix,
    /// Where a file is spooled before it goes up.
    pub temp_dir: Option<PathBuf>,
    /// Only months that have a file already.
    pub existing: bool,
}

/// How far a compaction has come, for whoever looks from another thread.
#[derive(Debug, Default)]
pub struct Progress {
    months: AtomicU64,
    of: AtomicU64,
}

impl Progress {
    /// Months that are done, and that there are.
    pub fn months(&self) -> (u64, u64) {
        (self.months.load(Ordering::Relaxed), self.of.load(Ordering::Relaxed))
    }
}

/// What became of a month.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It has a file for the first time, or one of all days anew.
    Created,
    /// Some of its days were put in the place of older ones.
    Updated,
    /// Its days have the rows that they had.
    Unchanged,
    /// None of its days has a file any more.
    Removed,
    /// Its file would be larger than one that goes up; questions read its days.
    TooLarge,
}

/// A month, after it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compacted {
    /// `YYYY-MM`.
    pub name: String,
    pub outcome: Outcome,
    /// Days that have a file.
    pub days: u64,
    /// Days whose files were read.
    pub days_read: u64,
    /// Rows and bytes of its series file.
    pub rows: u64,
    pub bytes: u64,
}

/// Brings what is derived of the days from `since` to `until` up to date, a whole month at a time; of the present day
/// nothing is derived.
///
/// # Errors
/// [`Error::Configuration`] when the store ignores conditions, otherwise of reading and writing; months that were done
/// before stay done.
pub fn compact(
    store: &Store,
    options: &CompactOptions,
    since: Option<Day>,
    until: Option<Day>,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<Vec<Compacted>> {
    let prefix = &options.prefix;
    let ignored = block_on(cancel, ignored_conditions(store, prefix))?;
    if !ignored.is_empty() {
        return Err(Error::configuration(format!(
            "{} ignores {}; nothing is derived there, because it could not be told what is current",
            store.url(),
            ignored.join(", ")
        )));
    }
    let before = block_on(cancel, manifest::current(store, prefix))?;
    let found = block_on(cancel, stored_days(store, prefix))?;
    let asked =
        |first: Day, last: Day| since.is_none_or(|since| last >= since) && until.is_none_or(|until| first <= until);
    let mut months: BTreeMap<String, Vec<Day>> = BTreeMap::new();
    for day in found.into_iter().filter(|day| *day < Day::today()) {
        months.entry(month_of(day)).or_default().push(day);
    }
    for name in before.manifest.slots.keys() {
        months.entry(name.clone()).or_default();
    }
    if options.existing {
        months.retain(|name, _| before.manifest.slots.contains_key(name));
    }
    let (ids, _) = block_on(cancel, erased::ids(store, prefix, Duration::ZERO))?;
    let (mut done, mut failed) = (Vec::new(), None);
    progress.of.store(months.len() as u64, Ordering::Relaxed);
    for (number, (name, days)) in months.into_iter().enumerate() {
        progress.months.store(number as u64, Ordering::Relaxed);
        cancel.check()?;
        let span = days.first().copied().zip(days.last().copied());
        let slot = before.manifest.slots.get(&name).map(|slot| (slot.first, slot.last));
        let Some((first, last)) = span.or(slot) else { continue };
        if !asked(month_start(first), month_end(last)) {
            continue;
        }
        let month = Month {
            store,
            options,
            cancel,
            erased: &ids,
            name,
        };
        let damaged = |error: &Error| error.key().is_some_and(|key| key.starts_with(&format!("{FOLDER}/")));
        let ended = match month.bring_up_to_date(&days, false) {
            Err(error @ Error::CorruptFile { .. }) if damaged(&error) => {
                log::warn!("{error}; {} is made anew of its days", month.name);
                month.bring_up_to_date(&days, true)
            }
            ended => ended,
        };
        match ended {
            Ok(compacted) => done.push(compacted),
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            // One that cannot be done keeps no other from it.
            Err(error) => {
                log::warn!("{}: {error}", month.name);
                failed.get_or_insert(error);
            }
        }
    }
    collect_garbage(store, prefix, cancel)?;
    // Whoever erased a project meanwhile may have looked before these files were there.
    if block_on(cancel, erased::ids(store, prefix, Duration::ZERO))?.0 != ids {
        return compact(store, options, since, until, progress, cancel);
    }
    failed.map_or(Ok(done), Err)
}

pub(crate) fn month_of(day: Day) -> String {
    day.date().format("%Y-%m").to_string()
}

fn month_start(day: Day) -> Day {
    day.minus_days(day.date().day0().into())
}

fn month_end(day: Day) -> Day {
    let later = Day::range(day, day.plus_days(31)).take_while(|other| month_of(*other) == month_of(day));
    later.last().unwrap_or(day)
}

/// The key of the copy of an index that somebody finds who knows no manifest, below the folder of derived files.
pub fn index_hint(name: &str) -> String {
    format!("{FOLDER}/{name}.index")
}

struct Month<'a> {
    store: &'a Store,
    options: &'a CompactOptions,
    cancel: &'a Cancel,
    erased: &'a Ids,
    name: String,
}

/// A slot as it is stored, with its index.
struct Old {
    slot: Slot,
    index: Index,
    series: Object,
}

/// What a new slot is made of.
struct Made {
    first: Day,
    files: Vec<Option<DayFile>>,
    days_read: u64,
    outcome: Outcome,
}

impl Month<'_> {
    /// Makes the month's file of what is there of it and of what has changed, or `anew` of all its days.
    fn bring_up_to_date(&self, days: &[Day], anew: bool) -> Result<Compacted> {
        let prefix = &self.options.prefix;
        // Read before the days are: what is marked in it later was written later.
        let before = block_on(self.cancel, manifest::current(self.store, prefix))?;
        let old = if anew { None } else { self.old(&before.manifest)? };
        let known: BTreeMap<Day, DayFile> = old.iter().flat_map(|old| recorded(&old.index)).collect();
        let listed = days.first().copied().zip(days.last().copied());
        let Some((first, last)) = listed.map(|(first, last)| (month_start(first), last)) else {
            return self.remove();
        };
        // Also of days that were not among those listed: one may have come before the manifest was read.
        let found = block_on(self.cancel, self.versions(Day::range(first, last), &known))?;
        let days: Vec<Day> = found.keys().copied().collect();
        if days.is_empty() {
            return self.remove();
        }
        let changed: Vec<Day> = days
            .iter()
            .copied()
            .filter(|day| matches!(found.get(day), Some(Version::Other)))
            .collect();
        let gone = known.keys().any(|day| !found.contains_key(day));
        let usable = old.as_ref().filter(|old| self.is_of_our_erased(&old.index));
        let holds_erased = usable.is_some_and(|old| self.holds_erased(&old.index));
        let whole = old
            .as_ref()
            .is_some_and(|old| old.slot.first == first && old.slot.last == last);
        let day_files = |read: &BTreeMap<Day, DayFile>| -> Vec<Option<DayFile>> {
            let of_day = |day: Day| {
                read.get(&day).cloned().or_else(|| match found.get(&day)? {
                    Version::Same(file) => Some(file.clone()),
                    Version::Other => None,
                })
            };
            Day::range(first, last).map(of_day).collect()
        };
        if let Some(old) = usable.filter(|_| changed.is_empty() && !gone && whole && !holds_erased) {
            return self.confirm(before, old, day_files(&BTreeMap::new()));
        }
        // Without most of its days the old file is no shorter way.
        let from = usable.filter(|_| changed.len() < days.len());
        let read = if from.is_some() { changed } else { days.to_vec() };
        let kept: BTreeSet<Day> = days.iter().copied().filter(|day| !read.contains(day)).collect();
        let dropped = Arc::new(Mutex::new(BTreeSet::new()));
        let mut inputs = Vec::new();
        if let Some(old) = from {
            lock(&dropped).extend(old.index.without.iter().copied());
            inputs.push(self.of_series(old, &kept, first, &dropped));
        }
        let scans: Vec<(Day, Scan)> = read.iter().map(|day| (*day, self.scan(*day))).collect();
        for (day, scan) in &scans {
            inputs.push(self.of_day(*day, scan, offset(first, *day), &dropped)?);
        }
        let about = vec![
            KeyValue::new(meta::SERIES.to_owned(), series::FORMAT.to_string()),
            KeyValue::new(meta::FIRST_DAY.to_owned(), first.to_string()),
            KeyValue::new(meta::LAST_DAY.to_owned(), last.to_string()),
        ];
        let mut writer = SeriesWriter::new(Spool::create(self.options.temp_dir.as_deref())?, about)?;
        merge(inputs, |key, views| {
            self.cancel.check()?;
            writer.push(key, views)
        })?;
        let written = writer.finish()?;
        let mut of_days = BTreeMap::new();
        for (day, scan) in &scans {
            match scan.versions()?.pop() {
                Some((_, Some((etag, rows)))) => _ = of_days.insert(*day, DayFile { etag, rows }),
                _ => {
                    return Err(Error::Store {
                        key: Some(prefix.key(&Scope::Day, *day)),
                        message: format!("the file of {day} went away while it was compacted; do it again"),
                        retryable: true,
                    });
                }
            }
        }
        let rows = written.runs.iter().map(|run| run.rows).sum();
        let made = Made {
            first,
            files: day_files(&of_days),
            days_read: read.len() as u64,
            outcome: if from.is_some() {
                Outcome::Updated
            } else {
                Outcome::Created
            },
        };
        if written.bytes > LARGEST_FILE {
            log::warn!(
                "{}: its series file would have {} bytes, and at most {LARGEST_FILE} go up; questions read its days",
                self.name,
                written.bytes
            );
            self.remove()?;
            return Ok(self.compacted(Outcome::TooLarge, &made.files, made.days_read, rows, written.bytes));
        }
        let key = self.new_key();
        let index = Index::new(key.clone(), first, made.files.clone(), written.runs, written.groups)
            .without(lock(&dropped).iter().copied().collect());
        let bytes = written.bytes;
        let series = self.put(&key, written.sink.into_bytes()?)?;
        self.commit(before, &made, last, series, &index)?;
        Ok(self.compacted(made.outcome, &made.files, made.days_read, rows, bytes))
    }

    fn compacted(
        &self,
        outcome: Outcome,
        files: &[Option<DayFile>],
        days_read: u64,
        rows: u64,
        bytes: u64,
    ) -> Compacted {
        Compacted {
            name: self.name.clone(),
            outcome,
            days: files.iter().flatten().count() as u64,
            days_read,
            rows,
            bytes,
        }
    }

    /// Of an index that cannot be had nothing is used: the month is made of its days.
    fn old(&self, manifest: &Manifest) -> Result<Option<Old>> {
        let Some(slot) = manifest.slots.get(&self.name) else {
            return Ok(None);
        };
        let (Some(series), Some(object)) = (slot.files.get(SERIES), slot.files.get(INDEX)) else {
            return Ok(None);
        };
        let key = self.options.prefix.derived_key(&series.key);
        let version = Precondition::IfMatch(series.etag.clone());
        let there = block_on(self.cancel, self.store.get(&key, Part::Tail(1), version))?;
        if !matches!(there, Response::Found(_)) {
            log::warn!(
                "{key} is gone, or is not what was written; {} is made anew of its days",
                self.name
            );
            return Ok(None);
        }
        match block_on(self.cancel, read_index(self.store, &self.options.prefix, object)) {
            Ok(Some((index, _))) if index.key == series.key => Ok(Some(Old {
                slot: slot.clone(),
                index,
                series: series.clone(),
            })),
            Ok(_) => Ok(None),
            Err(error @ Error::CorruptFile { .. }) => {
                log::warn!("{error}; {} is made anew of its days", self.name);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether all projects that were left out of it are still erased.
    fn is_of_our_erased(&self, index: &Index) -> bool {
        index.without.iter().all(|id| self.erased.binary_search(id).is_ok())
    }

    fn holds_erased(&self, index: &Index) -> bool {
        !index.ids_of(self.erased).is_empty()
    }

    /// Which of the days have a file, and whether it has the rows that it had.
    async fn versions(
        &self,
        days: impl Iterator<Item = Day>,
        known: &BTreeMap<Day, DayFile>,
    ) -> Result<BTreeMap<Day, Version>> {
        stream::iter(days)
            .map(|day| async move {
                let found = version(self.store, &self.options.prefix, day, known.get(&day)).await;
                Ok((day, found.map_err(|error| error.on_day(day))?))
            })
            .buffered(AT_ONCE)
            .try_filter_map(|(day, version)| async move { Ok(version.map(|version| (day, version))) })
            .try_collect()
            .await
    }

    fn scan(&self, day: Day) -> Scan {
        let options = Options {
            with_erased: true,
            max_age: Duration::ZERO,
            ahead_bytes: INPUT_BYTES,
            request_bytes: INPUT_BYTES,
            ..Options::of(self.store)
        };
        let (store, prefix) = (self.store.clone(), &self.options.prefix);
        Scan::new(store, prefix, [day], Filter::default(), options, self.cancel.clone())
    }

    fn of_day(&self, day: Day, scan: &Scan, number: u16, dropped: &Dropped) -> Result<Input> {
        let columns = [
            schema::PROJECT_SLUG,
            schema::STATUS,
            schema::PATH,
            schema::VERSION_SLUG,
            schema::PROJECT_ID,
            schema::VERSION_ID,
            schema::FULL_PATH,
            schema::VIEW_COUNT,
        ];
        let all = schema::pageviews();
        let projection = columns
            .iter()
            .map(|name| all.index_of(name).map_err(|error| Error::internal(error.to_string())))
            .collect::<Result<Vec<_>>>()?;
        Ok(Input {
            name: self.options.prefix.key(&Scope::Day, day),
            batches: self.left(scan.batches(&projection)?, dropped),
            days: Which::Day(number),
        })
    }

    /// The rows of an older file on the days that are kept.
    fn of_series(&self, old: &Old, kept: &BTreeSet<Day>, first: Day, dropped: &Dropped) -> Input {
        let place = |day: Day| kept.contains(&day).then(|| offset(first, day));
        let days: Vec<Option<u16>> = Day::range(old.index.first, old.slot.last).map(place).collect();
        let rows = SeriesRows {
            store: self.store.clone(),
            key: self.options.prefix.derived_key(&old.series.key),
            etag: old.series.etag.clone(),
            index: old.index.clone(),
            cancel: self.cancel.clone(),
            next: 0,
            fetched: (0..0, Sparse::default()),
            current: None,
        };
        Input {
            name: old.series.key.clone(),
            batches: self.left(Box::new(rows), dropped),
            days: Which::Series(days.into()),
        }
    }

    /// The rows that are not of erased projects; notes the ids of those that are.
    fn left(&self, batches: Batches, dropped: &Dropped) -> Batches {
        let (erased, dropped) = (Arc::clone(self.erased), Arc::clone(dropped));
        Box::new(batches.map(move |batch| {
            let batch = batch?;
            let rows = batch.num_rows();
            let left = without(batch.clone(), &erased)?;
            if left.num_rows() < rows {
                let ids = batch.column_by_name(schema::PROJECT_ID);
                let ids = ids.and_then(|ids| ids.as_primitive_opt::<Int32Type>());
                let ids = ids.map(|ids| ids.values().to_vec()).unwrap_or_default();
                lock(&dropped).extend(ids.into_iter().filter(|id| erased.binary_search(id).is_ok()));
            }
            Ok(left)
        }))
    }

    /// A name that no other file has had, with the time in it.
    fn new_key(&self) -> String {
        let run = uuid::Uuid::new_v4().simple().to_string();
        let now = Utc::now().format(NAME_TIME);
        format!("{FOLDER}/{}_{now}_{}.parquet", self.name, &run[..12])
    }

    fn put(&self, key: &str, bytes: Bytes) -> Result<Object> {
        let length = bytes.len() as u64;
        let run_id = uuid::Uuid::new_v4().to_string();
        let whole = self.options.prefix.derived_key(key);
        let etag = block_on(
            self.cancel,
            publish(self.store, &whole, bytes, Write::Create, &run_id, &[]),
        )
        .map_err(derived_unknown)?;
        Ok(Object {
            key: key.to_owned(),
            etag,
            bytes: length,
        })
    }

    /// All days have the rows that they had: what is marked is taken back, and new versions are noted.
    fn confirm(&self, before: Known, old: &Old, files: Vec<Option<DayFile>>) -> Result<Compacted> {
        let rows = old.index.runs().iter().map(|run| run.rows).sum();
        let same = files == old.index.days;
        let settled = before
            .manifest
            .changed
            .range(old.slot.first..=old.slot.last)
            .next()
            .is_none();
        let made = Made {
            first: old.index.first,
            files,
            days_read: 0,
            outcome: Outcome::Unchanged,
        };
        if !(same && settled) {
            let mut index = old.index.clone();
            index.days.clone_from(&made.files);
            self.commit(before, &made, old.slot.last, old.series.clone(), &index)?;
        } else {
            // Of two compactions the one that ended first may have written it last.
            let hint = self.options.prefix.derived_key(&index_hint(&self.name));
            let bytes = Bytes::from(old.index.to_bytes()?);
            let there = block_on(self.cancel, self.store.get(&hint, Part::All, Precondition::None))?;
            if !matches!(there, Response::Found(found) if found.bytes == bytes) {
                self.put_hint(bytes);
            }
        }
        Ok(self.compacted(Outcome::Unchanged, &made.files, 0, rows, old.series.bytes))
    }

    /// Puts the index in its place, and names the files in the manifest.
    fn commit(&self, mut before: Known, made: &Made, last: Day, series: Object, index: &Index) -> Result<()> {
        let (store, prefix) = (self.store, &self.options.prefix);
        let key = self.new_key().replace(".parquet", ".index");
        let bytes = Bytes::from(index.to_bytes()?);
        let index = self.put(&key, bytes.clone())?;
        let files = BTreeMap::from([(SERIES.to_owned(), series), (INDEX.to_owned(), index)]);
        let slot = Slot::new(made.first, last, files);
        let mut stale = BTreeSet::new();
        for _ in 0..ROUNDS {
            let mut manifest = Manifest::clone(&before.manifest);
            manifest.slots.insert(self.name.clone(), slot.clone());
            settle(&mut manifest, &slot, &stale, Utc::now());
            match block_on(self.cancel, manifest::put(store, prefix, &before, manifest)) {
                Ok(()) => {
                    self.drop_superseded(&before.manifest, &slot);
                    self.put_hint(bytes);
                    return Ok(());
                }
                Err(Error::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
            // Whoever erased a project meanwhile may not look at this month again.
            if block_on(self.cancel, erased::ids(store, prefix, Duration::ZERO))?.0 != *self.erased {
                return Err(Error::Store {
                    key: Some(prefix.erased_key()),
                    message: format!(
                        "{}: a project was erased while it was compacted; do it again",
                        self.name
                    ),
                    retryable: true,
                });
            }
            // Somebody has marked or settled a day meanwhile. Marks that are there are left alone; what was settled before
            // this manifest was read shows in the day's version.
            before = block_on(self.cancel, manifest::current(store, prefix))?;
            let days: Vec<(Day, Option<DayFile>)> = Day::range(made.first, last).zip(made.files.clone()).collect();
            stale = block_on(self.cancel, others(store, prefix, days))?;
        }
        Err(Error::Store {
            key: Some(prefix.manifest_key()),
            message: format!(
                "{}: days were written {ROUNDS} times while it was compacted; do it again",
                self.name
            ),
            retryable: true,
        })
    }

    /// Puts a copy of the index where it is found without a manifest.
    fn put_hint(&self, bytes: Bytes) {
        let hint = self.options.prefix.derived_key(&index_hint(&self.name));
        if let Err(error) = block_on(self.cancel, self.store.put(&hint, bytes, Write::Overwrite, &[])) {
            log::warn!(
                "{}: {error}; first questions of a process take one request longer",
                self.name
            );
        }
    }

    /// Deletes the files that the slot had before. Whoever is about to read them finds that out, and plans anew.
    fn drop_superseded(&self, before: &Manifest, slot: &Slot) {
        let named: Vec<&str> = slot.files.values().map(|object| object.key.as_str()).collect();
        let old = before
            .slots
            .get(&self.name)
            .into_iter()
            .flat_map(|old| old.files.values());
        for object in old.filter(|object| !named.contains(&object.key.as_str())) {
            let key = self.options.prefix.derived_key(&object.key);
            if let Err(error) = block_on(self.cancel, self.store.delete(&key)) {
                log::warn!("{}: {error}; it is deleted later", self.name);
            }
        }
    }

    /// None of its days has a file, or none of them is to be derived from.
    fn remove(&self) -> Result<Compacted> {
        // What is remembered may be from before the slot was made.
        manifest::forget(self.store, &self.options.prefix);
        let hint = self.options.prefix.derived_key(&index_hint(&self.name));
        block_on(self.cancel, self.store.delete(&hint))?;
        let removed = manifest::change(self.store, &self.options.prefix, |manifest| {
            let slot = manifest.slots.remove(&self.name)?;
            for day in Day::range(slot.first, slot.last) {
                // Without a slot only those who are about to write are kept.
                if manifest.changed.get_mut(&day).is_some_and(|change| {
                    change.stale = false;
                    change.writers.is_empty()
                }) {
                    manifest.changed.remove(&day);
                }
            }
            Some(())
        });
        let outcome = match block_on(self.cancel, removed)? {
            Some(()) => Outcome::Removed,
            None => Outcome::Unchanged,
        };
        Ok(self.compacted(outcome, &[], 0, 0, 0))
    }
}

type Dropped = Arc<Mutex<BTreeSet<i32>>>;

/// Takes back the marks of the days of a slot that was made of their present versions, but for those that are `stale` by
/// now, and of writers that are about to write.
fn settle(manifest: &mut Manifest, slot: &Slot, stale: &BTreeSet<Day>, now: DateTime<Utc>) {
    for day in Day::range(slot.first, slot.last) {
        let change = manifest.changed.entry(day).or_default();
        change.writers.retain(|_, since| now - *since < MARKS_HOLD);
        change.stale = stale.contains(&day);
        if change.writers.is_empty() && !change.stale {
            manifest.changed.remove(&day);
        }
    }
}

/// What is said of a derived file when it is not known whether it was written: it has a name of its own, so nothing is lost.
fn derived_unknown(error: Error) -> Error {
    match error {
        Error::CommitStateUnknown { key, message, .. } => Error::Store {
            key: Some(key),
            message,
            retryable: true,
        },
        error => error,
    }
}

fn offset(first: Day, day: Day) -> u16 {
    u16::try_from(day.to_date32() - first.to_date32()).unwrap_or(u16::MAX)
}

/// The days of an index that have a file.
fn recorded(index: &Index) -> impl Iterator<Item = (Day, DayFile)> {
    let last = index.first.plus_days((index.days.len() as u64).saturating_sub(1));
    let days = Day::range(index.first, last).zip(&index.days);
    days.filter_map(|(day, file)| Some((day, file.clone()?)))
}

/// A day's file beside the version that is known of it.
enum Version {
    /// It has its rows; the version that it is now.
    Same(DayFile),
    Other,
}

async fn version(store: &Store, prefix: &Prefix, day: Day, known: Option<&DayFile>) -> Result<Option<Version>> {
    let key = prefix.key(&Scope::Day, day);
    let condition = match known {
        Some(known) => Precondition::IfNoneMatch(known.etag.clone()),
        None => Precondition::None,
    };
    let answer = store.get(&key, Part::Tail(1), condition).await?;
    let Some(known) = known else {
        return Ok(matches!(answer, Response::Found(_)).then_some(Version::Other));
    };
    match answer {
        Response::NotModified => return Ok(Some(Version::Same(known.clone()))),
        Response::NotFound => return Ok(None),
        Response::Found(_) | Response::PreconditionFailed => {}
    }
    let guess = cache::tail_guess(store, AT_ONCE);
    let Lookup::Present(footer) = cache::load(store, &key, Duration::ZERO, guess).await?.lookup else {
        return Ok(None);
    };
    let pairs = footer.metadata().file_metadata().key_value_metadata();
    let same = pairs.into_iter().flatten().find(|pair| pair.key == meta::SAME_ROWS_AS);
    let same = same.and_then(|pair| pair.value.as_deref()).unwrap_or_default();
    Ok(Some(match same.split(' ').any(|etag| etag == known.etag) {
        true => Version::Same(DayFile {
            etag: footer.etag.clone(),
            rows: footer.rows(),
        }),
        false => Version::Other,
    }))
}

/// The days whose files are other versions than these.
async fn others(store: &Store, prefix: &Prefix, days: Vec<(Day, Option<DayFile>)>) -> Result<BTreeSet<Day>> {
    stream::iter(days)
        .map(|(day, file)| async move {
            let key = prefix.key(&Scope::Day, day);
            let condition = match &file {
                Some(file) => Precondition::IfNoneMatch(file.etag.clone()),
                None => Precondition::None,
            };
            let same = match store.get(&key, Part::Tail(1), condition).await? {
                Response::NotModified => true,
                Response::NotFound => file.is_none(),
                Response::Found(_) | Response::PreconditionFailed => false,
            };
            Ok((day, same))
        })
        .buffered(AT_ONCE)
        .try_filter_map(|(day, same)| async move { Ok((!same).then_some(day)) })
        .try_collect()
        .await
}

/// An index that a manifest names, and its bytes; `None` when it is not there.
///
/// # Errors
/// [`Error::CorruptFile`] when it is damaged.
pub async fn read_index(store: &Store, prefix: &Prefix, object: &Object) -> Result<Option<(Index, Bytes)>> {
    let key = prefix.derived_key(&object.key);
    let condition = Precondition::IfMatch(object.etag.clone());
    match store.get(&key, Part::All, condition).await? {
        Response::Found(found) => Ok(Some((Index::parse(&key, &found.bytes)?, found.bytes))),
        Response::NotFound | Response::PreconditionFailed | Response::NotModified => Ok(None),
    }
}
