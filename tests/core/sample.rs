//! The sample generator: the same everywhere, without repetition, and with the edge cases it promises.

use std::collections::{HashMap, HashSet};

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use parquet_analytics::base::error::Error;
use parquet_analytics::base::keys::Day;
use parquet_analytics::base::runtime::Cancel;
use parquet_analytics::base::schema;
use parquet_analytics::sample::{LoadOptions, Loaded, Sample, SampleOptions, load_postgres};
use parquet_analytics::source::postgres::Target;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection, Row as _};

use crate::services;
use crate::support::{Row, day, rows_of};

fn options(rows_per_day: u64, projects: u32) -> SampleOptions {
    SampleOptions {
        rows_per_day,
        projects,
        growth: 0.0,
        weekly_rhythm: false,
        ..SampleOptions::default()
    }
}

fn sample(rows_per_day: u64, projects: u32) -> Sample {
    Sample::new(options(rows_per_day, projects)).unwrap()
}

fn rows(sample: &Sample, day: Day) -> Vec<Row> {
    sample.day(day).flat_map(|batch| rows_of(&batch.unwrap())).collect()
}

fn whole(sample: &Sample, batch_rows: usize) -> RecordBatch {
    let batches: Vec<_> = sample.day_in_batches(day(), batch_rows).map(Result::unwrap).collect();
    assert!(batches.iter().rev().skip(1).all(|batch| batch.num_rows() == batch_rows));
    concat_batches(&schema::pageviews(), &batches).unwrap()
}

#[test]
fn the_same_options_give_the_same_rows_whatever_the_batch_size() {
    let first = whole(&sample(20_000, 50), 20_000);
    assert_eq!(first, whole(&sample(20_000, 50), 777));
    let other_seed = Sample::new(SampleOptions {
        seed: 1,
        ..options(20_000, 50)
    })
    .unwrap();
    assert_ne!(first, whole(&other_seed, 20_000));
}

#[test]
fn the_rows_are_those_of_every_machine() {
    // Pins the generator: a change of it changes what benchmarks measured before.
    let sample = sample(1_000, 20);
    let row = &rows(&sample, day())[0];
    let views: i64 = rows(&sample, day()).iter().map(|row| i64::from(row.view_count)).sum();
    assert_eq!((row.path.as_str(), row.project_slug.as_str(), views), PINNED);
}

const PINNED: (&str, &str, i64) = ("/genindex.html", "pebble-task", 38_829);

#[test]
fn no_row_breaks_the_tables_constraints() {
    let sample = sample(50_000, 60);
    let versions: HashMap<i32, (i32, &str)> = sample
        .versions()
        .iter()
        .map(|version| (version.id, (version.project_id, version.slug.as_str())))
        .collect();
    let projects: HashMap<i32, &str> = sample
        .projects()
        .iter()
        .map(|project| (project.id, project.slug.as_str()))
        .collect();
    assert_eq!(
        (projects.len(), versions.len()),
        (sample.projects().len(), sample.versions().len())
    );
    let slugs: HashSet<_> = projects.values().collect();
    assert_eq!(slugs.len(), projects.len());
    assert!(slugs.iter().all(|slug| slug.len() <= 63));

    let mut keys = HashSet::new();
    let mut ids = HashSet::new();
    for day in [day(), day().minus_days(1)] {
        let rows = rows(&sample, day);
        assert_eq!(rows.len(), 50_000);
        for row in rows {
            assert_eq!(projects[&row.project_id], row.project_slug);
            let version = row.version_id.map(|id| versions[&id]);
            assert_eq!(
                version.map(|(project, _)| project),
                row.version_id.map(|_| row.project_id)
            );
            assert_eq!(version.map(|(_, slug)| slug), row.version_slug.as_deref());
            assert!(
                row.path.starts_with('/') && row.path.chars().count() <= 4_096,
                "{}",
                row.path
            );
            assert!(row.view_count >= 1);
            assert_eq!(row.date, day.to_date32());
            assert!(ids.insert(row.id));
            let key = (row.project_id, row.version_id, row.path, row.date, row.status);
            assert!(!keys.contains(&key), "{key:?} is there twice");
            keys.insert(key);
        }
    }
}

#[test]
fn the_promised_projects_are_there_on_every_day() {
    let sample = sample(20_000, 30);
    let special = sample.special();
    for day in Day::range(day().minus_days(6), day()) {
        let mut by_project: HashMap<String, Vec<Row>> = HashMap::new();
        for row in rows(&sample, day) {
            by_project.entry(row.project_slug.clone()).or_default().push(row);
        }
        let largest = by_project[&special.largest.slug].len();
        let others = by_project.iter().filter(|(slug, _)| **slug != special.largest.slug);
        assert!(others.map(|(_, rows)| rows.len()).max().unwrap() * 3 / 2 < largest);
        assert!(
            by_project[&special.only_not_found.slug]
                .iter()
                .all(|row| row.status == 404)
        );
        assert!(
            by_project[&special.only_not_found.slug]
                .iter()
                .any(|row| row.version_id.is_some())
        );
        assert!(
            by_project[&special.without_versions.slug]
                .iter()
                .all(|row| row.version_id.is_none())
        );
        assert!(
            by_project[&special.without_versions.slug]
                .iter()
                .any(|row| row.status == 200)
        );
        assert_eq!(by_project[&special.tiny.slug].len(), 1);
    }
}

