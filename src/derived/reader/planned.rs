//! Which series files answer for which days, by what is remembered of the manifest and of indexes; what is not is asked for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::join_all;

use super::indexes::{on_disk, remember_index, remembered_index};
use super::{Reader, add, instead};
use crate::archive::manifest::{self, INDEX, Known, Object, SERIES};
use crate::base::error::Result;
use crate::base::keys::Day;
use crate::derived::compact::{index_hint, month_of, read_index};
use crate::derived::index::Index;
use crate::scan::erased::{self, Ids};
use crate::store::{Part, Precondition, Response};

/// Indexes that are asked for by a guess of their names, in the wave in which the manifest is read first.
const GUESSES: usize = 40;

/// Which series files answer for which days.
pub(super) struct Plan {
    /// The manifest and the list of erased projects were read for this question.
    pub fresh: bool,
    pub erased: Ids,
    pub slots: Vec<Source>,
    /// The days whose own files are read.
    pub rest: Vec<Day>,
}

/// A series file, and the days that it answers for.
pub(super) struct Source {
    pub object: Object,
    pub index: Arc<Index>,
    pub days: Vec<Day>,
}

impl Reader {
    /// Plans with what is remembered, and asks for what is not; `None` when nothing derived can be used.
    pub(super) async fn plan(&self) -> Result<Option<Plan>> {
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
    pub(super) async fn ask_manifest(&self) -> Option<Known> {
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

    pub(super) async fn ask_erased(&self) -> Result<Ids> {
        add(&self.counters.erasure_requests, 1);
        Ok(erased::ids(&self.store, &self.prefix, Duration::ZERO).await?.0)
    }
}
