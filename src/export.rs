//! One day from a source to the store: read, merge with what is stored, sort, write, publish, verify, and only
//! then the copies.

mod options;
mod write;

use std::time::Duration;

use arrow::array::RecordBatch;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use crate::copies::CopyFile;
pub use options::{ExportOptions, Exported, Outcome, Planned, Progress};
use write::Finished;

use crate::erased;
use crate::error::{Error, Result};
use crate::keys::{Day, Scope};
use crate::merge::{Merged, check_newer, merge, without};
use crate::position::Position;
use crate::publish::{check_size, interrupted_publish, publish};
use crate::rows::{RowIndex, RowIndexBuilder, check_ids};
use crate::runtime::{Cancel, block_on};
use crate::schema::meta;
use crate::sort::Sorter;
use crate::source::{Source, Summary};
use crate::steps::{Step, reached};
use crate::store::{Got, IfVersion, Part, Store, Write};
use crate::stored::{StoredDay, id_column};
use crate::tally::Tally;
use crate::writer::Written;

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
        erased: erased::Ids::default(),
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
    erased: erased::Ids,
}

impl Export<'_> {
    fn run(mut self) -> Result<Exported> {
        check_over(self.day, self.options)?;
        let key = self.options.prefix.key(&Scope::Day, self.day);
        self.ask_erased()?;
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
                }
                ended => return ended,
            }
        }
        self.attempt(&key)
    }

    /// Asks which projects were erased, and says whether there are others than before.
    fn ask_erased(&mut self) -> Result<bool> {
        let asked = erased::ids(self.store, &self.options.prefix, Duration::ZERO);
        let (ids, _) = block_on(self.cancel, asked)?;
        let others = ids != self.erased;
        self.source.exclude(&ids);
        self.erased = ids;
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
        let (mut sorter, rows, summary) = self.read(&stored)?;
        let merged = self.merge(&stored, rows, &summary, &mut sorter)?;
        self.check_empty(&stored, &sorter, &summary)?;

        reached(self.day, Step::WritingFile);
        let run_id = uuid::Uuid::new_v4().to_string();
        let only_if_changed = match &stored {
            Stored::Day(day) if !self.replaces() && merged.added == 0 && merged.changed == 0 => Some(day.as_ref()),
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
        } = self.write(sorter, &summary, &run_id, only_if_changed, expected.as_ref())?;

        let mut exported_run = run_id.clone();
        // The file says from now on that its rows were seen again, so that nobody who has seen less writes over it.
        let says_so = |day: &&StoredDay| newest(day.position.as_ref(), summary.position.as_ref());
        let (outcome, etag) = if let Some(day) = unchanged.filter(says_so) {
            reached(self.day, Step::Verifying);
            day.verify(self.store, Some(&file.tally), self.cancel)?;
            (file.bytes, file.sha256) = (day.bytes.len() as u64, day.sha256.clone());
            exported_run = day.run_id.clone().unwrap_or(run_id.clone());
            (Outcome::Unchanged, day.etag.clone())
        } else {
            check_size(key, file.bytes, self.options.largest_file)?;
            let (outcome, write) = match &stored {
                Stored::Nothing => (Outcome::Created, Write::Create),
                Stored::Unreadable(etag) => (Outcome::Replaced, Write::Replace(etag.clone())),
                Stored::Day(day) if unchanged.is_some() => (Outcome::Unchanged, Write::Replace(day.etag.clone())),
                Stored::Day(day) if self.replaces() => (Outcome::Replaced, Write::Replace(day.etag.clone())),
                Stored::Day(day) => (Outcome::Merged, Write::Replace(day.etag.clone())),
            };
            drop(stored);
            reached(self.day, Step::Publishing);
            let about = [
                (meta::ROWS, file.tally.rows.to_string()),
                (meta::SHA256, file.sha256.clone()),
            ];
            let published = block_on(self.cancel, publish(self.store, key, bytes, write, &run_id, &about));
            let etag = published.map_err(|error| interrupted_publish(self.store, key, &run_id, error))?;
            reached(self.day, Step::Published);
            reached(self.day, Step::Verifying);
            self.verify(key, &etag, &file, expected.as_ref())?;
            (outcome, etag)
        };
        reached(self.day, Step::Verified);
        let url = self.store.url_of(key);
        log::info!(
            "{}: {outcome}, {} rows, {} bytes in {url}",
            self.day,
            file.tally.rows,
            file.bytes
        );
        if !summary.left.is_empty() {
            log::warn!(
                "{}: {} rows cannot be exported and were left",
                self.day,
                summary.left.len()
            );
        }
        let (project_copies, organization_copies) = match copies {
            Some((files, bytes)) => self.publish_copies(&files, &bytes, &run_id)?,
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

    /// The day's file as it is now.
    fn stored(&self, key: &str) -> Result<Stored> {
        match block_on(self.cancel, StoredDay::read(self.store, key, self.day)) {
            Ok(None) => Ok(Stored::Nothing),
            Ok(Some(day)) => Ok(Stored::Day(Box::new(day))),
            Err(error @ (Error::CorruptFile { .. } | Error::Mismatch { .. })) if self.options.discard_stored => {
                log::warn!(
                    "{}: the stored file is dropped although it cannot be read: {error}",
                    self.day
                );
                match block_on(self.cancel, self.store.get(key, Part::Tail(1), IfVersion::Any))? {
                    Got::Found(found) => Ok(Stored::Unreadable(found.etag)),
                    _ => Ok(Stored::Nothing),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Reads the source's rows into a sorter, and indexes them when they are to be merged.
    fn read(&mut self, stored: &Stored) -> Result<(Sorter, Rows, Summary)> {
        if self.progress.wants_total
            && let Some(total) = self.source.count(self.day, self.cancel)?
        {
            self.progress.expect(total);
        }
        let mut sorter = Sorter::new(self.day, self.options.sort.clone());
        let mut index = matches!(stored, Stored::Day(_)).then(RowIndexBuilder::default);
        let mut ids = Vec::new();
        let (progress, erased) = (self.progress, &self.erased);
        let mut sink = |batch: RecordBatch| {
            let batch = without(batch, erased)?;
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
        Ok((sorter, rows, summary))
    }

    /// Adds the stored rows that the source does not have, or refuses to drop them.
    fn merge(&self, stored: &Stored, rows: Rows, summary: &Summary, sorter: &mut Sorter) -> Result<Merged> {
        let (stored, source) = match (stored, rows) {
            (Stored::Day(stored), Rows::Indexed(source)) => (stored, source),
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
        if !self.options.replace {
            return merge(stored, &source, &self.erased, |kept| sorter.push(kept), self.cancel);
        }
        let merged = merge(stored, &source, &self.erased, |_| Ok(()), self.cancel)?;
        match merged.kept.rows {
            0 => Ok(merged),
            lacking => Err(Error::invalid(format!(
                "{} holds {lacking} rows that the source no longer has, so it was not replaced; leave replace out to merge, \
                 or pass discard_stored=True to drop them",
                self.store.url_of(&stored.key)
            ))),
        }
    }

    /// A day without rows is recorded as empty only if the source shows that it is old enough to know.
    fn check_empty(&self, stored: &Stored, sorter: &Sorter, summary: &Summary) -> Result<()> {
        let known = matches!(stored, Stored::Day(_)) && !self.replaces();
        if sorter.rows() > 0 || known || self.options.allow_empty || summary.earlier_rows == Some(true) {
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

/// Whether a stored position is as new as another one.
fn newest(stored: Option<&Position>, seen: Option<&Position>) -> bool {
    match (stored, seen) {
        (Some(stored), Some(seen)) => stored.covers(seen).is_ok() && stored.identity == seen.identity,
        (None, None) => true,
        _ => false,
    }
}

/// What is in the day's place before the export.
enum Stored {
    Nothing,
    Day(Box<StoredDay>),
    /// A file that is going to be dropped, by its ETag.
    Unreadable(String),
}

/// The source's rows: by id, or only their number when there is nothing to compare them with.
enum Rows {
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
