//! What the engine refuses, what cannot leak from one statement to the next, and what a fork leaves behind.

use std::process::Command;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::Int64Type;
use parquet_analytics::engine::{Limits, Params};

use crate::engine::{ask, ask_with, memory, refusal};

#[test]
fn no_statement_reaches_files_or_the_network() {
    let relation = Arc::new(memory(1, 1, 10));
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret.csv");
    std::fs::write(&secret, "word\nopen-sesame\n").unwrap();
    let (secret, target) = (secret.display(), folder.path().join("written").display().to_string());
    let statements = [
        format!("SELECT * FROM read_csv('{secret}')"),
        format!("SELECT * FROM '{secret}'"),
        format!("FROM \"{secret}\""),
        format!("SELECT * FROM read_text('{secret}')"),
        format!("SELECT * FROM read_blob('{secret}')"),
        format!("SELECT * FROM read_parquet('{secret}')"),
        format!("SELECT * FROM read_json('{secret}')"),
        format!("SELECT * FROM read_duckdb('{secret}')"),
        format!("SELECT * FROM parquet_metadata('{secret}')"),
        format!("SELECT * FROM glob('{secret}')"),
        format!("SELECT * FROM sniff_csv('{secret}')"),
        format!("SELECT * FROM query('FROM read_csv(''{secret}'')')"),
        format!("SELECT * FROM query_table('{secret}')"),
        format!("SELECT * FROM enable_logging('QueryLog', storage = 'file', storage_path = '{target}')"),
        format!("SELECT * FROM enable_profiling(save_location = '{target}')"),
        format!("COPY (SELECT 1) TO '{target}'"),
        format!("WITH x AS (COPY (SELECT 1) TO '{target}') SELECT * FROM x"),
        format!("SELECT 1; COPY (SELECT 1) TO '{target}'"),
        format!("SELECT * FROM query('COPY (SELECT 1) TO ''{target}''')"),
        format!("ATTACH '{target}'"),
        format!("EXPORT DATABASE '{target}'"),
        format!("PRAGMA import_database('{secret}')"),
        "SELECT * FROM read_csv('https://127.0.0.1:1/x.csv')".to_owned(),
        "SELECT * FROM read_parquet('s3://bucket/x.parquet')".to_owned(),
        "SELECT getenv('HOME')".to_owned(),
    ];
    for sql in statements {
        let message = refusal(&relation, &sql);
        assert!(!message.contains("sesame"), "{sql}: {message}");
    }
    let left: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["secret.csv"]);
    assert!(ask(&relation, "SELECT * FROM duckdb_secrets()").unwrap().num_rows() == 0);
}

#[test]
fn only_one_reading_statement_is_accepted() {
    let relation = Arc::new(memory(1, 1, 10));
    let others = [
        "SET threads = 8",
        "SET VARIABLE x = 1",
        "RESET threads",
        "PRAGMA memory_limit = '10GB'",
        "PRAGMA show_tables",
        "CREATE TABLE t (i INT)",
        "CREATE TEMP TABLE t AS SELECT 1",
        "CREATE MACRO f(x) AS x",
        "CREATE SEQUENCE s",
        "CREATE SECRET x (TYPE s3)",
        "INSERT INTO pageviews VALUES (1)",
        "UPDATE pageviews SET id = 1",
        "DELETE FROM pageviews",
        "DROP VIEW pageviews",
        "INSTALL httpfs",
        "LOAD httpfs",
        "CALL enable_logging()",
        "EXPLAIN ANALYZE SELECT 1",
        "BEGIN",
        "CHECKPOINT",
        "PREPARE v AS SELECT 1",
        "EXECUTE v",
        "USE temp",
        "SELECT 1; SELECT 2",
        "SELECT 1; DROP TABLE x",
        "/* SELECT */ DROP TABLE x",
        "-- SELECT\nDROP TABLE x",
        "",
        " ;; -- nothing",
        "/* not closed",
    ];
    for sql in others {
        let message = refusal(&relation, sql);
        assert!(message.contains("only one reading statement"), "{sql}: {message}");
    }
    // These begin as a read, and only DuckDB can tell.
    for sql in [
        "WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x",
        "WITH x AS (SELECT 1) DELETE FROM x",
    ] {
        refusal(&relation, sql);
    }
    let reads = [
        "SELECT 1;",
        " /* a */ -- b\n (SELECT 1) UNION SELECT 1 -- c",
        "with x as (select 1) from x",
        "VALUES (1)",
        "FROM pageviews SELECT 1 LIMIT 1",
        "SELECT count(*) FROM query_table('pageviews')",
        "PIVOT (SELECT 1 a, 2 b) ON a IN (1) USING sum(b)",
    ];
    for sql in reads {
        assert_eq!(ask(&relation, sql).unwrap().num_rows(), 1, "{sql}");
    }
}

