//! The manifest: one small object that says which derived files there are, of which days, and which of those days have
//! changed since or are being changed. Whoever writes a day's file marks the day before, and settles the mark after: a
//! crash in between makes readers slower, for they read that day's own file, and never wrong.
//!
//! A mark is taken away by whoever made it, by a later write of the day (which is conditional, so that the first writer
//! cannot write any more), or a day later, when no request of his can be under way any more.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::{Map, Value, json};

use crate::archive::publish::publish;
use crate::base::error::{Error, Result};
use crate::base::json::{self, wrong};
use crate::base::keys::{Day, Prefix, Scope};
use crate::base::process::PerProcess;
use crate::store::{Part, Precondition, Response, Store, Write};

/// The version of the object's form; a newer one is refused.
const FORMAT: u64 = 1;
/// An object above this is no manifest of ours: a century of slots and changed days takes less.
const LARGEST: usize = 16 << 20;
/// How often a change that others get in the way of is begun again: all exports of an archive share one manifest.
const ROUNDS: u32 = 100;
/// The longest pause between two of them.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// After so long nobody is still about to write the day that he marked: a write is tried for minutes at most.
pub const MARKS_HOLD: TimeDelta = TimeDelta::days(1);

/// The kinds of files of a slot.
pub const SERIES: &str = "series";
pub const INDEX: &str = "index";

const SLOTS: &str = "slots";
/// Another one in each version.
const RUN: &str = "run";
const CHANGED: &str = "changed";
const WRITERS: &str = "writers";
const STALE: &str = "stale";
const FIRST: &str = "first";
const LAST: &str = "last";
const KEY: &str = "key";
const ETAG: &str = "etag";
const BYTES: &str = "bytes";

/// What the object says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Manifest {
    /// By name: `2026-11` for a month.
    pub slots: BTreeMap<String, Slot>,
    /// Days whose own file has to be read.
    pub changed: BTreeMap<Day, Change>,
    /// What later versions may have added.
    rest: Map<String, Value>,
}

/// The derived files of some days.
#[derive(Debug, Clone, PartialEq)]
pub struct Slot {
    pub first: Day,
    pub last: Day,
    /// By kind of file.
    pub files: BTreeMap<String, Object>,
    rest: Map<String, Value>,
}

/// One version of an object; its key is below the folder of derived files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    pub key: String,
    pub etag: String,
    pub bytes: u64,
}

/// What has become of a day since its slot was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Who is about to write it, and since when.
    pub writers: BTreeMap<String, DateTime<Utc>>,
    /// It was written, and the slot is of an earlier version.
    pub stale: bool,
}

impl Slot {
    pub fn new(first: Day, last: Day, files: BTreeMap<String, Object>) -> Self {
        Self {
            first,
            last,
            files,
            rest: Map::new(),
        }
    }

    pub fn has(&self, day: Day) -> bool {
        (self.first..=self.last).contains(&day)
    }
}

impl Manifest {
    /// The slot that answers for a day; `None` when its own file has to be read.
    pub fn slot_of(&self, day: Day) -> Option<&str> {
        if self.changed.contains_key(&day) {
            return None;
        }
        self.slots
            .iter()
            .find(|(_, slot)| slot.has(day))
            .map(|(name, _)| name.as_str())
    }

    /// The series file that answers for a day.
    pub fn series_of(&self, day: Day) -> Option<&Object> {
        self.slots.get(self.slot_of(day)?)?.files.get(SERIES)
    }

    /// # Errors
    /// [`Error::CorruptFile`] that names what is wrong in it.
    pub fn parse(key: &str, bytes: &[u8]) -> Result<Self> {
        Self::read(bytes).map_err(|why| {
            Error::corrupt(
                key,
                format_args!("{why}; it can be deleted: compacting makes it, and what is derived, anew from the days"),
            )
        })
    }

