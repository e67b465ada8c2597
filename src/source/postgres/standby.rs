//! When a day may be read from a standby: once replay has passed the day's end and a grace. Whether it has is asked in the
//! message that begins the snapshot, so that a pooler cannot let another server answer.

use std::time::{Duration, Instant};

use chrono::{DateTime, SecondsFormat, Utc};

use super::config::PostgresOptions;
use super::connect::Snapshot;
use crate::base::error::{Error, Result};
use crate::base::keys::Day;

/// How long a standby is given to replay what its primary has.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(200);

/// A snapshot in which all of a finished day can be seen.
///
/// # Errors
/// [`Error::Stale`] for a standby that is behind.
pub(super) async fn begin(options: &PostgresOptions, day: Day) -> Result<Snapshot<'_>> {
    let mut snapshot = Snapshot::begin(options, Some(&options.table)).await?;
    let needed = day
        .end()
        .checked_add_signed(options.standby_grace)
        .unwrap_or(DateTime::<Utc>::MAX_UTC);
    // Today is read as far as it is.
    if !snapshot.is_standby() || day >= Day::today() || snapshot.replayed_until(needed) {
        return Ok(snapshot);
    }
    let wanted = match of_primary(options) {
        Some(primary) => Some(end_of_log(&primary, needed).await?),
        None => None,
    };
    let begun = Instant::now();
    while let Some(wanted) = wanted {
        if snapshot.replayed_lsn()? >= wanted {
            return Ok(snapshot);
        }
        if begun.elapsed() > PATIENCE {
            break;
        }
        snapshot.commit().await?;
        tokio::time::sleep(PAUSE).await;
        snapshot = Snapshot::begin(options, Some(&options.table)).await?;
    }
    Err(Error::Stale {
        message: format!(
            "{} is a standby that is known to have replayed until {}, and for this day it has to be {}; try again later{}",
            options.target.server(),
            snapshot.replayed_shown(),
            needed.to_rfc3339_opts(SecondsFormat::Secs, true),
            if wanted.is_some() {
                ""
            } else {
                ". If its primary was merely idle, name the primary, which is asked then"
            }
        ),
    })
}

/// The same tables and rights at the standby's primary.
pub(super) fn of_primary(options: &PostgresOptions) -> Option<PostgresOptions> {
    let primary = options.primary.clone()?;
    Some(PostgresOptions {
        target: primary,
        primary: None,
        relation: None,
        user: None,
        ..options.clone()
    })
}

/// Where the primary's log ends, at a time after `needed`.
async fn end_of_log(primary: &PostgresOptions, needed: DateTime<Utc>) -> Result<u64> {
    let mut snapshot = Snapshot::begin(primary, None).await?;
    if snapshot.is_standby() {
        return Err(Error::configuration(format!(
            "{} was named as the primary, and is a standby itself",
            primary.target.server()
        )));
    }
    let (log, time) = snapshot.end_of_log().await?;
    snapshot.commit().await?;
    if time < needed {
        return Err(Error::Stale {
            message: format!(
                "this day is read from a standby after {}, and {} says that it is {}; try again then",
                needed.to_rfc3339_opts(SecondsFormat::Secs, true),
                primary.target.server(),
                time.to_rfc3339_opts(SecondsFormat::Secs, true)
            ),
        });
    }
    Ok(log)
}
