//! PostgreSQL as a source, against a real server: what is copied, what is refused and how, TLS, poolers.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int16Type, Int32Type, Int64Type};
use parquet_analytics::base::error::{Error, Kind, Result};
use parquet_analytics::base::runtime::{Cancel, block_on};
use parquet_analytics::base::schema;
use parquet_analytics::source::postgres::config::Table;
use parquet_analytics::source::postgres::connect::connect;
use parquet_analytics::source::postgres::{PostgresOptions, PostgresSource, Target};
use parquet_analytics::source::{BadRows, Source, Summary};
use sqlx::Row;

use crate::services;
use crate::support::day;

pub fn run(url: &str, sql: &str) -> Option<String> {
    let target: Target = url.parse().unwrap();
    block_on(&Cancel::new(), async {
        let mut connection = connect(&target).await?;
        let rows = sqlx::raw_sql(sql).fetch_all(&mut connection).await.expect(sql);
        Ok(rows
            .first()
            .and_then(|row| row.try_get::<Option<String>, _>(0).ok().flatten()))
    })
    .unwrap()
}

/// A database of its own, dropped at the end.
pub struct Database {
    server: String,
    name: String,
}

impl Database {
    pub fn new(template: &str) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let server = services::postgres()?;
        let name = format!("source_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run(&server, &format!("CREATE DATABASE {name} {template}"));
        Some(Self { server, name })
    }

    /// Read the Docs' tables with two projects and a version.
    pub fn rtd() -> Option<Self> {
        let database = Self::new("TEMPLATE rtd")?;
        database.run(
            "INSERT INTO projects_project (id, name, slug) VALUES (1, 'Docs', 'docs'), (2, 'Q', 'it''s'), (3, 'U', 'unseen');
             INSERT INTO builds_version (id, project_id, slug) VALUES (10, 1, 'latest'), (11, 2, 'stable')",
        );
        Some(database)
    }

    pub fn on(&self, server: &str) -> String {
        format!("{}/{}", server.rsplit_once('/').unwrap().0, self.name)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn url(&self) -> String {
        self.on(&self.server)
    }

    pub fn run(&self, sql: &str) -> Option<String> {
        run(&self.url(), sql)
    }

    pub fn options(&self) -> PostgresOptions {
        PostgresOptions::new(&self.url()).unwrap()
    }

    pub fn insert(&self, values: &str) {
        self.run(&format!(
            "INSERT INTO analytics_pageview (id, project_id, version_id, path, full_path, view_count, date, status)
             VALUES {values}"
        ));
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        run(&self.server, &format!("DROP DATABASE {} WITH (FORCE)", self.name));
    }
}

pub fn read(options: PostgresOptions) -> Result<(Vec<RecordBatch>, Summary)> {
    let mut batches = Vec::new();
    let mut sink = |batch| {
        batches.push(batch);
        Ok(())
    };
    let summary = PostgresSource::new(options).read(day(), BadRows::Fail, &mut sink, &Cancel::new())?;
    Ok((batches, summary))
}

pub fn ids(batches: &[RecordBatch]) -> Vec<i64> {
    let mut ids: Vec<i64> = batches
        .iter()
        .flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec())
        .collect();
    ids.sort_unstable();
    ids
}

pub const THREE_ROWS: &str = "
    (1, 1, 10, '/index.html', '/en/latest/index.html', 5, '2026-07-01', 200),
    (9223372036854775807, 2, NULL, '/é😀''\"', NULL, 2147483647, '2026-07-01', 404),
    (3, 1, 10, '/', '/en/latest/', 0, '2026-07-01', 0),
    (4, 3, 11, '/other', NULL, 1, '2026-06-30', 200)";

