//! Puts a finished file in its place under a condition, and finds out what became of it when the answer was
//! lost; and finds out whether a store heeds conditions at all.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;

use crate::base::error::{Error, Result};
use crate::base::keys::Prefix;
use crate::base::process::PerProcess;
use crate::base::schema::meta;
use crate::scan::cache;
use crate::store::{NotPut, Part, Precondition, Response, Store, Write};

/// The largest file that goes up: in one request, because an upload in parts cannot be made conditional
/// everywhere, and whole days are far below.
pub const LARGEST_FILE: u64 = 1 << 30;

/// How often a file is sent whose arrival is not answered.
const ATTEMPTS: u32 = 3;
/// The pause after the first attempt; it doubles with each.
const PAUSE: Duration = Duration::from_millis(500);

/// Refuses a file that is too large to go up under a condition.
pub fn check_size(key: &str, bytes: u64, largest: u64) -> Result<()> {
    if bytes <= largest {
        return Ok(());
    }
    Err(Error::Store {
        key: Some(key.to_owned()),
        message: format!(
            "the file for {key} has {bytes} bytes; more than {largest} are not uploaded, because a larger object goes up in parts, \
             which not every store makes visible under a condition"
        ),
        retryable: false,
    })
}

/// Writes the object whole and gives its ETag.
///
/// # Errors
/// [`Error::Conflict`] when somebody else's object is in the way, [`Error::CommitStateUnknown`] when it cannot be
/// found out whether the object is there or about to be, otherwise what [`Store::put`] says.
pub async fn publish(
    store: &Store,
    key: &str,
    bytes: Bytes,
    write: Write,
    run_id: &str,
    facts: &[(&'static str, String)],
) -> Result<String> {
    let mut metadata = vec![(meta::RUN_ID, run_id.to_owned())];
    metadata.extend_from_slice(facts);
    let mut pause = PAUSE;
    let mut lost_before = false;
    for attempt in 1..=ATTEMPTS {
        let written = store.try_put(key, bytes.clone(), write.clone(), &metadata).await;
        // Questions in this process see the new file at once.
        cache::forget(store, key);
        let failed = match written {
            Ok(etag) => return Ok(etag),
            Err(failed) => failed,
        };
        // Also without a doubt of our own: something in between may have sent a request twice, and so made it conflict with itself.
        if !failed.doubtful && !lost_before && !matches!(failed.error, Error::Conflict { .. }) {
            return Err(failed.error);
        }
        let found = found(store, key, run_id).await;
        // Whoever stands in the way of this attempt stands in the way of those that are still on their way; unless it was
        // one of those that stood in its way, and nothing has changed yet.
        let overtaken = || matches!(&found, Ok(Found::Other(etag)) if write.is_refused_by(etag.as_deref()));
        let settled = !(failed.lost || lost_before) || (matches!(failed.error, Error::Conflict { .. }) && overtaken());
        match found {
            Ok(Found::Ours(etag)) => {
                log::warn!(
                    "{}: the write was reported as failed, but it took effect",
                    store.url_of(key)
                );
                return Ok(etag);
            }
            // The store has ended all attempts, and they had no effect.
            Ok(Found::Other(_)) if settled && (attempt == ATTEMPTS || !worth_another(&failed.error)) => {
                return Err(not_written(failed.error));
            }
            Ok(Found::Other(_)) if !settled && attempt == ATTEMPTS => {
                return Err(unknown(store, key, run_id, &failed, "the object is not there so far"));
            }
            Ok(Found::Other(_)) => {}
            Err(again) => {
                let why = format!("reading it back failed: {again}");
                return Err(unknown(store, key, run_id, &failed, &why));
            }
        }
        // Sent again under the same condition, at most one of the attempts can take effect.
        lost_before |= failed.lost;
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    Err(Error::internal("a write was given up without a reason"))
}

/// What is there after a write, by its ETag.
enum Found {
    Ours(String),
    /// `None` when there is nothing.
    Other(Option<String>),
}

async fn found(store: &Store, key: &str, run_id: &str) -> Result<Found> {
    Ok(match store.get(key, Part::Tail(1), Precondition::None).await? {
        Response::Found(found) if found.metadata.get(meta::RUN_ID).is_some_and(|run| run == run_id) => {
            Found::Ours(found.etag)
        }
        Response::Found(found) => Found::Other(Some(found.etag)),
        _ => Found::Other(None),
    })
}

fn worth_another(error: &Error) -> bool {
    matches!(error, Error::Store { retryable: true, .. })
}

/// Says what reading the object back has shown.
fn not_written(error: Error) -> Error {
    match error {
        Error::Store {
            key,
            message,
            retryable,
        } => Error::Store {
            key,
            message: format!("{message}; reading it back showed that nothing was written"),
            retryable,
        },
        error => error,
    }
}

fn unknown(store: &Store, key: &str, run_id: &str, failed: &NotPut, why: &str) -> Error {
    Error::CommitStateUnknown {
        key: key.to_owned(),
        run_id: run_id.to_owned(),
        message: format!(
            "it is not known whether {} was written (run {run_id}): {}; and {why}. \
             Nothing was deleted; export the day again once the store answers",
            store.url_of(key),
            failed.error
        ),
    }
}

/// A write that was given up under way may have reached the store all the same.
pub fn interrupted_publish(store: &Store, key: &str, run_id: &str, error: Error) -> Error {
    if !matches!(error, Error::Interrupted) {
        return error;
    }
    cache::forget(store, key);
    Error::CommitStateUnknown {
        key: key.to_owned(),
        run_id: run_id.to_owned(),
        message: format!(
            "the export was stopped while {} was being written (run {run_id}): it is there whole or not at all. \
             Export the day again to find out",
            store.url_of(key)
        ),
    }
}

/// Whether the store heeds every condition of [`ignored_conditions`].
pub async fn heeds_conditions(store: &Store, prefix: &Prefix) -> Result<bool> {
    Ok(ignored_conditions(store, prefix).await?.is_empty())
}

/// The conditions on writes and reads that the store ignores, by name. Tried once a process and store, on an object of
/// its own below the prefix, which stays.
pub async fn ignored_conditions(store: &Store, prefix: &Prefix) -> Result<Vec<&'static str>> {
    static KNOWN: PerProcess<Mutex<HashMap<String, Vec<&'static str>>>> = PerProcess::new();
    if let Some(known) = KNOWN.lock().get(store.id()) {
        return Ok(known.clone());
    }
    let ignored = ignored(store, &prefix.probe_key()).await?;
    KNOWN.lock().insert(store.id().to_owned(), ignored.clone());
    Ok(ignored)
}

/// [`ignored_conditions`], found out anew; and what was written can be read.
pub async fn probe(store: &Store, prefix: &Prefix) -> Result<Vec<&'static str>> {
    let key = prefix.probe_key();
    let ignored = ignored(store, &key).await?;
    if !matches!(
        store.get(&key, Part::All, Precondition::None).await?,
        Response::Found(_)
    ) {
        return Err(Error::Store {
            message: format!("{} was written, and is not there when it is read", store.url_of(&key)),
            key: Some(key),
            retryable: true,
        });
    }
    Ok(ignored)
}

/// An ETag that no object has.
const NO_ETAG: &str = "\"00000000000000000000000000000000\"";

/// Tries writes and reads whose conditions are not met.
async fn ignored(store: &Store, key: &str) -> Result<Vec<&'static str>> {
    let refused = async |write: Write| {
        let probe = Bytes::from_static(b"Whether this store heeds conditions on writes is tried here.\n");
        match store.put(key, probe, write, &[]).await {
            Ok(_) => Ok(false),
            Err(Error::Conflict { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    };
    // The first creation succeeds if nobody was here before.
    let create = refused(Write::Create).await? || refused(Write::Create).await?;
    let replace = refused(Write::Replace(NO_ETAG.to_owned())).await?;
    let is = store.heeds(key, Precondition::IfMatch(NO_ETAG.to_owned())).await?;
    let is_not = match store.get(key, Part::Tail(1), Precondition::None).await? {
        Response::Found(found) => store.heeds(key, Precondition::IfNoneMatch(found.etag)).await?,
        _ => true,
    };
    Ok([
        (create, "If-None-Match on writes"),
        (replace, "If-Match on writes"),
        (is, "If-Match on reads"),
        (is_not, "If-None-Match on reads"),
    ]
    .into_iter()
    .filter_map(|(heeded, name)| (!heeded).then_some(name))
    .collect())
}
