//! Rows of a day that other days' files have too. They moved from there, and their old day was not exported since; once they are
//! deleted, nobody could tell any more that one of the two is old. Where one of the files says that its row was deleted, the id
//! was given out again, and both are right.

use std::collections::BTreeMap;
use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::{Date32Type, Int64Type};
use futures::stream::{self, StreamExt, TryStreamExt};

use crate::archive::erase::look::stored_days;
use crate::archive::stored::StoredDay;
use crate::base::error::{Error, Result};
use crate::base::keys::{Day, Prefix, Scope};
use crate::base::runtime::{Cancel, block_on};
use crate::base::schema::{self, meta};
use crate::file::footer::Footer;
use crate::file::remaining::Remaining;
use crate::file::rows::RowIndex;
use crate::scan::cache::{self, Lookup};
use crate::scan::plan::Filter;
use crate::scan::{Options, Scan};
use crate::source::postgres::deletion::Deleter;
use crate::store::Store;

/// Footers on their way at once.
const AT_ONCE: usize = 64;
/// Days that are named in a message.
const SHOWN: usize = 10;

/// Rows that the table does not have any more are not deleted: they hold nothing back.
///
/// # Errors
/// [`Error::DeletionRefused`] that names the other days.
pub(super) fn refuse_rows_of_other_days(
    store: &Store,
    prefix: &Prefix,
    stored: &StoredDay,
    rows: &RowIndex,
    deleter: &mut Deleter<'_>,
    cancel: &Cancel,
) -> Result<()> {
    let day = stored.day;
    let suspects = block_on(cancel, suspects(store, prefix, day, rows))?;
    let may_go = |id| rows.has(id) && !is_gone(stored.remaining.as_ref(), id);
    let mut found = shared(store, prefix, &suspects, may_go, cancel)?;
    if !found.is_empty() {
        let ids: Vec<i64> = found.values().flatten().copied().collect();
        let present = block_on(cancel, deleter.present(&ids))?;
        for (other, ids) in &mut found {
            let shared = ids.len();
            ids.retain(|id| present.contains(id));
            if ids.len() < shared {
                log::warn!(
                    "{day}: {} rows are in the file of {other} too, and the table has none of them any more; they count on both days",
                    shared - ids.len()
                );
            }
        }
        found.retain(|_, ids| !ids.is_empty());
    }
    let Some((first, ids)) = found.iter().next() else {
        return Ok(());
    };
    let shown: Vec<String> = found.keys().take(SHOWN).map(Day::to_string).collect();
    Err(Error::DeletionRefused {
        message: format!(
            "rows of this day are in the files of other days too ({}; on {first} that with id {}{}): they moved from there, and those days \
             were not exported since. Export them again first, which takes these rows out of their files. If a deletion of such a \
             day was broken off, run it again; if it leaves the row, export that day with on_id_conflict=\"database\" when both \
             are the same row, or give the row of this day another id",
            shown.join(", "),
            ids.first().copied().unwrap_or_default(),
            if ids.len() > 1 { " and others" } else { "" }
        ),
        export_first: found.into_keys().collect(),
    })
}

/// The other days that have ids between which some of these rows' lie, and which of their rows the database still has, if any
/// were deleted.
async fn suspects(
    store: &Store,
    prefix: &Prefix,
    day: Day,
    rows: &RowIndex,
) -> Result<BTreeMap<Day, Option<Remaining>>> {
    let days = stored_days(store, prefix).await?;
    let tail = cache::tail_guess(store, days.len());
    let found: Vec<Option<(Day, Option<Remaining>)>> = stream::iter(days.into_iter().filter(|other| *other != day))
        .map(|other| async move {
            let key = prefix.key(&Scope::Day, other);
            let loaded = cache::load(store, &key, Duration::ZERO, tail)
                .await
                .map_err(|error| error.on_day(other))?;
            let Lookup::Present(footer) = loaded.lookup else {
                return Ok(None);
            };
            if !between(&footer, rows) {
                return Ok(None);
            }
            let remaining = said(&footer, meta::REMAINING).map(str::parse).transpose();
            let remaining = remaining.map_err(|error: Error| error.on_day(other))?;
            Ok::<_, Error>(Some((other, remaining)))
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    Ok(found.into_iter().flatten().collect())
}

/// Whether one of the rows has an id between a file's smallest and greatest. A file that does not say which those are is looked into.
fn between(footer: &Footer, rows: &RowIndex) -> bool {
    let ids = said(footer, meta::IDS).and_then(|ids| ids.split_once(' '));
    match ids.and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?))) {
        Some((first, last)) => rows.has_between(first, last),
        None => footer.rows() > 0,
    }
}

fn said<'a>(footer: &'a Footer, name: &str) -> Option<&'a str> {
    let pairs = footer.metadata().file_metadata().key_value_metadata();
    let mut pairs = pairs.into_iter().flatten();
    pairs
        .find(|pair| pair.key == name)
        .and_then(|pair| pair.value.as_deref())
}

/// The rows that these days' files have too, of those that may go, by day.
fn shared(
    store: &Store,
    prefix: &Prefix,
    days: &BTreeMap<Day, Option<Remaining>>,
    may_go: impl Fn(i64) -> bool,
    cancel: &Cancel,
) -> Result<BTreeMap<Day, Vec<i64>>> {
    let mut found: BTreeMap<Day, Vec<i64>> = BTreeMap::new();
    if days.is_empty() {
        return Ok(found);
    }
    let columns = [schema::column(schema::ID)?, schema::column(schema::DATE)?];
    let scan = Scan::new(
        store.clone(),
        prefix,
        days.keys().copied(),
        Filter::default(),
        Options::default(),
        cancel.clone(),
    );
    for batch in scan.batches(&columns)? {
        cancel.check()?;
        let batch = batch?;
        let wrong = || Error::internal("a batch has other columns than were asked for");
        let ids = batch.column(0).as_primitive_opt::<Int64Type>().ok_or_else(wrong)?;
        let dates = batch.column(1).as_primitive_opt::<Date32Type>().ok_or_else(wrong)?;
        for (id, date) in ids.values().iter().zip(dates.values()) {
            if !may_go(*id) {
                continue;
            }
            let day = Day::from_date32(*date).ok_or_else(wrong)?;
            if !is_gone(days.get(&day).and_then(Option::as_ref), *id) {
                found.entry(day).or_default().push(*id);
            }
        }
    }
    Ok(found)
}

/// Whether a file says that its row with this id was deleted.
fn is_gone(remaining: Option<&Remaining>, id: i64) -> bool {
    remaining.and_then(|remaining| remaining.is_gone(id)) == Some(true)
}
