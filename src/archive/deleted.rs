//! The list of days of which rows were deleted from the database. Where the file of such a day is missing it was lost:
//! what the table still has of the day is a remainder, not the day.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::{SecondsFormat, Utc};
use serde_json::{Map, Value, json};

use crate::archive::publish::publish;
use crate::base::error::{Error, Result};
use crate::base::json::{self, wrong};
use crate::base::keys::{Day, Prefix, Scope};
use crate::base::process::PerProcess;
use crate::base::runtime::{Cancel, block_on};
use crate::file::tally::Tally;
use crate::store::{Part, Precondition, Response, Store, Write};

/// The version of the object's form; a newer one is refused.
const FORMAT: u64 = 1;
/// An object above this is no list of ours; a century of days takes 4 MB.
const LARGEST: usize = 8 << 20;
/// How often a change that others get in the way of is begun again.
const ROUNDS: u32 = 16;

const DAYS: &str = "days";
const ROWS: &str = "rows";
const VIEWS: &str = "views";
const BEGAN: &str = "began";

/// What the object says.
#[derive(Default)]
struct List {
    /// Of each day: rows and views of its file, and when rows began to go.
    days: BTreeMap<Day, Map<String, Value>>,
    /// What later versions may have added.
    rest: Map<String, Value>,
}

/// When a store's list was read last, and its days.
type Remembered = HashMap<(String, Prefix), (Instant, Vec<Day>)>;

static REMEMBERED: PerProcess<Mutex<Remembered>> = PerProcess::new();

/// The days of which rows were deleted. What was read less than `max_age` ago is believed.
pub async fn days(store: &Store, prefix: &Prefix, max_age: Duration) -> Result<Vec<Day>> {
    let name = (store.id().to_owned(), prefix.clone());
    if let Some((read, days)) = REMEMBERED.lock().get(&name)
        && read.elapsed() < max_age
    {
        return Ok(days.clone());
    }
    let begun = Instant::now();
    let (list, _) = read(store, &prefix.deleted_key()).await?;
    let days: Vec<Day> = list.days.into_keys().collect();
    REMEMBERED.lock().insert(name, (begun, days.clone()));
    Ok(days)
}

/// Refuses a day whose file is missing, although rows that were in it have left the database.
///
/// # Errors
/// [`Error::Lost`].
pub async fn refuse_lost(store: &Store, prefix: &Prefix, day: Day, key: &str) -> Result<()> {
    let (list, _) = read(store, &prefix.deleted_key()).await?;
    let Some(about) = list.days.get(&day) else {
        return Ok(());
    };
    let number = |name: &str| about.get(name).and_then(Value::as_u64).unwrap_or_default();
    Err(Error::Lost {
        key: key.to_owned(),
        message: format!(
            "{} is gone: it held {} rows with {} views, and rows of it were deleted from the database since {}, so that what is there \
             now is not the whole day. Put its last version back (from the bucket's versions or a backup), and find out what \
             deleted it; discard_stored=True gives those rows up, and takes what the source has for the day",
            store.url_of(key),
            number(ROWS),
            number(VIEWS),
            about.get(BEGAN).and_then(Value::as_str).unwrap_or("an unknown time")
        ),
    })
}

/// What is said of a day of which somebody else knows that rows have left the database.
pub fn lost(store: &Store, key: &str) -> Error {
    Error::Lost {
        key: key.to_owned(),
        message: format!(
            "{} is not there, and rows of this day were deleted from the database, so that what is there now may not be the whole day. \
             Is this the store and prefix that it was exported to? Put its last version back, or pass discard_stored=True to take what the \
             source has for the day",
            store.url_of(key)
        ),
    }
}

/// Records that rows of a day begin to go.
pub async fn add(store: &Store, prefix: &Prefix, day: Day, file: &Tally) -> Result<()> {
    let began = Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true);
    let (rows, views) = (json!(file.rows), json!(file.views));
    change(store, prefix, |list| {
        let about = list.days.entry(day).or_default();
        if about.get(ROWS) == Some(&rows) && about.get(VIEWS) == Some(&views) {
            return false;
        }
        about.insert(ROWS.to_owned(), rows.clone());
        about.insert(VIEWS.to_owned(), views.clone());
        // The first time stays: since then the table has been without some.
        about.entry(BEGAN).or_insert_with(|| json!(began));
        true
    })
    .await
}