#[test]
fn the_traffic_looks_like_documentation() {
    let sample = sample(200_000, 100);
    let rows = rows(&sample, day());
    let share = |test: &dyn Fn(&Row) -> bool| rows.iter().filter(|row| test(row)).count() * 1_000 / rows.len();
    assert!((60..150).contains(&share(&|row| row.status == 404)));
    assert!((10..60).contains(&share(&|row| row.status == 404 && row.version_id.is_none())));
    assert!((1..10).contains(&share(&|row| row.full_path.is_none())));
    assert!(share(&|row| row.version_slug.as_deref() == Some("latest")) > 300);
    assert!(share(&|row| !row.path.is_ascii()) > 0);
    assert!(rows.iter().any(|row| row.path.len() > 200));
    assert!(rows.iter().any(|row| row.version_slug.as_deref() == Some("en-US")));
    let german = |row: &Row| {
        row.full_path
            .as_deref()
            .is_some_and(|path| path.starts_with("/de/latest/"))
    };
    assert!(rows.iter().any(german));
    for row in rows.iter().filter(|row| row.version_slug.is_some()) {
        let version = row.version_slug.as_deref().unwrap();
        let full = row.full_path.as_ref();
        assert!(
            full.is_none_or(|full| full.ends_with(&format!("/{version}{}", row.path))),
            "{row:?}"
        );
    }
    // Zipf: the top hundredth of the rows has over a third of the views.
    let mut views: Vec<i64> = rows.iter().map(|row| row.view_count.into()).collect();
    views.sort_unstable_by(|a, b| b.cmp(a));
    assert!(views[..rows.len() / 100].iter().sum::<i64>() * 3 > views.iter().sum());
    // A heap is not sorted by project.
    let changes = rows
        .windows(2)
        .filter(|pair| pair[0].project_id != pair[1].project_id)
        .count();
    assert!(changes > rows.len() / 2);
}

#[test]
fn traffic_has_a_weekly_rhythm_and_grows() {
    let sample = Sample::new(SampleOptions {
        rows_per_day: 100_000,
        growth: 0.5,
        ..SampleOptions::default()
    })
    .unwrap();
    let rows = |day: &str| sample.rows(day.parse().unwrap());
    let (wednesday, saturday) = (rows("2026-07-01"), rows("2026-07-04"));
    assert!(saturday * 3 < wednesday * 2, "{wednesday} {saturday}");
    assert!(rows("2027-06-30") > wednesday * 5 / 4);
    assert_eq!(
        rows("2026-07-04"),
        sample.day("2026-07-04".parse().unwrap()).total_rows()
    );
    assert_eq!(
        sample
            .day("2026-07-04".parse().unwrap())
            .map(|batch| batch.unwrap().num_rows() as u64)
            .sum::<u64>(),
        saturday
    );
}

#[test]
fn small_and_empty_days_work() {
    for rows_per_day in [0, 1, 2, 7, 40] {
        let sample = sample(rows_per_day, 8);
        assert_eq!(rows(&sample, day()).len() as u64, rows_per_day);
    }
    let refused = |options: SampleOptions| assert!(matches!(Sample::new(options), Err(Error::InvalidInput { .. })));
    refused(options(10, 7));
    refused(SampleOptions {
        growth: f64::NAN,
        ..options(10, 8)
    });
    refused(options(1 << 40, 8));
}

#[test]
fn organizations_hold_some_projects_and_each_at_most_once() {
    let sample = sample(10, 200);
    let members: Vec<i32> = sample
        .organizations()
        .iter()
        .flat_map(|o| o.project_ids.clone())
        .collect();
    let distinct: HashSet<_> = members.iter().collect();
    assert_eq!(members.len(), distinct.len());
    assert!((50..150).contains(&members.len()));
    assert_eq!(sample.organizations_batch().unwrap().num_rows(), members.len());
    assert_eq!(sample.projects_batch().unwrap().num_rows(), 200);
    assert_eq!(sample.versions_batch().unwrap().num_rows(), sample.versions().len());
}

