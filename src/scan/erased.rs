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
struct Remembered {
    asked: Instant,
    etag: Option<String>,
    erased: Erased,
}

static REMEMBERED: PerProcess<Mutex<HashMap<(String, Prefix), Remembered>>> = PerProcess::new();

/// What the list says, and whether that took a request. What was asked less than `max_age` and a minute ago is believed.
pub async fn load(store: &Store, prefix: &Prefix, max_age: Duration) -> Result<(Erased, bool)> {
    let max_age = max_age.min(OLDEST);
    let name = (store.id().to_owned(), prefix.clone());
    let known = {
        let remembered = REMEMBERED.lock();
        match remembered.get(&name) {
            Some(found) if found.asked.elapsed() < max_age => return Ok((found.erased.clone(), false)),
            found => found.and_then(|found| Some((found.etag.clone()?, found.erased.clone()))),
        }
    };
    let asked = Instant::now();
    let version = known
        .as_ref()
        .map_or(Precondition::None, |(etag, _)| Precondition::IfNoneMatch(etag.clone()));
    let key = prefix.erased_key();
    let (etag, erased) = match (store.get(&key, Part::All, version).await?, known) {
        (Response::NotModified, Some((etag, erased))) => (Some(etag), erased),
        (Response::Found(found), _) => {
            let list = List::parse(&key, &found.bytes)?;
            let erased = Erased {
                ids: list.projects.keys().copied().collect(),
                owners: list.owners.into(),
            };
            (Some(found.etag), erased)
        }
        (Response::NotFound | Response::PreconditionFailed | Response::NotModified, _) => (None, Erased::default()),
    };
    let fresh = Remembered {
        asked,
        etag,
        erased: erased.clone(),
    };
    REMEMBERED.lock().insert(name, fresh);
    Ok((erased, true))
}

/// The ids that are remembered, however old they are.
pub fn peek(store: &Store, prefix: &Prefix) -> Option<Ids> {
    let remembered = REMEMBERED.lock();
    let found = remembered.get(&(store.id().to_owned(), prefix.clone()))?;
    Some(found.erased.ids.clone())
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
