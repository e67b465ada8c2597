//! Proves that a stored day is whole, and says how it differs from its source.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};

use crate::archive::stored::StoredDay;
use crate::base::error::{Error, Result};
use crate::base::keys::{Day, Prefix, Scope};
use crate::base::runtime::{Cancel, block_on};
use crate::file::position::Position;
use crate::file::rows::{Match, RowIndexBuilder, id_column};
use crate::file::tally::Tally;
use crate::source::{BadRows, Elsewhere, LeftRow, Source};
use crate::store::Store;

/// A stored day whose bytes and rows are what was recorded when it was written.
#[derive(Debug, Clone)]
pub struct Verified {
    pub stored: StoredDay,
    pub tally: Tally,
}

/// Reads the day's file back whole: its bytes against their recorded SHA-256, its rows against what the file says that the
/// database counted.
///
/// # Errors
/// [`Error::NotStored`], [`Error::Mismatch`], [`Error::CorruptFile`], and what [`Store::get`] says.
pub fn verify(store: &Store, prefix: &Prefix, day: Day, cancel: &Cancel) -> Result<Verified> {
    let key = prefix.key(&Scope::Day, day);
    let verified = || {
        let stored = block_on(cancel, StoredDay::read(store, &key, day))?.ok_or_else(|| not_stored(store, &key))?;
        let tally = stored.verify(store, None, cancel)?;
        Ok(Verified { stored, tally })
    };
    verified().map_err(|error: Error| error.on_day(day))
}

pub(crate) fn not_stored(store: &Store, key: &str) -> Error {
    Error::NotStored {
        message: format!("{} is not stored; export the day first", store.url_of(key)),
        key: key.to_owned(),
    }
}

/// How a source differs from a stored day; ids ascending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Differences {
    /// In the source, and not in the file.
    pub missing: Vec<i64>,
    /// In both, and a copied column differs.
    pub changed: Vec<i64>,
    /// In the file alone.
    pub archive_only: Vec<i64>,
    /// In both, and equal.
    pub unchanged: Vec<i64>,
    /// Rows of the source with a value that does not fit a file; those in the file count as changed as well.
    pub left: Vec<LeftRow>,
    /// In the file, and on another date in the source: those of them that were looked for.
    pub elsewhere: Vec<i64>,
    /// Whether one of those is of another page there.
    pub elsewhere_otherwise: bool,
    /// Where in its history the source was asked, if it has one.
    pub position: Option<Position>,
    pub snapshot_time: DateTime<Utc>,
}

/// Compares a stored day with what a source has of it now.
pub fn compare(stored: &StoredDay, source: &mut dyn Source, cancel: &Cancel) -> Result<Differences> {
    let mut index = RowIndexBuilder::default();
    let mut sink = |batch| index.push(&batch);
    let summary = source
        .read(stored.day, BadRows::Leave, &mut sink, cancel)
        .map_err(|error| error.on_day(stored.day))?;
    let index = index.finish()?;
    let left: HashSet<i64> = summary.left.iter().map(|row| row.id).collect();
    let mut seen = vec![false; index.len()];
    let elsewhere: HashMap<i64, &Elsewhere> = summary.elsewhere.iter().map(|row| (row.id, row)).collect();
    let mut found = Differences {
        left: summary.left,
        position: summary.position,
        snapshot_time: summary.snapshot_time,
        ..Differences::default()
    };
    for batch in stored.batches() {
        cancel.check()?;
        let batch = batch?;
        let matches = id_column(&batch)?.into_iter().zip(index.matches(&batch)?);
        for (number, (id, matched)) in matches.enumerate() {
            match matched {
                // It is there, with a value that does not fit.
                Match::Absent if left.contains(&id) => found.changed.push(id),
                Match::Absent => {
                    found.archive_only.push(id);
                    if let Some(row) = elsewhere.get(&id) {
                        found.elsewhere.push(id);
                        found.elsewhere_otherwise |= !row.is_page_of(&batch, number);
                    }
                }
                Match::Same(row) => {
                    seen[row] = true;
                    found.unchanged.push(id);
                }
                Match::Changed(row) | Match::Conflict(row) => {
                    seen[row] = true;
                    found.changed.push(id);
                }
            }
        }
    }
    found.missing = index
        .ids()
        .zip(seen)
        .filter_map(|(id, seen)| (!seen).then_some(id))
        .collect();
    for ids in [&mut found.changed, &mut found.archive_only, &mut found.unchanged] {
        ids.sort_unstable();
    }
    Ok(found)
}
