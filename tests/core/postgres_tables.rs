//! What may stand in the place of a table of page views: other kinds of relations, types and privileges.

use arrow::array::{Array, AsArray};
use arrow::datatypes::Int32Type;
use parquet_analytics::base::error::{Error, Kind};
use parquet_analytics::base::runtime::{Cancel, block_on};
use parquet_analytics::source::Source;
use parquet_analytics::source::postgres::config::Table;
use parquet_analytics::source::postgres::connect::connect;
use parquet_analytics::source::postgres::{PostgresOptions, PostgresSource, Target};

use crate::postgres::{Database, THREE_ROWS, ids, read};
use crate::services;
use crate::support::day;

/// The three rows of the day in `table`.
fn read_whole(database: &Database, table: &str) {
    let mut options = database.options();
    options.table = table.parse().unwrap();
    let (batches, summary) = read(options.clone()).unwrap_or_else(|error| panic!("{table}: {error}"));
    assert_eq!(ids(&batches), [1, 3, i64::MAX], "{table}");
    let views = i64::from(i32::MAX) + 5;
    assert_eq!(
        summary.counted.map(|counted| (counted.rows, counted.views)),
        Some((3, views)),
        "{table}"
    );
    let mut source = PostgresSource::new(options);
    let counted = source.count(day(), &Cancel::new());
    assert_eq!(counted.unwrap(), Some(3), "{table}");
}

#[test]
fn views_and_partitioned_tables_are_read_like_tables() {
    let Some(database) = Database::rtd() else { return };
    database.insert(THREE_ROWS);
    database.run(
        "CREATE VIEW a_view AS SELECT *, 1 AS more FROM analytics_pageview;
         CREATE MATERIALIZED VIEW stored AS SELECT * FROM analytics_pageview;
         CREATE TABLE parts (LIKE analytics_pageview) PARTITION BY RANGE (date);
         CREATE TABLE parts_6 PARTITION OF parts FOR VALUES FROM ('2026-06-01') TO ('2026-07-01');
         CREATE TABLE parts_7 PARTITION OF parts FOR VALUES FROM ('2026-07-01') TO ('2026-08-01')
             PARTITION BY LIST (status);
         CREATE TABLE parts_7_404 PARTITION OF parts_7 FOR VALUES IN (404);
         CREATE TABLE parts_7_rest PARTITION OF parts_7 DEFAULT;
         INSERT INTO parts SELECT * FROM analytics_pageview;
         CREATE UNLOGGED TABLE parent (LIKE analytics_pageview);
         CREATE TABLE child () INHERITS (parent);
         INSERT INTO child SELECT * FROM analytics_pageview",
    );
    for table in ["a_view", "stored", "parts", "parent"] {
        read_whole(&database, table);
    }
}

#[test]
fn a_foreign_table_is_read_like_a_table() {
    let Some(database) = Database::rtd() else { return };
    if !has_extension(&database, "postgres_fdw") {
        return;
    }
    database.insert(THREE_ROWS);
    let url = database.url();
    let (login, place) = url.strip_prefix("postgresql://").unwrap().split_once('@').unwrap();
    let (user, password) = login.split_once(':').unwrap();
    let (host, port) = place.split_once('/').unwrap().0.split_once(':').unwrap();
    database.run(&format!(
        "CREATE EXTENSION postgres_fdw;
         CREATE SERVER itself FOREIGN DATA WRAPPER postgres_fdw
             OPTIONS (host '{host}', port '{port}', dbname '{}');
         CREATE USER MAPPING FOR CURRENT_USER SERVER itself OPTIONS (user '{user}', password '{password}');
         CREATE FOREIGN TABLE far (id bigint, project_id integer, version_id integer, path varchar(4096),
             full_path text, view_count integer, date date, status integer)
             SERVER itself OPTIONS (table_name 'analytics_pageview')",
        database.name()
    ));
    read_whole(&database, "far");
}

fn has_extension(database: &Database, name: &str) -> bool {
    let sql = format!("SELECT count(*)::text FROM pg_available_extensions WHERE name = '{name}'");
    database.run(&sql).as_deref() == Some("1")
}