/// Records that the database has all of a day again, or that what it has is the day from now on.
pub async fn remove(store: &Store, prefix: &Prefix, day: Day) -> Result<()> {
    change(store, prefix, |list| list.days.remove(&day).is_some()).await
}

async fn change(store: &Store, prefix: &Prefix, mut change: impl FnMut(&mut List) -> bool) -> Result<()> {
    let key = prefix.deleted_key();
    for _ in 0..ROUNDS {
        let (mut list, etag) = read(store, &key).await?;
        if !change(&mut list) {
            return Ok(());
        }
        let bytes = Bytes::from(list.to_bytes());
        let write = etag.map_or(Write::Create, Write::Replace);
        let run_id = uuid::Uuid::new_v4().to_string();
        let written = publish(store, &key, bytes, write, &run_id, &[]).await;
        REMEMBERED.lock().remove(&(store.id().to_owned(), prefix.clone()));
        match written {
            Err(Error::Conflict { .. }) => {}
            written => return written.map(|_| ()),
        }
    }
    Err(Error::Conflict {
        message: format!("{key} was changed by others {ROUNDS} times in a row; try again"),
        key,
    })
}

/// What the object says, and its ETag if there is one.
async fn read(store: &Store, key: &str) -> Result<(List, Option<String>)> {
    match store.get(key, Part::All, Precondition::None).await? {
        Response::Found(found) => Ok((parse(key, &found.bytes)?, Some(found.etag))),
        _ => Ok((List::default(), None)),
    }
}

fn parse(key: &str, bytes: &[u8]) -> Result<List> {
    List::read(bytes).map_err(|why| {
        Error::corrupt(
            key,
            format_args!("{why}; without it a lost day could be taken for one that was never exported"),
        )
    })
}

impl List {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > LARGEST {
            return Err("it is larger than any list of days".to_owned());
        }
        let mut rest = json::object(bytes, FORMAT)?;
        let days = match rest.remove(DAYS) {
            Some(Value::Object(days)) => days,
            Some(other) => return Err(wrong(DAYS, "an object", &other)),
            None => return Err("it has no list of days".to_owned()),
        };
        let days = days.into_iter().map(|(day, about)| {
            let parsed: Day = day.parse().map_err(|_| format!("it has {day:?} among its days"))?;
            let Value::Object(about) = about else {
                return Err(wrong(&day, "an object", &about));
            };
            for key in [ROWS, VIEWS] {
                match about.get(key) {
                    Some(Value::Number(number)) if number.is_u64() => {}
                    other => {
                        return Err(wrong(
                            &format!("{day}: {key}"),
                            "a whole number",
                            other.unwrap_or(&Value::Null),
                        ));
                    }
                }
            }
            Ok((parsed, about))
        });
        Ok(Self {
            days: days.collect::<Result<_, _>>()?,
            rest,
        })
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut whole = self.rest.clone();
        whole.insert(json::FORMAT.to_owned(), json!(FORMAT));
        let days = self
            .days
            .iter()
            .map(|(day, about)| (day.to_string(), Value::Object(about.clone())));
        whole.insert(DAYS.to_owned(), Value::Object(days.collect()));
        Value::Object(whole).to_string().into_bytes()
    }
}

/// Takes a day off the list of those of which rows were deleted: the table has all rows of this version of its file.
pub fn is_back(store: &Store, prefix: &Prefix, day: Day, etag: &str, file: &Tally, cancel: &Cancel) -> Result<()> {
    block_on(cancel, remove(store, prefix, day))?;
    // A deletion that has begun since may have found the day on the list. It has changed the file before it looked there.
    let version = Precondition::IfMatch(etag.to_owned());
    match block_on(cancel, store.get(&prefix.key(&Scope::Day, day), Part::Tail(1), version))? {
        Response::Found(_) | Response::NotModified => Ok(()),
        Response::PreconditionFailed | Response::NotFound => block_on(cancel, add(store, prefix, day, file)),
    }
}
