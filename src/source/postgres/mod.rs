//! PostgreSQL as a source: one COPY without join or sort in a short read-only transaction, the slugs and
//! PostgreSQL's own count of the same rows from the same snapshot.

pub mod config;
pub mod connect;
pub mod copy;
pub mod deletion;
mod standby;
pub mod target;
mod tls;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::str::FromStr;

use sqlx::postgres::PgRow;

pub use config::PostgresOptions;
use config::{Identifier, SlugTable, Table};
use connect::{Session, Snapshot, identify, is_true, text};
use copy::{Decoder, Layout};
pub use target::Target;

use super::{BadRows, LeftRow, Sink, Slugs, Source, Summary};
use crate::error::{Error, Result};
use crate::keys::Day;
use crate::position::Identity;
use crate::rows::repeated_id;
use crate::runtime::{Cancel, block_on};
use crate::schema;
use crate::tally::Tally;

/// Ids in one question for slugs.
const IDS_AT_ONCE: usize = 10_000;

#[derive(Debug, Clone)]
pub struct PostgresSource {
    options: PostgresOptions,
    /// Projects whose rows are passed over.
    excluded: Vec<i32>,
}

impl PostgresSource {
    pub fn new(options: PostgresOptions) -> Self {
        Self {
            options,
            excluded: Vec::new(),
        }
    }

    /// The user and server, for messages.
    pub fn server(&self) -> String {
        self.options.target.server()
    }

    /// Which table this is, whatever its name and address.
    pub fn identity(&self, cancel: &Cancel) -> Result<Identity> {
        block_on(cancel, async {
            let mut session = Session::connect(&self.options).await?;
            let identity = identify(&mut session, &self.options).await?;
            session.close().await;
            Ok(identity)
        })
    }

    /// The projects' slugs of each organization, by its slug.
    pub fn organizations(&self, cancel: &Cancel) -> Result<BTreeMap<String, Vec<String>>> {
        block_on(cancel, async {
            let mut snapshot = Snapshot::begin(&self.options, None).await?;
            let (tables, projects) = (&self.options.organizations, &self.options.projects);
            let sql = format!(
                "SELECT o.slug::text, p.{}::text FROM {} o JOIN {} m ON m.organization_id = o.id
                 JOIN {} p ON p.{} = m.project_id ORDER BY 1, 2",
                projects.slug, tables.organizations, tables.members, projects.table, projects.id
            );
            let mut members: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for row in snapshot.query("reading the organizations", &sql).await? {
                if let (Some(organization), Some(project)) = (text(&row, 0)?, text(&row, 1)?) {
                    members.entry(organization).or_default().push(project);
                }
            }
            snapshot.commit().await?;
            Ok(members)
        })
    }

    /// `postgresql://host:port/database/table`.
    fn shown(&self) -> String {
        format!("{}/{}", self.options.target.shown(), self.options.table.shown())
    }

    fn layout(&self) -> Layout {
        let columns = &self.options.columns;
        Layout {
            version_id: columns.version_id.is_some(),
            full_path: columns.full_path.is_some(),
            status: columns.status.is_some(),
        }
    }

    /// The columns to copy with our names for them, in the order of [`schema::facts`].
    fn copied(&self) -> Vec<(&'static str, &Identifier)> {
        let columns = &self.options.columns;
        [
            (schema::ID, Some(&columns.id)),
            (schema::PROJECT_ID, Some(&columns.project_id)),
            (schema::VERSION_ID, columns.version_id.as_ref()),
            (schema::PATH, Some(&columns.path)),
            (schema::FULL_PATH, columns.full_path.as_ref()),
            (schema::VIEW_COUNT, Some(&columns.view_count)),
            (schema::STATUS, columns.status.as_ref()),
        ]
        .into_iter()
        .filter_map(|(name, column)| Some((name, column?)))
        .collect()
    }

    async fn check_tables(&self, snapshot: &mut Snapshot<'_>) -> Result<Dates> {
        let columns = &self.options.columns;
        let wanted = self.copied().into_iter().chain([(schema::DATE, &columns.date)]);
        let wanted = wanted.map(|(name, column)| (column, accepted(name)));
        let types = check_table(snapshot, &self.options.table, wanted.collect()).await?;
        for table in [Some(&self.options.projects), self.options.versions.as_ref()]
            .into_iter()
            .flatten()
        {
            check_table(
                snapshot,
                &table.table,
                vec![(&table.id, INTEGERS), (&table.slug, TEXTS)],
            )
            .await?;
        }
        let of_date = types.get(columns.date.as_str()).map(String::as_str);
        Ok(if of_date == Some(TIMESTAMP) {
            Dates::Times
        } else {
            Dates::Days
        })
    }

