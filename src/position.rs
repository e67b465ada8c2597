//! Where in a database's history a snapshot was taken, so that an older one can be told from a newer: a
//! lagging replica must not bring an old count back.
//!
//! On a primary, a snapshot says exactly which transactions it sees: those below `xmin`, and those below
//! `xmax` that were not in progress. On a standby that list is not to be had; what it sees is bounded by the
//! write-ahead log replayed before the snapshot and after it.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// A snapshot's place in the history of one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The cluster's system identifier and the database's oid: `7711229048530932420/16384`.
    pub database: String,
    pub standby: bool,
    /// Transactions below it had ended.
    pub xmin: u64,
    /// Transactions from here on are not seen.
    pub xmax: u64,
    /// In progress between the two, ascending; unknown, and so empty, on a standby.
    pub in_progress: Vec<u64>,
    /// On a standby: everything replayed up to here is seen.
    pub lsn_before: u64,
    /// Nothing written to the log after this is seen.
    pub lsn_after: u64,
}

/// Why a snapshot may not be merged over a stored one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stale {
    OtherDatabase,
    Older,
}

impl Position {
    /// From PostgreSQL's text of a snapshot, `xmin:xmax:xip,xip,...`.
    pub fn new(database: String, standby: bool, snapshot: &str, lsn_before: u64, lsn_after: u64) -> Result<Self> {
        let fault = || Error::internal("the database's snapshot has another form than PostgreSQL's");
        let mut parts = snapshot.split(':');
        let mut next = || parts.next().ok_or_else(fault);
        let number = |text: &str| text.parse::<u64>().map_err(|_| fault());
        let (xmin, xmax) = (number(next()?)?, number(next()?)?);
        let mut in_progress = next()?
            .split(',')
            .filter(|text| !text.is_empty())
            .map(number)
            .collect::<Result<Vec<_>>>()?;
        in_progress.sort_unstable();
        Ok(Self {
            database,
            standby,
            xmin,
            xmax,
            in_progress,
            lsn_before,
            lsn_after: at_page_end(lsn_after),
        })
    }

    /// Whether this snapshot sees everything that `stored` saw.
    pub fn covers(&self, stored: &Self) -> Result<(), Stale> {
        if self.database != stored.database {
            return Err(Stale::OtherDatabase);
        }
        let seen = if self.standby {
            // A commit that `stored` saw was in the log by then, and has been replayed here.
            self.lsn_before >= stored.lsn_after || self.xmin >= stored.xmax
        } else {
            self.xmax >= stored.xmax && !self.in_progress.iter().any(|id| stored.may_see(*id))
        };
        if seen { Ok(()) } else { Err(Stale::Older) }
    }

    fn may_see(&self, transaction: u64) -> bool {
        transaction < self.xmax && self.in_progress.binary_search(&transaction).is_err()
    }
}

/// Bytes of a page of the log, and of the header that most pages begin with.
const LOG_PAGE: u64 = 8192;
const LOG_PAGE_HEADER: u64 = 24;

/// The place where the next record will begin, after a page's header, as the place where the last one ended, which is what
/// a standby tells.
pub fn at_page_end(lsn: u64) -> u64 {
    if lsn % LOG_PAGE == LOG_PAGE_HEADER {
        lsn - LOG_PAGE_HEADER
    } else {
        lsn
    }
}

/// PostgreSQL's text of a place in the log: `16/B374D848`.
pub fn parse_lsn(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    let part = |text| {
        u64::from_str_radix(text, 16)
            .ok()
            .filter(|part| *part <= u64::from(u32::MAX))
    };
    Some(part(high)? << 32 | part(low)?)
}

impl fmt::Display for Position {
    /// One line of `name=value`, as it stands in a file's metadata.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let server = if self.standby { "standby" } else { "primary" };
        let in_progress: Vec<String> = self.in_progress.iter().map(u64::to_string).collect();
        write!(
            f,
            "database={} server={server} snapshot={}:{}:{} lsn={:X}/{:X}-{:X}/{:X}",
            self.database,
            self.xmin,
            self.xmax,
            in_progress.join(","),
            self.lsn_before >> 32,
            self.lsn_before & 0xffff_ffff,
            self.lsn_after >> 32,
            self.lsn_after & 0xffff_ffff
        )
    }
}

impl FromStr for Position {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let value = |name: &str| {
            text.split(' ')
                .filter_map(|pair| pair.split_once('='))
                .find_map(|(key, value)| (key == name).then_some(value))
                .ok_or_else(|| Error::invalid(format!("the snapshot's position has no {name}")))
        };
        let lsn = || Error::invalid("the snapshot's position has no place in the log");
        let (before, after) = value("lsn")?.split_once('-').ok_or_else(lsn)?;
        Self::new(
            value("database")?.to_owned(),
            value("server")? == "standby",
            value("snapshot")?,
            parse_lsn(before).ok_or_else(lsn)?,
            parse_lsn(after).ok_or_else(lsn)?,
        )
    }
}
