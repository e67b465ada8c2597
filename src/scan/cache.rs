//! What is known about stored files: their footers, or that there is none. One bounded memory for the
//! whole process, filled by a request each. What is remembered may be planned with, however old it is, because reading
//! asks for that very version; it is believed without asking for a stated time only.
//!
//! What is inside a footer is the business of [`crate::file::footer`]; data pages are never kept.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use crate::base::error::{Error, Result};
use crate::base::process::PerProcess;
use crate::file::footer::{Footer, Parsed};
use crate::store::{Fetched, Part, Precondition, Response, Store};

/// Bytes of footers that are kept, in memory.
const CAPACITY: usize = 256 << 20;
/// What an entry costs besides its footer.
const ENTRY: usize = 200;

/// A tail that holds footer and page index of a file of 200 row groups.
const FIRST_GUESS: u64 = 384 << 10;
/// Large enough for a day of a million rows, and small beside a round trip.
const SMALLEST_GUESS: u64 = 64 << 10;
/// What all guesses of one wave may cost together, before a store's files are known and after.
const WAVE_FIRST: u64 = 4 << 20;
const WAVE_LEARNED: u64 = 16 << 20;

/// How often a footer that changes while it is read is begun again.
const ATTEMPTS: u32 = 4;

/// What a key holds.
#[derive(Debug, Clone)]
pub enum Lookup {
    Present(Arc<Footer>),
    Absent,
}

/// Where that comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provenance {
    /// Without a request.
    Cached,
    /// Remembered, and to be confirmed by whoever reads it.
    Assumed,
    /// The store said that nothing has changed.
    Revalidated,
    /// Read from the store.
    Fetched,
}

/// An answer of [`load`], and what it cost.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub lookup: Lookup,
    pub provenance: Provenance,
    pub requests: u32,
    pub bytes: u64,
    /// The last bytes of the object and where they begin, when they were read just now.
    pub tail: Option<(u64, Bytes)>,
}

struct Entry {
    known: Lookup,
    /// `None` when this process has not asked the store for it.
    learned: Option<Instant>,
    used: u64,
    size: usize,
}

#[derive(Default)]
struct Memory {
    /// By store and key.
    stores: HashMap<String, HashMap<String, Entry>>,
    /// The largest tail that a file of a store needed.
    tails: HashMap<String, u64>,
    size: usize,
    clock: u64,
}

fn memory() -> MutexGuard<'static, Memory> {
    static MEMORY: PerProcess<Mutex<Memory>> = PerProcess::new();
    MEMORY.lock()
}

impl Memory {
    fn get(&mut self, store: &str, key: &str) -> Option<(Lookup, Option<Instant>)> {
        self.clock += 1;
        let entry = self.stores.get_mut(store)?.get_mut(key)?;
        entry.used = self.clock;
        Some((entry.known.clone(), entry.learned))
    }

    fn put(&mut self, store: &str, key: &str, known: Lookup, asked: Option<Instant>) {
        let size = ENTRY
            + key.len()
            + if let Lookup::Present(footer) = &known {
                footer.memory_size()
            } else {
                0
            };
        if let Lookup::Present(footer) = &known {
            let tail = self.tails.entry(store.to_owned()).or_default();
            *tail = footer.tail.max(*tail);
        }
        self.forget(store, key);
        self.clock += 1;
        let entry = Entry {
            known,
            learned: asked,
            used: self.clock,
            size,
        };
        self.stores
            .entry(store.to_owned())
            .or_default()
            .insert(key.to_owned(), entry);
        self.size += size;
        if self.size > CAPACITY {
            self.evict();
        }
    }

    fn forget(&mut self, store: &str, key: &str) {
        if let Some(entry) = self.stores.get_mut(store).and_then(|entries| entries.remove(key)) {
            self.size -= entry.size;
        }
    }

    /// Drops what was used longest ago, down to nine tenths, so that not every insertion has to look.
    fn evict(&mut self) {
        let mut all: Vec<(u64, usize)> = self
            .stores
            .values()
            .flat_map(HashMap::values)
            .map(|e| (e.used, e.size))
            .collect();
        all.sort_unstable();
        let mut excess = self.size.saturating_sub(CAPACITY / 10 * 9);
        let mut last = 0;
        for (used, size) in all {
            if excess == 0 {
                break;
            }
            (last, excess) = (used, excess.saturating_sub(size));
        }
        for entries in self.stores.values_mut() {
            entries.retain(|_, entry| entry.used > last);
        }
        self.size = self
            .stores
            .values()
            .flat_map(HashMap::values)
            .map(|entry| entry.size)
            .sum();
    }
}

/// Drops what is known about a key: for whoever writes it in this process.
pub fn forget(store: &Store, key: &str) {
    WRITES.fetch_add(1, Ordering::SeqCst);
    memory().forget(store.id(), key);
}

static WRITES: AtomicU64 = AtomicU64::new(0);

/// Counts what this process writes to any store, and more: as long as it is the same, nothing was written here.
pub fn writes() -> u64 {
    WRITES.load(Ordering::SeqCst)
}

/// What is remembered in memory, or on this host's disk, and when the store said so to this process.
fn remembered(store: &Store, key: &str) -> Option<(Lookup, Option<Instant>)> {
    let found = memory().get(store.id(), key);
    if found.is_some() {
        return found;
    }
    let entry = store.recall(key)?;
    let offset = entry.size.checked_sub(entry.bytes.len() as u64)?;
    let parsed = Footer::parse(key, &entry.etag, entry.size, offset, &entry.bytes);
    let Ok(Parsed::Footer(footer)) = parsed else {
        return None;
    };
    let known = Lookup::Present(Arc::new(footer));
    memory().put(store.id(), key, known.clone(), None);
    Some((known, None))
}

