//! Which versions of days a month's file was made of, and which there are.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::stream::{self, StreamExt, TryStreamExt};

use super::AT_ONCE;
use crate::base::error::Result;
use crate::base::keys::{Day, Prefix, Scope};
use crate::base::schema::meta;
use crate::derived::index::{DayFile, Index};
use crate::scan::cache::{self, Lookup};
use crate::store::{Part, Precondition, Response, Store};

/// The days of an index that have a file.
pub(super) fn recorded(index: &Index) -> impl Iterator<Item = (Day, DayFile)> {
    let last = index.first.plus_days((index.days.len() as u64).saturating_sub(1));
    let days = Day::range(index.first, last).zip(&index.days);
    days.filter_map(|(day, file)| Some((day, file.clone()?)))
}

/// A day's file beside the version that is known of it.
pub(super) enum Version {
    /// It has its rows; the version that it is now.
    Same(DayFile),
    Other,
}

pub(super) async fn version(
    store: &Store,
    prefix: &Prefix,
    day: Day,
    known: Option<&DayFile>,
) -> Result<Option<Version>> {
    let key = prefix.key(&Scope::Day, day);
    let condition = match known {
        Some(known) => Precondition::IfNoneMatch(known.etag.clone()),
        None => Precondition::None,
    };
    let answer = store.get(&key, Part::Tail(1), condition).await?;
    let Some(known) = known else {
        return Ok(matches!(answer, Response::Found(_)).then_some(Version::Other));
    };
    match answer {
        Response::NotModified => return Ok(Some(Version::Same(known.clone()))),
        Response::NotFound => return Ok(None),
        Response::Found(_) | Response::PreconditionFailed => {}
    }
    let guess = cache::tail_guess(store, AT_ONCE);
    let Lookup::Present(footer) = cache::load(store, &key, Duration::ZERO, guess).await?.lookup else {
        return Ok(None);
    };
    let pairs = footer.metadata().file_metadata().key_value_metadata();
    let same = pairs.into_iter().flatten().find(|pair| pair.key == meta::SAME_ROWS_AS);
    let same = same.and_then(|pair| pair.value.as_deref()).unwrap_or_default();
    Ok(Some(match same.split(' ').any(|etag| etag == known.etag) {
        true => Version::Same(DayFile {
            etag: footer.etag.clone(),
            rows: footer.rows(),
        }),
        false => Version::Other,
    }))
}

/// The days whose files are other versions than these.
pub(super) async fn others(store: &Store, prefix: &Prefix, days: Vec<(Day, Option<DayFile>)>) -> Result<BTreeSet<Day>> {
    stream::iter(days)
        .map(|(day, file)| async move {
            let key = prefix.key(&Scope::Day, day);
            let condition = match &file {
                Some(file) => Precondition::IfNoneMatch(file.etag.clone()),
                None => Precondition::None,
            };
            let same = match store.get(&key, Part::Tail(1), condition).await? {
                Response::NotModified => true,
                Response::NotFound => file.is_none(),
                Response::Found(_) | Response::PreconditionFailed => false,
            };
            Ok((day, same))
        })
        .buffered(AT_ONCE)
        .try_filter_map(|(day, same)| async move { Ok((!same).then_some(day)) })
        .try_collect()
        .await
}
