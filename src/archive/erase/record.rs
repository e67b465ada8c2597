//! Records erased projects in the list that every reader and writer heeds, and takes them off it: on whose behalf, only if the list
//! and the stored days belong to that database, and certain that it was written.

use std::time::Duration;

use bytes::Bytes;
use chrono::{SecondsFormat, Utc};

use super::stored_owners;
use crate::archive::claim::Claim;
use crate::archive::publish::publish;
use crate::base::error::{Error, Result};
use crate::base::keys::Prefix;
use crate::base::schema::meta;
use crate::scan::erased::list::{LARGEST, List};
use crate::scan::erased::{forget, load};
use crate::store::{Part, Precondition, Response, Store, Write};

/// How often a change that others get in the way of is begun again.
const ROUNDS: u32 = 16;

/// Adds projects, with their slugs, and gives those that were not there before.
///
/// # Errors
/// [`Error::ErasureRefused`] when the list or a stored day is another database's than the claim's.
/// [`Error::CommitStateUnknown`] when it cannot be found out whether they were added; doing it again is safe.
pub async fn add(
    store: &Store,
    prefix: &Prefix,
    projects: &[(i32, Option<String>)],
    claim: &Claim,
) -> Result<Vec<i32>> {
    let edit = |list: &mut List| {
        let now = Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true);
        let added = projects
            .iter()
            .filter(|(project, slug)| list.add(*project, slug.as_deref(), &now))
            .map(|(project, _)| *project)
            .collect();
        list.shorten();
        added
    };
    change(store, prefix, claim, edit).await
}

/// Takes projects off the list, and gives those that were on it: their rows are shown and exported again. What was taken
/// out of files does not come back by that.
///
/// # Errors
/// As [`add`].
pub async fn remove(store: &Store, prefix: &Prefix, projects: &[i32], claim: &Claim) -> Result<Vec<i32>> {
    let edit = |list: &mut List| {
        let on_it = projects
            .iter()
            .filter(|project| list.projects.remove(project).is_some());
        on_it.copied().collect()
    };
    change(store, prefix, claim, edit).await
}

/// Whether projects may be erased on this claim; changes nothing.
///
/// # Errors
/// [`Error::ErasureRefused`].
pub async fn check(store: &Store, prefix: &Prefix, claim: &Claim) -> Result<()> {
    let (erased, _) = load(store, prefix, Duration::ZERO).await?;
    let owners = claim.owners(store, &prefix.erased_key(), &erased.owners)?;
    let stored = stored_owners(store, prefix).await?;
    claim.with_days(store, &owners, &stored).map(drop)
}

async fn change(
    store: &Store,
    prefix: &Prefix,
    claim: &Claim,
    edit: impl Fn(&mut List) -> Vec<i32>,
) -> Result<Vec<i32>> {
    let key = prefix.erased_key();
    let mut stored = None;
    for _ in 0..ROUNDS {
        let (before, write) = match store.get(&key, Part::All, Precondition::None).await? {
            Response::Found(found) => (List::parse(&key, &found.bytes)?, Write::Replace(found.etag)),
            _ => (List::default(), Write::Create),
        };
        let mut list = before.clone();
        list.owners = claim.owners(store, &key, &before.owners)?;
        let changed = edit(&mut list);
        if changed.is_empty() && (list.owners == before.owners || matches!(write, Write::Create)) {
            return Ok(changed);
        }
        // All that is stored is looked at before anything changes.
        let days = match &stored {
            Some(days) => days,
            None => stored.insert(stored_owners(store, prefix).await?),
        };
        list.owners = claim.with_days(store, &list.owners, days)?;
        let bytes = Bytes::from(list.to_bytes());
        if bytes.len() > LARGEST {
            return Err(Error::configuration(format!(
                "{key} is full: no reader takes more than its {} projects; take out those that no backup can bring back",
                before.projects.len()
            )));
        }
        let run_id = uuid::Uuid::new_v4().to_string();
        match publish(store, &key, bytes.clone(), write, &run_id, &[]).await {
            Err(Error::Conflict { .. }) => {}
            written => {
                forget(store, prefix);
                let holds = |mut now: List| edit(&mut now).is_empty();
                read_back(store, &key, &run_id, &written?, &bytes, holds).await?;
                return Ok(changed);
            }
        }
    }
    Err(Error::Conflict {
        message: format!("{key} was changed by others {ROUNDS} times in a row; try again"),
        key,
    })
}

/// Makes sure that the list that was said to be written is there: this one, or one that somebody made of it since, in which
/// the change `holds`.
async fn read_back(
    store: &Store,
    key: &str,
    run_id: &str,
    etag: &str,
    bytes: &Bytes,
    holds: impl Fn(List) -> bool,
) -> Result<()> {
    let unknown = |why: &str| Error::CommitStateUnknown {
        key: key.to_owned(),
        run_id: run_id.to_owned(),
        message: format!(
            "{} was said to be written (run {run_id}), and {why}, so it is not known whether it is. Do the same again",
            store.url_of(key)
        ),
    };
    let found = match store.get(key, Part::All, Precondition::None).await {
        Ok(Response::Found(found)) => found,
        Ok(_) => return Err(unknown("it is not there when it is read back")),
        Err(error) => return Err(unknown(&format!("reading it back failed: {error}"))),
    };
    if found.bytes == *bytes {
        return Ok(());
    }
    if found.etag == etag || found.metadata.get(meta::RUN_ID).is_some_and(|run| run == run_id) {
        return Err(Error::Mismatch {
            key: key.to_owned(),
            message: format!(
                "{} holds other bytes than were written (run {run_id}); erased projects may be shown until it is right. \
                 Keep it for examination, delete it, and erase again",
                store.url_of(key)
            ),
        });
    }
    // Another writer's, who has heeded this one.
    if holds(List::parse(key, &found.bytes)?) {
        return Ok(());
    }
    Err(unknown("another version is there when it is read back"))
}
