//! Lets exported rows go: only those that are in a verified file, unchanged, and a batch at a time.

mod elsewhere;
mod stamp;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use chrono::SecondsFormat;

use crate::archive::merge::differs;
use crate::archive::publish::ignored_conditions;
use crate::archive::stored::StoredDay;
use crate::archive::verify::{Differences, compare, verify};
use crate::base::error::{Error, Result};
use crate::base::keys::{Day, Prefix};
use crate::base::runtime::{Cancel, block_on};
use crate::base::steps::{Step, reached};
use crate::file::remaining::Remaining;
use crate::file::rows::{Match, RowIndex, RowIndexBuilder};
use crate::source::Source;
use crate::source::postgres::PostgresSource;
use crate::source::postgres::deletion::{Deleter, Limits};
use crate::store::{Kind, Part, Precondition, Response, Store};

/// How often rows that somebody else had locked are tried again, and the pause before.
const PASSES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);

/// How often it is made sure that the file is still the one that was verified.
const RECHECK: Duration = Duration::from_secs(1);

/// How long replicas are waited for.
const REPLICA_PATIENCE: Duration = Duration::from_secs(600);

#[derive(Debug, Clone)]
pub struct DeleteOptions {
    pub prefix: Prefix,
    /// Delete also when the file lies in a folder or in memory.
    pub allow_local: bool,
    /// Delete also from another database than the one that the day was exported from.
    pub accept_moved_database: bool,
    /// Delete although other rows are deleted, changed or left without the one they refer to.
    pub allow_cascades: bool,
    /// Columns that no file holds and that may go with the rows.
    pub lose_columns: Vec<String>,
    /// The version of the file that was verified, when somebody did before.
    pub etag: Option<String>,
    /// Rows in one transaction.
    pub batch_rows: usize,
    /// Between two transactions.
    pub pause: Duration,
    pub max_rows_per_second: Option<f64>,
    /// Wait while a replica is further behind.
    pub max_replica_lag: Option<Duration>,
    pub limits: Limits,
}

impl Default for DeleteOptions {
    fn default() -> Self {
        Self {
            prefix: Prefix::default(),
            allow_local: false,
            accept_moved_database: false,
            allow_cascades: false,
            lose_columns: Vec::new(),
            etag: None,
            batch_rows: 5_000,
            pause: Duration::ZERO,
            max_rows_per_second: None,
            max_replica_lag: None,
            limits: Limits {
                statement: Duration::from_secs(30),
                lock: Duration::from_secs(2),
            },
        }
    }
}

/// How far a deletion is.
#[derive(Debug, Default)]
pub struct DeleteProgress {
    looked_at: AtomicU64,
    total: AtomicU64,
}

impl DeleteProgress {
    /// Rows of the file that were looked at in the database, and the rows there are.
    pub fn rows(&self) -> (u64, u64) {
        (
            self.looked_at.load(Ordering::Relaxed),
            self.total.load(Ordering::Relaxed),
        )
    }
}

/// What a deletion did.
#[derive(Debug, Clone)]
pub struct Deleted {
    pub day: Day,
    pub key: String,
    pub etag: String,
    /// Of the file, which says which rows the database still has.
    pub bytes: u64,
    pub deleted: u64,
    /// What the database still has of the day. `unchanged` are rows that somebody else had locked.
    pub rest: Differences,
    pub batches: u64,
    pub time: Duration,
}

