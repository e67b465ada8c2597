//! libpq's connection strings: what they mean, and what is refused.

use std::collections::HashMap;

use parquet_analytics::base::error::Error;
use parquet_analytics::source::postgres::config::{Identifier, Table};
use parquet_analytics::source::postgres::{PostgresOptions, Target};

const SECRET: &str = "s3cr3t-canary";

fn target(connection: &str) -> Target {
    Target::parse(connection, |_| None).unwrap()
}

fn refused(connection: &str) -> String {
    match Target::parse(connection, |_| None) {
        Err(Error::Configuration { message }) => message,
        other => panic!("{connection}: {other:?}"),
    }
}

#[test]
fn urls_are_read_as_libpq_does() {
    for (url, shown, user) in [
        (
            "postgresql://u@db.example/views",
            "postgresql://db.example:5432/views",
            "u",
        ),
        (
            "postgres://u:p@db.example:6432/views",
            "postgresql://db.example:6432/views",
            "u",
        ),
        ("postgresql://u@[::1]:6432/views", "postgresql://[::1]:6432/views", "u"),
        (
            "postgresql://u%40corp@h/my%2Fviews",
            "postgresql://h:5432/my/views",
            "u@corp",
        ),
        ("postgresql://u@h", "postgresql://h:5432/u", "u"),
        (
            "postgresql://h/views?user=u&port=7000",
            "postgresql://h:7000/views",
            "u",
        ),
        ("postgresql://h?user=u&dbname=views", "postgresql://h:5432/views", "u"),
        (
            "postgresql://u@/views?host=/run/pg",
            "postgresql://%2Frun%2Fpg:5432/views",
            "u",
        ),
        (
            "postgresql://u@%2Frun%2Fpg:5433/views",
            "postgresql://%2Frun%2Fpg:5433/views",
            "u",
        ),
        (
            "postgresql:///views?host=h&user=a+b",
            "postgresql://h:5432/views",
            "a+b",
        ),
        (
            "postgresql://u@name/views?hostaddr=10.0.0.1",
            "postgresql://10.0.0.1:5432/views",
            "u",
        ),
    ] {
        let target = target(url);
        assert_eq!((target.shown().as_str(), target.user()), (shown, user), "{url}");
    }
}

#[test]
fn key_value_strings_are_read_as_libpq_does() {
    for (text, shown, user) in [
        ("host=h user=u dbname=views", "postgresql://h:5432/views", "u"),
        (
            "  host = h\tport=6000\nuser=u dbname = 'my views' ",
            "postgresql://h:6000/my views",
            "u",
        ),
        (
            r"host=h user='it\'s \\ me' dbname=v",
            "postgresql://h:5432/v",
            r"it's \ me",
        ),
        (r"host=h user=a\ b dbname=v", "postgresql://h:5432/v", "a b"),
        ("host=/run/pg user=u dbname=v", "postgresql://%2Frun%2Fpg:5432/v", "u"),
        ("host=h user=u dbname=a dbname=b", "postgresql://h:5432/b", "u"),
        ("host=h user=u password='' dbname=b", "postgresql://h:5432/b", "u"),
    ] {
        let target = target(text);
        assert_eq!((target.shown().as_str(), target.user()), (shown, user), "{text}");
    }
}

#[test]
fn the_environment_fills_in_what_the_string_leaves_open() {
    let environment = HashMap::from([("PGHOST", "from-env"), ("PGUSER", "eve"), ("PGDATABASE", "views")]);
    let parse = |text| Target::parse(text, |name| environment.get(name).map(|value| (*value).to_owned())).unwrap();
    assert_eq!(parse("").shown(), "postgresql://from-env:5432/views");
    assert_eq!(parse("").user(), "eve");
    assert_eq!(parse("host=given user=u").shown(), "postgresql://given:5432/views");
    assert_eq!(parse("host=given user=u").user(), "u");
    let error = Target::parse("host=h", |name| (name == "PGOPTIONS").then(|| "-F".into())).unwrap_err();
    assert!(error.to_string().contains("options"), "{error}");
}

#[test]
fn what_is_not_supported_is_refused_by_name_without_its_value() {
    for (text, named) in [
        (format!("host=h channel_binding={SECRET}"), "channel_binding"),
        (format!("postgresql://h/d?krbsrvname={SECRET}"), "krbsrvname"),
        (format!("postgresql://h/d?options=-c%20{SECRET}"), "options"),
        (format!("postgresql://u:{SECRET}@h1:1,h2:2/d"), "several hosts"),
        (format!("host=h1,h2 password={SECRET}"), "several hosts"),
        (
            format!("host=h target_session_attrs=read-write password={SECRET}"),
            "target_session_attrs",
        ),
        (format!("host=h passfile={SECRET}"), "passfile"),
        (format!("host=h port={SECRET}"), "port"),
        (format!("host=h sslmode={SECRET}"), "sslmode"),
        (format!("host=h connect_timeout={SECRET}"), "connect_timeout"),
        (format!("host=h hostaddr={SECRET}"), "hostaddr"),
        (format!("host=h dbname=postgresql://u:{SECRET}@h"), "dbname"),
        (format!("host=h password='{SECRET}"), "quoted value"),
        (format!("host=h {SECRET}"), "'='"),
        (format!("postgresql://u:{SECRET}@x@h/d"), "'@'"),
        (format!("postgresql://u:1/{SECRET}@h/d"), "'@'"),
        (format!("postgresql://u:{SECRET}%ff@h/d"), "UTF-8"),
        (format!("postgresql://u:{SECRET}%00@h/d"), "NUL"),
        (format!("mysql://u:{SECRET}@h/d"), "postgresql://"),
        ("host=h sslmode=verify-ca".into(), "sslrootcert"),
        ("host=h sslmode=require sslrootcert=system".into(), "verify-full"),
        ("host=h sslrootcert=/no/such/file".into(), "/no/such/file"),
        ("host=h hostaddr=10.0.0.1 sslmode=verify-full".into(), "hostaddr"),
    ] {
        let message = refused(&text);
        assert!(message.contains(named), "{text}: {message}");
        assert!(!message.contains(SECRET), "{message}");
    }
}

#[test]
fn debug_output_shows_no_password() {
    let url = format!("postgresql://u:{SECRET}@h/d");
    for shown in [
        format!("{:?}", target(&url)),
        format!("{:?}", PostgresOptions::new(&url).unwrap()),
        format!(
            "{:?}",
            parquet_analytics::source::postgres::PostgresSource::new(PostgresOptions::new(&url).unwrap())
        ),
    ] {
        assert!(shown.contains("h:5432/d") && !shown.contains(SECRET), "{shown}");
    }
}

#[test]
fn identifiers_are_quoted_and_nul_is_refused() {
    let name: Identifier = r#"a"; DROP TABLE x; --"#.parse().unwrap();
    assert_eq!(name.to_string(), r#""a""; DROP TABLE x; --""#);
    let table = Table {
        schema: Some("S".parse().unwrap()),
        name: "t.u".parse().unwrap(),
    };
    assert_eq!(table.to_string(), r#""S"."t.u""#);
    for bad in ["", "a\0b"] {
        assert!(
            matches!(bad.parse::<Identifier>(), Err(Error::Configuration { .. })),
            "{bad:?}"
        );
    }
}
