//! Which rows of a stored day the database still has, once a deletion has let rows go. It is part of the file: a row
//! that was deleted cannot have changed since, so another one with its id is another row.

use std::fmt;
use std::str::FromStr;

use crate::base::error::{Error, Result};

/// More ids than these are not listed in a file's metadata.
const LISTED: usize = 1_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remaining {
    /// A deletion has begun, and it is not recorded which rows it has left.
    Unknown,
    /// At most the rows with these ids (ascending), of which another deletion has begun.
    AtMost(Vec<i64>),
    /// The rows with these ids, ascending.
    Only(Vec<i64>),
}

impl Remaining {
    /// As a deletion finds it, before its first row goes.
    pub fn begun(before: Option<&Self>) -> Self {
        match before {
            None | Some(Self::Unknown) => Self::Unknown,
            Some(Self::AtMost(ids) | Self::Only(ids)) => Self::AtMost(ids.clone()),
        }
    }

    /// As a deletion leaves it, when it has found rows with these ids last; of some it may be `undecided` whether they are the
    /// stored ones.
    pub fn ended(&self, found: impl Iterator<Item = i64>, undecided: bool) -> Self {
        // One that had gone before is another row with its id.
        let found = ascending(found.filter(|id| self.is_gone(*id) != Some(true)));
        listed(found, if undecided { Self::AtMost } else { Self::Only })
    }

    /// As an export finds it, whose source has rows with these ids; of some others it is `undecided` whether they are the
    /// stored ones.
    pub fn seen(&self, found: impl Iterator<Item = i64>, undecided: bool) -> Self {
        match self {
            Self::AtMost(ids) if undecided => listed(ascending(found.chain(ids.iter().copied())), Self::AtMost),
            _ if undecided => Self::Unknown,
            _ => Self::only(ascending(found)),
        }
    }

    /// The rows with these ids, in any order.
    pub fn of(ids: Vec<i64>) -> Self {
        Self::only(ascending(ids.into_iter()))
    }

    fn only(ids: Vec<i64>) -> Self {
        listed(ids, Self::Only)
    }

    /// Whether the stored row with this id has left the database; `None` when that is not known.
    pub fn is_gone(&self, id: i64) -> Option<bool> {
        match self {
            Self::Unknown => None,
            Self::AtMost(ids) => ids.binary_search(&id).is_err().then_some(true),
            Self::Only(ids) => Some(ids.binary_search(&id).is_err()),
        }
    }
}

fn ascending(ids: impl Iterator<Item = i64>) -> Vec<i64> {
    let mut ids: Vec<i64> = ids.collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn listed(ids: Vec<i64>, how: impl Fn(Vec<i64>) -> Remaining) -> Remaining {
    if ids.len() > LISTED {
        Remaining::Unknown
    } else {
        how(ids)
    }
}

const UNKNOWN: &str = "unknown";
const AT_MOST: &str = "at-most";

/// As it stands in a file's metadata.
impl fmt::Display for Remaining {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, ids): (_, &[i64]) = match self {
            Self::Unknown => (Some(UNKNOWN), &[]),
            Self::AtMost(ids) => (Some(AT_MOST), ids),
            Self::Only(ids) => (None, ids),
        };
        let ids = ids.iter().map(i64::to_string);
        let words: Vec<String> = word.map(str::to_owned).into_iter().chain(ids).collect();
        f.write_str(&words.join(" "))
    }
}

impl FromStr for Remaining {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = |text: &str| -> Result<Vec<i64>> {
            let ids: Result<Vec<i64>, _> = text.split_ascii_whitespace().map(str::parse).collect();
            let ids = ids.ok().filter(|ids| ids.is_sorted());
            ids.ok_or_else(|| Error::invalid("the ids of the rows that remain are no ascending numbers"))
        };
        match text.strip_prefix(AT_MOST) {
            _ if text == UNKNOWN => Ok(Self::Unknown),
            Some(ids) => Ok(Self::AtMost(parsed(ids)?)),
            None => Ok(Self::Only(parsed(text)?)),
        }
    }
}