    /// `FROM table WHERE date = day`.
    fn of_day(&self, day: Day, dates: Dates) -> String {
        let (table, date) = (&self.options.table, &self.options.columns.date);
        let mut rows = match dates {
            Dates::Days => format!("FROM {table} WHERE {date} = '{day}'"),
            Dates::Times => format!(
                "FROM {table} WHERE {date} >= '{day} 00:00:00+00' AND {date} < '{} 00:00:00+00'",
                day.plus_days(1)
            ),
        };
        if !self.excluded.is_empty() {
            let ids: Vec<String> = self.excluded.iter().map(i32::to_string).collect();
            // A project that is NULL is a row to complain about, not one to pass over.
            rows += &format!(
                " AND ({0} IS NULL OR {0} <> ALL('{{{1}}}'::bigint[]))",
                self.options.columns.project_id,
                ids.join(",")
            );
        }
        rows
    }

    /// The names of the columns to copy, for a query.
    fn column_list(&self) -> String {
        let names: Vec<String> = self.copied().iter().map(|(_, column)| column.to_string()).collect();
        names.join(", ")
    }

    async fn read_snapshot(
        &self,
        day: Day,
        bad_rows: BadRows,
        sink: &mut Sink<'_>,
        cancel: &Cancel,
    ) -> Result<Summary> {
        let mut snapshot = standby::begin(&self.options, day).await?;
        let snapshot_time = snapshot.time().await?;
        let dates = self.check_tables(&mut snapshot).await?;
        let sql = format!(
            "COPY (SELECT {} {}) TO STDOUT (FORMAT binary)",
            self.column_list(),
            self.of_day(day, dates)
        );
        let mut decoder = Decoder::new(self.layout(), bad_rows);
        let mut checked = |batch| {
            cancel.check()?;
            sink(batch)
        };
        snapshot
            .copy_out(&sql, |bytes| decoder.push(bytes, &mut checked))
            .await?;
        decoder.finish(&mut checked)?;

        let projects = slugs(&mut snapshot, "project", &self.options.projects, decoder.project_ids()).await?;
        let versions = match &self.options.versions {
            Some(table) => slugs(&mut snapshot, "version", table, decoder.version_ids()).await?,
            None if decoder.version_ids().is_empty() => HashMap::new(),
            None => {
                return Err(Error::configuration(
                    "page views have versions, but no table with the versions' slugs was named",
                ));
            }
        };
        let of_day = self.of_day(day, dates);
        let counted = self.count_snapshot(&mut snapshot, of_day, decoder.left()).await?;
        let earlier_rows = if counted.rows == 0 {
            if decoder.left().is_empty() && snapshot.is_standby() {
                self.confirm_empty(day).await?;
            }
            Some(self.has_earlier_rows(&mut snapshot, day, dates).await?)
        } else {
            None
        };
        let position = snapshot.position().await?;
        snapshot.commit().await?;
        log::debug!("{day}: {} rows copied from {}", decoder.rows(), self.shown());
        Ok(Summary {
            source: self.shown(),
            snapshot_time,
            position: Some(position),
            counted: Some(counted),
            earlier_rows,
            left: decoder.left().to_vec(),
            slugs: Some(Slugs { projects, versions }),
        })
    }

    /// What the day's rows add up to, without those that were left, computed by the database.
    async fn count_snapshot(&self, snapshot: &mut Snapshot<'_>, of_day: String, left: &[LeftRow]) -> Result<Tally> {
        let columns = &self.options.columns;
        let id = &columns.id;
        let mut filter = of_day;
        if !left.is_empty() {
            let ids: Vec<String> = left.iter().map(|row| row.id.to_string()).collect();
            filter += &format!(" AND {id} <> ALL('{{{}}}'::bigint[])", ids.join(","));
        }
        let status = columns
            .status
            .as_ref()
            .map_or_else(|| "200".to_owned(), ToString::to_string);
        let sql = format!(
            "SELECT s::text, count(*)::text, coalesce(sum(v), 0)::text, min(i)::text, max(i)::text
             FROM (SELECT {status} AS s, {} AS v, {id} AS i {filter}) AS of_day GROUP BY s",
            columns.view_count
        );
        let mut counted = Tally::default();
        for row in &snapshot.query("counting the rows", &sql).await? {
            counted = counted.plus(&Tally {
                rows: number(row, 1)?,
                views: number(row, 2)?,
                ids: Some((number(row, 3)?, number(row, 4)?)),
                statuses: [(number(row, 0)?, number(row, 1)?)].into(),
            })?;
        }
        if !self.has_unique_ids(snapshot).await? {
            let sql = format!("SELECT {id}::text {filter} GROUP BY {id} HAVING count(*) > 1 ORDER BY {id} LIMIT 1");
            if let Some(row) = snapshot.query("looking for ids that repeat", &sql).await?.first() {
                return Err(repeated_id(number(row, 0)?));
            }
        }
        Ok(counted)
    }

