//! Projects that were erased: one small object that every reader and writer heeds, so that rows that are still in
//! files, come back with a restored database or are merged from an old file are neither shown nor stored. Projects
//! are known by id, which is never given out twice; a slug can pass to another owner.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::{SecondsFormat, Utc};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::keys::Prefix;
use crate::process::PerProcess;
use crate::publish::publish;
use crate::store::{Got, IfVersion, Part, Store, Write};

/// The version of the object's form; a newer one is refused.
const FORMAT: u64 = 1;
/// An object above this is no list of ours. It holds some 800,000 projects.
const LARGEST: usize = 16 << 20;
/// The latest of so many have slug and time beside the id, some 100 bytes; earlier ones the id alone.
const DETAILED: usize = 10_000;
/// How often a change that others get in the way of is begun again.
const ROUNDS: u32 = 16;

/// How long the list is believed at most, whatever is accepted of files. Whoever hides projects until all know of
/// them relies on it.
const OLDEST: Duration = Duration::from_secs(60);

/// Ids in ascending order.
pub type Ids = Arc<[i32]>;

/// What is remembered of a store's object.
struct Remembered {
    asked: Instant,
    etag: Option<String>,
    ids: Ids,
}

static REMEMBERED: PerProcess<Mutex<HashMap<(String, Prefix), Remembered>>> = PerProcess::new();

/// The ids, and whether that took a request. What was asked less than `max_age` and a minute ago is believed.
pub async fn ids(store: &Store, prefix: &Prefix, max_age: Duration) -> Result<(Ids, bool)> {
    let max_age = max_age.min(OLDEST);
    let name = (store.id().to_owned(), prefix.clone());
    let known = {
        let remembered = REMEMBERED.lock();
        match remembered.get(&name) {
            Some(found) if found.asked.elapsed() < max_age => return Ok((found.ids.clone(), false)),
            found => found.and_then(|found| Some((found.etag.clone()?, found.ids.clone()))),
        }
    };
    let asked = Instant::now();
    let version = known
        .as_ref()
        .map_or(IfVersion::Any, |(etag, _)| IfVersion::IsNot(etag.clone()));
    let key = prefix.erased_key();
    let (etag, ids) = match (store.get(&key, Part::All, version).await?, known) {
        (Got::Same, Some((etag, ids))) => (Some(etag), ids),
        (Got::Found(found), _) => {
            let list = parse(&key, &found.bytes)?;
            (Some(found.etag), list.keys().copied().collect())
        }
        (Got::Absent | Got::Changed | Got::Same, _) => (None, Ids::default()),
    };
    let fresh = Remembered {
        asked,
        etag,
        ids: ids.clone(),
    };
    REMEMBERED.lock().insert(name, fresh);
    Ok((ids, true))
}

/// Adds projects, with their slugs, and gives those that were not there before.
///
/// # Errors
/// [`Error::CommitStateUnknown`] when it cannot be found out whether they were added; doing it again is safe.
pub async fn add(store: &Store, prefix: &Prefix, projects: &[(i32, Option<String>)]) -> Result<Vec<i32>> {
    let key = prefix.erased_key();
    for _ in 0..ROUNDS {
        let (mut list, write) = match store.get(&key, Part::All, IfVersion::Any).await? {
            Got::Found(found) => (parse(&key, &found.bytes)?, Write::Replace(found.etag)),
            _ => (BTreeMap::new(), Write::Create),
        };
        let now = Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true);
        let mut added = Vec::new();
        for (project, slug) in projects {
            if let Entry::Vacant(place) = list.entry(*project) {
                place.insert(json!({"project_id": project, "slug": slug, "erased_at": now}));
                added.push(*project);
            }
        }
        if added.is_empty() {
            return Ok(added);
        }
        shorten(&mut list);
        let values: Vec<&Value> = list.values().collect();
        let bytes = Bytes::from(json!({"format": FORMAT, "projects": values}).to_string());
        if bytes.len() > LARGEST {
            return Err(Error::configuration(format!(
                "{key} is full: no reader takes more than its {} projects; take out those that no backup can bring back",
                list.len() - added.len()
            )));
        }
        let run_id = uuid::Uuid::new_v4().to_string();
        match publish(store, &key, bytes, write, &run_id, &[]).await {
            Err(Error::Conflict { .. }) => {}
            written => {
                REMEMBERED.lock().remove(&(store.id().to_owned(), prefix.clone()));
                return written.map(|_| added);
            }
        }
    }
    Err(Error::Conflict {
        message: format!("{key} was changed by others {ROUNDS} times in a row; try again"),
        key,
    })
}

/// Takes slug and time from all but the latest projects.
fn shorten(list: &mut BTreeMap<i32, Value>) {
    if list.len() <= DETAILED {
        return;
    }
    let time = |value: &Value| value.get("erased_at").and_then(Value::as_str).map(str::to_owned);
    let mut detailed: Vec<(String, i32)> = list
        .iter()
        .filter_map(|(project, value)| Some((time(value)?, *project)))
        .collect();
    detailed.sort_unstable();
    let enough = detailed.len().saturating_sub(DETAILED);
    for (_, project) in detailed.into_iter().take(enough) {
        list.insert(project, json!({"project_id": project}));
    }
}

/// Each project with what is recorded of it.
fn parse(key: &str, bytes: &[u8]) -> Result<BTreeMap<i32, Value>> {
    let damaged = |why: &str| {
        Error::corrupt(
            key,
            format_args!("{why}; without it erased projects would be shown again"),
        )
    };
    if bytes.len() > LARGEST {
        return Err(damaged("it is larger than any list of erased projects"));
    }
    let whole: Value = serde_json::from_slice(bytes).map_err(|_| damaged("it is no JSON"))?;
    match whole.get("format").and_then(Value::as_u64) {
        Some(FORMAT) => {}
        Some(newer) => {
            return Err(Error::corrupt(
                key,
                format_args!("it has format {newer}, and this version reads {FORMAT}; upgrade parquet-analytics"),
            ));
        }
        None => return Err(damaged("it has no format")),
    }
    let projects = whole.get("projects").and_then(Value::as_array);
    let mut list = BTreeMap::new();
    for project in projects.ok_or_else(|| damaged("it has no list of projects"))? {
        let id = project.get("project_id").and_then(Value::as_i64);
        let id = id.and_then(|id| i32::try_from(id).ok());
        list.insert(id.ok_or_else(|| damaged("a project has no id"))?, project.clone());
    }
    Ok(list)
}
