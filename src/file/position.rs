//! Where in a database's history a snapshot was taken, and of which table, so that an older one can be told from a newer: a
//! lagging replica must not bring an old count back, and another table's rows do not belong in this one's files.
//!
//! On a primary, a snapshot says exactly which transactions it sees: those below `xmin`, and those below
//! `xmax` that were not in progress. On a standby that list is not to be had; what it sees is bounded by the
//! write-ahead log replayed before the snapshot and after it.

use std::fmt;
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::base::error::{Error, Result};

/// What rows are copied from, whatever its name and address: one table, in one history of one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's system identifier, or the name that stands for it, and the database's oid:
    /// `7711229048530932420/16384`.
    pub database: String,
    /// A server that is promoted, or restored to an earlier moment, begins a new one. `None` in files of old.
    pub timeline: Option<u32>,
    /// `None` in files of old.
    pub relation: Option<Relation>,
}

/// A table by its oid, which it keeps when it is renamed; the name is for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    pub oid: u32,
    /// `schema.table`
    pub name: String,
}

/// A snapshot's place in the history of one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    pub identity: Identity,
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
    /// The same cluster by its identifier, but a clone of it, or what it was restored to.
    OtherTimeline,
    OtherTable,
    Older,
}

impl Identity {
    /// Whether this is the very table that `stored` names. What a file of old does not say is not compared.
    pub fn check(&self, stored: &Self) -> Result<(), Stale> {
        fn differ<T: PartialEq>(one: Option<&T>, other: Option<&T>) -> bool {
            matches!((one, other), (Some(one), Some(other)) if one != other)
        }
        let oid = |identity: &Self| identity.relation.as_ref().map(|relation| relation.oid);
        if self.database != stored.database {
            Err(Stale::OtherDatabase)
        } else if differ(self.timeline.as_ref(), stored.timeline.as_ref()) {
            Err(Stale::OtherTimeline)
        } else if differ(oid(self).as_ref(), oid(stored).as_ref()) {
            Err(Stale::OtherTable)
        } else {
            Ok(())
        }
    }
}

/// For messages: `public.analytics_pageview in database 7711229048530932420/16384, timeline 1`.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(relation) = &self.relation {
            write!(f, "{} in ", relation.name)?;
        }
        write!(f, "database {}", self.database)?;
        match self.timeline {
            Some(timeline) => write!(f, ", timeline {timeline}"),
            None => Ok(()),
        }
    }
}

impl Position {
    /// From PostgreSQL's text of a snapshot, `xmin:xmax:xip,xip,...`.
    pub fn new(identity: Identity, standby: bool, snapshot: &str, lsn_before: u64, lsn_after: u64) -> Result<Self> {
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
            identity,
            standby,
            xmin,
            xmax,
            in_progress,
            lsn_before,
            lsn_after: at_page_end(lsn_after),
        })
    }

    /// Whether this snapshot is of the same table, and sees everything that `stored` saw.
    pub fn covers(&self, stored: &Self) -> Result<(), Stale> {
        match self.identity.check(&stored.identity) {
            Ok(()) if self.sees(stored) => Ok(()),
            // A standby that has not followed the promotion yet, and another table's snapshot of the same history, can be
            // told to be older.
            Ok(()) => Err(Stale::Older),
            Err(Stale::OtherTimeline) if self.standby && self.identity.timeline < stored.identity.timeline => {
                Err(Stale::Older)
            }
            Err(Stale::OtherTable) if !self.sees(stored) => Err(Stale::Older),
            Err(other) => Err(other),
        }
    }

    /// Within one history: whether everything that `stored` saw is seen.
    fn sees(&self, stored: &Self) -> bool {
        if self == stored {
            return true;
        }
        if self.standby {
            // A commit that `stored` saw was in the log by then, and has been replayed here.
            self.lsn_before >= stored.lsn_after || self.xmin >= stored.xmax
        } else {
            self.xmax >= stored.xmax && !self.in_progress.iter().any(|id| stored.may_see(*id))
        }
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

/// What of a table's name stands for itself among pairs that blanks separate.
const NAME: &AsciiSet = &NON_ALPHANUMERIC.remove(b'_').remove(b'.').remove(b'-');

fn relation(text: &str) -> Option<Relation> {
    let (oid, name) = text.split_once(':')?;
    Some(Relation {
        oid: oid.parse().ok()?,
        name: percent_decode_str(name).decode_utf8().ok()?.into_owned(),
    })
}

impl fmt::Display for Position {
    /// One line of `name=value`, as it stands in a file's metadata.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let server = if self.standby { "standby" } else { "primary" };
        let in_progress: Vec<String> = self.in_progress.iter().map(u64::to_string).collect();
        write!(f, "database={} ", self.identity.database)?;
        if let Some(timeline) = self.identity.timeline {
            write!(f, "timeline={timeline} ")?;
        }
        if let Some(Relation { oid, name }) = &self.identity.relation {
            write!(f, "relation={oid}:{} ", utf8_percent_encode(name, NAME))?;
        }
        write!(
            f,
            "server={server} snapshot={}:{}:{} lsn={:X}/{:X}-{:X}/{:X}",
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
        let given = |name: &str| {
            text.split(' ')
                .filter_map(|pair| pair.split_once('='))
                .find_map(|(key, value)| (key == name).then_some(value))
        };
        let value =
            |name: &str| given(name).ok_or_else(|| Error::invalid(format!("the snapshot's position has no {name}")));
        let unreadable = |name: &str| Error::invalid(format!("the snapshot's position has a {name} that is none"));
        let timeline = given("timeline").map(|text| text.parse().map_err(|_| unreadable("timeline")));
        let relation = given("relation").map(|text| relation(text).ok_or_else(|| unreadable("relation")));
        let lsn = || Error::invalid("the snapshot's position has no place in the log");
        let (before, after) = value("lsn")?.split_once('-').ok_or_else(lsn)?;
        let identity = Identity {
            database: value("database")?.to_owned(),
            timeline: timeline.transpose()?,
            relation: relation.transpose()?,
        };
        Self::new(
            identity,
            value("server")? == "standby",
            value("snapshot")?,
            parse_lsn(before).ok_or_else(lsn)?,
            parse_lsn(after).ok_or_else(lsn)?,
        )
    }
}
