//! Files of months that are not current, or that hold what they should not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};

use super::{FOLDER, index_hint};
use crate::archive::manifest::{self, INDEX};
use crate::base::error::{Error, Result};
use crate::base::keys::Prefix;
use crate::base::runtime::{Cancel, block_on};
use crate::derived::index::Index;
use crate::scan::erased;
use crate::store::{Part, Precondition, Response, Store};

/// Files that no manifest names are not deleted before this age: somebody may be about to name them.
const ORPHANS_STAY: TimeDelta = TimeDelta::hours(3);

/// How the time stands in the name of a file.
pub(super) const NAME_TIME: &str = "%Y%m%dT%H%M%SZ";

/// When a file was made, by its name.
fn made_at(key: &str) -> Option<DateTime<Utc>> {
    let time = key.rsplit('/').next()?.split('_').nth(1)?;
    Some(NaiveDateTime::parse_from_str(time, NAME_TIME).ok()?.and_utc())
}

/// Deletes files that nobody has named, and that are of an age at which nobody will.
pub(super) fn collect_garbage(store: &Store, prefix: &Prefix, cancel: &Cancel) -> Result<()> {
    let now = block_on(cancel, manifest::current(store, prefix))?.manifest;
    let files = now.slots.values().flat_map(|slot| slot.files.values());
    let named: BTreeSet<&str> = files.map(|object| object.key.as_str()).collect();
    let folder = prefix.derived_key(FOLDER);
    let listed = block_on(cancel, store.list(&folder, usize::MAX))?.unwrap_or_default();
    let root = prefix.derived_key("");
    for key in listed {
        let Some(below) = key.strip_prefix(&root) else { continue };
        let old = made_at(below).is_some_and(|made| Utc::now() - made > ORPHANS_STAY);
        let hint = below
            .strip_prefix(FOLDER)
            .and_then(|name| name.strip_prefix('/')?.strip_suffix(".index"));
        let of_nothing = hint.is_some_and(|name| name.len() == "YYYY-MM".len() && !now.slots.contains_key(name));
        if (old && !named.contains(below)) || of_nothing {
            match block_on(cancel, store.delete(&key)) {
                Err(Error::Interrupted) => return Err(Error::Interrupted),
                Err(error) => log::warn!("{error}; it is left over from an earlier compaction"),
                Ok(()) => {}
            }
        }
    }
    Ok(())
}

/// The months whose file holds rows of erased projects, with their ids; without any what cannot be told of, as of a file that
/// no manifest names, or names any more.
///
/// # Errors
/// Of the store.
pub async fn months_with_erased(store: &Store, prefix: &Prefix) -> Result<BTreeMap<String, BTreeSet<i32>>> {
    let (erased, _) = erased::ids(store, prefix, Duration::ZERO).await?;
    let mut months: BTreeMap<String, BTreeSet<i32>> = BTreeMap::new();
    if erased.is_empty() {
        return Ok(months);
    }
    let manifest = manifest::current(store, prefix).await?.manifest;
    let files = manifest.slots.values().flat_map(|slot| slot.files.values());
    let mut named: BTreeSet<String> = files.map(|object| prefix.derived_key(&object.key)).collect();
    for (name, slot) in &manifest.slots {
        // The copy of an index tells what the index tells.
        let hint = prefix.derived_key(&index_hint(name));
        named.insert(hint.clone());
        let index = slot.files.get(INDEX).map(|object| prefix.derived_key(&object.key));
        for (key, has_to_be) in index.into_iter().map(|key| (key, true)).chain([(hint, false)]) {
            let holds = match store.get(&key, Part::All, Precondition::None).await? {
                Response::Found(found) => Index::parse(&key, &found.bytes).ok().map(|index| index.ids_of(&erased)),
                _ if has_to_be => None,
                _ => Some(BTreeSet::new()),
            };
            match holds {
                Some(ids) if ids.is_empty() => {}
                Some(ids) => months.entry(name.clone()).or_default().extend(ids),
                None => _ = months.insert(name.clone(), BTreeSet::new()),
            }
        }
    }
    for key in store
        .list(&prefix.derived_key(FOLDER), usize::MAX)
        .await?
        .unwrap_or_default()
    {
        let file = key.rsplit('/').next().unwrap_or(&key);
        if !named.contains(&key) && (made_at(file).is_some() || file.ends_with(".index")) {
            months.insert(file.to_owned(), BTreeSet::new());
        }
    }
    Ok(months)
}