/// What is remembered of a key, [`Provenance::Cached`] if it was learned at most `max_age` ago and else
/// [`Provenance::Assumed`]; never asks the store.
pub fn peek(store: &Store, key: &str, max_age: Duration) -> Option<(Lookup, Provenance)> {
    let (known, learned) = remembered(store, key)?;
    let believed = learned.is_some_and(|learned| learned.elapsed() <= max_age);
    Some((
        known,
        if believed {
            Provenance::Cached
        } else {
            Provenance::Assumed
        },
    ))
}

/// Notes that the store said at some moment that a key holds this version.
pub fn confirm(store: &Store, key: &str, etag: &str, asked: Instant) {
    let mut memory = memory();
    let entry = memory
        .stores
        .get_mut(store.id())
        .and_then(|entries| entries.get_mut(key));
    if let Some(entry) = entry.filter(|entry| matches!(&entry.known, Lookup::Present(footer) if footer.etag == etag)) {
        entry.learned = entry.learned.max(Some(asked));
    }
}

/// How many bytes of an object's end to ask for when `wave` footers are read at once.
pub fn tail_guess(store: &Store, wave: usize) -> u64 {
    let wave = wave.max(1) as u64;
    match memory().tails.get(store.id()).copied() {
        Some(seen) => (seen + seen / 4).min(WAVE_LEARNED / wave).max(SMALLEST_GUESS),
        None => (WAVE_FIRST / wave).clamp(SMALLEST_GUESS, FIRST_GUESS),
    }
}

/// Finds out what is stored under a key, asking for the last `guess` bytes of the object; believes what
/// was learned at most `max_age` ago.
pub async fn load(store: &Store, key: &str, max_age: Duration, guess: u64) -> Result<Loaded> {
    let remembered = remembered(store, key);
    let mut loaded = Loaded {
        lookup: Lookup::Absent,
        provenance: Provenance::Cached,
        requests: 0,
        bytes: 0,
        tail: None,
    };
    let mut condition = Precondition::None;
    if let Some((known, learned)) = remembered {
        if let Lookup::Present(footer) = &known {
            condition = Precondition::IfNoneMatch(footer.etag.clone());
        }
        loaded.lookup = known;
        if learned.is_some_and(|learned| learned.elapsed() <= max_age) {
            return Ok(loaded);
        }
    }
    for _ in 0..ATTEMPTS {
        // Its age counts from the question, not from the answer.
        let asked = Instant::now();
        loaded.requests += 1;
        match store.get(key, Part::Tail(guess), condition.clone()).await? {
            Response::NotModified => loaded.provenance = Provenance::Revalidated,
            Response::NotFound => (loaded.lookup, loaded.provenance) = (Lookup::Absent, Provenance::Fetched),
            // Only a read on condition of a version answers this.
            Response::PreconditionFailed => continue,
            Response::Found(found) => {
                loaded.bytes += found.bytes.len() as u64;
                match read(store, key, found, &mut loaded).await {
                    Ok(Some(footer)) => {
                        (loaded.lookup, loaded.provenance) = (Lookup::Present(Arc::new(footer)), Provenance::Fetched)
                    }
                    Ok(None) => continue,
                    Err(error) => {
                        forget(store, key);
                        return Err(error);
                    }
                }
            }
        }
        if let (Lookup::Present(footer), Some((offset, bytes))) = (&loaded.lookup, &loaded.tail) {
            // As much of the end as the footer takes.
            let skip = footer.size.saturating_sub(footer.tail).saturating_sub(*offset) as usize;
            store.remember(key, &footer.etag, footer.size, &bytes.slice(skip.min(bytes.len())..));
        }
        memory().put(store.id(), key, loaded.lookup.clone(), Some(asked));
        return Ok(loaded);
    }
    Err(changing(key))
}

/// The error for an object that is replaced faster than it can be read.
pub(crate) fn changing(key: &str) -> Error {
    Error::Store {
        key: Some(key.to_owned()),
        message: format!("{key} was replaced while it was being read; ask again"),
        retryable: true,
    }
}

/// The footer of the version whose last bytes are `tail`, reading more of it when that is not all; `None`
/// when the object has changed meanwhile.
async fn read(store: &Store, key: &str, tail: Fetched, loaded: &mut Loaded) -> Result<Option<Footer>> {
    let Fetched {
        mut bytes,
        mut offset,
        size,
        etag,
        ..
    } = tail;
    loop {
        if offset.checked_add(bytes.len() as u64) != Some(size) {
            return Err(Error::corrupt(key, "the store did not return its last bytes"));
        }
        let from = match Footer::parse(key, &etag, size, offset, &bytes)? {
            Parsed::Footer(footer) => {
                loaded.tail = Some((offset, bytes));
                return Ok(Some(footer));
            }
            Parsed::Needs(from) if from < offset => from,
            Parsed::Needs(_) => return Err(Error::corrupt(key, "its footer is damaged")),
        };
        loaded.requests += 1;
        match store
            .get(key, Part::Range(from..offset), Precondition::IfMatch(etag.clone()))
            .await?
        {
            Response::Found(more) if more.offset == from && more.bytes.len() as u64 == offset - from => {
                loaded.bytes += more.bytes.len() as u64;
                let mut whole = BytesMut::with_capacity(more.bytes.len() + bytes.len());
                whole.extend_from_slice(&more.bytes);
                whole.extend_from_slice(&bytes);
                (bytes, offset) = (whole.freeze(), from);
            }
            Response::Found(_) => return Err(Error::corrupt(key, "the store returned other bytes than asked for")),
            Response::NotFound | Response::PreconditionFailed | Response::NotModified => return Ok(None),
        }
    }
}
