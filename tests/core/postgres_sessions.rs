//! Other sessions beside an export: what they write, lock and cancel, and what the export leaves behind on the server.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int32Type;
use parquet_analytics::archive::export::{ExportOptions, Progress, export};
use parquet_analytics::base::error::{Error, Kind};
use parquet_analytics::base::runtime::{Cancel, block_on};
use parquet_analytics::source::postgres::connect::connect;
use parquet_analytics::source::postgres::{PostgresOptions, PostgresSource, Target};
use parquet_analytics::source::{BadRows, Source};
use parquet_analytics::store::{Part, Precondition, Response};
use sqlx::Row;
use sqlx::postgres::PgConnection;

use crate::postgres::{Database, THREE_ROWS, ids, read, run, slow};
use crate::support::day;
use crate::{files, services};

/// A session that stays open.
struct Session(PgConnection);

impl Session {
    fn open(url: &str) -> Self {
        let target: Target = url.parse().unwrap();
        Self(block_on(&Cancel::new(), connect(&target)).unwrap())
    }

    fn run(&mut self, sql: &str) -> Option<String> {
        let run = async { Ok(sqlx::raw_sql(sql).fetch_all(&mut self.0).await.expect(sql)) };
        let rows = block_on(&Cancel::new(), run).unwrap();
        rows.first().and_then(|row| row.try_get::<String, _>(0).ok())
    }
}

/// Waits until the number of other sessions on the database for which `condition` holds is `count`.
fn wait_for_sessions(database: &Database, condition: &str, count: u32) {
    let name = database.name();
    let sql = format!(
        "SELECT count(*)::text FROM pg_stat_activity
         WHERE datname = '{name}' AND pid <> pg_backend_pid() AND ({condition})"
    );
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let found = run(&services::postgres().unwrap(), &sql).unwrap();
        if found == count.to_string() {
            return;
        }
        assert!(
            Instant::now() < until,
            "{found} sessions instead of {count}: {condition}"
        );
        std::thread::sleep(Duration::from_millis(30));
    }
}

fn fill(database: &Database, rows: u32) {
    database.run(&format!(
        "INSERT INTO analytics_pageview (project_id, version_id, path, view_count, date, status)
         SELECT 1, 10, '/' || n, 2, '2026-07-01', 200 FROM generate_series(1, {rows}) n"
    ));
}

#[test]
fn what_is_written_during_the_copy_is_neither_copied_nor_counted() {
    let Some(database) = Database::rtd() else { return };
    fill(&database, 100_000);
    let mut batches: Vec<RecordBatch> = Vec::new();
    let mut sink = |batch| {
        if batches.is_empty() {
            // The first batch is full while most rows are still to come.
            let write = || {
                database.run(
                    "INSERT INTO analytics_pageview (project_id, path, view_count, date, status)
                         VALUES (2, '/late', 1000, '2026-07-01', 200);
                     UPDATE analytics_pageview SET view_count = view_count + 1;
                     DELETE FROM analytics_pageview WHERE id % 3 = 0",
                )
            };
            // On a thread of its own: this one drives the copy.
            std::thread::scope(|scope| scope.spawn(write).join().unwrap());
        }
        batches.push(batch);
        Ok(())
    };
    let summary = PostgresSource::new(database.options())
        .read(day(), BadRows::Fail, &mut sink, &Cancel::new())
        .unwrap();
    assert!(batches.len() > 1, "the other session wrote before the end of the copy");
    assert_eq!(ids(&batches), (1..=100_000).collect::<Vec<_>>());
    let views = batches
        .iter()
        .flat_map(|batch| batch.column(5).as_primitive::<Int32Type>().values().to_vec());
    assert!(views.into_iter().all(|views| views == 2));
    assert_eq!(
        summary.counted.map(|counted| (counted.rows, counted.views)),
        Some((100_000, 200_000))
    );
    assert_eq!(
        summary.slugs.unwrap().projects.len(),
        1,
        "the late row's project is not asked for"
    );
}

