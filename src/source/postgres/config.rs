//! What the tables and columns are called, quoted as SQL identifiers, and how long the server may take.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use chrono::TimeDelta;

use super::target::Target;
use crate::base::error::{Error, Result};

/// Where the page views are. [`Debug`](fmt::Debug) shows no password.
#[derive(Clone)]
pub struct PostgresOptions {
    pub target: Target,
    pub table: Table,
    pub columns: Columns,
    pub projects: SlugTable,
    /// `None` when page views have no versions.
    pub versions: Option<SlugTable>,
    pub organizations: Organizations,
    /// The server ends a statement that takes longer.
    pub statement_timeout: Duration,
    /// The server gives up waiting for a lock (somebody alters the table) after this.
    pub lock_timeout: Duration,
    /// The role that transactions run under, when it is not the user's own.
    pub role: Option<Identifier>,
    /// Where a standby gets its rows from; empty days, and an idle night, are confirmed there.
    pub primary: Option<Target>,
    /// The oid that the table has to have, where somebody else has looked it up.
    pub relation: Option<u32>,
    /// The user whose rights have to count, where somebody else has asked.
    pub user: Option<String>,
    /// What stands for the cluster's identifier where the server does not tell it.
    pub database_id: Option<DatabaseId>,
    /// How far beyond a day's end (UTC) a standby has to have replayed before the day is read.
    pub standby_grace: TimeDelta,
}

impl PostgresOptions {
    /// The tables of Read the Docs in the database that a connection string names.
    pub fn new(connection: &str) -> Result<Self> {
        Ok(Self {
            target: connection.parse()?,
            table: "analytics_pageview".parse()?,
            columns: Columns::default(),
            projects: SlugTable::named("projects_project")?,
            versions: Some(SlugTable::named("builds_version")?),
            organizations: Organizations::default(),
            statement_timeout: Duration::from_secs(30 * 60),
            lock_timeout: Duration::from_secs(30),
            role: None,
            primary: None,
            relation: None,
            user: None,
            database_id: None,
            standby_grace: TimeDelta::zero(),
        })
    }

    /// Statements at the beginning of each transaction. None gives a row, and none takes the transaction's snapshot, for
    /// which it would be too early: the table is not locked yet.
    pub(super) fn session(&self) -> String {
        let mut statements = String::new();
        for (name, value) in &self.target.settings {
            statements += &format!("SET LOCAL {name} = {};", setting(name, value));
        }
        if let Some(role) = &self.role {
            statements += &format!("SET LOCAL ROLE {role};");
        }
        statements
    }
}

/// Settings whose value SET takes apart as a list of names, each of which it quotes.
const LISTS: [&str; 4] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "temp_tablespaces",
];

/// What SET has to be given to mean what the server's options would have meant.
fn setting(name: &str, value: &str) -> String {
    if !LISTS.contains(&name.to_ascii_lowercase().as_str()) {
        return literal(value);
    }
    let mut names = vec![String::new()];
    let mut quoted = false;
    let mut characters = value.chars().peekable();
    while let Some(c) = characters.next() {
        let Some(name) = names.last_mut() else { break };
        match c {
            '"' if quoted && characters.peek() == Some(&'"') => name.extend(characters.next()),
            '"' => quoted = !quoted,
            _ if quoted => name.push(c),
            ',' => names.push(String::new()),
            _ if c.is_ascii_whitespace() => {}
            _ => name.extend(c.to_lowercase()),
        }
    }
    let names: Vec<String> = names.iter().map(|name| literal(name)).collect();
    names.join(", ")
}

/// A name that a site gives a database cluster: letters, digits, `.`, `_` and `-`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseId(String);

impl FromStr for DatabaseId {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if (1..=100).contains(&name.len()) && name.chars().all(plain) {
            return Ok(Self(name.to_owned()));
        }
        let shown: String = name.chars().take(60).collect();
        Err(Error::configuration(format!(
            "{shown:?} cannot stand for a database cluster (database_id); use 1 to 100 letters, digits, '.', '_' and '-'"
        )))
    }
}

impl fmt::Display for DatabaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A column or table name, quoted when it becomes SQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identifier(String);

impl Identifier {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as a string literal of SQL.
    pub(super) fn literal(&self) -> String {
        literal(&self.0)
    }
}

/// A string literal of SQL, whatever `standard_conforming_strings` is.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

impl FromStr for Identifier {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        if name.is_empty() || name.contains('\0') || name.len() > 255 {
            let shown: String = name.chars().take(60).collect();
            return Err(Error::configuration(format!(
                "{shown:?} cannot be the name of a table or column"
            )));
        }
        Ok(Self(name.to_owned()))
    }
}

/// The quoted form.
impl fmt::Display for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.replace('"', "\"\""))
    }
}

/// A table, in a schema or wherever the search path finds it. Parsed from one name; set `schema` for two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub schema: Option<Identifier>,
    pub name: Identifier,
}

impl FromStr for Table {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Ok(Self {
            schema: None,
            name: name.parse()?,
        })
    }
}

/// The quoted form.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.schema {
            Some(schema) => write!(f, "{schema}.{}", self.name),
            None => write!(f, "{}", self.name),
        }
    }
}

impl Table {
    /// The quoted form as a string literal of SQL.
    pub(super) fn literal(&self) -> String {
        literal(&self.to_string())
    }

    /// `schema.table` as people write it.
    pub fn shown(&self) -> String {
        match &self.schema {
            Some(schema) => format!("{}.{}", schema.as_str(), self.name.as_str()),
            None => self.name.as_str().to_owned(),
        }
    }
}

/// The page views' columns; those that may be missing are `None`.
#[derive(Debug, Clone)]
pub struct Columns {
    pub id: Identifier,
    pub project_id: Identifier,
    pub version_id: Option<Identifier>,
    pub path: Identifier,
    pub full_path: Option<Identifier>,
    pub view_count: Identifier,
    pub date: Identifier,
    /// Without it every view counts as status 200.
    pub status: Option<Identifier>,
}

impl Default for Columns {
    fn default() -> Self {
        let name = |text: &str| Identifier(text.to_owned());
        Self {
            id: name("id"),
            project_id: name("project_id"),
            version_id: Some(name("version_id")),
            path: name("path"),
            full_path: Some(name("full_path")),
            view_count: name("view_count"),
            date: name("date"),
            status: Some(name("status")),
        }
    }
}

/// A table that has a slug for each id.
#[derive(Debug, Clone)]
pub struct SlugTable {
    pub table: Table,
    pub id: Identifier,
    pub slug: Identifier,
}

impl SlugTable {
    /// A table with the columns `id` and `slug`.
    pub fn named(table: &str) -> Result<Self> {
        Ok(Self {
            table: table.parse()?,
            id: "id".parse()?,
            slug: "slug".parse()?,
        })
    }
}

/// Which projects belong to which organization.
#[derive(Debug, Clone)]
pub struct Organizations {
    pub organizations: Table,
    pub members: Table,
}

impl Default for Organizations {
    fn default() -> Self {
        let table = |name: &str| Table {
            schema: None,
            name: Identifier(name.to_owned()),
        };
        Self {
            organizations: table("organizations_organization"),
            members: table("organizations_organization_projects"),
        }
    }
}

impl fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgresOptions({}, {})", self.target.shown(), self.table)
    }
}
