//! Copies that still have rows of erased projects: the day's file says nothing of them once it was written anew.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::Int32Type;
use futures::stream::{self, StreamExt, TryStreamExt};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::statistics::Statistics;

use crate::archive::claim::Claim;
use crate::archive::stored::StoredDay;
use crate::base::error::{Error, Result};
use crate::base::keys::{Day, Prefix, Scope};
use crate::base::runtime::{Cancel, block_on};
use crate::base::schema::{self, meta};
use crate::file::footer::Footer;
use crate::file::position::{Identity, Position};
use crate::scan::cache::{self, Lookup};
use crate::scan::erased;
use crate::store::Store;

/// Those of the copies that have rows of erased projects.
///
/// # Errors
/// [`Error::CorruptFile`] for a copy that cannot be read, [`Error::ErasureRefused`] for another database's.
pub async fn stale_copies(
    store: &Store,
    prefix: &Prefix,
    days: &[Day],
    scopes: &[Scope],
    claim: &Claim,
) -> Result<Vec<(Day, Scope)>> {
    let (erased, _) = erased::load(store, prefix, Duration::ZERO).await?;
    if erased.ids.is_empty() || scopes.is_empty() {
        return Ok(Vec::new());
    }
    let owners = &claim.owners(store, &prefix.erased_key(), &erased.owners)?;
    let copies = days.iter().flat_map(|day| scopes.iter().map(|scope| (*day, scope)));
    let copies: Vec<(Day, &Scope)> = copies.collect();
    stream::iter(copies)
        .map(|(day, scope)| {
            let ids = erased.ids.clone();
            async move {
                let key = prefix.key(scope, day);
                let stale = has_rows_of(store, &key, day, &ids, claim, owners)
                    .await
                    .map_err(|error| error.on_day(day))?;
                Ok(matches!(stale, Copy::With(_)).then(|| (day, scope.clone())))
            }
        })
        .buffered(LOOKS_AT_ONCE)
        .try_filter_map(|copy| async { Ok(copy) })
        .try_collect()
        .await
}

/// Deletes those of a day's copies that have rows of erased projects.
///
/// # Errors
/// As [`stale_copies`].
pub fn drop_stale_copies(store: &Store, prefix: &Prefix, day: Day, scopes: &[Scope], cancel: &Cancel) -> Result<()> {
    // Whoever wrote them is whose rows they have.
    let claim = Claim {
        owner: None,
        accept_moved: true,
    };
    block_on(cancel, async {
        for (_, scope) in stale_copies(store, prefix, &[day], scopes, &claim).await? {
            store.delete(&prefix.key(&scope, day)).await?;
        }
        Ok(())
    })
}

const LOOKS_AT_ONCE: usize = 16;
/// Holds the footer of all but the largest copies.
pub(in crate::archive) const TAIL: u64 = 64 << 10;

/// What a copy has of erased projects.
pub(in crate::archive) enum Copy {
    Without,
    /// The projects, with the slugs that the rows have.
    With(BTreeMap<i32, BTreeSet<String>>),
}

pub(in crate::archive) async fn has_rows_of(
    store: &Store,
    key: &str,
    day: Day,
    ids: &[i32],
    claim: &Claim,
    owners: &[Identity],
) -> Result<Copy> {
    let Lookup::Present(footer) = cache::load(store, key, Duration::ZERO, TAIL).await?.lookup else {
        return Ok(Copy::Without);
    };
    if !rows_possible(&footer, ids) {
        return Ok(Copy::Without);
    }
    // An id between those of others is in the statistics' range, and perhaps not in the file.
    let Some(copy) = StoredDay::read(store, key, day).await? else {
        return Ok(Copy::Without);
    };
    let mut found: BTreeMap<i32, BTreeSet<String>> = BTreeMap::new();
    for batch in copy.batches() {
        let batch = batch?;
        let column = |name| batch.column_by_name(name);
        let projects = column(schema::PROJECT_ID).and_then(|ids| ids.as_primitive_opt::<Int32Type>());
        let slugs = column(schema::PROJECT_SLUG).and_then(|slugs| slugs.as_string_opt::<i32>());
        let (Some(projects), Some(slugs)) = (projects, slugs) else {
            return Err(Error::internal("a stored batch has no projects"));
        };
        for row in 0..batch.num_rows() {
            if ids.binary_search(&projects.value(row)).is_ok() {
                let slugs_of = found.entry(projects.value(row)).or_default();
                if !slugs_of.contains(slugs.value(row)) {
                    slugs_of.insert(slugs.value(row).to_owned());
                }
            }
        }
    }
    if found.is_empty() {
        return Ok(Copy::Without);
    }
    let of_copy = copy.position.as_ref().map(|position| &position.identity);
    claim.check_file(store, key, owners, of_copy)?;
    Ok(Copy::With(found))
}

/// Whether a file can have rows of one of these projects (ids in order), by the statistics of its row groups.
pub(in crate::archive) fn rows_possible(footer: &Footer, ids: &[i32]) -> bool {
    let column = schema::pageviews().index_of(schema::PROJECT_ID).unwrap_or(usize::MAX);
    footer.metadata().row_groups().iter().any(|group| {
        let statistics = group.columns().get(column).and_then(ColumnChunkMetaData::statistics);
        let (least, most) = match statistics {
            Some(Statistics::Int32(of)) => (of.min_opt().copied(), of.max_opt().copied()),
            _ => (None, None),
        };
        let first = least.map_or(0, |least| ids.partition_point(|id| *id < least));
        ids.get(first).is_some_and(|id| most.is_none_or(|most| *id <= most))
    })
}

/// Where in a database's history a file is from, if it says so.
pub(in crate::archive) fn position_of(key: &str, footer: &Footer) -> Result<Option<Position>> {
    let pairs = footer.metadata().file_metadata().key_value_metadata();
    pairs
        .into_iter()
        .flatten()
        .find(|pair| pair.key == meta::POSITION)
        .and_then(|pair| pair.value.as_deref())
        .map(str::parse)
        .transpose()
        .map_err(|error| Error::corrupt(key, error))
}
