//! Projects that were erased: one small object that every reader and writer heeds, so that rows that are still in
//! files, come back with a restored database or are merged from an old file are neither shown nor stored. Projects
//! are known by id, which is never given out twice; a slug can pass to another owner. The list says whose ids they are:
//! those of another database that has the same place by mistake mean other projects.

pub mod list;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::base::error::Result;
use crate::base::keys::Prefix;
use crate::base::process::PerProcess;
use crate::file::position::Identity;
use crate::store::{Part, Precondition, Response, Store};
use list::List;

/// How long the list is believed at most, whatever is accepted of files. Whoever hides projects until all know of
/// them relies on it.
const OLDEST: Duration = Duration::from_secs(60);

/// Ids in ascending order.
pub type Ids = Arc<[i32]>;

/// What the list says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Erased {
    pub ids: Ids,
    /// The last is the present database; those before were said to hold the same data.
    pub owners: Arc<[Identity]>,
}

/// What is remembered of a store's object.
#[derive(Clone)]
struct Remembered {
    /// When this process asked for it.
    asked: Option<Instant>,
    etag: Option<String>,
    erased: Erased,
}

static REMEMBERED: PerProcess<Mutex<HashMap<(String, Prefix), Remembered>>> = PerProcess::new();

/// What the list says, and whether that took a request. What was asked less than `max_age` and a minute ago is believed.
pub async fn load(store: &Store, prefix: &Prefix, max_age: Duration) -> Result<(Erased, bool)> {
    let max_age = max_age.min(OLDEST);
    let name = (store.id().to_owned(), prefix.clone());
    let known = match remembered(store, prefix) {
        Some(found) if found.asked.is_some_and(|asked| asked.elapsed() < max_age) => {
            return Ok((found.erased, false));
        }
        found => found.and_then(|found| Some((found.etag?, found.erased))),
    };
    let asked = Instant::now();
    let version = known
        .as_ref()
        .map_or(Precondition::None, |(etag, _)| Precondition::IfNoneMatch(etag.clone()));
    let key = prefix.erased_key();
    let (etag, erased) = match (store.get(&key, Part::All, version).await?, known) {
        (Response::NotModified, Some((etag, erased))) => (Some(etag), erased),
        (Response::Found(found), _) => {
            let erased = parse(&key, &found.bytes)?;
            store.remember(&key, &found.etag, found.size, &found.bytes);
            (Some(found.etag), erased)
        }
        (Response::NotFound | Response::PreconditionFailed | Response::NotModified, _) => (None, Erased::default()),
    };
    let fresh = Remembered {
        asked: Some(asked),
        etag,
        erased: erased.clone(),
    };
    REMEMBERED.lock().insert(name, fresh);
    Ok((erased, true))
}

fn parse(key: &str, bytes: &[u8]) -> Result<Erased> {
    let list = List::parse(key, bytes)?;
    Ok(Erased {
        ids: list.projects.keys().copied().collect(),
        owners: list.owners.into(),
    })
}

/// What is remembered here, or on this host's disk.
fn remembered(store: &Store, prefix: &Prefix) -> Option<Remembered> {
    let name = (store.id().to_owned(), prefix.clone());
    if let Some(found) = REMEMBERED.lock().get(&name) {
        return Some(found.clone());
    }
    let key = prefix.erased_key();
    let entry = store.recall(&key)?;
    let found = Remembered {
        asked: None,
        erased: parse(&key, &entry.bytes).ok()?,
        etag: Some(entry.etag),
    };
    REMEMBERED.lock().entry(name).or_insert_with(|| found.clone());
    Some(found)
}

/// The ids that are remembered, however old they are.
pub fn peek(store: &Store, prefix: &Prefix) -> Option<Ids> {
    remembered(store, prefix).map(|found| found.erased.ids)
}

/// The ids of [`load`].
pub async fn ids(store: &Store, prefix: &Prefix, max_age: Duration) -> Result<(Ids, bool)> {
    let (erased, asked) = load(store, prefix, max_age).await?;
    Ok((erased.ids, asked))
}

/// Nothing that was said before is believed of the list.
pub fn forget(store: &Store, prefix: &Prefix) {
    REMEMBERED.lock().remove(&(store.id().to_owned(), prefix.clone()));
}