#[test]
fn nothing_leaks_into_the_next_statement() {
    let relation = Arc::new(memory(1, 1, 10));
    // A size of memory that no other test uses, so that this test meets its own instance again.
    let limits = Limits {
        memory_bytes: 200 << 20,
        ..Limits::default()
    };
    let ask = |sql: &str| ask_with(&relation, sql, &Params::none(), &limits);
    ask("SELECT * FROM enable_logging(level = 'trace')").unwrap();
    ask("SELECT write_log('private words'), 'private' FROM pageviews").unwrap();
    assert_eq!(ask("SELECT * FROM duckdb_logs()").unwrap().num_rows(), 0);
    ask("SELECT setseed(0.5)").unwrap();
    let random = |sql: &str| {
        ask(sql)
            .unwrap()
            .column(0)
            .as_primitive::<arrow::datatypes::Float64Type>()
            .value(0)
    };
    let first = random("SELECT random() FROM (SELECT setseed(0.5))");
    assert_ne!(first, random("SELECT random()"));
    ask("SELECT * FROM enable_profiling()").unwrap();
    assert!(ask("SELECT getvariable('x')").unwrap().column(0).is_null(0));
    let tables = ask("SELECT count(*) FROM duckdb_tables()").unwrap();
    assert_eq!(tables.column(0).as_primitive::<Int64Type>().value(0), 0);
    let settings = "SELECT count(*) FROM duckdb_settings() WHERE (name, value) IN (('lock_configuration', 'true'), \
                    ('enable_external_access', 'false'), ('memory_limit', '200.0 MiB'), ('TimeZone', 'UTC'))";
    assert_eq!(ask(settings).unwrap().column(0).as_primitive::<Int64Type>().value(0), 4);
}

#[test]
fn huge_and_deeply_nested_texts_are_errors() {
    let relation = Arc::new(memory(1, 1, 10));
    assert!(refusal(&relation, &format!("SELECT 1 -- {}", "x".repeat(1 << 20))).contains("at most 1048576"));
    let nested =
        |open: &str, close: &str, depth: usize| format!("SELECT {}1{}", open.repeat(depth), close.repeat(depth));
    for depth in [900, 30_000] {
        for (open, close) in [
            ("abs(", ")"),
            ("[", "]"),
            ("(SELECT ", ")"),
            ("CASE WHEN true THEN ", " END"),
            ("1+", ""),
        ] {
            let sql = nested(open, close, depth);
            assert!(sql.len() < 1 << 20 && !refusal(&relation, &sql).is_empty());
        }
        let joined: Vec<String> = (0..depth).map(|n| format!("(SELECT 1) t{n}")).collect();
        assert!(!refusal(&relation, &format!("SELECT 1 FROM {}", joined.join(", "))).is_empty());
    }
    assert!(refusal(&relation, &"x ".repeat(5_000)).len() < 3_000);
}

unsafe extern "C" {
    fn fork() -> i32;
    fn waitpid(process: i32, status: *mut i32, options: i32) -> i32;
    fn _exit(status: i32) -> !;
}

/// Runs in a process of its own, started by the test below: only there is no other test's thread in the fork.
#[test]
#[ignore = "started by a_forked_child_answers_with_instances_of_its_own"]
fn forked() {
    let relation = Arc::new(memory(2, 2, 1_000));
    let count = |relation| ask(relation, "SELECT count(path) FROM pageviews").unwrap();
    let expected = count(&relation);
    let limits = Limits::default();
    let sql = "SELECT * FROM pageviews a, pageviews b";
    let cancel = parquet_analytics::base::runtime::Cancel::new();
    let mut open =
        parquet_analytics::engine::query(Arc::clone(&relation) as _, sql, &Params::none(), &limits, &cancel).unwrap();
    assert!(open.batches.next().unwrap().is_ok());
    // SAFETY: the child uses no lock that another thread of the parent could hold, and ends without unwinding.
    let child = unsafe { fork() };
    if child == 0 {
        let passed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            assert_eq!(count(&relation), expected);
            assert!(
                open.batches.next().is_none(),
                "a statement of the parent goes on in the parent only"
            );
            drop(open);
            assert_eq!(count(&relation), expected);
        }));
        // SAFETY: takes a number.
        unsafe { _exit(if passed.is_ok() { 0 } else { 1 }) };
    }
    let mut status = -1;
    // SAFETY: the status is a valid place for a number.
    unsafe { waitpid(child, &mut status, 0) };
    assert_eq!(status, 0);
    assert!(open.batches.next().unwrap().is_ok());
    drop(open);
    assert_eq!(count(&relation), expected);
}

#[test]
fn a_forked_child_answers_with_instances_of_its_own() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let arguments = ["--exact", "engine_sandbox::forked", "--ignored", "--test-threads=1"];
    let output = command.args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
