//! One day from a source to the store: read, merge with what is stored, sort, write, publish, verify, and only
//! then the copies.

mod options;
mod reconcile;
mod write;

use std::time::Duration;

use arrow::array::RecordBatch;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use crate::archive::copies::CopyFile;
use crate::archive::copies::stale::drop_stale_copies;
pub use options::{ExportOptions, Exported, OnConflict, Outcome, Planned, Progress};
use reconcile::{Rows, Stored};
use write::Finished;

use crate::archive::deleted;
use crate::archive::manifest::{self, publish_day};
use crate::archive::merge::{Conflict, without, without_ids};
use crate::archive::publish::{check_size, interrupted_publish};
use crate::archive::stored::StoredDay;
use crate::base::error::{Error, Result};
use crate::base::keys::{Day, Scope};
use crate::base::runtime::{Cancel, block_on};
use crate::base::schema::meta;
use crate::base::steps::{Step, reached};
use crate::file::rows::{RowIndexBuilder, check_ids, id_column};
use crate::file::sort::Sorter;
use crate::file::tally::Tally;
use crate::file::writer::Written;
use crate::scan::erased::{self, Erased};
use crate::source::{Source, Summary};
use crate::store::{Store, Write};

/// How often an export that others get in the way of is begun again.
const ROUNDS: u32 = 16;
/// Copies on their way to the store at the same time.
const CONCURRENT_COPIES: usize = 16;

/// Looks without writing anything: the key, and the rows as the source counts them.
pub fn plan(source: &mut dyn Source, day: Day, options: &ExportOptions, cancel: &Cancel) -> Result<Planned> {
    check_over(day, options)?;
    let rows = source.count(day, cancel).map_err(|error| error.on_day(day))?;
    Ok(Planned {
        day,
        key: options.prefix.key(&Scope::Day, day),
        rows,
    })
}

/// Exports one day.
pub fn export(
    source: &mut dyn Source,
    store: &Store,
    day: Day,
    options: &ExportOptions,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<Exported> {
    Export {
        source,
        store,
        day,
        options,
        progress,
        cancel,
        first_read: None,
        erased: Erased::default(),
        copied: Vec::new(),
        left_out: Vec::new(),
    }
    .run()
    .map_err(|error| error.on_day(day))
}

fn check_over(day: Day, options: &ExportOptions) -> Result<()> {
    let today = Day::today();
    if day > today {
        return Err(Error::invalid(format!(
            "this day lies in the future; the last finished one is {}",
            today.minus_days(1)
        )));
    }
    if day == today && !options.allow_open_day {
        return Err(Error::invalid(
            "this day (UTC) is not over yet; export it tomorrow, or pass allow_open_day=True for the rows so far",
        ));
    }
    Ok(())
}

struct Export<'a> {
    source: &'a mut dyn Source,
    store: &'a Store,
    day: Day,
    options: &'a ExportOptions,
    progress: &'a Progress,
    cancel: &'a Cancel,
    /// Rows that the source gave in the first round.
    first_read: Option<u64>,
    /// Projects whose rows are not stored.
    erased: Erased,
    /// The copies that were written by this round.
    copied: Vec<Scope>,
    /// Rows that stay in the source, because the stored rows with their ids may be others; ascending.
    left_out: Vec<Conflict>,
}

