//! A month's files put in their place, and named by the manifest.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::leftovers::NAME_TIME;
use super::versions::others;
use super::{Compacted, FOLDER, Made, Month, Old, Outcome, index_hint};
use crate::archive::manifest::{self, INDEX, Known, MARKS_HOLD, Manifest, Object, SERIES, Slot};
use crate::archive::publish::publish;
use crate::base::error::{Error, Result};
use crate::base::keys::Day;
use crate::base::runtime::block_on;
use crate::derived::index::{DayFile, Index};
use crate::scan::erased;
use crate::store::{Part, Precondition, Response, Write};

/// How often the manifest is written again, when days are written meanwhile.
const ROUNDS: u32 = 16;

impl Month<'_> {
    /// A name that no other file has had, with the time in it.
    pub(super) fn new_key(&self) -> String {
        let run = uuid::Uuid::new_v4().simple().to_string();
        let now = Utc::now().format(NAME_TIME);
        format!("{FOLDER}/{}_{now}_{}.parquet", self.name, &run[..12])
    }

    pub(super) fn put(&self, key: &str, bytes: Bytes) -> Result<Object> {
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
    pub(super) fn confirm(&self, before: Known, old: &Old, files: Vec<Option<DayFile>>) -> Result<Compacted> {
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
    pub(super) fn commit(
        &self,
        mut before: Known,
        made: &Made,
        last: Day,
        series: Object,
        index: &Index,
    ) -> Result<()> {
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
    pub(super) fn remove(&self) -> Result<Compacted> {
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
