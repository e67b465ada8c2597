//! The list of days of which rows were deleted from the database. Where the file of such a day is missing it was lost:
//! what the table still has of the day is a remainder, not the day.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::{SecondsFormat, Utc};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::keys::{Day, Prefix};
use crate::process::PerProcess;
use crate::publish::publish;
use crate::store::{Got, IfVersion, Part, Store, Write};
use crate::tally::Tally;

/// The version of the object's form; a newer one is refused.
const FORMAT: u64 = 1;
/// An object above this is no list of ours; a century of days takes 4 MB.
const LARGEST: usize = 8 << 20;
/// How often a change that others get in the way of is begun again.
const ROUNDS: u32 = 16;

/// What is recorded of a day: `rows` and `views` of its file, and when rows `began` to go.
type Days = BTreeMap<String, Value>;

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
    let (days, _) = read(store, &prefix.deleted_key()).await?;
    let days = days.keys().map(|day| day.parse()).collect::<Result<Vec<Day>>>()?;
    REMEMBERED.lock().insert(name, (begun, days.clone()));
    Ok(days)
}

/// Refuses a day whose file is missing, although rows that were in it have left the database.
///
/// # Errors
/// [`Error::Lost`].
pub async fn refuse_lost(store: &Store, prefix: &Prefix, day: Day, key: &str) -> Result<()> {
    let (days, _) = read(store, &prefix.deleted_key()).await?;
    let Some(about) = days.get(&day.to_string()) else {
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
            number("rows"),
            number("views"),
            about.get("began").and_then(Value::as_str).unwrap_or("an unknown time")
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
    let about = json!({"rows": file.rows, "views": file.views, "began": began});
    change(store, prefix, |days| match days.get_mut(&day.to_string()) {
        // The first time stays: since then the table has been without some.
        Some(known) if known["rows"] == about["rows"] && known["views"] == about["views"] => false,
        Some(known) => {
            known["rows"] = about["rows"].clone();
            known["views"] = about["views"].clone();
            true
        }
        None => days.insert(day.to_string(), about.clone()).is_none(),
    })
    .await
}

/// Records that the database has all of a day again, or that what it has is the day from now on.
pub async fn remove(store: &Store, prefix: &Prefix, day: Day) -> Result<()> {
    change(store, prefix, |days| days.remove(&day.to_string()).is_some()).await
}

async fn change(store: &Store, prefix: &Prefix, mut change: impl FnMut(&mut Days) -> bool) -> Result<()> {
    let key = prefix.deleted_key();
    for _ in 0..ROUNDS {
        let (mut days, etag) = read(store, &key).await?;
        if !change(&mut days) {
            return Ok(());
        }
        let bytes = Bytes::from(json!({"format": FORMAT, "days": days}).to_string());
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

/// The days, and the object's ETag if there is one.
async fn read(store: &Store, key: &str) -> Result<(Days, Option<String>)> {
    match store.get(key, Part::All, IfVersion::Any).await? {
        Got::Found(found) => Ok((parse(key, &found.bytes)?, Some(found.etag))),
        _ => Ok((Days::new(), None)),
    }
}

fn parse(key: &str, bytes: &[u8]) -> Result<Days> {
    let damaged = |why: &str| {
        Error::corrupt(
            key,
            format_args!("{why}; without it a lost day could be taken for one that was never exported"),
        )
    };
    if bytes.len() > LARGEST {
        return Err(damaged("it is larger than any list of days"));
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
    let days = whole.get("days").and_then(Value::as_object);
    let days = days.ok_or_else(|| damaged("it has no list of days"))?;
    let mut found = Days::new();
    for (day, about) in days {
        if day.parse::<Day>().is_err() || !about.is_object() {
            return Err(damaged("one of its days is none"));
        }
        found.insert(day.clone(), about.clone());
    }
    Ok(found)
}
