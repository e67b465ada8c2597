//! Takes the rows of erased projects out of a stored day: an export from nothing, which keeps what is stored, but for them.
//! And finds the copies that still have some: the day's file says nothing of them once it was written anew.

use std::time::Duration;

use futures::stream::{self, StreamExt, TryStreamExt};

use crate::cache::{self, Known};
use crate::erased;
use crate::error::Result;
use crate::export::{ExportOptions, Exported, Progress, export};
use crate::keys::{Day, Prefix, Scope};
use crate::merge::without;
use crate::plan::{self, Filter};
use crate::runtime::{Cancel, block_on};
use crate::source::{BadRows, Sink, Source, Summary};
use crate::store::Store;
use crate::stored::StoredDay;
use crate::verify::not_stored;

/// Writes the day again without the rows of erased projects, if it has any.
///
/// # Errors
/// [`crate::error::Error::DayNotStored`] when there is no file, otherwise as an export.
pub fn erase(store: &Store, day: Day, options: &ExportOptions, cancel: &Cancel) -> Result<Exported> {
    let key = options.prefix.key(&Scope::Day, day);
    let mut nothing = Nothing { store, key };
    let options = ExportOptions {
        // The file keeps saying from which database and snapshot it is.
        accept_moved_database: true,
        ..options.clone()
    };
    export(&mut nothing, store, day, &options, &Progress::default(), cancel)
}

/// Those of the copies that have rows of erased projects.
///
/// # Errors
/// [`crate::error::Error::CorruptFile`] for a copy that cannot be read.
pub async fn stale_copies(store: &Store, prefix: &Prefix, days: &[Day], scopes: &[Scope]) -> Result<Vec<(Day, Scope)>> {
    let (ids, _) = erased::ids(store, prefix, Duration::ZERO).await?;
    let copies = days.iter().flat_map(|day| scopes.iter().map(|scope| (*day, scope)));
    let copies: Vec<(Day, &Scope)> = copies.filter(|_| !ids.is_empty()).collect();
    stream::iter(copies)
        .map(|(day, scope)| {
            let ids = ids.clone();
            async move {
                let stale = has_rows_of(store, &prefix.key(scope, day), day, &ids)
                    .await
                    .map_err(|error| error.on_day(day))?;
                Ok(stale.then(|| (day, scope.clone())))
            }
        })
        .buffered(LOOKS_AT_ONCE)
        .try_filter_map(|copy| async { Ok(copy) })
        .try_collect()
        .await
}

const LOOKS_AT_ONCE: usize = 16;
/// Holds the footer of all but the largest copies.
const TAIL: u64 = 64 << 10;

async fn has_rows_of(store: &Store, key: &str, day: Day, ids: &[i32]) -> Result<bool> {
    let Known::Present(footer) = cache::load(store, key, Duration::ZERO, TAIL).await?.known else {
        return Ok(false);
    };
    let of = |id: &i32| Filter {
        project_id: Some(*id),
        ..Filter::default()
    };
    if ids.iter().all(|id| plan::select(&footer, &of(id)).is_empty()) {
        return Ok(false);
    }
    // An id between those of others is in the statistics' range, and perhaps not in the file.
    let Some(copy) = StoredDay::read(store, key, day).await? else {
        return Ok(false);
    };
    for batch in copy.batches() {
        let batch = batch?;
        let rows = batch.num_rows();
        if without(batch, ids)?.num_rows() < rows {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A source without rows that says of itself what the stored file says of its source.
struct Nothing<'a> {
    store: &'a Store,
    key: String,
}

impl Source for Nothing<'_> {
    fn read(&mut self, day: Day, _: BadRows, _: &mut Sink<'_>, cancel: &Cancel) -> Result<Summary> {
        let stored = block_on(cancel, StoredDay::read(self.store, &self.key, day))?;
        let stored = stored.ok_or_else(|| not_stored(self.store, &self.key))?;
        Ok(Summary {
            source: stored.source.unwrap_or_default(),
            snapshot_time: stored.snapshot_time.unwrap_or_default(),
            position: stored.position,
            counted: None,
            earlier_rows: Some(true),
            left: Vec::new(),
            moved: Vec::new(),
            slugs: None,
        })
    }

    fn count(&mut self, _day: Day, _cancel: &Cancel) -> Result<Option<u64>> {
        Ok(Some(0))
    }
}