#[test]
fn a_day_is_copied_with_the_slugs_it_needs_and_the_databases_own_count() {
    let Some(database) = Database::rtd() else { return };
    database.insert(THREE_ROWS);
    let before = chrono::Utc::now() - chrono::Duration::seconds(60);
    let (batches, summary) = read(database.options()).unwrap();
    assert_eq!(batches.len(), 1);
    let batch = &batches[0];
    assert_eq!(batch.schema(), schema::facts());
    assert_eq!(ids(&batches), [1, 3, i64::MAX]);
    let row = (0..3)
        .find(|row| batch.column(0).as_primitive::<Int64Type>().value(*row) == i64::MAX)
        .unwrap();
    assert_eq!(batch.column(1).as_primitive::<Int32Type>().value(row), 2);
    assert!(batch.column(2).is_null(row) && batch.column(4).is_null(row));
    assert_eq!(batch.column(3).as_string::<i32>().value(row), "/é😀'\"");
    assert_eq!(batch.column(5).as_primitive::<Int32Type>().value(row), i32::MAX);
    assert_eq!(batch.column(6).as_primitive::<Int16Type>().value(row), 404);

    let slugs = summary.slugs.unwrap();
    let mut projects: Vec<_> = slugs.projects.into_iter().collect();
    projects.sort();
    assert_eq!(projects, [(1, "docs".to_owned()), (2, "it's".to_owned())]);
    assert_eq!(
        slugs.versions.into_iter().collect::<Vec<_>>(),
        [(10, "latest".to_owned())]
    );
    let views = i64::from(i32::MAX) + 5;
    assert_eq!(
        summary.counted.map(|counted| (counted.rows, counted.views)),
        Some((3, views))
    );
    assert!(before < summary.snapshot_time && summary.snapshot_time < before + chrono::Duration::seconds(120));
    assert!(
        summary
            .source
            .ends_with(&format!("/{}/analytics_pageview", database.name)),
        "{}",
        summary.source
    );
    assert!(!summary.source.contains('@'));
    let count = PostgresSource::new(database.options()).count(day(), &Cancel::new());
    assert_eq!(count.unwrap(), Some(3));
}

#[test]
fn a_day_without_rows_is_empty_and_not_an_error() {
    let Some(database) = Database::rtd() else { return };
    let (batches, summary) = read(database.options()).unwrap();
    assert_eq!(batches.len(), 0);
    assert_eq!(
        summary.counted.map(|counted| (counted.rows, counted.views)),
        Some((0, 0))
    );
}

#[test]
fn hostile_names_and_other_widths_are_copied() {
    let Some(database) = Database::rtd() else { return };
    database.run(
        r#"CREATE SCHEMA "My ""Schema";
           CREATE TABLE "My ""Schema"."t; DROP TABLE projects_project; --'" (
               "ID" smallint, "select" bigint, "pa""th" text, "%s'" smallint, "Dätum" date);
           INSERT INTO "My ""Schema"."t; DROP TABLE projects_project; --'" VALUES (7, 1, '/x', 9, '2026-07-01')"#,
    );
    let mut options = database.options();
    options.table = Table {
        schema: Some("My \"Schema".parse().unwrap()),
        name: "t; DROP TABLE projects_project; --'".parse().unwrap(),
    };
    let columns = &mut options.columns;
    columns.id = "ID".parse().unwrap();
    columns.project_id = "select".parse().unwrap();
    columns.path = "pa\"th".parse().unwrap();
    columns.view_count = "%s'".parse().unwrap();
    columns.date = "Dätum".parse().unwrap();
    (columns.version_id, columns.full_path, columns.status) = (None, None, None);
    options.versions = None;
    let (batches, summary) = read(options).unwrap();
    assert_eq!(ids(&batches), [7]);
    assert_eq!(batches[0].column(6).as_primitive::<Int16Type>().value(0), 200);
    assert_eq!(
        summary.counted.map(|counted| (counted.rows, counted.views)),
        Some((1, 9))
    );
    assert_eq!(
        database.run("SELECT count(*)::text FROM projects_project").as_deref(),
        Some("3")
    );
}