    fn read(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > LARGEST {
            return Err("it is larger than any manifest".to_owned());
        }
        let mut rest = json::object(bytes, FORMAT)?;
        let mut objects = |name: &str| match rest.remove(name) {
            Some(Value::Object(found)) => Ok(found),
            None => Ok(Map::new()),
            Some(other) => Err(wrong(name, "an object", &other)),
        };
        let (slots, changed) = (objects(SLOTS)?, objects(CHANGED)?);
        let slots = slots.into_iter().map(|(name, slot)| Ok((name, Slot::read(slot)?)));
        let changed = changed
            .into_iter()
            .map(|(day, change)| Ok((read_day(CHANGED, &json!(day))?, Change::read(&change)?)));
        let manifest = Self {
            slots: slots.collect::<Result<_, String>>()?,
            changed: changed.collect::<Result<_, String>>()?,
            rest,
        };
        let mut spans: Vec<&Slot> = manifest.slots.values().collect();
        spans.sort_unstable_by_key(|slot| slot.first);
        if spans.iter().any(|slot| slot.first > slot.last) || spans.windows(2).any(|two| two[0].last >= two[1].first) {
            return Err(format!("its {SLOTS} overlap"));
        }
        Ok(manifest)
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut whole = self.rest.clone();
        whole.insert(json::FORMAT.to_owned(), json!(FORMAT));
        let slots = self.slots.iter().map(|(name, slot)| (name.clone(), slot.to_json()));
        whole.insert(SLOTS.to_owned(), Value::Object(slots.collect()));
        let changed = self.changed.iter().map(|(day, change)| {
            let writers = change.writers.iter().map(|(writer, since)| {
                let since = since.to_rfc3339_opts(SecondsFormat::Secs, true);
                (writer.clone(), json!(since))
            });
            let writers: Map<String, Value> = writers.collect();
            (day.to_string(), json!({WRITERS: writers, STALE: change.stale}))
        });
        whole.insert(CHANGED.to_owned(), Value::Object(changed.collect()));
        Value::Object(whole).to_string().into_bytes()
    }
}

impl Slot {
    fn read(slot: Value) -> Result<Self, String> {
        let Value::Object(mut rest) = slot else {
            return Err(wrong(SLOTS, "an object of objects", &slot));
        };
        let mut day = |name: &str| read_day(name, &rest.remove(name).unwrap_or_default());
        let (first, last) = (day(FIRST)?, day(LAST)?);
        let (files, rest): (Map<String, Value>, Map<String, Value>) =
            rest.into_iter().partition(|(_, value)| value.get(ETAG).is_some());
        let files = files
            .into_iter()
            .map(|(kind, object)| Ok((kind, Object::read(&object)?)))
            .collect::<Result<_, String>>()?;
        Ok(Self {
            first,
            last,
            files,
            rest,
        })
    }

    fn to_json(&self) -> Value {
        let mut whole = self.rest.clone();
        whole.insert(FIRST.to_owned(), json!(self.first.to_string()));
        whole.insert(LAST.to_owned(), json!(self.last.to_string()));
        whole.extend(self.files.iter().map(|(kind, object)| {
            let Object { key, etag, bytes } = object;
            (kind.clone(), json!({KEY: key, ETAG: etag, BYTES: bytes}))
        }));
        Value::Object(whole)
    }
}

impl Object {
    fn read(object: &Value) -> Result<Self, String> {
        let text = |name: &str| match object.get(name) {
            Some(Value::String(text)) => Ok(text.clone()),
            other => Err(wrong(name, "text", other.unwrap_or(&Value::Null))),
        };
        let key = text(KEY)?;
        if key.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(wrong(KEY, "a key below the folder of derived files", &json!(key)));
        }
        let bytes = object.get(BYTES).unwrap_or(&Value::Null);
        Ok(Self {
            key,
            etag: text(ETAG)?,
            bytes: bytes.as_u64().ok_or_else(|| wrong(BYTES, "a whole number", bytes))?,
        })
    }
}

impl Change {
    fn read(change: &Value) -> Result<Self, String> {
        let stale = match change.get(STALE) {
            Some(Value::Bool(stale)) => *stale,
            other => return Err(wrong(STALE, "true or false", other.unwrap_or(&Value::Null))),
        };
        let writers = match change.get(WRITERS) {
            Some(Value::Object(writers)) => writers,
            other => return Err(wrong(WRITERS, "an object", other.unwrap_or(&Value::Null))),
        };
        let writers = writers.iter().map(|(writer, since)| {
            let time = since.as_str().and_then(|text| DateTime::parse_from_rfc3339(text).ok());
            let time = time.ok_or_else(|| wrong(WRITERS, "an object of times", since))?;
            Ok((writer.clone(), time.with_timezone(&Utc)))
        });
        Ok(Self {
            stale,
            writers: writers.collect::<Result<_, String>>()?,
        })
    }
}

fn read_day(name: &str, day: &Value) -> Result<Day, String> {
    day.as_str()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| wrong(name, "a day", day))
}

/// A version of a store's manifest; without an ETag there is none.
#[derive(Debug, Clone, Default)]
pub struct Known {
    pub manifest: Arc<Manifest>,
    pub etag: Option<String>,
}

/// By store and prefix the manifest, and when this process asked for it.
type Remembered = HashMap<(String, Prefix), (Option<Instant>, Known)>;

static REMEMBERED: PerProcess<Mutex<Remembered>> = PerProcess::new();