    /// Whether an index makes sure that no id repeats within a day.
    async fn has_unique_ids(&self, snapshot: &mut Snapshot<'_>) -> Result<bool> {
        let sql = unique_ids(&self.options);
        is_true(&snapshot.query("looking at the indexes", &sql).await?, 0)
    }

    async fn has_earlier_rows(&self, snapshot: &mut Snapshot<'_>, day: Day, dates: Dates) -> Result<bool> {
        let (table, date) = (&self.options.table, &self.options.columns.date);
        let begins = match dates {
            Dates::Days => day.to_string(),
            Dates::Times => format!("{day} 00:00:00+00"),
        };
        let sql =
            format!("SELECT EXISTS (SELECT 1 FROM {table} WHERE {date} < '{begins}' AND {date} > '-infinity')::text");
        is_true(&snapshot.query("looking for an earlier day", &sql).await?, 0)
    }
}

impl PostgresSource {
    /// Rows of a day, in a snapshot of its own.
    async fn count_rows(&self, day: Day) -> Result<u64> {
        let mut snapshot = Snapshot::begin(&self.options, Some(&self.options.table)).await?;
        let dates = self.check_tables(&mut snapshot).await?;
        let sql = format!("SELECT count(*)::text {}", self.of_day(day, dates));
        let count = number(
            snapshot
                .query("counting the rows", &sql)
                .await?
                .first()
                .ok_or_else(|| Error::internal("the database did not count"))?,
            0,
        )?;
        snapshot.commit().await?;
        Ok(count)
    }

    /// A standby without rows of a day may have lost touch: the primary has to have none either.
    async fn confirm_empty(&self, day: Day) -> Result<()> {
        let Some(options) = standby::of_primary(&self.options) else {
            return Ok(());
        };
        let primary = Self {
            options,
            excluded: self.excluded.clone(),
        };
        let rows = primary.count_rows(day).await?;
        if rows == 0 {
            return Ok(());
        }
        Err(Error::Stale {
            message: format!(
                "the standby {} has no rows of this day, and its primary has {rows}; try again when the standby has them",
                self.server()
            ),
        })
    }
}

impl Source for PostgresSource {
    fn exclude(&mut self, projects: &[i32]) {
        self.excluded = projects.to_vec();
    }

    fn read(&mut self, day: Day, bad_rows: BadRows, sink: &mut Sink<'_>, cancel: &Cancel) -> Result<Summary> {
        block_on(cancel, self.read_snapshot(day, bad_rows, sink, cancel))
    }

    fn count(&mut self, day: Day, cancel: &Cancel) -> Result<Option<u64>> {
        block_on(cancel, self.count_rows(day)).map(Some)
    }
}

/// A query that tells whether a unique index covers the id alone, or the id and the date.
fn unique_ids(options: &PostgresOptions) -> String {
    let columns = &options.columns;
    format!(
        "SELECT EXISTS (
             SELECT 1 FROM pg_index i
             WHERE i.indrelid = to_regclass({}) AND i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL
               AND (SELECT bool_and(coalesce(a.attname IN ({id}, {}), false)) AND bool_or(a.attname = {id})
                    FROM unnest(i.indkey[0:i.indnkeyatts - 1]) k
                    LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k))::text",
        options.table.literal(),
        columns.date.literal(),
        id = columns.id.literal()
    )
}

/// A query that tells whether the date column holds times. A domain stands for the type below it.
fn date_type(options: &PostgresOptions) -> String {
    format!(
        "WITH RECURSIVE base AS (
             SELECT t.oid, t.typtype, t.typbasetype FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
             WHERE a.attrelid = to_regclass({}) AND a.attname = {}
             UNION ALL
             SELECT t.oid, t.typtype, t.typbasetype FROM base JOIN pg_type t ON t.oid = base.typbasetype
         )
         SELECT (format_type(oid, NULL) = '{TIMESTAMP}')::text FROM base WHERE typtype <> 'd'",
        options.table.literal(),
        options.columns.date.literal()
    )
}

/// A column that the database has computed as a number.
fn number<T: FromStr>(row: &PgRow, column: usize) -> Result<T> {
    text(row, column)?
        .and_then(|value| value.parse().ok())
        .ok_or_else(|| Error::internal("the database's count of the rows is no number, or too large"))
}

/// What the date column holds: days, or times that are cut into UTC days.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dates {
    Days,
    Times,
}

const TIMESTAMP: &str = "timestamp with time zone";
const INTEGERS: &[&str] = &["smallint", "integer", "bigint"];
const TEXTS: &[&str] = &["text", "character varying", "citext"];