#[test]
fn a_missing_table_column_or_wrong_type_is_named() {
    let Some(database) = Database::rtd() else { return };
    let schema_error = |options: PostgresOptions| match read(options) {
        Err(Error::SourceSchema { column, message }) => (column.unwrap_or_default(), message),
        other => panic!("{other:?}"),
    };
    let mut options = database.options();
    options.table = "no_such_table".parse().unwrap();
    assert!(schema_error(options).1.contains("no_such_table"));
    let mut options = database.options();
    options.projects.table = "no_projects".parse().unwrap();
    assert!(schema_error(options).1.contains("no_projects"));
    let mut options = database.options();
    options.columns.full_path = Some("no_such_column".parse().unwrap());
    let (column, message) = schema_error(options);
    assert!(
        column == "no_such_column" && message.contains("no_such_column"),
        "{message}"
    );

    for (column, kind) in [
        ("date", "timestamp without time zone"),
        ("path", "bytea"),
        ("view_count", "numeric"),
        ("status", "text"),
        ("id", "uuid"),
    ] {
        let using = if kind == "uuid" {
            "gen_random_uuid()".to_owned()
        } else {
            format!("{column}::text::{kind}")
        };
        database.run(&format!(
            "DROP TABLE IF EXISTS other; CREATE TABLE other AS SELECT * FROM analytics_pageview;
             ALTER TABLE other ALTER {column} TYPE {kind} USING {using}"
        ));
        let mut options = database.options();
        options.table = "other".parse().unwrap();
        let (named, message) = schema_error(options);
        assert!(named == column && message.contains(kind), "{message}");
    }
}

#[test]
fn a_row_that_does_not_fit_is_named() {
    let Some(database) = Database::rtd() else { return };
    database.run(
        "CREATE TABLE loose (id bigint, project_id bigint, version_id bigint, path text, full_path text,
                             view_count bigint, date date, status integer)",
    );
    for (values, named) in [
        ("7, 5000000000, NULL, '/', NULL, 1, '2026-07-01', 200", "project_id"),
        ("7, 1, -5000000000, '/', NULL, 1, '2026-07-01', 200", "version_id"),
        ("7, 1, NULL, NULL, NULL, 1, '2026-07-01', 200", "path"),
        ("7, 1, NULL, '/', NULL, 2147483648, '2026-07-01', 200", "view_count"),
        ("7, 1, NULL, '/', NULL, -1, '2026-07-01', 200", "view_count"),
        ("7, 1, NULL, '/', NULL, NULL, '2026-07-01', 200", "view_count"),
        ("7, 1, NULL, '/', NULL, 1, '2026-07-01', 32768", "status"),
    ] {
        database.run(&format!("TRUNCATE loose; INSERT INTO loose VALUES ({values})"));
        let mut options = database.options();
        options.table = "loose".parse().unwrap();
        match read(options) {
            Err(Error::BadRow { row_id, column, .. }) => assert_eq!((row_id, column), (Some(7), named)),
            other => panic!("{values}: {other:?}"),
        }
    }
}

