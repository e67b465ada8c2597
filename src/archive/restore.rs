//! The file of a day whose rows go back into the table: one version of it, read whole, and what it says meanwhile and afterwards of
//! the rows that the table has. Inserting them is the caller's business.
//!
//! The order in which nothing is lost or doubled, wherever it is broken off:
//!
//! 1. [`read`]: nothing is written.
//! 2. [`prepare`], after the rows were inserted and right before they are committed: the file, if it still is the version that was
//!    read, says that it is not known which rows the table has, and has the rows as they were inserted. That is true whether or not
//!    the commit takes effect. Before, a next export would count summed rows twice; and if it said already that the table has all,
//!    an id that is given out again could take the place of a row that is not there.
//! 3. The caller commits.
//! 4. [`finish`]: the file says which rows the table has, and the day leaves the list of days of which rows were deleted. A crash
//!    before leaves the protection of a day that was deleted in place; the next export that finds all of its rows takes it away.

use std::time::Duration;

use arrow::array::RecordBatchIterator;
use arrow::error::ArrowError;

use crate::archive::deleted;
use crate::archive::export::ExportOptions;
use crate::archive::manifest::Rows;
use crate::archive::merge::{differs, without};
use crate::archive::stamp::{earlier, publish_over, stamp};
use crate::archive::stored::StoredDay;
use crate::archive::verify::{not_stored, verify};
use crate::base::error::{Error, Result};
use crate::base::keys::{Day, Prefix, Scope};
use crate::base::runtime::{Cancel, block_on};
use crate::base::schema;
use crate::file::remaining::Remaining;
use crate::file::sort::Sorter;
use crate::file::spool::Spool;
use crate::file::writer::{DayWriter, FileFacts, Written};
use crate::scan::erased;
use crate::source::arrow::Stream;
use crate::source::postgres::PostgresSource;
use crate::source::{BadRows, Source};
use crate::store::Store;

/// How often a file that others write meanwhile is looked at again, once the rows are there.
const ROUNDS: u32 = 4;

/// Reads the day's file and verifies it: all of its rows but those of erased projects. With `source`, the day has to belong to that
/// very table, without it to none that says which it is.
///
/// # Errors
/// [`Error::InvalidInput`] for another table, and what [`verify`] says.
pub fn read(
    store: &Store,
    prefix: &Prefix,
    day: Day,
    source: Option<&PostgresSource>,
    accept_moved_database: bool,
    cancel: &Cancel,
) -> Result<(StoredDay, Stream)> {
    let reading = || {
        let stored = verify(store, prefix, day, cancel)?.stored;
        if !accept_moved_database {
            check_table(&stored, source, cancel)?;
        }
        let (erased, _) = block_on(cancel, erased::ids(store, prefix, Duration::ZERO))?;
        let rows = stored.batches().map(move |batch| {
            batch
                .and_then(|batch| without(batch, &erased))
                .map_err(|error| ArrowError::ExternalError(Box::new(error)))
        });
        let rows: Stream = Box::new(RecordBatchIterator::new(rows, schema::pageviews()));
        Ok((stored, rows))
    };
    reading().map_err(|error: Error| error.on_day(day))
}

fn check_table(stored: &StoredDay, source: Option<&PostgresSource>, cancel: &Cancel) -> Result<()> {
    const MOVED: &str = "if it was moved, upgraded, promoted or restored on purpose, pass accept_moved_database=True";
    let from = stored.source.as_deref().unwrap_or("another source");
    match (&stored.position, source) {
        (None, None) => Ok(()),
        (Some(position), Some(source)) => {
            let identity = source.identity(cancel)?;
            identity.check(&position.identity).map_err(|other| {
                Error::invalid(format!(
                    "{} {}; nothing was restored: {MOVED}",
                    source.server(),
                    differs(other, Some(&identity), stored, from)
                ))
            })
        }
        (Some(position), None) => Err(Error::invalid(format!(
            "{} was exported from {from} ({}), and the database to write to does not say whether it is that one; nothing was restored: {MOVED}",
            stored.key, position.identity
        ))),
        (None, Some(source)) => Err(Error::invalid(format!(
            "{} was not exported natively from PostgreSQL ({from}), so it cannot be told whether its rows are those of {}; nothing was \
             restored: if they are, pass accept_moved_database=True",
            stored.key,
            source.server()
        ))),
    }
}