#[test]
fn domains_over_domains_dropped_and_generated_columns_are_copied() {
    let Some(database) = Database::rtd() else { return };
    database.insert(THREE_ROWS);
    database.run(
        "CREATE DOMAIN small_number AS integer CHECK (VALUE >= 0);
         CREATE DOMAIN views AS small_number;
         CREATE DOMAIN url_path AS varchar(4096) CHECK (VALUE LIKE '/%');
         CREATE DOMAIN utc_day AS date;
         CREATE TABLE odd (gone text, id bigint, project_id small_number, version_id integer, path url_path,
             view_count views, date utc_day, status views,
             full_path text GENERATED ALWAYS AS ('/en' || path) STORED);
         ALTER TABLE odd DROP COLUMN gone;
         INSERT INTO odd SELECT id, project_id, version_id, path, view_count, date, status FROM analytics_pageview",
    );
    read_whole(&database, "odd");
    let mut options = database.options();
    options.table = "odd".parse().unwrap();
    let (batches, _) = read(options).unwrap();
    let (paths, full) = (batches[0].column(3), batches[0].column(4));
    for row in 0..3 {
        let path = paths.as_string::<i32>().value(row);
        assert_eq!(full.as_string::<i32>().value(row), format!("/en{path}"));
    }

    let mut options = database.options();
    options.table = "odd".parse().unwrap();
    options.columns.full_path = Some("gone".parse().unwrap());
    let error = read(options).unwrap_err();
    assert!(
        matches!(&error, Error::SourceSchema { column: Some(column), .. } if column == "gone"),
        "{error}"
    );
}

#[test]
fn citext_is_text_in_whichever_schema_it_lives() {
    let Some(database) = Database::rtd() else { return };
    if !has_extension(&database, "citext") {
        return;
    }
    database.insert(THREE_ROWS);
    database.run(
        "CREATE SCHEMA extensions; CREATE EXTENSION citext SCHEMA extensions;
         CREATE TABLE folded (LIKE analytics_pageview);
         ALTER TABLE folded ALTER path TYPE extensions.citext;
         INSERT INTO folded SELECT * FROM analytics_pageview",
    );
    read_whole(&database, "folded");
}