#[test]
fn text_that_is_not_utf8_in_a_database_without_encoding_is_named() {
    let Some(database) = Database::new("TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'") else {
        return;
    };
    database.run(
        "CREATE TABLE projects_project (id integer, slug text); CREATE TABLE builds_version (id integer, slug text);
         CREATE TABLE analytics_pageview (id bigint, project_id integer, version_id integer, path text,
             full_path text, view_count integer, date date, status integer);
         INSERT INTO projects_project VALUES (1, 'docs');
         INSERT INTO analytics_pageview VALUES (7, 1, NULL, '/' || convert_from('\\xc3a9', 'SQL_ASCII'), NULL, 1, '2026-07-01', 200)",
    );
    let (batches, _) = read(database.options()).unwrap();
    assert_eq!(batches[0].column(3).as_string::<i32>().value(0), "/é");
    database.run("UPDATE analytics_pageview SET path = convert_from('\\xe9', 'SQL_ASCII')");
    match read(database.options()) {
        Err(Error::BadRow { row_id, column, .. }) => assert_eq!((row_id, column), (Some(7), "path")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_id_without_a_slug_is_named() {
    let Some(database) = Database::rtd() else { return };
    database.run("ALTER TABLE analytics_pageview DROP CONSTRAINT analytics_pageview_project_id_fkey");
    database.insert("(1, 77, NULL, '/', NULL, 1, '2026-07-01', 200)");
    let error = read(database.options()).unwrap_err().to_string();
    assert!(
        error.contains("project 77") && error.contains("projects_project"),
        "{error}"
    );
}

#[test]
fn the_servers_refusals_say_what_to_do_and_never_the_password() {
    let Some(database) = Database::rtd() else { return };
    const SECRET: &str = "canary-Xy7";
    let rest = database.url().split_once('@').unwrap().1.to_owned();
    let server = rest.split('/').next().unwrap();
    let role = format!("r_{}", database.name);
    database.run(&format!("CREATE ROLE {role} LOGIN PASSWORD '{SECRET}'"));
    for (url, state, kind, named) in [
        (
            format!("postgresql://postgres:{SECRET}@{rest}"),
            Some("28P01"),
            Kind::Fix,
            "password",
        ),
        (
            format!("postgresql://{role}:{SECRET}@{server}/no_such_db"),
            Some("3D000"),
            Kind::Fix,
            "no_such_db",
        ),
        (
            format!("postgresql://{role}:{SECRET}@{rest}"),
            Some("42501"),
            Kind::Fix,
            "GRANT SELECT",
        ),
        (
            format!("postgresql://{role}:{SECRET}@127.0.0.1:1/x"),
            None,
            Kind::Retry,
            "127.0.0.1:1",
        ),
        (
            format!("postgresql://{role}:{SECRET}@no-such-host.invalid/x"),
            None,
            Kind::Retry,
            "no-such-host.invalid",
        ),
    ] {
        let error = read(PostgresOptions::new(&url).unwrap()).unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(!text.contains(SECRET), "{text}");
        assert!(text.to_lowercase().contains(&named.to_lowercase()), "{text}");
        assert_eq!(error.kind(), kind, "{text}");
        match error {
            Error::Database { sqlstate, .. } => assert_eq!(sqlstate.as_deref(), state, "{text}"),
            other => panic!("{other:?}"),
        }
    }
    run(&database.server, &format!("DROP ROLE {role}"));
}

/// A view whose every row takes 10 ms.
pub fn slow(database: &Database) -> PostgresOptions {
    database.run(
        "INSERT INTO analytics_pageview (project_id, path, view_count, date, status)
         SELECT 1, '/' || n, 1, '2026-07-01', 404 FROM generate_series(1, 3000) n;
         CREATE VIEW slow AS SELECT p.id, project_id, version_id, path || coalesce(pg_sleep(0.01)::text, '') AS path,
             full_path, view_count, date, status FROM analytics_pageview p",
    );
    let mut options = database.options();
    options.table = "slow".parse().unwrap();
    options
}

#[test]
fn a_statement_that_takes_too_long_is_ended_by_the_server() {
    let Some(database) = Database::rtd() else { return };
    let mut options = slow(&database);
    options.statement_timeout = Duration::from_millis(300);
    let error = read(options).unwrap_err();
    assert!(error.to_string().contains("statement_timeout"), "{error}");
    assert!(matches!(&error, Error::Database { sqlstate: Some(state), .. } if state == "57014"));
}

#[test]
fn a_lock_on_the_table_is_not_waited_for_longer_than_allowed() {
    let Some(database) = Database::rtd() else { return };
    let mut options = database.options();
    options.lock_timeout = Duration::from_millis(200);
    let target: Target = database.url().parse().unwrap();
    let cancel = Cancel::new();
    let mut holder = block_on(&cancel, connect(&target)).unwrap();
    let lock = "BEGIN; LOCK analytics_pageview IN ACCESS EXCLUSIVE MODE";
    block_on(&cancel, async {
        Ok(sqlx::raw_sql(lock).execute(&mut holder).await.unwrap())
    })
    .unwrap();
    let error = read(options).unwrap_err();
    assert!(
        matches!(&error, Error::Database { sqlstate: Some(state), retryable: true, .. } if state == "55P03"),
        "{error}"
    );
}

#[test]
fn cancelling_ends_the_wait_and_the_work_on_the_server() {
    let Some(database) = Database::rtd() else { return };
    let options = slow(&database);
    let cancel = Cancel::new();
    let stopper = cancel.clone();
    let started = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(700));
        stopper.cancel();
        Instant::now()
    });
    let error = PostgresSource::new(options)
        .read(day(), BadRows::Fail, &mut |_| Ok(()), &cancel)
        .unwrap_err();
    let waited = started.join().unwrap().elapsed();
    assert!(matches!(error, Error::Interrupted), "{error}");
    assert!(waited < Duration::from_secs(1), "{waited:?}");
    let busy = "SELECT count(*)::text FROM pg_stat_activity
                WHERE datname = current_database() AND application_name = 'parquet-analytics' AND query LIKE 'COPY%'";
    let until = Instant::now() + Duration::from_secs(5);
    while database.run(busy).as_deref() != Some("0") {
        assert!(Instant::now() < until, "the server still works on it");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_connection_that_is_cut_is_worth_another_try() {
    let Some(database) = Database::rtd() else { return };
    let options = slow(&database);
    let (server, name) = (database.server.clone(), database.name.clone());
    let killer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(700));
        run(
            &server,
            &format!(
                "SELECT count(pg_terminate_backend(pid))::text FROM pg_stat_activity WHERE datname = '{name}' AND query LIKE 'COPY%'"
            ),
        )
    });
    let error = read(options).unwrap_err();
    assert_eq!(killer.join().unwrap().as_deref(), Some("1"));
    assert_eq!(error.kind(), Kind::Retry, "{error}");
}

