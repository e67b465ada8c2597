//! Loads sample traffic into PostgreSQL, into Read the Docs' tables, with binary COPY. For demos, tests and
//! benches; an export never writes to a database this way.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Date32Type, Int16Type, Int32Type, Int64Type};
use sqlx::postgres::{PgArguments, PgConnection, Postgres};
use sqlx::query::Query;
use sqlx::{Connection, Row};

use super::Sample;
use crate::base::error::{Error, Result};
use crate::base::keys::Day;
use crate::base::runtime::{self, Cancel};
use crate::source::postgres::config::Identifier;
use crate::source::postgres::connect::connect;
use crate::source::postgres::refusal::failed;
use crate::source::postgres::target::Target;

const TABLES: &str = include_str!("rtd_schema.sql");
const INDEXES: &str = include_str!("rtd_indexes.sql");

const PROJECTS: &str = "projects_project";
const VERSIONS: &str = "builds_version";
const ORGANIZATIONS: &str = "organizations_organization";
const PAGEVIEWS: &str = "analytics_pageview";

const COPY: &str = "COPY analytics_pageview (id, project_id, version_id, path, full_path, view_count, date, status) \
                    FROM STDIN (FORMAT binary)";
const COLUMNS: i16 = 8;

/// Days from 1970-01-01 to 2000-01-01, where PostgreSQL's dates begin.
const POSTGRES_EPOCH: i32 = 10_957;

/// Bytes sent at a time.
const CHUNK: usize = 1 << 20;

#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// The schema to load into, made when missing; `None` uses the connection's search path.
    pub schema: Option<Identifier>,
    /// Makes the tables when there is no `analytics_pageview` yet; its indexes follow after the rows.
    pub create_tables: bool,
}

/// What was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    pub rows: u64,
    pub projects: usize,
    pub versions: usize,
    pub tables_created: bool,
}

/// Loads projects, versions, organizations and the page views of every day from `since` to `until`, in one
/// transaction, and analyzes the tables. Projects that are there already stay as they are.
/// `progress` gets the rows sent and the rows in all.
pub fn load_postgres(
    sample: &Sample,
    target: &Target,
    since: Day,
    until: Day,
    options: &LoadOptions,
    progress: &mut dyn FnMut(u64, u64),
    cancel: &Cancel,
) -> Result<Loaded> {
    if since > until {
        return Err(Error::invalid(format!("since ({since}) is after until ({until})")));
    }
    runtime::block_on(cancel, async {
        let mut connection = connect(target).await?;
        let mut loading = Loading {
            connection: &mut connection,
            target,
        };
        let loaded = loading.all(sample, (since, until), options, progress, cancel).await?;
        // The work is committed; a connection that does not end politely changes nothing.
        let _ = connection.close().await;
        Ok(loaded)
    })
}

struct Loading<'a> {
    connection: &'a mut PgConnection,
    target: &'a Target,
}

