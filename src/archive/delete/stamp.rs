//! What a day's file says of its deletion: before the first row goes, and after the last one has gone.

use std::time::Instant;

use chrono::{DateTime, Utc};

use super::Deletion;
use crate::archive::deleted;
use crate::archive::manifest::Rows;
use crate::archive::merge::check_newer;
use crate::archive::stamp::{earlier, publish_over, stamp};
use crate::archive::stored::StoredDay;
use crate::archive::verify::{Differences, verify};
use crate::base::error::{Error, Result};
use crate::base::runtime::block_on;
use crate::base::steps::{Step, reached};
use crate::file::position::Position;
use crate::file::remaining::Remaining;
use crate::file::writer::FileFacts;

/// How often what the file says is written again, when other deletions of the same rows get in the way.
const ROUNDS: u32 = 8;

impl Deletion<'_> {
    /// Before the first row goes: the store knows that rows of this day are going, and the file until when its rows were seen
    /// in the database. Whoever has seen less, such as a standby that lags, cannot write over it from then on.
    pub(super) fn begin(&mut self) -> Result<()> {
        let (position, time) = self.source.limited(&self.options.limits).position(self.cancel)?;
        let accept_moved = self.options.accept_moved_database;
        check_newer(&self.stored, &self.source.shown(), Some(&position), accept_moved)?;
        let remaining = Remaining::begun(self.stored.remaining.as_ref());
        self.stamp(&position, time, &remaining)?;
        // Last, so that whoever takes the day off the list finds the file changed if this one found it there.
        let tally = self.stored.recorded.clone().unwrap_or_default();
        let prefix = &self.options.prefix;
        block_on(self.cancel, deleted::add(self.store, prefix, self.stored.day, &tally))
    }

    /// After the last row has gone: the file says which rows the database still has.
    pub(super) fn end(&mut self, rest: &Differences) -> Result<()> {
        let Some(position) = rest.position.clone() else {
            return Err(Error::internal("the database does not say where in its history it is"));
        };
        let before = self.stored.remaining.as_ref().unwrap_or(&Remaining::Unknown);
        let ids = rest
            .changed
            .iter()
            .chain(&rest.unchanged)
            .chain(&rest.elsewhere)
            .copied();
        // What a broken-off deletion had deleted is not known: an id of another page may have been given out again.
        let undecided = !self.certain && rest.elsewhere_otherwise;
        let remaining = before.ended(ids, undecided);
        self.stamp(&position, rest.snapshot_time, &remaining)
    }

    /// Writes the file anew, with the same rows, over the version that was verified, and reads it back.
    fn stamp(&mut self, position: &Position, snapshot_time: DateTime<Utc>, remaining: &Remaining) -> Result<()> {
        reached(self.stored.day, Step::DeleteStamping);
        for _ in 1..ROUNDS {
            match self.try_stamp(position, snapshot_time, remaining) {
                // Another deletion of the same rows says its own.
                Err(Error::Conflict { .. }) if self.has_same_rows()? => {}
                ended => return ended,
            }
        }
        self.try_stamp(position, snapshot_time, remaining)
    }

    fn try_stamp(&mut self, position: &Position, snapshot_time: DateTime<Utc>, remaining: &Remaining) -> Result<()> {
        let run_id = uuid::Uuid::new_v4().to_string();
        let facts = FileFacts {
            day: self.stored.day,
            source: self.source.shown(),
            run_id: run_id.clone(),
            snapshot_time,
            position: Some(position.clone()),
            remaining: Some(remaining.clone()),
            same_rows_as: earlier(&self.stored),
        };
        let (spool, file) = stamp(&self.stored, &facts, None)?;
        let prefix = &self.options.prefix;
        let found = publish_over(
            self.store,
            prefix,
            &self.stored,
            spool,
            (&file, Rows::Same),
            &run_id,
            self.cancel,
        )?;
        self.take(found);
        Ok(())
    }

    /// Whether the file that is there now has the rows of the version that was verified; then it is taken for it.
    pub(super) fn has_same_rows(&mut self) -> Result<bool> {
        let found = match verify(self.store, &self.options.prefix, self.stored.day, self.cancel) {
            Ok(found) => found.stored,
            Err(error) if matches!(error.inner(), Error::CorruptFile { .. } | Error::Mismatch { .. }) => {
                log::warn!("{error}");
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let same = found.same_rows_as.contains(&self.stored.etag);
        if same {
            self.take(found);
        }
        Ok(same)
    }

    fn take(&mut self, verified: StoredDay) {
        self.stored = verified;
        self.checked = Instant::now();
    }
}
