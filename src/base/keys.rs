//! Where objects live, and the typed values their names are made of. Text from outside becomes a
//! [`Day`], [`Slug`] or [`Prefix`] here or is refused; nothing else builds an object key.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Datelike, Days, NaiveDate, NaiveTime, Utc};

use crate::base::error::{Error, Result};

pub const DEFAULT_PREFIX: &str = "analytics/pageviews";
/// The folders of copies, below which each slug has one.
pub const PROJECTS: &str = "project";
pub const ORGANIZATIONS: &str = "org";

/// A calendar day in UTC, between years 1 and 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(NaiveDate);

impl Day {
    pub fn new(date: NaiveDate) -> Result<Self> {
        if (1..=9999).contains(&date.year()) {
            Ok(Self(date))
        } else {
            Err(Error::invalid(format!("{date} is outside the years 1 to 9999")))
        }
    }

    pub fn today() -> Self {
        Self(Utc::now().date_naive())
    }

    pub fn date(self) -> NaiveDate {
        self.0
    }

    #[must_use]
    pub fn minus_days(self, days: u64) -> Self {
        self.0
            .checked_sub_days(Days::new(days))
            .and_then(|date| Self::new(date).ok())
            .unwrap_or(self)
    }

    #[must_use]
    pub fn plus_days(self, days: u64) -> Self {
        self.0
            .checked_add_days(Days::new(days))
            .and_then(|date| Self::new(date).ok())
            .unwrap_or(self)
    }

    /// The first moment after it (UTC).
    pub fn end(self) -> DateTime<Utc> {
        self.plus_days(1).0.and_time(NaiveTime::MIN).and_utc()
    }

    /// Days since 1970-01-01: the value of an Arrow `date32`.
    pub fn to_date32(self) -> i32 {
        self.0.signed_duration_since(NaiveDate::default()).num_days() as i32
    }

    pub fn from_date32(days: i32) -> Option<Self> {
        let date = NaiveDate::default().checked_add_signed(chrono::Duration::days(days.into()))?;
        Self::new(date).ok()
    }

    /// Every day from `since` to `until`, both included.
    pub fn range(since: Self, until: Self) -> impl DoubleEndedIterator<Item = Self> {
        (since.to_date32()..=until.to_date32()).filter_map(Self::from_date32)
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.format("%Y-%m-%d"))
    }
}

impl FromStr for Day {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = || {
            Error::invalid(format!(
                "{text:?} is not a day; write it as YYYY-MM-DD, for example 2026-07-01"
            ))
        };
        let digits = |range: std::ops::Range<usize>| {
            text.as_bytes()
                .get(range)
                .is_some_and(|part| part.iter().all(u8::is_ascii_digit))
        };
        let shaped = text.len() == 10 && digits(0..4) && digits(5..7) && digits(8..10);
        if !shaped {
            return Err(refuse());
        }
        NaiveDate::parse_from_str(text, "%Y-%m-%d")
            .map_err(|_| refuse())
            .and_then(Self::new)
    }
}

/// No slug needs these, and each has a meaning somewhere that keys and slugs end up.
const HOSTILE: [char; 19] = [
    '\'', '"', '`', '%', '*', '?', '[', ']', '{', '}', '<', '>', '|', '#', ';', '&', '$', '^', ':',
];

/// A project's or organization's slug that may stand in an object key: 1 to 255 bytes, not `.` or `..`,
/// without slashes, control characters, leading or trailing blanks, quotes, wildcards and the like.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slug(String);

impl Slug {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Slug {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let why = if text.is_empty() {
            "it is empty"
        } else if text.len() > 255 {
            "it is longer than 255 bytes"
        } else if text == "." || text == ".." {
            "it names a folder"
        } else if text.contains(['/', '\\']) {
            "it holds a slash"
        } else if text.contains(HOSTILE) {
            "it holds a character that means something to SQL, URLs, globs or shells"
        } else if text.chars().any(char::is_control) {
            "it holds a control character"
        } else if text.trim() != text {
            "it begins or ends with a blank"
        } else {
            return Ok(Self(text.to_owned()));
        };
        let shown: String = text.chars().take(60).collect();
        Err(Error::invalid(format!(
            "the slug {shown:?} cannot name a project or organization: {why}"
        )))
    }
}