impl Loading<'_> {
    async fn all(
        &mut self,
        sample: &Sample,
        (since, until): (Day, Day),
        options: &LoadOptions,
        progress: &mut dyn FnMut(u64, u64),
        cancel: &Cancel,
    ) -> Result<Loaded> {
        self.run("BEGIN").await?;
        if let Some(schema) = &options.schema {
            let script = format!("CREATE SCHEMA IF NOT EXISTS {schema}; SET LOCAL search_path TO {schema}");
            self.run(&script).await?;
        }
        let tables_created = options.create_tables && !self.exists(PAGEVIEWS).await?;
        if tables_created {
            self.run(TABLES).await?;
        }
        self.lookups(sample).await?;

        let total = Day::range(since, until).map(|day| sample.rows(day)).sum();
        let mut rows = 0;
        for day in Day::range(since, until) {
            let mut tell = |done| progress(rows + done, total);
            rows += self.pageviews(sample, day, &mut tell, cancel).await?;
        }

        if tables_created {
            self.run(INDEXES).await?;
        }
        for table in [PROJECTS, VERSIONS, ORGANIZATIONS, PAGEVIEWS] {
            if self.exists(table).await? {
                // Rows that are added later must not get a number that was loaded.
                let sequence = format!("pg_get_serial_sequence('{table}', 'id')");
                let script = format!("SELECT setval({sequence}, greatest(max(id), 1)) FROM {table}; ANALYZE {table}");
                self.run(&script).await?;
            }
        }
        self.run("COMMIT").await?;
        Ok(Loaded {
            rows,
            projects: sample.projects().len(),
            versions: sample.versions().len(),
            tables_created,
        })
    }

    async fn lookups(&mut self, sample: &Sample) -> Result<()> {
        let projects = sample.projects();
        let main = projects.iter().map(|project| project.main_language_project_id);
        let query = sqlx::query(
            "INSERT INTO projects_project (id, slug, name, language, main_language_project_id)
             SELECT * FROM unnest($1::int[], $2::text[], $3::text[], $4::text[], $5::int[]) ON CONFLICT DO NOTHING",
        )
        .bind(list(projects, |project| project.id))
        .bind(list(projects, |project| project.slug.as_str()))
        .bind(list(projects, |project| project.name.as_str()))
        .bind(list(projects, |project| project.language))
        .bind(main.collect::<Vec<Option<i32>>>());
        self.insert("loading projects", query).await?;

        let versions = sample.versions();
        let query = sqlx::query(
            "INSERT INTO builds_version (id, project_id, slug)
             SELECT * FROM unnest($1::int[], $2::int[], $3::text[]) ON CONFLICT DO NOTHING",
        )
        .bind(list(versions, |version| version.id))
        .bind(list(versions, |version| version.project_id))
        .bind(list(versions, |version| version.slug.as_str()));
        self.insert("loading versions", query).await?;

        if !self.exists(ORGANIZATIONS).await? {
            return Ok(());
        }
        let organizations = sample.organizations();
        let query = sqlx::query(
            "INSERT INTO organizations_organization (id, slug, name)
             SELECT * FROM unnest($1::int[], $2::text[], $3::text[]) ON CONFLICT DO NOTHING",
        )
        .bind(list(organizations, |organization| organization.id))
        .bind(list(organizations, |organization| organization.slug.as_str()))
        .bind(list(organizations, |organization| organization.name.as_str()));
        self.insert("loading organizations", query).await?;

        for organization in organizations {
            let query = sqlx::query(
                "INSERT INTO organizations_organization_projects (organization_id, project_id)
                 SELECT $1, * FROM unnest($2::int[]) ON CONFLICT DO NOTHING",
            )
            .bind(organization.id)
            .bind(organization.project_ids.as_slice());
            self.insert("loading organizations", query).await?;
        }
        Ok(())
    }

    async fn pageviews(
        &mut self,
        sample: &Sample,
        day: Day,
        progress: &mut dyn FnMut(u64),
        cancel: &Cancel,
    ) -> Result<u64> {
        let target = self.target;
        let sending = |error| explained(target, "loading page views", error);
        let mut copy = self.connection.copy_in_raw(COPY).await.map_err(sending)?;
        let mut data = Vec::with_capacity(CHUNK + CHUNK / 4);
        data.extend_from_slice(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0");
        let mut rows = 0;
        for batch in sample.day_in_batches(day, 4_096) {
            cancel.check()?;
            let batch = batch.map_err(|error| Error::internal(format!("the sample's batch is wrong: {error}")))?;
            encode(&batch, &mut data);
            rows += batch.num_rows() as u64;
            if data.len() >= CHUNK {
                copy.send(data.as_slice()).await.map_err(sending)?;
                data.clear();
                progress(rows);
            }
        }
        data.extend_from_slice(&(-1_i16).to_be_bytes());
        copy.send(data.as_slice()).await.map_err(sending)?;
        let stored = copy.finish().await.map_err(sending)?;
        progress(rows);
        if stored != rows {
            let message = format!("{rows} rows were sent for {day}, and PostgreSQL counts {stored}");
            return Err(Error::internal(message));
        }
        Ok(rows)
    }

    async fn run(&mut self, sql: &str) -> Result<()> {
        let done = sqlx::raw_sql(sql).execute(&mut *self.connection).await;
        done.map(|_| ())
            .map_err(|error| explained(self.target, "preparing the tables", error))
    }

    async fn insert(&mut self, doing: &str, query: Query<'_, Postgres, PgArguments>) -> Result<()> {
        let done = query.persistent(false).execute(&mut *self.connection).await;
        done.map(|_| ()).map_err(|error| explained(self.target, doing, error))
    }

    async fn exists(&mut self, table: &str) -> Result<bool> {
        let query = sqlx::query("SELECT to_regclass($1) IS NOT NULL")
            .bind(table)
            .persistent(false);
        let row = query.fetch_one(&mut *self.connection).await;
        row.and_then(|row| row.try_get(0))
            .map_err(|error| explained(self.target, "looking for the tables", error))
    }
}