async fn database_rows(options: &PgConnectOptions, schema_name: &str) -> Vec<Row> {
    let mut conn = PgConnection::connect_with(options).await.unwrap();
    let sql = format!(
        "SELECT v.id, v.project_id, p.slug, version_id, b.slug, path, full_path, view_count, date - '1970-01-01', status
         FROM {schema_name}.analytics_pageview v JOIN {schema_name}.projects_project p ON p.id = v.project_id
         LEFT JOIN {schema_name}.builds_version b ON b.id = version_id ORDER BY v.id"
    );
    let rows = sqlx::query(&sql).fetch_all(&mut conn).await.unwrap();
    rows.iter()
        .map(|row| Row {
            id: row.get(0),
            project_id: row.get(1),
            project_slug: row.get(2),
            version_id: row.get(3),
            version_slug: row.get(4),
            path: row.get(5),
            full_path: row.get(6),
            view_count: row.get(7),
            date: row.get(8),
            status: row.get::<i32, _>(9) as i16,
        })
        .collect()
}

#[test]
fn postgres_holds_what_was_generated_with_the_tables_of_the_application() {
    let Some(url) = services::postgres() else { return };
    let target: Target = url.parse().unwrap();
    let connection: PgConnectOptions = url.parse().unwrap();
    let schema_name = "sample_load";
    let sample = sample(5_000, 30);
    let options = LoadOptions {
        schema: Some(schema_name.parse().unwrap()),
        create_tables: true,
    };
    let (since, until) = (day().minus_days(2), day());
    let mut last = (0, 0);
    let mut progress = |done, total| last = (done, total);
    let loaded = load_postgres(&sample, &target, since, until, &options, &mut progress, &Cancel::new()).unwrap();
    let counts = (sample.projects().len(), sample.versions().len());
    assert_eq!(
        loaded,
        Loaded {
            rows: 15_000,
            projects: counts.0,
            versions: counts.1,
            tables_created: true
        }
    );
    assert_eq!(last, (15_000, 15_000));

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let expected: Vec<Row> = Day::range(since, until).flat_map(|day| rows(&sample, day)).collect();
    assert_eq!(runtime.block_on(database_rows(&connection, schema_name)), expected);

    // Another day goes into the tables that are there; the same day again is refused, and nothing of it stays.
    let next: Day = "2026-07-02".parse().unwrap();
    let more = load_postgres(&sample, &target, next, next, &options, &mut |_, _| (), &Cancel::new()).unwrap();
    assert_eq!((more.rows, more.tables_created), (5_000, false));
    let error = load_postgres(&sample, &target, day(), day(), &options, &mut |_, _| (), &Cancel::new()).unwrap_err();
    assert!(
        matches!(&error, Error::Database { sqlstate: Some(code), .. } if code == "23505"),
        "{error}"
    );
    assert!(error.to_string().contains("in the table already"), "{error}");
    assert_eq!(runtime.block_on(database_rows(&connection, schema_name)).len(), 20_000);

    // The tables are those of the application: the same columns, constraints and indexes.
    let shape = |schema_name: &'static str| {
        runtime.block_on(async {
            let mut conn = PgConnection::connect_with(&connection).await.unwrap();
            let sql = "SELECT pg_get_constraintdef(c.oid) FROM pg_constraint c JOIN pg_namespace n ON n.oid = connamespace
                       WHERE nspname = $1
                       UNION ALL SELECT replace(indexdef, schemaname || '.', '') FROM pg_indexes WHERE schemaname = $1
                       UNION ALL SELECT concat_ws(' ', table_name, column_name, data_type, is_nullable, character_maximum_length, is_identity)
                       FROM information_schema.columns WHERE table_schema = $1
                       ORDER BY 1";
            let rows = sqlx::query(sql).bind(schema_name).fetch_all(&mut conn).await.unwrap();
            rows.iter().map(|row| row.get::<String, _>(0).replace(&format!("{schema_name}."), "")).collect::<Vec<_>>()
        })
    };
    runtime.block_on(async {
        let mut conn = PgConnection::connect_with(&connection).await.unwrap();
        let script = format!(
            "CREATE SCHEMA sample_real; SET search_path TO sample_real; {}",
            include_str!("../rtd_schema.sql")
        );
        sqlx::raw_sql(&script).execute(&mut conn).await.unwrap();
    });
    let real = shape("sample_real");
    assert!(real.len() > 20);
    assert_eq!(shape("sample_load"), real);
}

/// `cargo test --release --test core -- --ignored sample::speed --nocapture`
#[test]
#[ignore = "a measurement"]
fn speed() {
    let sample = sample(5_000_000, 2_000);
    let start = std::time::Instant::now();
    let rows: usize = sample.day(day()).map(|batch| batch.unwrap().num_rows()).sum();
    let speed = rows as f64 / start.elapsed().as_secs_f64() / 1e6;
    println!("{speed:.2} M rows/s");
    assert_eq!(rows, 5_000_000);
    assert!(speed > 0.2, "{speed:.2} M rows/s");
}