/// Deletes the rows of a day that are in its file, unchanged. May be broken off at any moment and run again.
///
/// # Errors
/// [`Error::DeletionRefused`] when it is not certain that the rows are safe, and what [`verify`] says. After an error that is
/// worth a retry, the same call goes on where this one ended.
pub fn delete(
    source: &PostgresSource,
    store: &Store,
    day: Day,
    options: &DeleteOptions,
    progress: &DeleteProgress,
    cancel: &Cancel,
) -> Result<Deleted> {
    let deletion = || {
        let begun = Instant::now();
        if day >= Day::today() {
            return Err(Error::refused("this day (UTC) is not over, so its rows stay"));
        }
        check_store(store, options, cancel)?;
        reached(day, Step::DeleteVerifying);
        let stored = verify(store, &options.prefix, day, cancel)?.stored;
        check_version(store, &stored, options)?;
        check_whole(&stored)?;
        let index = index(&stored, cancel)?;
        let mut deletion = Deletion {
            source,
            store,
            gone: vec![false; index.len()],
            certain: !matches!(stored.remaining, Some(Remaining::Unknown | Remaining::AtMost(_))),
            index,
            stored,
            options,
            progress,
            cancel,
            deleted: 0,
            batches: 0,
            begun,
            checked: begun,
        };
        let rest = deletion.run().map_err(|error| deletion.so_far(error))?;
        let Deletion {
            deleted,
            batches,
            stored,
            ..
        } = deletion;
        log::info!(
            "{day}: {deleted} rows deleted; {} changed, {} late and {} locked ones kept",
            rest.changed.len(),
            rest.missing.len(),
            rest.unchanged.len()
        );
        Ok(Deleted {
            day,
            key: stored.key.clone(),
            etag: stored.etag.clone(),
            bytes: stored.bytes.len() as u64,
            deleted,
            rest,
            batches,
            time: begun.elapsed(),
        })
    };
    deletion().map_err(|error| error.on_day(day))
}

fn check_store(store: &Store, options: &DeleteOptions, cancel: &Cancel) -> Result<()> {
    if matches!(store.kind(), Kind::Local | Kind::Memory) {
        if options.allow_local {
            return Ok(());
        }
        return Err(Error::refused(format!(
            "{} is {}, which can be gone tomorrow; rows are deleted only when they are in an object store. \
             If it is durable, pass allow_local_delete=True",
            store.url(),
            if store.kind() == Kind::Local {
                "a local folder"
            } else {
                "in memory"
            }
        )));
    }
    let ignored = block_on(cancel, ignored_conditions(store, &options.prefix))?;
    if ignored.is_empty() {
        return Ok(());
    }
    Err(Error::refused(format!(
        "{} ignores conditions of requests ({}), so a file could be overwritten or another one read unnoticed, and rows be lost; \
         use a store that heeds conditions, without a proxy that drops them",
        store.url(),
        ignored.join(", ")
    )))
}

/// The version that was read back has to be the one that others have verified, and to tell its hash.
fn check_version(store: &Store, stored: &StoredDay, options: &DeleteOptions) -> Result<()> {
    let url = store.url_of(&stored.key);
    let known = |etag: &&String| **etag == stored.etag || stored.same_rows_as.contains(etag);
    if let Some(etag) = options.etag.as_ref().filter(|etag| !known(etag)) {
        return Err(Error::refused(format!(
            "the version {etag} of {url} was verified, but now it is {}; verify it again",
            stored.etag
        )));
    }
    let remote = !matches!(store.kind(), Kind::Local | Kind::Memory);
    if remote && stored.recorded_sha256.is_none() {
        return Err(Error::refused(format!(
            "{url} has no SHA-256 in its metadata, so its bytes cannot be verified (was it copied by another program?); \
             export the day again with replace=True"
        )));
    }
    Ok(())
}

fn overtaken(store: &Store, key: &str) -> Error {
    Error::Conflict {
        key: key.to_owned(),
        message: format!(
            "{} was written by somebody else during the deletion, so what was verified is no longer what is stored; run it again",
            store.url_of(key)
        ),
    }
}

/// Rows that came after the snapshot are not in the file of a day that was still open then.
fn check_whole(stored: &StoredDay) -> Result<()> {
    if !stored.is_early() {
        return Ok(());
    }
    let time = stored.snapshot_time.unwrap_or_default();
    Err(Error::refused(format!(
        "{} was exported at {}, before the day was over; export it again",
        stored.key,
        time.to_rfc3339_opts(SecondsFormat::Secs, true)
    )))
}