fn name(store: &Store, prefix: &Prefix) -> (String, Prefix) {
    (store.id().to_owned(), prefix.clone())
}

/// What is remembered, here or on this host's disk, and when the store said so to this process.
pub fn peek(store: &Store, prefix: &Prefix) -> Option<(Option<Instant>, Known)> {
    let found = REMEMBERED.lock().get(&name(store, prefix)).cloned();
    if found.is_some() {
        return found;
    }
    let key = prefix.manifest_key();
    let entry = store.recall(&key)?;
    let known = Known {
        manifest: Arc::new(Manifest::parse(&key, &entry.bytes).ok()?),
        etag: Some(entry.etag),
    };
    remember(store, prefix, None, &known);
    Some((None, known))
}

fn remember(store: &Store, prefix: &Prefix, asked: Option<Instant>, known: &Known) {
    REMEMBERED.lock().insert(name(store, prefix), (asked, known.clone()));
}

/// Nothing that was said before is remembered.
pub fn forget(store: &Store, prefix: &Prefix) {
    REMEMBERED.lock().remove(&name(store, prefix));
}

/// What an answer of [`load`] took.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub known: Known,
    pub bytes: u64,
}

/// Asks the store for the manifest, in one request.
///
/// # Errors
/// [`Error::CorruptFile`] for one that cannot be read, otherwise as [`Store::get`].
pub async fn load(store: &Store, prefix: &Prefix) -> Result<Loaded> {
    let asked = Instant::now();
    let before = peek(store, prefix).map(|(_, known)| known);
    let condition = match before.as_ref().and_then(|known| known.etag.clone()) {
        Some(etag) => Precondition::IfNoneMatch(etag),
        None => Precondition::None,
    };
    let key = prefix.manifest_key();
    let (known, bytes) = match (store.get(&key, Part::All, condition).await?, &before) {
        (Response::Found(found), _) => {
            let manifest = match Manifest::parse(&key, &found.bytes) {
                Ok(manifest) => Arc::new(manifest),
                Err(error) => {
                    forget(store, prefix);
                    return Err(error);
                }
            };
            store.remember(&key, &found.etag, found.size, &found.bytes);
            let etag = Some(found.etag);
            (Known { manifest, etag }, found.bytes.len() as u64)
        }
        (Response::NotModified, Some(known)) => (known.clone(), 0),
        _ => (Known::default(), 0),
    };
    remember(store, prefix, Some(asked), &known);
    Ok(Loaded { known, bytes })
}