/// Says in the file that it is not known which rows the table has, over the version `over`; with `rows`, writes these in the place of
/// those that it has.
///
/// # Errors
/// [`Error::Conflict`] when the file is another version by now.
pub fn prepare(
    store: &Store,
    day: Day,
    over: &str,
    rows: Option<&mut dyn Source>,
    options: &ExportOptions,
    cancel: &Cancel,
) -> Result<StoredDay> {
    let preparing = || {
        let stored = current(store, &options.prefix, day, over, cancel)?;
        let mut facts = facts(&stored, Some(Remaining::Unknown));
        let temp_dir = options.sort.temp_dir.as_deref();
        let ((spool, file), rows) = match rows {
            None => (stamp(&stored, &facts, temp_dir)?, Rows::Same),
            Some(source) => {
                facts.same_rows_as.clear();
                (rewritten(source, &facts, options, cancel)?, Rows::Others)
            }
        };
        publish_over(
            store,
            &options.prefix,
            &stored,
            spool,
            (&file, rows),
            &facts.run_id,
            cancel,
        )
    };
    preparing().map_err(|error: Error| error.on_day(day))
}

/// Once the rows are committed: says in the file, over the version that [`prepare`] wrote, that the table has the rows with the ids in
/// `present`, or all of them, and then takes the day off the list of those of which rows were deleted. A version that somebody has
/// written since may say that the table does not have them, as it was before the commit: it says then that it is not known.
///
/// # Errors
/// [`Error::Conflict`] when others keep writing the file.
pub fn finish(
    store: &Store,
    prefix: &Prefix,
    day: Day,
    over: &str,
    present: Option<Vec<i64>>,
    cancel: &Cancel,
) -> Result<StoredDay> {
    let finishing = || {
        let whole = present.is_none();
        let remaining = present.map(Remaining::of);
        let mut round = 1;
        loop {
            let stored = stored(store, prefix, day, cancel)?;
            let ours = stored.etag == over;
            let remaining = match &stored.remaining {
                _ if ours => remaining.clone(),
                Some(Remaining::Only(_) | Remaining::AtMost(_)) => Some(Remaining::Unknown),
                None | Some(Remaining::Unknown) => return Ok(stored),
            };
            let facts = facts(&stored, remaining);
            let (spool, file) = stamp(&stored, &facts, None)?;
            let file_and_rows = (&file, Rows::Same);
            match publish_over(store, prefix, &stored, spool, file_and_rows, &facts.run_id, cancel) {
                Err(Error::Conflict { .. }) if round < ROUNDS => round += 1,
                Err(error) => return Err(error),
                Ok(found) => {
                    if ours && whole {
                        deleted::is_back(store, prefix, day, &found.etag, &file.tally, cancel)?;
                    }
                    return Ok(found);
                }
            }
        }
    };
    finishing().map_err(|error: Error| error.on_day(day))
}

/// The day's file, if it is this version.
fn current(store: &Store, prefix: &Prefix, day: Day, over: &str, cancel: &Cancel) -> Result<StoredDay> {
    let stored = stored(store, prefix, day, cancel)?;
    if stored.etag == over {
        return Ok(stored);
    }
    let key = stored.key;
    Err(Error::Conflict {
        message: format!("{key} was written anew while its rows were brought back; restore it again"),
        key,
    })
}

fn stored(store: &Store, prefix: &Prefix, day: Day, cancel: &Cancel) -> Result<StoredDay> {
    let key = prefix.key(&Scope::Day, day);
    block_on(cancel, StoredDay::read(store, &key, day))?.ok_or_else(|| not_stored(store, &key))
}

/// What the file says of itself, and of the rows that remain in the table.
fn facts(stored: &StoredDay, remaining: Option<Remaining>) -> FileFacts {
    FileFacts {
        day: stored.day,
        source: stored.source.clone().unwrap_or_default(),
        run_id: uuid::Uuid::new_v4().to_string(),
        snapshot_time: stored.snapshot_time.unwrap_or_default(),
        position: stored.position.clone(),
        remaining,
        same_rows_as: earlier(stored),
    }
}

fn rewritten(
    source: &mut dyn Source,
    facts: &FileFacts,
    options: &ExportOptions,
    cancel: &Cancel,
) -> Result<(Spool, Written)> {
    let mut sorter = Sorter::new(facts.day, options.sort.clone());
    let mut sink = |batch| sorter.push(&batch);
    source.read(facts.day, BadRows::Fail, &mut sink, cancel)?;
    let spool = Spool::create(options.sort.temp_dir.as_deref())?;
    let mut writer = DayWriter::new(spool, facts, options.row_group_rows)?;
    for batch in sorter.finish(None, cancel)? {
        writer.write(&batch?)?;
    }
    writer.finish()
}