#[test]
fn an_error_of_the_sink_is_handed_back() {
    let Some(database) = Database::rtd() else { return };
    database.insert(THREE_ROWS);
    let mut sink = |_| Err(Error::invalid("full"));
    let error = PostgresSource::new(database.options()).read(day(), BadRows::Fail, &mut sink, &Cancel::new());
    assert_eq!(error.unwrap_err().to_string(), "full");
}

#[test]
fn a_unix_socket_works_in_both_forms() {
    let Some(database) = Database::rtd() else { return };
    let Some(socket) = services::unix_socket() else { return };
    database.insert(THREE_ROWS);
    let url = database.on(&socket);
    assert_eq!(ids(&read(PostgresOptions::new(&url).unwrap()).unwrap().0).len(), 3);
    let (login, place) = url.strip_prefix("postgresql://").unwrap().split_once('@').unwrap();
    let (user, password) = login.split_once(':').unwrap();
    let (folder, port) = place.split_once('/').unwrap().0.rsplit_once(':').unwrap();
    let folder = folder.replace("%2F", "/");
    let text = format!(
        "host={folder} port={port} user={user} password='{password}' dbname={}",
        database.name
    );
    assert_eq!(ids(&read(PostgresOptions::new(&text).unwrap()).unwrap().0).len(), 3);
}

#[test]
fn exports_in_turn_work_through_a_pooler_in_transaction_mode() {
    let Some(database) = Database::rtd() else { return };
    let Some(pooler) = services::pgbouncer() else { return };
    database.insert(THREE_ROWS);
    let url = database.on(&pooler);
    for _ in 0..3 {
        let (batches, summary) = read(PostgresOptions::new(&url).unwrap()).unwrap();
        assert_eq!(ids(&batches).len(), 3);
        assert_eq!(summary.counted.unwrap().rows, 3);
    }
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(ids(&read(PostgresOptions::new(&url).unwrap()).unwrap().0).len(), 3));
        }
    });
    // SET LOCAL left nothing behind for the next client of the same server connection.
    assert_eq!(run(&url, "SHOW statement_timeout").as_deref(), Some("0"));
}

#[test]
fn tls_modes_check_what_libpq_checks() {
    let Some(tls) = services::tls() else { return };
    let text = |name: &str| tls[name].as_str().unwrap().to_owned();
    let (ca, other, port) = (text("ca"), text("other_ca"), tls["port"].as_u64().unwrap());
    let try_to = |host: &str, rest: &str| -> Result<bool> {
        let connection = format!(
            "host={host} port={port} dbname={} user={} password={} {rest}",
            text("database"),
            text("tls_user"),
            text("password")
        );
        let target: Target = connection.parse()?;
        block_on(&Cancel::new(), async {
            let mut connection = connect(&target).await?;
            let sql = "SELECT ssl::text FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
            let row = sqlx::raw_sql(sql).fetch_one(&mut connection).await.unwrap();
            Ok(row.get::<String, _>(0) == "true")
        })
    };
    let (ip, name) = (text("ip"), text("host"));
    for (host, rest) in [
        (&ip, String::new()),
        (&ip, "sslmode=allow".to_owned()),
        (&ip, "sslmode=prefer".to_owned()),
        (&ip, "sslmode=require".to_owned()),
        (&ip, format!("sslmode=require sslrootcert={ca}")),
        (&ip, format!("sslmode=verify-ca sslrootcert={ca}")),
        (&name, format!("sslmode=verify-ca sslrootcert={ca}")),
        (&name, format!("sslmode=verify-full sslrootcert={ca}")),
    ] {
        assert!(try_to(host, rest.as_str()).unwrap(), "{host} {rest}");
    }
    for (host, rest) in [
        (&ip, format!("sslmode=require sslrootcert={other}")),
        (&ip, format!("sslmode=verify-ca sslrootcert={other}")),
        (&name, format!("sslmode=verify-full sslrootcert={other}")),
        (&ip, format!("sslmode=verify-full sslrootcert={ca}")),
        (&name, "sslmode=verify-full".to_owned()),
        (&name, "sslrootcert=system".to_owned()),
    ] {
        let error = try_to(host, rest.as_str()).unwrap_err();
        assert_eq!(error.kind(), Kind::Fix, "{host} {rest}: {error}");
        assert!(error.to_string().contains("certificate"), "{error}");
    }
    assert!(
        try_to(&ip, "sslmode=disable").is_err(),
        "this user is refused without TLS"
    );

    let (cert, key, user) = (text("client_cert"), text("client_key"), text("cert_user"));
    let client = format!("user={user} sslcert={cert} sslkey={key}");
    for rest in [
        "sslmode=require".to_owned(),
        format!("sslmode=verify-full sslrootcert={ca}"),
    ] {
        assert!(try_to(&name, &format!("{client} {rest}")).unwrap(), "{rest}");
        assert!(try_to(&name, &format!("user={user} {rest}")).is_err(), "{rest}");
    }
}