#[test]
fn names_may_hold_backslashes_whatever_the_server_makes_of_them() {
    let Some(database) = Database::rtd() else { return };
    database.insert(THREE_ROWS);
    database.run(r#"CREATE TABLE "back\slash'\" AS SELECT * FROM analytics_pageview"#);
    for setting in ["on", "off"] {
        let name = database.name();
        database.run(&format!(
            "ALTER DATABASE {name} SET standard_conforming_strings = {setting}"
        ));
        read_whole(&database, r"back\slash'\");
    }
}

/// A role that may only do what `grants` says, and its URL. Dropped with [`drop_role`].
fn role(database: &Database, grants: &str) -> (String, String) {
    let role = format!("only_{}", database.name());
    let grants = grants.replace("ROLE", &role);
    database.run(&format!("CREATE ROLE {role} LOGIN PASSWORD 'limited'; {grants}"));
    let url = database.url();
    let place = url.split_once('@').unwrap().1;
    let url = format!("postgresql://{role}:limited@{place}");
    (role, url)
}

fn drop_role(database: &Database, role: &str) {
    database.run(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
}

#[test]
fn the_right_to_read_the_copied_columns_is_enough() {
    let Some(database) = Database::rtd() else { return };
    database.insert(THREE_ROWS);
    let (role, url) = role(
        &database,
        "GRANT SELECT (id, project_id, version_id, path, full_path, view_count, date, status) ON analytics_pageview TO ROLE;
         GRANT SELECT (id, slug) ON projects_project, builds_version TO ROLE",
    );
    let result = read(PostgresOptions::new(&url).unwrap());
    drop_role(&database, &role);
    assert_eq!(ids(&result.unwrap().0), [1, 3, i64::MAX]);
}

#[test]
fn a_schema_that_may_not_be_used_is_a_question_of_grants() {
    let Some(database) = Database::rtd() else { return };
    database.run("CREATE SCHEMA closed; CREATE TABLE closed.views (LIKE analytics_pageview)");
    let (role, url) = role(&database, "GRANT SELECT ON ALL TABLES IN SCHEMA closed TO ROLE");
    let mut options = PostgresOptions::new(&url).unwrap();
    options.table = Table {
        schema: Some("closed".parse().unwrap()),
        name: "views".parse().unwrap(),
    };
    let result = read(options);
    drop_role(&database, &role);
    let error = result.unwrap_err();
    assert_eq!(error.kind(), Kind::Fix);
    assert!(error.to_string().contains("USAGE"), "{error}");
}

#[test]
fn a_slug_that_is_not_utf8_is_named() {
    let Some(database) = Database::new("TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'") else {
        return;
    };
    database.run(
        "CREATE TABLE projects_project (id integer, slug text);
         CREATE TABLE analytics_pageview (id bigint, project_id integer, path text, view_count integer, date date);
         INSERT INTO projects_project VALUES (1, convert_from('\\xe9', 'SQL_ASCII'));
         INSERT INTO analytics_pageview VALUES (7, 1, '/', 1, '2026-07-01')",
    );
    let mut options = database.options();
    options.versions = None;
    let columns = &mut options.columns;
    (columns.version_id, columns.full_path, columns.status) = (None, None, None);
    let error = read(options).unwrap_err();
    assert!(
        matches!(&error, Error::SourceSchema { message, .. } if message.contains("project 1") && message.contains("UTF-8")),
        "{error}"
    );
}

#[test]
fn versions_without_a_table_of_their_slugs_are_refused() {
    let Some(database) = Database::rtd() else { return };
    database.insert(THREE_ROWS);
    let mut options = database.options();
    options.versions = None;
    let error = read(options.clone()).unwrap_err();
    assert_eq!(error.kind(), Kind::Fix);
    assert!(error.to_string().contains("versions"), "{error}");

    options.columns.version_id = None;
    let (batches, _) = read(options).unwrap();
    assert_eq!(batches[0].column(2).as_primitive::<Int32Type>().null_count(), 3);
}

#[test]
fn organizations_are_read_with_their_projects() {
    let Some(database) = Database::rtd() else { return };
    database.run(
        "INSERT INTO organizations_organization (id, name, slug) VALUES (1, 'A', 'acme'), (2, 'B', 'empty');
         INSERT INTO organizations_organization_projects (organization_id, project_id) VALUES (1, 2), (1, 1)",
    );
    let source = PostgresSource::new(database.options());
    let found = source.organizations(&Cancel::new()).unwrap();
    let found: Vec<_> = found.into_iter().collect();
    assert_eq!(found, [("acme".to_owned(), vec!["docs".to_owned(), "it's".to_owned()])]);
}

#[test]
fn the_users_own_authorities_count_as_they_do_for_libpq() {
    let Some(tls) = services::tls() else { return };
    let text = |name: &str| tls[name].as_str().unwrap();
    let home = tempfile::tempdir().unwrap();
    let root = home.path().join(".postgresql/root.crt");
    std::fs::create_dir(root.parent().unwrap()).unwrap();
    let connects = |mode: &str| {
        let connection = format!(
            "host={} port={} dbname={} user={} password={} sslmode={mode}",
            text("ip"),
            tls["port"],
            text("database"),
            text("tls_user"),
            text("password")
        );
        let folder = home.path().to_str().unwrap().to_owned();
        let target = Target::parse(&connection, |name| (name == "HOME").then(|| folder.clone()))?;
        block_on(&Cancel::new(), async { connect(&target).await.map(drop) })
    };
    assert!(connects("require").is_ok());
    assert!(connects("verify-ca").unwrap_err().to_string().contains("sslrootcert"));
    std::fs::copy(text("ca"), &root).unwrap();
    connects("require").unwrap();
    connects("verify-ca").unwrap();
    assert!(connects("verify-full").unwrap_err().to_string().contains("certificate"));
    std::fs::copy(text("other_ca"), &root).unwrap();
    for mode in ["require", "verify-ca"] {
        assert!(
            connects(mode).unwrap_err().to_string().contains("certificate"),
            "{mode}"
        );
    }
    connects("prefer").unwrap();
}