#[test]
fn a_table_that_is_being_rewritten_is_read_whole_afterwards() {
    let Some(database) = Database::rtd() else { return };
    fill(&database, 100);
    let mut migration = Session::open(&database.url());
    migration.run("BEGIN; ALTER TABLE analytics_pageview ALTER view_count TYPE bigint");
    let options = database.options();
    let reading = std::thread::spawn(move || read(options));
    wait_for_sessions(&database, "wait_event_type = 'Lock'", 1);
    migration.run("COMMIT");
    let (batches, summary) = reading.join().unwrap().unwrap();
    assert_eq!(ids(&batches).len(), 100);
    assert_eq!(
        summary.counted.map(|counted| (counted.rows, counted.views)),
        Some((100, 200))
    );
}

#[test]
fn cancelling_ends_the_wait_for_a_lock_and_the_server_forgets_the_export() {
    let Some(database) = Database::rtd() else { return };
    let mut urls = vec![database.url()];
    if let Some(tls) = services::tls() {
        let place = database
            .url()
            .split_once('@')
            .unwrap()
            .1
            .replace("127.0.0.1", "localhost");
        let text = |name: &str| tls[name].as_str().unwrap();
        let (user, password, ca) = (text("tls_user"), text("password"), text("ca"));
        urls.push(format!(
            "postgresql://{user}:{password}@{place}?sslmode=verify-full&sslrootcert={ca}"
        ));
    }
    let mut holder = Session::open(&database.url());
    holder.run("BEGIN; LOCK analytics_pageview IN ACCESS EXCLUSIVE MODE");
    for url in urls {
        let mut options = PostgresOptions::new(&url).unwrap();
        options.lock_timeout = Duration::from_secs(600);
        let cancel = Cancel::new();
        let stop = cancel.clone();
        let reading = std::thread::spawn(move || {
            let result = PostgresSource::new(options).read(day(), BadRows::Fail, &mut |_| Ok(()), &cancel);
            (result.unwrap_err(), Instant::now())
        });
        wait_for_sessions(&database, "wait_event_type = 'Lock'", 1);
        let stopped = Instant::now();
        stop.cancel();
        let (error, ended) = reading.join().unwrap();
        assert!(matches!(error, Error::Interrupted), "{error}");
        assert!(ended - stopped < Duration::from_secs(1), "{:?}", ended - stopped);
        wait_for_sessions(&database, "wait_event_type = 'Lock'", 0);
    }
}

#[test]
fn no_connection_stays_open() {
    let Some(database) = Database::rtd() else { return };
    database.insert(THREE_ROWS);
    let mut source = PostgresSource::new(database.options());
    let cancel = Cancel::new();
    for _ in 0..3 {
        source.read(day(), BadRows::Fail, &mut |_| Ok(()), &cancel).unwrap();
        source.count(day(), &cancel).unwrap();
        source.organizations(&cancel).unwrap();
        let full = source.read(day(), BadRows::Fail, &mut |_| Err(Error::invalid("full")), &cancel);
        assert_eq!(full.unwrap_err().to_string(), "full");
        let mut missing = database.options();
        missing.table = "missing".parse().unwrap();
        assert!(read(missing).is_err());
    }
    wait_for_sessions(&database, "true", 0);
}

