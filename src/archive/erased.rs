//! Projects that were erased: one small object that every reader and writer heeds, so that rows that are still in
//! files, come back with a restored database or are merged from an old file are neither shown nor stored. Projects
//! are known by id, which is never given out twice; a slug can pass to another owner. The list says whose ids they are:
//! those of another database that has the same place by mistake mean other projects.

mod list;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::{SecondsFormat, Utc};

use crate::archive::erase::stored_owners;
use crate::archive::publish::publish;
use crate::base::error::{Error, Result};
use crate::base::keys::Prefix;
use crate::base::process::PerProcess;
use crate::base::schema::meta;
use crate::file::position::Identity;
use crate::store::{Got, IfVersion, Part, Store, Write};
use list::{LARGEST, List};

/// How often a change that others get in the way of is begun again.
const ROUNDS: u32 = 16;

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

/// On whose behalf something is erased.
#[derive(Debug, Clone, Default)]
pub struct Claim {
    /// `None` when no database says who it is.
    pub owner: Option<Identity>,
    /// The databases that the list and the stored days name held the same data before a move, a promotion or a
    /// restoration.
    pub accept_moved: bool,
}

/// What is remembered of a store's object.
struct Remembered {
    asked: Instant,
    etag: Option<String>,
    erased: Erased,
}

static REMEMBERED: PerProcess<Mutex<HashMap<(String, Prefix), Remembered>>> = PerProcess::new();

/// What the list says, and whether that took a request. What was asked less than `max_age` and a minute ago is believed.
pub async fn known(store: &Store, prefix: &Prefix, max_age: Duration) -> Result<(Erased, bool)> {
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
        .map_or(IfVersion::Any, |(etag, _)| IfVersion::IsNot(etag.clone()));
    let key = prefix.erased_key();
    let (etag, erased) = match (store.get(&key, Part::All, version).await?, known) {
        (Got::Same, Some((etag, erased))) => (Some(etag), erased),
        (Got::Found(found), _) => {
            let list = List::parse(&key, &found.bytes)?;
            let erased = Erased {
                ids: list.projects.keys().copied().collect(),
                owners: list.owners.into(),
            };
            (Some(found.etag), erased)
        }
        (Got::Absent | Got::Changed | Got::Same, _) => (None, Erased::default()),
    };
    let fresh = Remembered {
        asked,
        etag,
        erased: erased.clone(),
    };
    REMEMBERED.lock().insert(name, fresh);
    Ok((erased, true))
}

/// The ids of [`known`].
pub async fn ids(store: &Store, prefix: &Prefix, max_age: Duration) -> Result<(Ids, bool)> {
    let (erased, asked) = known(store, prefix, max_age).await?;
    Ok((erased.ids, asked))
}

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
    let (erased, _) = known(store, prefix, Duration::ZERO).await?;
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
        let (before, write) = match store.get(&key, Part::All, IfVersion::Any).await? {
            Got::Found(found) => (List::parse(&key, &found.bytes)?, Write::Replace(found.etag)),
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
                REMEMBERED.lock().remove(&(store.id().to_owned(), prefix.clone()));
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
    let found = match store.get(key, Part::All, IfVersion::Any).await {
        Ok(Got::Found(found)) => found,
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

impl Claim {
    /// The list's owners after an act on this claim.
    ///
    /// # Errors
    /// [`Error::ErasureRefused`] when it is not the present owner's.
    pub fn owners(&self, store: &Store, key: &str, owners: &[Identity]) -> Result<Vec<Identity>> {
        let mut after = owners.to_vec();
        match (owners.last(), &self.owner) {
            (None, None) => {}
            (None, Some(asking)) => after.push(asking.clone()),
            (Some(present), Some(asking)) if asking.check(present).is_ok() => {}
            (Some(_), Some(asking)) if self.accept_moved => {
                after.retain(|owner| owner != asking);
                after.push(asking.clone());
            }
            (Some(_), None) if self.accept_moved => {}
            (Some(present), _) => return Err(self.refused(store, key, present)),
        }
        Ok(after)
    }

    /// The same with the owners of stored days, each with the key of one.
    fn with_days(&self, store: &Store, owners: &[Identity], days: &[(String, Identity)]) -> Result<Vec<Identity>> {
        let mut after = owners.to_vec();
        for (key, of_day) in days {
            if after.iter().any(|owner| of_day.check(owner).is_ok()) {
                continue;
            }
            if !self.accept_moved {
                return Err(self.refused(store, key, of_day));
            }
            after.insert(after.len().saturating_sub(1), of_day.clone());
        }
        Ok(after)
    }

    /// Whether a stored file may lose rows: it belongs to one of the owners, or says nothing.
    ///
    /// # Errors
    /// [`Error::ErasureRefused`].
    pub fn check_file(&self, store: &Store, key: &str, owners: &[Identity], of_file: Option<&Identity>) -> Result<()> {
        match of_file {
            Some(of_file) if !self.accept_moved && !owners.iter().any(|owner| of_file.check(owner).is_ok()) => {
                Err(self.refused(store, key, of_file))
            }
            _ => Ok(()),
        }
    }

    fn refused(&self, store: &Store, key: &str, owner: &Identity) -> Error {
        let asking = match &self.owner {
            Some(asking) => format!("this is {asking}"),
            None => "no database says that it is the one that asks (name it with owner=)".to_owned(),
        };
        Error::ErasureRefused {
            key: key.to_owned(),
            message: format!(
                "{} belongs to {owner}, and {asking}, so its projects may be others; nothing was erased. Is this the right \
                 bucket and prefix? If the database was moved, upgraded, promoted or restored on purpose, erase once with \
                 accept_moved_database=True (manage.py parquet_analytics erase --accept-moved-database)",
                store.url_of(key)
            ),
        }
    }
}