fn list<'a, T, V>(items: &'a [T], value: impl Fn(&'a T) -> V) -> Vec<V> {
    items.iter().map(value).collect()
}

/// What went wrong, with what to do about the two things that go wrong most.
fn explained(target: &Target, doing: &str, error: sqlx::Error) -> Error {
    match failed(target, doing, error) {
        Error::Database {
            message,
            sqlstate,
            retryable,
        } => {
            let advice = match sqlstate.as_deref() {
                Some("23505") => "; these days or ids are in the table already, load them into an empty one",
                Some("42P01") => "; ask for the tables to be created, or run the application's migrations first",
                _ => "",
            };
            let message = format!("{message}{advice}");
            Error::Database {
                message,
                sqlstate,
                retryable,
            }
        }
        other => other,
    }
}

/// Appends the rows in COPY's binary format: a count of fields, then each field's length (-1 for NULL) and bytes.
fn encode(batch: &RecordBatch, data: &mut Vec<u8>) {
    let ids = batch.column(0).as_primitive::<Int64Type>();
    let project_ids = batch.column(1).as_primitive::<Int32Type>();
    let version_ids = batch.column(3).as_primitive::<Int32Type>();
    let paths = batch.column(5).as_string::<i32>();
    let full_paths = batch.column(6).as_string::<i32>();
    let view_counts = batch.column(7).as_primitive::<Int32Type>();
    let dates = batch.column(8).as_primitive::<Date32Type>();
    let statuses = batch.column(9).as_primitive::<Int16Type>();
    for row in 0..batch.num_rows() {
        data.extend_from_slice(&COLUMNS.to_be_bytes());
        field(data, Some(&ids.value(row).to_be_bytes()));
        field(data, Some(&project_ids.value(row).to_be_bytes()));
        field(
            data,
            version_ids
                .is_valid(row)
                .then(|| version_ids.value(row).to_be_bytes())
                .as_ref()
                .map(<[u8; 4]>::as_slice),
        );
        field(data, Some(paths.value(row).as_bytes()));
        field(data, full_paths.is_valid(row).then(|| full_paths.value(row).as_bytes()));
        field(data, Some(&view_counts.value(row).to_be_bytes()));
        field(data, Some(&(dates.value(row) - POSTGRES_EPOCH).to_be_bytes()));
        field(data, Some(&i32::from(statuses.value(row)).to_be_bytes()));
    }
}

fn field(data: &mut Vec<u8>, value: Option<&[u8]>) {
    match value {
        Some(bytes) => {
            data.extend_from_slice(&(bytes.len() as i32).to_be_bytes());
            data.extend_from_slice(bytes);
        }
        None => data.extend_from_slice(&(-1_i32).to_be_bytes()),
    }
}