/// An export whose COPY fails in the middle, at `end` or by the options' own limits.
fn failing_export(database: &Database, options: PostgresOptions, end: Option<&str>) -> Error {
    let store = files::store();
    let end = end.map(str::to_owned);
    let name = database.name().to_owned();
    let other = std::thread::spawn(move || {
        let sql = format!(
            "SELECT count({}(pid))::text FROM pg_stat_activity WHERE datname = '{name}' AND state = 'active'
                 AND query LIKE 'COPY%' AND query_start < now() - interval '200 ms'",
            end?
        );
        let until = Instant::now() + Duration::from_secs(10);
        while run(&services::postgres()?, &sql).as_deref() != Some("1") {
            assert!(Instant::now() < until, "no COPY to end");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(())
    });
    let mut source = PostgresSource::new(options);
    let result = export(
        &mut source,
        &store,
        day(),
        &ExportOptions::default(),
        &Progress::default(),
        &Cancel::new(),
    );
    other.join().unwrap();
    let key = files::key(day());
    let stored = store.get(&key, Part::All, Precondition::None);
    assert!(!matches!(block_on(&Cancel::new(), stored).unwrap(), Response::Found(_)));
    result.unwrap_err()
}

#[test]
fn a_copy_that_ends_in_the_middle_leaves_no_file_and_says_why() {
    let Some(database) = Database::rtd() else { return };
    let options = slow(&database);
    let mut short = options.clone();
    short.statement_timeout = Duration::from_millis(300);
    for (options, end, state) in [
        (short, None, Some("57014")),
        (options.clone(), Some("pg_cancel_backend"), Some("57014")),
        (options, Some("pg_terminate_backend"), None),
    ] {
        let error = failing_export(&database, options, end);
        assert_eq!(error.kind(), Kind::Retry, "{end:?}: {error}");
        match error.inner() {
            // The message of a connection that is cut does not always arrive before the cut.
            Error::Database { sqlstate, .. } => assert!(state.is_none() || sqlstate.as_deref() == state, "{error}"),
            other => panic!("{end:?}: {other:?}"),
        }
    }
}

#[test]
fn rows_are_counted_beforehand_only_for_those_who_want_a_total() {
    let Some(database) = Database::rtd() else { return };
    database.insert(THREE_ROWS);
    for (progress, total) in [(Progress::default(), None), (Progress::with_total(), Some(3))] {
        export(
            &mut PostgresSource::new(database.options()),
            &files::store(),
            day(),
            &ExportOptions::default(),
            &progress,
            &Cancel::new(),
        )
        .unwrap();
        assert_eq!(progress.rows(), (3, total));
    }
}

#[test]
fn a_pooler_serves_counts_and_exports_at_once_and_keeps_none_of_their_settings() {
    let Some(database) = Database::rtd() else { return };
    let Some(pooler) = services::pgbouncer() else { return };
    fill(&database, 70_000);
    let url = database.on(&pooler);
    let together = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut source = PostgresSource::new(PostgresOptions::new(&url).unwrap());
                assert_eq!(source.count(day(), &Cancel::new()).unwrap(), Some(70_000));
                let mut waited = false;
                // Each is in the middle of its copy when the other is: two server connections at once.
                let mut sink = |_| {
                    if !std::mem::replace(&mut waited, true) {
                        together.wait();
                    }
                    Ok(())
                };
                let summary = source.read(day(), BadRows::Fail, &mut sink, &Cancel::new()).unwrap();
                assert_eq!(summary.counted.unwrap().rows, 70_000);
                assert_eq!(source.count(day(), &Cancel::new()).unwrap(), Some(70_000));
            });
        }
    });

    // Two clients in a transaction each have both of the pool's server connections.
    let mut clients = [Session::open(&url), Session::open(&url)];
    let mut settings: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for client in &mut clients {
        client.run("BEGIN");
        for name in [
            "statement_timeout",
            "lock_timeout",
            "transaction_read_only",
            "transaction_isolation",
            "client_connection_check_interval",
            "idle_in_transaction_session_timeout",
        ] {
            let value = client.run(&format!("SELECT current_setting('{name}', true)"));
            settings.entry(name.to_owned()).or_default().extend(value);
        }
        let pid = client.run("SELECT pg_backend_pid()::text");
        settings.entry("pid".to_owned()).or_default().extend(pid);
    }
    let pids = settings.remove("pid").unwrap();
    assert_ne!(pids[0], pids[1]);
    assert_eq!(settings["transaction_isolation"], ["read committed", "read committed"]);
    assert_eq!(settings["transaction_read_only"], ["off", "off"]);
    for name in [
        "statement_timeout",
        "lock_timeout",
        "client_connection_check_interval",
        "idle_in_transaction_session_timeout",
    ] {
        assert!(
            settings[name].iter().all(|value| value == "0"),
            "{name}: {:?}",
            settings[name]
        );
    }
}