/// Changes the manifest, whoever else does; `edit` may run several times, and gives `None` when there is nothing to
/// change. Gives what `edit` gave, and the manifest as it is now.
///
/// # Errors
/// Of the store; [`Error::Store`] when others keep getting in the way.
pub async fn change<T>(
    store: &Store,
    prefix: &Prefix,
    mut edit: impl FnMut(&mut Manifest) -> Option<T>,
) -> Result<Option<T>> {
    let key = prefix.manifest_key();
    // What is remembered may do for a first try.
    let mut known = peek(store, prefix).map(|(_, known)| known);
    let mut pause = Duration::from_millis(10);
    for _ in 0..ROUNDS {
        let before = match known.take() {
            Some(known) => known,
            None => current(store, prefix).await?,
        };
        let mut manifest = Manifest::clone(&before.manifest);
        let Some(made) = edit(&mut manifest) else {
            return Ok(None);
        };
        match put(store, prefix, &before, manifest).await {
            Ok(()) => return Ok(Some(made)),
            Err(Error::Conflict { .. }) => {
                forget(store, prefix);
                tokio::time::sleep(pause.mul_f64(random_part())).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
    Err(Error::Store {
        message: format!("{key} was changed by others {ROUNDS} times in a row; try again"),
        key: Some(key),
        retryable: true,
    })
}

/// The manifest as it is stored; one that cannot be read is as none, and is written over. Derived files that it named are
/// made anew.
pub async fn current(store: &Store, prefix: &Prefix) -> Result<Known> {
    let key = prefix.manifest_key();
    match store.get(&key, Part::All, Precondition::None).await? {
        Response::Found(found) => {
            let manifest = match Manifest::parse(&key, &found.bytes) {
                Ok(manifest) => manifest,
                Err(error) if json::is_newer(&found.bytes, FORMAT) => return Err(error),
                Err(error) => {
                    log::warn!("{error}; it is begun anew");
                    Manifest::default()
                }
            };
            Ok(Known {
                manifest: Arc::new(manifest),
                etag: Some(found.etag),
            })
        }
        _ => Ok(Known::default()),
    }
}

/// Writes a manifest over the version that it was made from.
///
/// # Errors
/// [`Error::Conflict`] when that has changed.
pub async fn put(store: &Store, prefix: &Prefix, before: &Known, manifest: Manifest) -> Result<()> {
    let key = prefix.manifest_key();
    let write = before.etag.clone().map_or(Write::Create, Write::Replace);
    let run_id = uuid::Uuid::new_v4().to_string();
    let asked = Instant::now();
    // No two versions may have the same bytes: the ETag of many stores is their digest, and who has read the first would
    // take the third for it.
    let mut manifest = manifest;
    manifest.rest.insert(RUN.to_owned(), json!(run_id));
    let written = publish(store, &key, Bytes::from(manifest.to_bytes()), write, &run_id, &[]).await;
    match written {
        Ok(etag) => {
            let known = Known {
                manifest: Arc::new(manifest),
                etag: Some(etag),
            };
            remember(store, prefix, Some(asked), &known);
            Ok(())
        }
        Err(error) => {
            forget(store, prefix);
            Err(match error {
                Error::CommitStateUnknown { key, message, .. } => Error::Store {
                    key: Some(key),
                    message,
                    retryable: true,
                },
                error => error,
            })
        }
    }
}

fn random_part() -> f64 {
    f64::from(uuid::Uuid::new_v4().as_fields().0) / f64::from(u32::MAX)
}

/// What the write of a day's file does to its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    Same,
    Others,
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrote {
    Nothing,
    Day(Rows),
}

/// The mark of somebody who is about to write a day.
#[derive(Debug, Clone)]
pub struct Mark {
    day: Day,
    writer: String,
    /// Those who had marked it before, and so have read what this write is conditional on, or less.
    earlier: Vec<String>,
}

/// Marks a day, once it is known over which version it will be written.
///
/// # Errors
/// As [`change`].
pub async fn mark(store: &Store, prefix: &Prefix, day: Day, writer: &str) -> Result<Mark> {
    let since = Utc::now();
    let earlier = change(store, prefix, |manifest| {
        let change = manifest.changed.entry(day).or_default();
        let earlier: Vec<String> = change.writers.keys().cloned().collect();
        change.writers.insert(writer.to_owned(), since);
        Some(earlier)
    })
    .await?;
    Ok(Mark {
        day,
        writer: writer.to_owned(),
        earlier: earlier.unwrap_or_default(),
    })
}

/// Takes a mark back once it is known what became of the write.
///
/// # Errors
/// As [`change`].
pub async fn settle(store: &Store, prefix: &Prefix, mark: &Mark, wrote: Wrote) -> Result<()> {
    change(store, prefix, |manifest| {
        let has_slot = manifest.slots.values().any(|slot| slot.has(mark.day));
        let known = manifest.changed.contains_key(&mark.day);
        let change = manifest.changed.entry(mark.day).or_default();
        let marked = change.writers.remove(&mark.writer).is_some();
        if let Wrote::Day(rows) = wrote {
            // None of those can write any more. What they wrote before, if they did, is part of what the day holds now.
            for writer in &mark.earlier {
                change.writers.remove(writer);
            }
            // Without the mark, as when somebody deleted the manifest, the slot may have been made meanwhile.
            change.stale |= has_slot && (rows == Rows::Others || !mark.earlier.is_empty() || !marked);
        }
        if change.writers.is_empty() && !change.stale {
            manifest.changed.remove(&mark.day);
            return known.then_some(());
        }
        Some(())
    })
    .await
    .map(drop)
}

/// Writes a day's file under a condition, as [`publish`] does, and has the manifest say so: before, that it is being
/// changed, and after, what became of that.
///
/// # Errors
/// As [`publish`]; nothing was written when the manifest cannot be.
pub async fn publish_day(
    store: &Store,
    prefix: &Prefix,
    day: Day,
    (bytes, write): (Bytes, Write),
    run_id: &str,
    facts: &[(&'static str, String)],
    rows: Rows,
) -> Result<String> {
    let key = prefix.key(&Scope::Day, day);
    let mark = mark(store, prefix, day, run_id).await?;
    let written = publish(store, &key, bytes, write, run_id, facts).await;
    let wrote = match &written {
        Ok(_) => Wrote::Day(rows),
        // It may be there, or come yet: also a server that answers with an error may be at work on it.
        Err(Error::CommitStateUnknown { .. } | Error::Store { .. }) => return written,
        Err(_) => Wrote::Nothing,
    };
    if let Err(error) = settle(store, prefix, &mark, wrote).await {
        log::warn!("{day}: {error}; questions read this day's own file until it is compacted");
    }
    written
}
