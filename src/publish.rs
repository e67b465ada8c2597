//! Puts a finished file in its place under a condition, and finds out what became of it when the answer was
//! lost.

use bytes::Bytes;

use crate::cache;
use crate::error::{Error, Result};
use crate::schema::meta;
use crate::store::{Got, IfVersion, Part, Store, Write};

/// Writes the object whole and gives its ETag.
///
/// # Errors
/// [`Error::Conflict`] when somebody else's object is in the way, [`Error::CommitStateUnknown`] when the store
/// failed and could not say either whether the object is there, otherwise what [`Store::put`] says.
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
    let written = store.put(key, bytes, write, &metadata).await;
    // Questions in this process see the new file at once.
    cache::forget(store, key);
    match written {
        // A creation that was sent twice, because its first answer was lost, conflicts with itself.
        Err(error @ (Error::Conflict { .. } | Error::Store { .. })) => resolve(store, key, run_id, error).await,
        written => written,
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

/// Whether the object is this run's after all.
async fn resolve(store: &Store, key: &str, run_id: &str, error: Error) -> Result<String> {
    match store.get(key, Part::Tail(1), IfVersion::Any).await {
        Ok(Got::Found(found)) if found.metadata.get(meta::RUN_ID).is_some_and(|run| run == run_id) => {
            log::warn!(
                "{}: the write was reported as failed, but it took effect",
                store.url_of(key)
            );
            Ok(found.etag)
        }
        Ok(_) => Err(error),
        Err(again) => Err(Error::CommitStateUnknown {
            key: key.to_owned(),
            run_id: run_id.to_owned(),
            message: format!(
                "it is not known whether {} was written (run {run_id}): {error}; and reading it back failed: {again}. \
                 Export the day again once the store answers",
                store.url_of(key)
            ),
        }),
    }
}
