//! What the day's file holds before the export, and what becomes of it beside the source's rows.

use std::sync::Arc;

use super::{Export, OnConflict};
use crate::archive::deleted::{lost, refuse_lost};
use crate::archive::merge::{Conflict, Evidence, Merged, Why, check_newer, conflict, merge};
use crate::archive::stored::StoredDay;
use crate::base::error::{Error, Result};
use crate::base::runtime::block_on;
use crate::file::remaining::Remaining;
use crate::file::rows::RowIndex;
use crate::file::sort::Sorter;
use crate::source::{MOST_LEFT, Summary};
use crate::store::{Part, Precondition, Response};

/// What is in the day's place before the export.
pub(super) enum Stored {
    Nothing,
    /// With its ids, ascending.
    Day(Box<StoredDay>, Arc<[i64]>),
    /// A file that is going to be dropped, by its ETag.
    Unreadable(String),
}

impl Stored {
    pub fn ids(&self) -> Arc<[i64]> {
        match self {
            Self::Day(_, ids) => Arc::clone(ids),
            Self::Nothing | Self::Unreadable(_) => Arc::default(),
        }
    }
}

/// The source's rows: by id, or only their number when there is nothing to compare them with.
pub(super) enum Rows {
    Indexed(RowIndex),
    Unindexed(u64),
}

impl Merged {
    /// Nothing was stored.
    fn all(added: u64) -> Self {
        Self {
            added,
            ..Self::default()
        }
    }
}

