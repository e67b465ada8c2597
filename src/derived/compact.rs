//! Upkeep of what is derived: for each month a series file of its days, with an index, made of the last one and of the
//! days that have changed since, in one pass and within bounds of memory. Whatever it is broken off by, what is stored
//! stays right: files have names of their own, and the manifest names them once they are there.

mod leftovers;
mod rows;
mod slot;
mod versions;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::Int32Type;
use bytes::Bytes;
use chrono::Datelike;
use futures::stream::{self, StreamExt, TryStreamExt};
use parquet::file::metadata::KeyValue;

use crate::archive::erase::stored_days;
use crate::archive::manifest::{self, INDEX, Manifest, Object, SERIES, Slot};
use crate::archive::merge::without;
use crate::archive::publish::{LARGEST_FILE, ignored_conditions};
use crate::base::error::{Error, Kind, Result};
use crate::base::keys::{Day, Prefix, Scope};
use crate::base::process::lock;
use crate::base::runtime::{Cancel, block_on};
use crate::base::schema::{self, meta};
use crate::engine::Batches;
use crate::file::spool::Spool;
use crate::scan::erased::{self, Ids};
use crate::scan::plan::Filter;
use crate::scan::{Options, Scan, Sparse};
use crate::store::{Part, Precondition, Response, Store};

use leftovers::collect_garbage;
pub use leftovers::months_with_erased;
use rows::SeriesRows;
use versions::{Version, recorded, version};

use super::index::{DayFile, Index};
use super::merge::{Input, Which, merge};
use super::series::{self, SeriesWriter, Written};

/// The folder of series files and their indexes, below the one of derived files.
const FOLDER: &str = "series";
/// Days that are asked about at once.
const AT_ONCE: usize = 32;
/// After so many months that may be done later, the others are left for then too.
const OUTAGES: u32 = 3;
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
    let (mut done, mut failed, mut outages) = (Vec::new(), None, 0);
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
                outages += u32::from(error.kind() == Kind::Retry);
                failed.get_or_insert(error);
                // But a store that is away is not asked about each.
                if outages == OUTAGES {
                    break;
                }
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

/// A file, the versions of the days that were read for it, and the projects whose rows were left out.
type WrittenDays = (Written<Spool>, BTreeMap<Day, DayFile>, Vec<i32>);

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
        let (written, of_days, dropped) = self.write(from, &kept, &read, (first, last))?;
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
        let index = Index::new(key.clone(), first, made.files.clone(), written.runs, written.groups).without(dropped);
        let bytes = written.bytes;
        let series = self.put(&key, written.sink.into_bytes()?)?;
        self.commit(before, &made, last, series, &index)?;
        Ok(self.compacted(made.outcome, &made.files, made.days_read, rows, bytes))
    }

    /// Adds up the days that are `kept` of an older file and those that are read.
    fn write(
        &self,
        from: Option<&Old>,
        kept: &BTreeSet<Day>,
        read: &[Day],
        (first, last): (Day, Day),
    ) -> Result<WrittenDays> {
        let dropped = Arc::new(Mutex::new(BTreeSet::new()));
        let mut inputs = Vec::new();
        if let Some(old) = from {
            lock(&dropped).extend(old.index.without.iter().copied());
            inputs.push(self.of_series(old, kept, first, &dropped));
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
                        key: Some(self.options.prefix.key(&Scope::Day, *day)),
                        message: format!("the file of {day} went away while it was compacted; do it again"),
                        retryable: true,
                    });
                }
            }
        }
        let dropped = lock(&dropped).iter().copied().collect();
        Ok((written, of_days, dropped))
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
        let projection = columns.into_iter().map(schema::column).collect::<Result<Vec<_>>>()?;
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
}

type Dropped = Arc<Mutex<BTreeSet<i32>>>;

fn offset(first: Day, day: Day) -> u16 {
    u16::try_from(day.to_date32() - first.to_date32()).unwrap_or(u16::MAX)
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