impl Export<'_> {
    fn run(mut self) -> Result<Exported> {
        check_over(self.day, self.options)?;
        let key = self.options.prefix.key(&Scope::Day, self.day);
        self.ask_erased()?;
        let mut copied_before = Vec::new();
        for round in 1..ROUNDS {
            match self.attempt(&key) {
                Err(Error::Conflict { message, .. }) => {
                    log::info!("{}: {message}; merging again (round {round})", self.day);
                    self.wait(round)?;
                }
                // Whoever erased a project meanwhile may have looked at the day before this file was there.
                Ok(exported) if self.ask_erased()? => {
                    log::info!(
                        "{}: a project was erased meanwhile; writing {} again",
                        self.day,
                        exported.key
                    );
                    copied_before.append(&mut self.copied);
                }
                ended => {
                    // Whoever looked for copies of an erased project may have done so before these were there.
                    copied_before.retain(|scope| !self.copied.contains(scope));
                    if copied_before.is_empty() {
                        return ended;
                    }
                    let dropped =
                        drop_stale_copies(self.store, &self.options.prefix, self.day, &copied_before, self.cancel);
                    // What became of the day is told first.
                    return ended.and_then(|exported| dropped.map(|_| exported));
                }
            }
        }
        self.attempt(&key)
    }

    /// Asks which projects were erased, and says whether there are others than before.
    fn ask_erased(&mut self) -> Result<bool> {
        let asked = erased::load(self.store, &self.options.prefix, Duration::ZERO);
        let (erased, _) = block_on(self.cancel, asked)?;
        let others = erased != self.erased;
        self.source.exclude(&erased.ids);
        self.erased = erased;
        Ok(others)
    }

    /// Lets the others go first; who lost together should not meet again.
    fn wait(&self, round: u32) -> Result<()> {
        let most = (50 << round.min(6)) as u64;
        let time = Duration::from_millis(u64::from(uuid::Uuid::new_v4().as_fields().0) % most);
        block_on(self.cancel, async {
            tokio::time::sleep(time).await;
            Ok(())
        })
    }

    /// Exports over the file that is stored now. [`Error::Conflict`] when somebody else writes the day meanwhile.
    fn attempt(&mut self, key: &str) -> Result<Exported> {
        reached(self.day, Step::ReadingStored);
        let stored = self.stored(key)?;
        reached(self.day, Step::ReadingDatabase);
        let (mut sorter, rows, mut summary, hidden) = self.read(&stored)?;
        self.check_list(&summary, hidden)?;
        let merged = self.merge(&stored, rows, &summary, &mut sorter)?;
        if !merged.conflicts.is_empty() {
            self.leave_out(key, &merged.conflicts)?;
            // Not both rounds' rows at once.
            drop((stored, sorter));
            return self.attempt(key);
        }
        self.check_empty(&stored, &sorter, &summary)?;

        reached(self.day, Step::WritingFile);
        let run_id = uuid::Uuid::new_v4().to_string();
        let only_if_changed = match &stored {
            Stored::Day(day, _) if !self.replaces() && merged.added == 0 && merged.changed == 0 => Some(day.as_ref()),
            _ => None,
        };
        let expected = summary
            .counted
            .as_ref()
            .map(|counted| counted.plus(&merged.kept))
            .transpose()?;
        let Finished {
            bytes,
            mut file,
            unchanged,
            copies,
        } = self.write(sorter, &summary, &merged, &run_id, only_if_changed, expected.as_ref())?;

        let was_deleted = matches!(&stored, Stored::Day(day, _) if day.remaining.is_some());
        let mut exported_run = run_id.clone();
        // The file says from now on that its rows were seen again, so that nobody who has seen less writes over it, and that
        // they were all there are when the day was over.
        let is_over = summary.snapshot_time >= self.day.end();
        let says_so = |day: &&StoredDay| {
            day.says(summary.position.as_ref(), merged.remaining.as_ref()) && !(is_over && day.is_early())
        };
        let (outcome, etag) = if let Some(day) = unchanged.filter(says_so) {
            reached(self.day, Step::Verifying);
            day.verify(self.store, Some(&file.tally), self.cancel)?;
            (file.bytes, file.sha256) = (day.bytes.len() as u64, day.sha256.clone());
            exported_run = day.run_id.clone().unwrap_or(run_id.clone());
            (Outcome::Unchanged, day.etag.clone())
        } else {
            check_size(key, file.bytes, self.options.largest_file)?;
            let rows = match unchanged {
                Some(_) => manifest::Rows::Same,
                None => manifest::Rows::Others,
            };
            let (outcome, write) = match &stored {
                Stored::Nothing => (Outcome::Created, Write::Create),
                Stored::Unreadable(etag) => (Outcome::Replaced, Write::Replace(etag.clone())),
                Stored::Day(day, _) if unchanged.is_some() => (Outcome::Unchanged, Write::Replace(day.etag.clone())),
                Stored::Day(day, _) if self.replaces() => (Outcome::Replaced, Write::Replace(day.etag.clone())),
                Stored::Day(day, _) => (Outcome::Merged, Write::Replace(day.etag.clone())),
            };
            drop(stored);
            reached(self.day, Step::Publishing);
            let about = [
                (meta::ROWS, file.tally.rows.to_string()),
                (meta::SHA256, file.sha256.clone()),
            ];
            let prefix = &self.options.prefix;
            let published = publish_day(self.store, prefix, self.day, (bytes, write), &run_id, &about, rows);
            let published = block_on(self.cancel, published);
            let etag = published.map_err(|error| interrupted_publish(self.store, key, &run_id, error))?;
            reached(self.day, Step::Published);
            reached(self.day, Step::Verifying);
            self.verify(key, &etag, &file, expected.as_ref())?;
            (outcome, etag)
        };
        reached(self.day, Step::Verified);
        if self.options.discard_stored {
            block_on(self.cancel, deleted::remove(self.store, &self.options.prefix, self.day))?;
        } else if was_deleted && merged.remaining.is_none() && summary.counted.is_some() {
            let prefix = &self.options.prefix;
            deleted::is_back(self.store, prefix, self.day, &etag, &file.tally, self.cancel)?;
        }
        let url = self.store.url_of(key);
        log::info!(
            "{}: {outcome}, {} rows, {} bytes in {url}",
            self.day,
            file.tally.rows,
            file.bytes
        );
        summary.left.extend(self.left_out.iter().map(Conflict::left));
        if !summary.left.is_empty() {
            log::warn!(
                "{}: {} rows cannot be exported and were left",
                self.day,
                summary.left.len()
            );
        }
        let (project_copies, organization_copies) = match copies {
            Some((files, bytes)) => {
                self.copied = files.iter().map(|file| file.scope.clone()).collect();
                self.publish_copies(&files, &bytes, &run_id)?
            }
            None => (0, 0),
        };
        Ok(Exported {
            day: self.day,
            key: key.to_owned(),
            outcome,
            run_id: exported_run,
            etag,
            file,
            source: summary.source,
            snapshot_time: summary.snapshot_time,
            position: summary.position,
            merged,
            left: summary.left,
            project_copies,
            organization_copies,
        })
    }

    fn replaces(&self) -> bool {
        self.options.replace || self.options.discard_stored
    }

    /// Reads the source's rows into a sorter, indexes them when they are to be merged, and counts those of erased projects that
    /// were passed over.
    fn read(&mut self, stored: &Stored) -> Result<(Sorter, Rows, Summary, u64)> {
        if self.progress.wants_total
            && let Some(total) = self.source.count(self.day, self.cancel)?
        {
            self.progress.expect(total);
        }
        let mut sorter = Sorter::new(self.day, self.options.sort.clone());
        let mut index = matches!(stored, Stored::Day(..)).then(RowIndexBuilder::default);
        let mut ids = Vec::new();
        let left_out: Vec<i64> = self.left_out.iter().map(|row| row.id).collect();
        self.source.leave_out(&left_out);
        self.source.look_for(stored.ids());
        let (progress, erased) = (self.progress, &self.erased.ids);
        let mut hidden = 0;
        let mut sink = |batch: RecordBatch| {
            let given = batch.num_rows();
            let batch = without(batch, erased)?;
            hidden += (given - batch.num_rows()) as u64;
            let batch = without_ids(batch, &left_out)?;
            match &mut index {
                Some(index) => index.push(&batch)?,
                None => ids.extend(id_column(&batch)?),
            }
            sorter.push(&batch)?;
            progress.done(sorter.rows());
            Ok(())
        };
        let summary = self
            .source
            .read(self.day, self.options.bad_rows, &mut sink, self.cancel)?;
        if let Some(counted) = summary.counted.as_ref().filter(|counted| counted.rows != sorter.rows()) {
            return Err(Error::internal(format!(
                "{} counts {} rows in the same snapshot in which {} were copied",
                summary.source,
                counted.rows,
                sorter.rows()
            )));
        }
        // Only a database shows anew what it has; a stream may have been one that can be read once.
        let first = *self.first_read.get_or_insert(sorter.rows());
        if summary.position.is_none() && sorter.rows() < first {
            return Err(Error::Source {
                message: format!(
                    "{} gave {first} rows, and {} when it was read again because somebody else had written the day; \
                     can it be read only once? Give a function that takes the day and returns a new stream",
                    summary.source,
                    sorter.rows()
                ),
                retryable: true,
            });
        }
        let rows = match index {
            Some(index) => Rows::Indexed(index.finish()?),
            None => {
                check_ids(&mut ids)?;
                Rows::Unindexed(sorter.rows())
            }
        };
        Ok((sorter, rows, summary, hidden))
    }

    /// Reads the published file back and compares it with what was written and what the source counted.
    fn verify(&self, key: &str, etag: &str, file: &Written, expected: Option<&Tally>) -> Result<()> {
        let gone = |what: &str| Error::Conflict {
            key: key.to_owned(),
            message: format!("{key} was {what} by somebody else right after it was written"),
        };
        let found =
            block_on(self.cancel, StoredDay::read(self.store, key, self.day))?.ok_or_else(|| gone("deleted"))?;
        if found.etag != etag {
            return Err(gone("written"));
        }
        if found.sha256 != file.sha256 {
            return Err(Error::Mismatch {
                key: key.to_owned(),
                message: format!(
                    "{} holds bytes with the SHA-256 {}, and {} was written; delete no rows, and export the day again",
                    self.store.url_of(key),
                    found.sha256,
                    file.sha256
                ),
            });
        }
        found
            .verify(self.store, Some(expected.unwrap_or(&file.tally)), self.cancel)
            .map(|_| ())
    }

    /// Writes the copies over whatever copies there were; the day's file is already in place.
    fn publish_copies(&self, files: &[CopyFile], bytes: &Bytes, run_id: &str) -> Result<(u64, u64)> {
        reached(self.day, Step::Copying);
        block_on(self.cancel, async {
            futures::stream::iter(files)
                .map(|file| async move {
                    let key = self.options.prefix.key(&file.scope, self.day);
                    let metadata = [(meta::RUN_ID, run_id.to_owned()), (meta::ROWS, file.rows.to_string())];
                    self.store
                        .put(&key, bytes.slice(file.place.clone()), Write::Overwrite, &metadata)
                        .await
                })
                .buffer_unordered(CONCURRENT_COPIES)
                .try_for_each(|_| async { Ok(()) })
                .await
        })?;
        reached(self.day, Step::Copied);
        let projects = files
            .iter()
            .filter(|file| matches!(file.scope, Scope::Project(_)))
            .count() as u64;
        Ok((projects, files.len() as u64 - projects))
    }
}