impl Export<'_> {
    /// The day's file as it is now.
    pub(super) fn stored(&self, key: &str) -> Result<Stored> {
        let read = || match block_on(self.cancel, StoredDay::read(self.store, key, self.day))? {
            None if self.options.discard_stored => Ok(Stored::Nothing),
            None => {
                let (prefix, day) = (&self.options.prefix, self.day);
                block_on(self.cancel, refuse_lost(self.store, prefix, day, key))?;
                if self.options.expect_stored {
                    return Err(lost(self.store, key));
                }
                Ok(Stored::Nothing)
            }
            Some(day) => {
                let ids = day.check(self.store, self.cancel)?;
                Ok(Stored::Day(Box::new(day), ids.into()))
            }
        };
        match read() {
            Err(error @ (Error::CorruptFile { .. } | Error::Mismatch { .. })) if self.options.discard_stored => {
                log::warn!(
                    "{}: the stored file is dropped although it cannot be read: {error}",
                    self.day
                );
                match block_on(self.cancel, self.store.get(key, Part::Tail(1), Precondition::None))? {
                    Response::Found(found) => Ok(Stored::Unreadable(found.etag)),
                    _ => Ok(Stored::Nothing),
                }
            }
            read => read,
        }
    }

    /// Adds the stored rows that the source does not have, or refuses to drop them.
    pub(super) fn merge(&self, stored: &Stored, rows: Rows, summary: &Summary, sorter: &mut Sorter) -> Result<Merged> {
        let (stored, ids, source) = match (stored, rows) {
            (Stored::Day(stored, ids), Rows::Indexed(source)) => (stored, ids, source),
            (_, Rows::Indexed(source)) => return Ok(Merged::all(source.len() as u64)),
            (_, Rows::Unindexed(rows)) => return Ok(Merged::all(rows)),
        };
        // Rows that are dropped on purpose may come from anywhere, but for another table that says which it is.
        if !self.options.discard_stored || summary.position.is_some() {
            let accept_moved = self.options.accept_moved_database;
            check_newer(stored, &summary.source, summary.position.as_ref(), accept_moved)?;
        }
        if self.options.discard_stored {
            return Ok(Merged::all(source.len() as u64));
        }
        let remaining = stored.remaining.as_ref();
        let evidence = Evidence {
            erased: &self.erased.ids,
            elsewhere: &summary.elsewhere,
            // With a restored database, rows that were deleted are there again.
            remaining: remaining.filter(|_| !self.options.accept_moved_database),
            corrections: self.options.on_conflict == OnConflict::Database,
        };
        if !self.options.replace {
            let mut merged = merge(stored, &source, &evidence, |kept| sorter.push(kept), self.cancel)?;
            merged.remaining = self.remaining(stored, ids, &source, &merged, summary);
            return Ok(merged);
        }
        let merged = merge(stored, &source, &evidence, |_| Ok(()), self.cancel)?;
        match merged.kept.rows {
            0 => Ok(merged),
            lacking => Err(Error::invalid(format!(
                "{} holds {lacking} rows that the source no longer has, so it was not replaced; leave replace out to merge, \
                 or pass discard_stored=True to drop them",
                self.store.url_of(&stored.key)
            ))),
        }
    }

    /// Refuses to leave rows out by a list whose ids are another database's, where they may mean other projects.
    pub(super) fn check_list(&mut self, summary: &Summary, hidden: u64) -> Result<()> {
        let position = summary.position.as_ref();
        let ours = |owner| position.is_some_and(|position| position.identity.check(owner).is_ok());
        let Some(owner) = self.erased.owners.last().cloned() else {
            return Ok(());
        };
        if self.options.accept_moved_database || self.erased.owners.iter().any(ours) {
            return Ok(());
        }
        let with_list = self.source.count(self.day, self.cancel)?;
        self.source.exclude(&[]);
        let without_list = self.source.count(self.day, self.cancel);
        self.source.exclude(&self.erased.ids);
        if hidden == 0 && with_list == without_list? {
            return Ok(());
        }
        Err(Error::Stale {
            message: format!(
                "{} has rows of projects whose ids are in {}, which belongs to {owner}; they may be other projects, so \
                 nothing was written. Was this the wrong bucket or prefix? If the database was moved, upgraded, promoted or \
                 restored on purpose, pass accept_moved_database=True, or say so of the list: erase_projects({{}}, \
                 accept_moved_database=True)",
                summary.source,
                self.store.url_of(&self.options.prefix.erased_key())
            ),
        })
    }

    /// A day without rows is recorded as empty only if the source shows that it is old enough to know.
    pub(super) fn check_empty(&self, stored: &Stored, sorter: &Sorter, summary: &Summary) -> Result<()> {
        let merges = matches!(stored, Stored::Day(..)) && !self.replaces();
        if sorter.rows() > 0 || merges || self.options.allow_empty || summary.earlier_rows == Some(true) {
            return Ok(());
        }
        let why = match summary.earlier_rows {
            Some(_) => "nor for any earlier one (is this the right database, and is the day not past its retention?)",
            None => "and it is not known whether it has any for an earlier one",
        };
        Err(Error::NoRows {
            message: format!(
                "{} has no rows for this day, {why}, so nothing was written; pass allow_empty=True to record it as empty",
                summary.source
            ),
        })
    }

    /// Which rows the database still has, of a day of which rows were deleted: as it shows in this snapshot.
    fn remaining(
        &self,
        stored: &StoredDay,
        ids: &[i64],
        source: &RowIndex,
        merged: &Merged,
        summary: &Summary,
    ) -> Option<Remaining> {
        let remaining = stored.remaining.as_ref()?;
        if summary.counted.is_none() {
            return Some(remaining.clone());
        }
        if merged.kept.rows == 0 {
            return None;
        }
        // What the file has from before, although it could not take it as it is now.
        let unfit = summary.left.iter().map(|row| row.id);
        let unfit = unfit.chain(summary.elsewhere.iter().filter(|row| row.adrift).map(|row| row.id));
        let unfit = unfit.filter(|id| ids.binary_search(id).is_ok() && remaining.is_gone(*id) != Some(true));
        let unfit: Vec<i64> = unfit.collect();
        let undecided = merged.undecided
            || self.left_out.iter().any(|row| row.why == Why::Undecided)
            || unfit.iter().any(|id| remaining.is_gone(*id).is_none());
        Some(remaining.seen(source.ids().chain(unfit), undecided))
    }

    /// Lets the next attempt pass over rows whose ids are taken, where that is wanted.
    pub(super) fn leave_out(&mut self, key: &str, conflicts: &[Conflict]) -> Result<()> {
        // What the next deletion decides is left until then.
        let undecided = conflicts.iter().all(|row| row.why == Why::Undecided);
        let leave = self.options.on_conflict == OnConflict::Leave || (undecided && !self.replaces());
        if !leave || self.left_out.len() + conflicts.len() > MOST_LEFT {
            return Err(conflict(key, conflicts));
        }
        log::warn!(
            "{}: {} rows stay in the source, because their ids are those of other stored rows",
            self.day,
            conflicts.len()
        );
        self.left_out.extend_from_slice(conflicts);
        self.left_out.sort_unstable_by_key(|row| row.id);
        self.first_read = None;
        Ok(())
    }
}