fn index(stored: &StoredDay, cancel: &Cancel) -> Result<RowIndex> {
    let mut index = RowIndexBuilder::default();
    for batch in stored.batches() {
        cancel.check()?;
        index.push(&batch?)?;
    }
    index.finish()
}

struct Deletion<'a> {
    source: &'a PostgresSource,
    store: &'a Store,
    /// The file as it is now, with what it says of the deletion.
    stored: StoredDay,
    options: &'a DeleteOptions,
    progress: &'a DeleteProgress,
    cancel: &'a Cancel,
    index: RowIndex,
    /// Which of the index's rows this deletion has deleted, by their number.
    gone: Vec<bool>,
    /// Whether other rows of the file that are not in the table were deleted is known.
    certain: bool,
    deleted: u64,
    batches: u64,
    begun: Instant,
    /// When the file was last seen to be the verified one.
    checked: Instant,
}

impl Deletion<'_> {
    fn run(&mut self) -> Result<Differences> {
        let source = self.source.limited(&self.options.limits);
        let mut deleter = block_on(self.cancel, Deleter::connect(&source, &self.options.limits))?;
        self.check_table(&deleter)?;
        let effects = block_on(self.cancel, deleter.effects())?;
        effects.check(
            &self.source.table(),
            &self.options.lose_columns,
            self.options.allow_cascades,
        )?;
        let begun = block_on(self.cancel, deleter.has_rows(self.stored.day))?;
        if begun {
            let (store, prefix) = (self.store, &self.options.prefix);
            elsewhere::refuse_rows_of_other_days(store, prefix, &self.stored, &self.index, &mut deleter, self.cancel)?;
            self.begin()?;
        }
        self.progress.total.store(self.index.len() as u64, Ordering::Relaxed);
        let ids: Vec<i64> = self.index.ids().collect();
        self.pass(&mut deleter, &ids)?;
        let mut rest = self.report()?;
        for _ in 1..PASSES {
            if rest.unchanged.is_empty() {
                break;
            }
            self.sleep(PAUSE)?;
            let busy = std::mem::take(&mut rest.unchanged);
            self.pass(&mut deleter, &busy)?;
            rest = self.report()?;
        }
        if begun || !self.certain {
            self.end(&rest)?;
        }
        block_on(self.cancel, async {
            deleter.close().await;
            Ok(())
        })?;
        Ok(rest)
    }

    /// The day was copied from this very table.
    fn check_table(&self, deleter: &Deleter<'_>) -> Result<()> {
        let from = self.stored.source.as_deref().unwrap_or("another source");
        match &self.stored.position {
            _ if self.options.accept_moved_database => Ok(()),
            Some(position) => deleter.identity.check(&position.identity).map_err(|other| {
                Error::refused(format!(
                    "{} {}; if it was moved, upgraded, promoted or restored on purpose, pass accept_moved_database=True",
                    self.source.server(),
                    differs(other, Some(&deleter.identity), &self.stored, from)
                ))
            }),
            None => Err(Error::refused(format!(
                "{} was not exported natively from PostgreSQL ({from}), so no database has counted its rows; \
                 if its rows are those of {}, pass accept_moved_database=True",
                self.stored.key,
                self.source.server()
            ))),
        }
    }

    fn pass(&mut self, deleter: &mut Deleter<'_>, ids: &[i64]) -> Result<()> {
        self.progress.looked_at.store(0, Ordering::Relaxed);
        for some in ids.chunks(self.options.batch_rows.max(1)) {
            if self.batches > 0 {
                self.sleep(self.options.pause)?;
            }
            self.wait_for_replicas(deleter)?;
            self.check_still_stored()?;
            let (index, mut going) = (&self.index, Vec::new());
            let mut decide = |batch: &RecordBatch| {
                let before = going.len();
                going.extend(unchanged(index, batch)?);
                Ok(going[before..].iter().map(|number| index.id(*number)).collect())
            };
            let batch = block_on(self.cancel, deleter.batch(self.stored.day, some, &mut decide))?;
            self.deleted += batch.deleted;
            for number in going {
                self.gone[number] = true;
            }
            self.batches += 1;
            self.progress.looked_at.fetch_add(some.len() as u64, Ordering::Relaxed);
            self.hold_rate()?;
        }
        Ok(())
    }

    /// What the database has of the day now, and of its rows on other dates.
    fn report(&self) -> Result<Differences> {
        reached(self.stored.day, Step::DeleteReporting);
        let is_gone = |id| {
            self.stored
                .remaining
                .as_ref()
                .and_then(|remaining| remaining.is_gone(id))
                == Some(true)
        };
        let rest = self.index.ids().zip(&self.gone);
        let rest = rest.filter_map(|(id, gone)| (!gone && !is_gone(id)).then_some(id));
        let mut source = self.source.clone();
        source.look_for(rest.collect());
        compare(&self.stored, &mut source, self.cancel)
    }

    /// Sleeps until no more than the allowed rows a second were deleted.
    fn hold_rate(&self) -> Result<()> {
        let Some(rate) = self.options.max_rows_per_second else {
            return Ok(());
        };
        let earliest = Duration::try_from_secs_f64(self.deleted as f64 / rate).unwrap_or(Duration::MAX);
        self.sleep(earliest.saturating_sub(self.begun.elapsed()))
    }

    fn wait_for_replicas(&self, deleter: &mut Deleter<'_>) -> Result<()> {
        let Some(most) = self.options.max_replica_lag else {
            return Ok(());
        };
        let begun = Instant::now();
        loop {
            let lag = block_on(self.cancel, deleter.replica_lag())?;
            if lag <= most {
                return Ok(());
            }
            if begun.elapsed() > REPLICA_PATIENCE {
                return Err(Error::Database {
                    message: format!(
                        "a replica of {} has been more than {} seconds behind for {} minutes; try again when it has caught up",
                        self.source.server(),
                        most.as_secs_f64(),
                        REPLICA_PATIENCE.as_secs() / 60
                    ),
                    sqlstate: None,
                    retryable: true,
                });
            }
            self.sleep(PAUSE)?;
        }
    }

    fn check_still_stored(&mut self) -> Result<()> {
        if self.checked.elapsed() < RECHECK && self.batches > 0 {
            return Ok(());
        }
        let version = Precondition::IfMatch(self.stored.etag.clone());
        match block_on(self.cancel, self.store.get(&self.stored.key, Part::Tail(1), version))? {
            Response::Found(_) | Response::NotModified => {
                self.checked = Instant::now();
                Ok(())
            }
            Response::PreconditionFailed if self.has_same_rows()? => Ok(()),
            Response::PreconditionFailed => Err(overtaken(self.store, &self.stored.key)),
            Response::NotFound => Err(Error::NotStored {
                key: self.stored.key.clone(),
                message: format!(
                    "{} has disappeared during the deletion",
                    self.store.url_of(&self.stored.key)
                ),
            }),
        }
    }

    fn sleep(&self, time: Duration) -> Result<()> {
        if time.is_zero() {
            return self.cancel.check();
        }
        block_on(self.cancel, async {
            tokio::time::sleep(time).await;
            Ok(())
        })
    }

    /// An error that says what was done before it.
    fn so_far(&self, error: Error) -> Error {
        if self.deleted > 0 {
            log::warn!(
                "{}: {} rows were deleted before this failed: {error}; the rest are still in the database, and running it again goes on",
                self.stored.day,
                self.deleted
            );
        }
        error
    }
}

/// The numbers of a batch's rows that are as they were exported.
fn unchanged(index: &RowIndex, batch: &RecordBatch) -> Result<Vec<usize>> {
    let same = index.matches(batch)?.into_iter().filter_map(|found| match found {
        Match::Same(number) => Some(number),
        _ => None,
    });
    Ok(same.collect())
}
