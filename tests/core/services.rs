//! The real servers that `python -m tests.services run` has started around the tests.
//!
//! Under a bare `cargo test` there are none: a test that asks for one gets `None` and returns. Who used or missed
//! which server goes to the record file, from which the runner prints the counts; that is why tests ask here.
#![allow(dead_code)]

use std::fs::OpenOptions;
use std::io::Write;

use serde_json::Value;

/// The superuser's URL of a PostgreSQL server. `CREATE DATABASE x TEMPLATE rtd` has tests/rtd_schema.sql's tables.
pub fn postgres() -> Option<String> {
    ask("postgres", "PARQUET_ANALYTICS_TEST_POSTGRES")
}

/// The same server's URL through its unix socket.
pub fn unix_socket() -> Option<String> {
    ask("postgres", "PARQUET_ANALYTICS_TEST_UNIX_SOCKET")
}

/// The same server's URL through pgbouncer in transaction mode.
pub fn pgbouncer() -> Option<String> {
    ask("pgbouncer", "PARQUET_ANALYTICS_TEST_PGBOUNCER")
}

/// host, ip, port, database, password, tls_user, cert_user, ca, other_ca, client_cert, client_key.
pub fn tls() -> Option<Value> {
    ask("tls", "PARQUET_ANALYTICS_TEST_TLS").map(|text| serde_json::from_str(&text).unwrap())
}

/// endpoint_url, region, bucket, access_key_id, secret_access_key; the two keys again in `readonly` and `denied`.
pub fn s3() -> Option<Value> {
    ask("s3", "PARQUET_ANALYTICS_TEST_S3").map(|text| serde_json::from_str(&text).unwrap())
}

fn ask(service: &str, variable: &str) -> Option<String> {
    let found = std::env::var(variable).ok();
    let test = std::thread::current().name().unwrap_or("unnamed").to_owned();
    let outcome = if found.is_some() { "used" } else { "skipped" };
    if let Ok(record) = std::env::var("PARQUET_ANALYTICS_TEST_RECORD") {
        let mut file = OpenOptions::new().append(true).create(true).open(record).unwrap();
        // One write per line: tests run in parallel and in several processes.
        file.write_all(format!("{outcome}\t{service}\trust\t{test}\n").as_bytes())
            .unwrap();
    } else if found.is_none() {
        // Written past the harness's capture, so that a skipped test is seen.
        let _ = writeln!(
            std::io::stderr(),
            "skipped {test}: no {service}; run it by `python -m tests.services run -- cargo test`"
        );
    }
    found
}
