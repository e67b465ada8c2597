//! PostgreSQL as a source: one COPY without join or sort in a short read-only transaction, the slugs and
//! PostgreSQL's own count of the same rows from the same snapshot.

pub mod config;
pub mod connect;
pub mod copy;
pub mod deletion;
pub mod effects;
mod expected;
pub mod identity;
pub mod refusal;
mod slugs;
mod standby;
mod tables;
pub mod target;
mod tls;

use std::collections::{BTreeMap, HashMap};
use std::str::FromStr;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;

use config::Identifier;
pub use config::PostgresOptions;
use connect::{Session, Snapshot, is_true, text};
use copy::{Decoder, Layout};
use expected::Seen;
use identity::identify;
use slugs::slugs;
use tables::{Dates, INTEGERS, TEXTS, TIMESTAMP, Unique, accepted, check_table};
pub use target::Target;

use super::{BadRows, Elsewhere, LeftRow, Sink, Slugs, Source, Summary};
use crate::base::error::{Error, Result};
use crate::base::keys::Day;
use crate::base::runtime::{Cancel, block_on};
use crate::base::schema;
use crate::file::position::{Identity, Position};
use crate::file::rows::repeated_id;
use crate::file::tally::Tally;

/// Ids in one question for slugs.
const IDS_AT_ONCE: usize = 10_000;

#[derive(Debug, Clone)]
pub struct PostgresSource {
    options: PostgresOptions,
    /// Projects whose rows are passed over.
    excluded: Vec<i32>,
    /// Rows that are passed over.
    left_out: Vec<i64>,
    /// Ids that may have moved to another date.
    expected: Arc<[i64]>,
}

impl PostgresSource {
    pub fn new(options: PostgresOptions) -> Self {
        Self {
            options,
            excluded: Vec::new(),
            left_out: Vec::new(),
            expected: Arc::default(),
        }
    }

    /// The user and server, for messages.
    pub fn server(&self) -> String {
        self.options.target.server()
    }