fn accepted(name: &str) -> &'static [&'static str] {
    match name {
        schema::PATH | schema::FULL_PATH => TEXTS,
        schema::DATE => &["date", TIMESTAMP],
        _ => INTEGERS,
    }
}

/// Names the table or the column that is missing or has a type that cannot be copied exactly.
/// Gives the columns' types.
async fn check_table(
    snapshot: &mut Snapshot<'_>,
    table: &Table,
    wanted: Vec<(&Identifier, &[&str])>,
) -> Result<HashMap<String, String>> {
    // A domain stands for the type below it; citext may live in any schema.
    let sql = format!(
        "SELECT a.attname::text, (
             WITH RECURSIVE base AS (
                 SELECT oid, typname, typtype, typbasetype FROM pg_type WHERE oid = a.atttypid
                 UNION ALL
                 SELECT t.oid, t.typname, t.typtype, t.typbasetype FROM base JOIN pg_type t ON t.oid = base.typbasetype
             )
             SELECT CASE typname WHEN 'citext' THEN 'citext' ELSE format_type(oid, NULL) END
             FROM base WHERE typtype <> 'd')
         FROM (SELECT to_regclass({}) AS oid) c
         LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
         WHERE c.oid IS NOT NULL",
        table.literal()
    );
    let rows = snapshot.query("looking at the table", &sql).await?;
    let shown = table.shown();
    if rows.is_empty() {
        return Err(Error::SourceSchema {
            column: None,
            message: format!("there is no table {shown}; check its name, its schema and the user's search_path"),
        });
    }
    let mut types = HashMap::new();
    for row in &rows {
        if let (Some(name), Some(kind)) = (text(row, 0)?, text(row, 1)?) {
            types.insert(name, kind);
        }
    }
    for (column, accepted) in wanted {
        let name = column.as_str();
        let Some(kind) = types.get(name) else {
            return Err(Error::SourceSchema {
                column: Some(name.to_owned()),
                message: format!("the table {shown} has no column {name}"),
            });
        };
        if !accepted.contains(&kind.as_str()) {
            let why = if kind == "timestamp without time zone" && accepted.contains(&TIMESTAMP) {
                " (without a time zone it cannot be told to which UTC day a row belongs)"
            } else {
                ""
            };
            return Err(Error::SourceSchema {
                column: Some(name.to_owned()),
                message: format!(
                    "the column {name} of {shown} is of type {kind}; it has to be {}{why}",
                    accepted.join(" or ")
                ),
            });
        }
    }
    Ok(types)
}

/// The slugs of these ids, and no others.
async fn slugs(
    snapshot: &mut Snapshot<'_>,
    what: &str,
    table: &SlugTable,
    ids: &HashSet<i32>,
) -> Result<HashMap<i32, String>> {
    let mut ids: Vec<i32> = ids.iter().copied().collect();
    ids.sort_unstable();
    let mut found = HashMap::with_capacity(ids.len());
    for some in ids.chunks(IDS_AT_ONCE) {
        let list: Vec<String> = some.iter().map(i32::to_string).collect();
        let sql = format!(
            "SELECT {0}::text, {1}::text FROM {2} WHERE {0} = ANY('{{{3}}}'::bigint[])",
            table.id,
            table.slug,
            table.table,
            list.join(",")
        );
        for row in snapshot.query("reading the slugs", &sql).await? {
            let Some(Ok(id)) = text(&row, 0)?.map(|id| id.parse::<i32>()) else {
                continue;
            };
            // Only a database without encoding can hold such a slug.
            let slug = text(&row, 1).map_err(|_| Error::SourceSchema {
                column: Some(table.slug.as_str().to_owned()),
                message: format!(
                    "the slug of {what} {id} in {} is not valid UTF-8; correct it in the database",
                    table.table.shown()
                ),
            })?;
            if let Some(slug) = &slug
                && slug.len() > schema::MAX_SLUG_BYTES
            {
                return Err(Error::SourceSchema {
                    column: Some(table.slug.as_str().to_owned()),
                    message: format!(
                        "the slug of {what} {id} in {} is {} bytes long, and at most {} are possible",
                        table.table.shown(),
                        slug.len(),
                        schema::MAX_SLUG_BYTES
                    ),
                });
            }
            if let Some(slug) = slug {
                found.insert(id, slug);
            }
        }
    }
    match ids.iter().find(|id| !found.contains_key(*id)) {
        None => Ok(found),
        Some(id) => Err(Error::SourceSchema {
            column: None,
            message: format!(
                "page views name {what} {id}, but {} has no slug for it",
                table.table.shown()
            ),
        }),
    }
}