impl fmt::Display for Slug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whose rows a file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    Day,
    Project(Slug),
    Organization(Slug),
}

/// The day that a key says its file is of, a day's or a copy; `None` for other objects.
pub fn day_of(key: &str) -> Option<Day> {
    let (_, name) = key.rsplit_once('/')?;
    name.strip_prefix("pageviews_")?.strip_suffix(".parquet")?.parse().ok()
}

/// The folder below which all keys live, without leading or trailing slash; may be empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Prefix(String);

impl Prefix {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key of a day's file: `YYYY/MM/DD/pageviews_YYYY-MM-DD.parquet` below the prefix, for a copy
    /// below `project/{slug}` or `org/{slug}`.
    pub fn key(&self, scope: &Scope, day: Day) -> String {
        let folder = match scope {
            Scope::Day => String::new(),
            Scope::Project(slug) => format!("{PROJECTS}/{slug}/"),
            Scope::Organization(slug) => format!("{ORGANIZATIONS}/{slug}/"),
        };
        format!(
            "{}{folder}{}/pageviews_{day}.parquet",
            self.root(),
            day.0.format("%Y/%m/%d")
        )
    }

    /// What a key is of; `None` for any other object than a day's file and a copy.
    pub fn parse_key(&self, key: &str) -> Option<(Scope, Day)> {
        let below = key.strip_prefix(&self.root())?;
        let (folder, file) = below.rsplit_once('/')?;
        let day = file
            .strip_prefix("pageviews_")?
            .strip_suffix(".parquet")?
            .parse()
            .ok()?;
        let mut parts = folder.split('/');
        let scope = match parts.next()? {
            PROJECTS => Scope::Project(parts.next()?.parse().ok()?),
            ORGANIZATIONS => Scope::Organization(parts.next()?.parse().ok()?),
            _ => Scope::Day,
        };
        (self.key(&scope, day) == key).then_some((scope, day))
    }

    /// A folder below the prefix; the prefix itself for an empty name.
    pub fn folder(&self, name: &str) -> String {
        format!("{}{name}", self.root()).trim_end_matches('/').to_owned()
    }

    /// The key of the object on which it is tried whether the store heeds conditions.
    pub fn probe_key(&self) -> String {
        format!("{}_derived/conditional-write-probe", self.root())
    }

    /// The key of an object that is derived from days' files.
    pub fn derived_key(&self, name: &str) -> String {
        format!("{}_derived/{name}", self.root())
    }

    /// The key of the manifest of what is derived.
    pub fn manifest_key(&self) -> String {
        self.derived_key("manifest.json")
    }

    /// The key of the list of days of which rows were deleted from the database.
    pub fn deleted_key(&self) -> String {
        format!("{}_deleted/days.json", self.root())
    }

    /// The key of the list of erased projects.
    pub fn erased_key(&self) -> String {
        format!("{}_erased/projects.json", self.root())
    }

    fn root(&self) -> String {
        if self.0.is_empty() {
            String::new()
        } else {
            format!("{}/", self.0)
        }
    }
}

impl Default for Prefix {
    fn default() -> Self {
        Self(DEFAULT_PREFIX.to_owned())
    }
}

impl FromStr for Prefix {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let trimmed = text.trim_matches('/');
        let fine = |part: &str| {
            !part.is_empty()
                && part != "."
                && part != ".."
                && !part.contains('\\')
                && !part.chars().any(char::is_control)
        };
        if trimmed.is_empty() || trimmed.split('/').all(fine) {
            Ok(Self(trimmed.to_owned()))
        } else {
            Err(Error::invalid(format!(
                "the prefix {text:?} is not a folder path; use names separated by single slashes, without '.' and '..'"
            )))
        }
    }
}