#[test]
fn rows_flow_through_verified_tls() {
    let (Some(database), Some(tls)) = (Database::rtd(), services::tls()) else {
        return;
    };
    database.run(
        "INSERT INTO analytics_pageview (project_id, path, full_path, view_count, date, status)
         SELECT 1, '/' || n, repeat('x', 200), 1, '2026-07-01', 200 FROM generate_series(1, 150000) n",
    );
    let text = |name: &str| tls[name].as_str().unwrap();
    let connection = format!(
        "host={} port={} dbname={} user={} password={} sslmode=verify-full sslrootcert={}",
        text("host"),
        tls["port"],
        database.name,
        text("tls_user"),
        text("password"),
        text("ca")
    );
    let (batches, summary) = read(PostgresOptions::new(&connection).unwrap()).unwrap();
    assert_eq!(ids(&batches), (1..=150_000).collect::<Vec<_>>());
    assert_eq!(summary.counted.unwrap().rows, 150_000);
}

/// `cargo test --release --test core -- --ignored copying_speed --nocapture`
#[test]
#[ignore = "a measurement"]
fn copying_speed() {
    let Some(database) = Database::rtd() else { return };
    database.run(
        "INSERT INTO analytics_pageview (project_id, version_id, path, full_path, view_count, date, status)
         SELECT 1 + n % 2, 10, '/reference/module_' || n || '.html', '/en/latest/reference/module_' || n || '.html',
                n % 100, '2026-07-01', 200 FROM generate_series(1, 1000000) n;
         ANALYZE analytics_pageview",
    );
    database.run("VACUUM ANALYZE analytics_pageview");
    let psql = |sql: &str| {
        let started = Instant::now();
        let done = std::process::Command::new("psql")
            .args([database.url().as_str(), "-qc", sql])
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
        started.elapsed()
    };
    for _ in 0..6 {
        let started = Instant::now();
        let mut rows = 0;
        let mut copied = Duration::ZERO;
        let mut sink = |batch: RecordBatch| {
            rows += batch.num_rows();
            copied = started.elapsed();
            Ok(())
        };
        PostgresSource::new(database.options())
            .read(day(), BadRows::Fail, &mut sink, &Cancel::new())
            .unwrap();
        let all = started.elapsed();
        let started = Instant::now();
        PostgresSource::new(database.options())
            .count(day(), &Cancel::new())
            .unwrap();
        let counted = started.elapsed();
        let plain = psql(
            "\\copy (SELECT id, project_id, version_id, path, full_path, view_count, status FROM analytics_pageview
             WHERE date = '2026-07-01') TO /dev/null (FORMAT binary)"
                .replace('\n', " ")
                .as_str(),
        );
        let ratio = copied.as_secs_f64() / plain.as_secs_f64();
        println!(
            "{rows} rows: copy {copied:.0?}, psql {plain:.0?} (ratio {ratio:.2}), read {all:.0?}, count {counted:.0?}"
        );
    }
}