    /// `schema.table`, as it was named.
    pub fn table(&self) -> String {
        self.options.table.shown()
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

    /// The same source with the limits of a deletion.
    pub fn limited(&self, limits: &deletion::Limits) -> Self {
        let mut limited = self.clone();
        limited.options.statement_timeout = limits.statement;
        limited.options.lock_timeout = limits.lock;
        limited
    }

    /// Where in its history the database is now, and when that is by its clock.
    pub fn position(&self, cancel: &Cancel) -> Result<(Position, DateTime<Utc>)> {
        let options = &self.options;
        block_on(cancel, async {
            let mut snapshot = Snapshot::begin(options, Some(&options.table)).await?;
            let time = snapshot.time().await?;
            let position = snapshot.position().await?;
            snapshot.commit().await?;
            Ok((position, time))
        })
    }

    /// `postgresql://host:port/database/table`.
    pub fn shown(&self) -> String {
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

    /// The condition for rows of a day.
    fn on(&self, day: Day, dates: Dates) -> String {
        let date = &self.options.columns.date;
        match dates {
            Dates::Days => format!("{date} = '{day}'"),
            Dates::Times => format!(
                "{date} >= '{day} 00:00:00+00' AND {date} < '{} 00:00:00+00'",
                day.plus_days(1)
            ),
        }
    }

    /// `FROM table WHERE date = day`, without what is passed over.
    fn of_day(&self, day: Day, dates: Dates) -> String {
        let mut rows = format!("FROM {} WHERE {}", self.options.table, self.on(day, dates));
        if !self.left_out.is_empty() {
            rows += &format!(
                " AND {} <> ALL('{{{}}}'::bigint[])",
                self.options.columns.id,
                list(&self.left_out)
            );
        }
        if !self.excluded.is_empty() {
            // A project that is NULL is a row to complain about, not one to pass over.
            rows += &format!(
                " AND ({0} IS NULL OR {0} <> ALL('{{{1}}}'::bigint[]))",
                self.options.columns.project_id,
                list(&self.excluded)
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
        let mut seen = Seen::new(Arc::clone(&self.expected));
        let mut checked = |batch| {
            cancel.check()?;
            seen.add(&batch)?;
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
        let counted = self
            .count_snapshot(&mut snapshot, of_day, dates, decoder.left())
            .await?;
        let earlier_rows = if counted.rows == 0 {
            if decoder.left().is_empty() && snapshot.is_standby() {
                self.confirm_empty(day).await?;
            }
            Some(self.has_earlier_rows(&mut snapshot, day, dates).await?)
        } else {
            None
        };
        let missing = seen.missing();
        let elsewhere = self.elsewhere(&mut snapshot, day, dates, &missing, cancel).await?;
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
            elsewhere,
            slugs: Some(Slugs { projects, versions }),
        })
    }

    /// What the day's rows add up to, without those that were left, computed by the database.
    async fn count_snapshot(
        &self,
        snapshot: &mut Snapshot<'_>,
        of_day: String,
        dates: Dates,
        left: &[LeftRow],
    ) -> Result<Tally> {
        let columns = &self.options.columns;
        let id = &columns.id;
        let mut filter = of_day;
        if !left.is_empty() {
            let ids: Vec<i64> = left.iter().map(|row| row.id).collect();
            filter += &format!(" AND {id} <> ALL('{{{}}}'::bigint[])", list(&ids));
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
        let unique = snapshot
            .query("looking at the indexes", &Unique::sql(&self.options))
            .await?;
        if Unique::of(&unique, dates)? != Unique::Proved {
            let sql = format!("SELECT {id}::text {filter} GROUP BY {id} HAVING count(*) > 1 ORDER BY {id} LIMIT 1");
            if let Some(row) = snapshot.query("looking for ids that repeat", &sql).await?.first() {
                return Err(repeated_id(number(row, 0)?));
            }
        }
        Ok(counted)
    }

    /// Those of these rows that live on another date now.
    async fn elsewhere(
        &self,
        snapshot: &mut Snapshot<'_>,
        day: Day,
        dates: Dates,
        ids: &[i64],
        cancel: &Cancel,
    ) -> Result<Vec<Elsewhere>> {
        let (table, columns) = (&self.options.table, &self.options.columns);
        let mut found = Vec::new();
        for some in ids.chunks(IDS_AT_ONCE) {
            cancel.check()?;
            let sql = format!(
                "SELECT {0}::text, ({3} >= '0001-01-01' AND {3} < '10000-01-01')::text, {4}::text, {5}::text
                 FROM {table} WHERE {0} = ANY('{{{1}}}'::bigint[]) AND ({2}) IS NOT TRUE",
                columns.id,
                list(some),
                self.on(day, dates),
                columns.date,
                columns.project_id,
                columns.path
            );
            for row in &snapshot.query("looking for rows that have moved", &sql).await? {
                found.push(Elsewhere {
                    id: number(row, 0)?,
                    adrift: !is_true(std::slice::from_ref(row), 1)?,
                    project_id: number(row, 2).ok(),
                    path: text(row, 3).ok().flatten(),
                });
            }
        }
        found.sort_unstable_by_key(|row| row.id);
        Ok(found)
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
            ..self.clone()
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

    fn look_for(&mut self, ids: Arc<[i64]>) {
        self.expected = ids;
    }

    fn leave_out(&mut self, ids: &[i64]) {
        self.left_out = ids.to_vec();
    }

    fn read(&mut self, day: Day, bad_rows: BadRows, sink: &mut Sink<'_>, cancel: &Cancel) -> Result<Summary> {
        block_on(cancel, self.read_snapshot(day, bad_rows, sink, cancel))
    }

    fn count(&mut self, day: Day, cancel: &Cancel) -> Result<Option<u64>> {
        block_on(cancel, self.count_rows(day)).map(Some)
    }
}

/// Ids between commas.
fn list<T: ToString>(ids: &[T]) -> String {
    let ids: Vec<String> = ids.iter().map(T::to_string).collect();
    ids.join(",")
}

/// A column that the database has computed as a number.
fn number<T: FromStr>(row: &PgRow, column: usize) -> Result<T> {
    text(row, column)?
        .and_then(|value| value.parse().ok())
        .ok_or_else(|| Error::internal("the database's count of the rows is no number, or too large"))
}
