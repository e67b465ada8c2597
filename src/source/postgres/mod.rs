//! PostgreSQL as a source: one COPY without join or sort in a short read-only transaction, the slugs and
//! PostgreSQL's own count of the same rows from the same snapshot.

pub mod config;
pub mod connect;
pub mod copy;
pub mod target;
mod tls;

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::{DateTime, Utc};

pub use config::PostgresOptions;
use config::{Identifier, SlugTable, Table};
use connect::{Snapshot, text};
use copy::{Decoder, Layout};
pub use target::Target;

use super::{Counted, Sink, Slugs, Source, Summary};
use crate::error::{Error, Result};
use crate::keys::Day;
use crate::runtime::{Cancel, block_on};
use crate::schema;

/// Ids in one question for slugs.
const IDS_AT_ONCE: usize = 10_000;

#[derive(Debug, Clone)]
pub struct PostgresSource {
    options: PostgresOptions,
}

impl PostgresSource {
    pub fn new(options: PostgresOptions) -> Self {
        Self { options }
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

    async fn check_tables(&self, snapshot: &mut Snapshot<'_>) -> Result<()> {
        let columns = &self.options.columns;
        let wanted = self.copied().into_iter().chain([(schema::DATE, &columns.date)]);
        let wanted = wanted.map(|(name, column)| (column, accepted(name)));
        check_table(snapshot, &self.options.table, wanted.collect()).await?;
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
        Ok(())
    }

    async fn read_snapshot(&self, day: Day, sink: &mut Sink<'_>, cancel: &Cancel) -> Result<Summary> {
        let mut snapshot = Snapshot::begin(&self.options, Some(&self.options.table)).await?;
        self.check_tables(&mut snapshot).await?;
        let names: Vec<String> = self.copied().iter().map(|(_, column)| column.to_string()).collect();
        let filter = format!(
            "FROM {} WHERE {} = '{day}'",
            self.options.table, self.options.columns.date
        );
        let sql = format!("COPY (SELECT {} {filter}) TO STDOUT (FORMAT binary)", names.join(", "));

        let mut decoder = Decoder::new(self.layout());
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
        let sql = format!(
            "SELECT count(*)::text, coalesce(sum({}), 0)::text, (extract(epoch FROM now()) * 1000000)::bigint::text {filter}",
            self.options.columns.view_count
        );
        let rows = snapshot.query("counting the rows", &sql).await?;
        let said = |column: usize| -> Result<i64> {
            let value = rows.first().map(|row| text(row, column)).transpose()?.flatten();
            value
                .and_then(|value| value.parse().ok())
                .ok_or_else(|| Error::internal("the database's count of the rows is no number"))
        };
        let counted = Counted {
            rows: said(0)?.unsigned_abs(),
            views: said(1)?,
        };
        let snapshot_time = DateTime::<Utc>::from_timestamp_micros(said(2)?)
            .ok_or_else(|| Error::internal("the database's clock is out of range"))?;
        snapshot.commit().await?;
        log::debug!("{day}: {} rows copied from {}", decoder.rows(), self.shown());
        Ok(Summary {
            source: self.shown(),
            snapshot_time,
            counted: Some(counted),
            slugs: Some(Slugs { projects, versions }),
        })
    }
}

impl Source for PostgresSource {
    fn read(&mut self, day: Day, sink: &mut Sink<'_>, cancel: &Cancel) -> Result<Summary> {
        block_on(cancel, self.read_snapshot(day, sink, cancel))
    }

    fn count(&mut self, day: Day, cancel: &Cancel) -> Result<Option<u64>> {
        block_on(cancel, async {
            let mut snapshot = Snapshot::begin(&self.options, Some(&self.options.table)).await?;
            self.check_tables(&mut snapshot).await?;
            let (table, date) = (&self.options.table, &self.options.columns.date);
            let sql = format!("SELECT count(*)::text FROM {table} WHERE {date} = '{day}'");
            let rows = snapshot.query("counting the rows", &sql).await?;
            let count = rows.first().map(|row| text(row, 0)).transpose()?.flatten();
            snapshot.commit().await?;
            Ok(count.and_then(|count| count.parse().ok()))
        })
    }
}

const INTEGERS: &[&str] = &["smallint", "integer", "bigint"];
const TEXTS: &[&str] = &["text", "character varying", "citext"];

fn accepted(name: &str) -> &'static [&'static str] {
    match name {
        schema::PATH | schema::FULL_PATH => TEXTS,
        schema::DATE => &["date"],
        _ => INTEGERS,
    }
}

/// Names the table or the column that is missing or has a type that cannot be copied exactly.
async fn check_table(snapshot: &mut Snapshot<'_>, table: &Table, wanted: Vec<(&Identifier, &[&str])>) -> Result<()> {
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
            return Err(Error::SourceSchema {
                column: Some(name.to_owned()),
                message: format!(
                    "the column {name} of {shown} is of type {kind}; it has to be {}",
                    accepted.join(" or ")
                ),
            });
        }
    }
    Ok(())
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
