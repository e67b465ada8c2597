//! What is remembered of the indexes of series files: they never change.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::base::process::PerProcess;
use crate::derived::index::Index;
use crate::store::Store;

/// Bytes of indexes that are kept in memory.
const CAPACITY: usize = 256 << 20;

/// Indexes that were read, by store and key of their series file.
#[derive(Default)]
struct Indexes {
    found: HashMap<(String, String), Entry>,
    size: usize,
    clock: u64,
}

struct Entry {
    index: Arc<Index>,
    used: u64,
    size: usize,
}

static INDEXES: PerProcess<Mutex<Indexes>> = PerProcess::new();

/// The index of a series file, from memory or this host's disk.
pub(super) fn remembered_index(store: &Store, series: &str) -> Option<Arc<Index>> {
    let name = (store.id().to_owned(), series.to_owned());
    {
        let mut indexes = INDEXES.lock();
        indexes.clock += 1;
        let clock = indexes.clock;
        if let Some(entry) = indexes.found.get_mut(&name) {
            entry.used = clock;
            return Some(Arc::clone(&entry.index));
        }
    }
    let entry = store.recall(&on_disk(series))?;
    let index = Arc::new(Index::parse(series, &entry.bytes).ok()?);
    remember_index(store, name.1, &index);
    Some(index)
}

/// Under which name the index of a series file is on disk, whichever copy of it was read.
pub(super) fn on_disk(series: &str) -> String {
    format!("{series}#index")
}

pub(super) fn remember_index(store: &Store, key: String, index: &Arc<Index>) {
    let mut indexes = INDEXES.lock();
    indexes.clock += 1;
    let entry = Entry {
        index: Arc::clone(index),
        used: indexes.clock,
        size: index.memory_size() + key.len(),
    };
    indexes.size += entry.size;
    if let Some(before) = indexes.found.insert((store.id().to_owned(), key), entry) {
        indexes.size -= before.size;
    }
    while indexes.size > CAPACITY && indexes.found.len() > 1 {
        let oldest = indexes
            .found
            .iter()
            .min_by_key(|(_, entry)| entry.used)
            .map(|(name, _)| name.clone());
        let Some(entry) = oldest.and_then(|name| indexes.found.remove(&name)) else {
            return;
        };
        indexes.size -= entry.size;
    }
}
