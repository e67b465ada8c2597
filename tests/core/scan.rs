use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Int32Array, RecordBatch};
use arrow::compute::concat_batches;
use bytes::Bytes;
use parquet::file::properties::EnabledStatistics;
use parquet_analytics::base::error::{Error, Kind, Result};
use parquet_analytics::base::keys::{Day, Prefix};
use parquet_analytics::base::runtime::Cancel;
use parquet_analytics::base::schema;
use parquet_analytics::engine::Relation;
use parquet_analytics::scan::cache;
use parquet_analytics::scan::plan::Filter;
use parquet_analytics::scan::{Options, Scan, State};
use parquet_analytics::store::{Counters, Store};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::files::{Layout, date, key, put, quiet_parquet_panics, store, traffic, write};
use crate::support::{Row, batch_of, random_rows, rows_of};

const ALL: [usize; 10] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9];

pub fn scan(store: &Store, days: &[Day], filter: Filter, options: Options) -> Scan {
    Scan::new(
        store.clone(),
        &Prefix::default(),
        days.iter().copied(),
        filter,
        options,
        Cancel::new(),
    )
}

fn of(slug: &str) -> Filter {
    Filter {
        projects: Some(vec![slug.to_owned()]),
        ..Filter::default()
    }
}

fn read(scan: &Scan, projection: &[usize]) -> Result<Vec<RecordBatch>> {
    scan.batches(projection)?.collect()
}

pub fn rows(scan: &Scan) -> Vec<Row> {
    read(scan, &ALL).unwrap().iter().flat_map(rows_of).collect()
}

/// Rows of a day, in file order.
pub fn sample(seed: u64, count: usize, day: Day) -> Vec<Row> {
    let mut rows = random_rows(&mut ChaCha8Rng::seed_from_u64(seed), count);
    rows.iter_mut().for_each(|row| row.date = day.to_date32());
    rows.sort();
    rows
}

pub fn small_pages() -> Layout {
    Layout {
        group_rows: 100,
        page_rows: 10,
        ..Layout::default()
    }
}

/// As if no file had been asked about before.
fn cold(store: &Store, days: &[Day]) {
    days.iter().for_each(|day| cache::forget(store, &key(*day)));
}

#[derive(Debug, Clone)]
struct Case {
    seed: u64,
    counts: Vec<usize>,
    layout: Layout,
    filter: Filter,
    projection: Vec<usize>,
    options: Options,
    /// Whether footers are at hand, so that nothing is read with them.
    warm: bool,
}

fn cases() -> impl Strategy<Value = Case> {
    let slugs = [
        "docs",
        "docs-zh",
        "a",
        "Zeta",
        "日本",
        "it's",
        "emoji😀",
        "ä",
        "",
        "nobody",
        "doc",
        "docs-",
    ];
    let slugs = prop::collection::vec(prop::sample::select(slugs.to_vec()), 0..4);
    let filter = (
        prop::option::of(slugs),
        prop::option::weighted(0.3, 9..19i32),
        prop::option::of(prop::collection::vec(
            prop::sample::select(vec![200i16, 404, 0, 301, i16::MAX, 500, -1]),
            0..4,
        )),
        prop::option::weighted(0.3, prop::collection::vec(prop::option::of(0..6i32), 0..5)),
        prop::collection::vec(9..19i32, 0..3),
    )
        .prop_map(|(projects, project_id, statuses, versions, hidden)| Filter {
            projects: projects.map(|slugs| slugs.into_iter().map(str::to_owned).collect()),
            project_id,
            statuses,
            versions,
            hidden,
            ..Filter::default()
        });
    let layout = (1..200usize, 1..40usize, 0..4u8).prop_map(|(group_rows, page_rows, kind)| Layout {
        group_rows,
        page_rows,
        statistics: if kind == 0 {
            EnabledStatistics::None
        } else {
            EnabledStatistics::Chunk
        },
        page_statistics: kind >= 2,
        offset_index: kind != 1,
        ..Layout::default()
    });
    let reading = (0..3000u64, 1..5000u64, 1..20_000u64, 1..5usize, 1..100usize);
    // Less than what these files hold, and more.
    let keeping = (0..20_000u64, 0..6usize, 0..400u64);
    let options = (reading, keeping).prop_map(
        |((gap, request_bytes, ahead_bytes, concurrency, batch_rows), (tail_bytes, whole_footers, narrow_rows))| {
            Options {
                gap,
                request_bytes,
                ahead_bytes,
                concurrency,
                batch_rows,
                tail_bytes,
                whole_footers,
                narrow_rows,
                ..Options::default()
            }
        },
    );
    let projection = prop::sample::subsequence(ALL.to_vec(), 0..=10).prop_shuffle();
    (
        any::<u64>(),
        prop::collection::vec(0..400usize, 0..4),
        layout,
        filter,
        projection,
        options,
        any::<bool>(),
    )
        .prop_map(|(seed, counts, layout, filter, projection, options, warm)| Case {
            seed,
            counts,
            layout,
            filter,
            projection,
            options,
            warm,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_scan_returns_exactly_the_rows_that_pass_in_order(case in cases()) {
        let store = store();
        let first = date("2026-06-28");
        let days: Vec<Day> = Day::range(first, date("2026-07-01")).collect();
        let mut expected: Vec<Row> = Vec::new();
        // A day without rows has no file.
        for (n, count) in case.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let all = sample(case.seed.wrapping_add(n as u64), *count, days[n]);
            put(&store, &key(days[n]), &case.layout.file(&all));
            let passes = |row: &&Row| {
                case.filter.projects.as_ref().is_none_or(|slugs| slugs.contains(&row.project_slug))
                    && case.filter.project_id.is_none_or(|id| id == row.project_id)
                    && case.filter.statuses.as_ref().is_none_or(|statuses| statuses.contains(&row.status))
                    && case.filter.versions.as_ref().is_none_or(|versions| versions.contains(&row.version_id))
                    && !case.filter.hidden.contains(&row.project_id)
            };
            expected.splice(0..0, all.iter().filter(passes).cloned());
        }
        let expected = batch_of(&expected).project(&case.projection).unwrap();
        if case.warm {
            scan(&store, &days, case.filter.clone(), case.options.clone()).prepare().unwrap();
        }
        let reading = scan(&store, &days, case.filter.clone(), case.options.clone());
        let batches = read(&reading, &case.projection).unwrap();
        prop_assert!(batches.iter().all(|batch| batch.schema() == expected.schema()));
        let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
        prop_assert_eq!(rows, expected.num_rows());
        if !case.projection.is_empty() {
            prop_assert_eq!(concat_batches(&expected.schema(), &batches).unwrap(), expected);
        }
        let stats = reading.stats();
        prop_assert_eq!(stats.rows as usize, rows);
        prop_assert_eq!(stats.present as usize, case.counts.iter().filter(|count| **count > 0).count());
        prop_assert_eq!(stats.objects, 4);
        let of_each_kind = stats.footer_requests + stats.data_requests + stats.erasure_requests;
        prop_assert_eq!(stats.requests, of_each_kind);
        prop_assert!(!case.warm || stats.footer_requests == 0);
    }
}

#[test]
fn one_project_of_a_200_row_group_file_is_read_in_two_requests_and_under_3_percent_of_its_bytes() {
    let day = date("2026-07-01");
    let layout = Layout {
        group_rows: 20_000,
        ..Layout::default()
    };
    let file = write(traffic(4000, 1000, day), layout.properties());
    let store = store();
    put(&store, &key(day), &file);
    let all = schema::pageviews();
    let projections = [
        vec![schema::PATH, schema::VIEW_COUNT],
        vec![schema::DATE, schema::VIEW_COUNT],
        all.fields().iter().map(|field| field.name().as_str()).collect(),
    ];
    for slug in ["project-00000", "project-01234", "project-01979", "project-03999"] {
        for names in &projections {
            cold(&store, &[day]);
            let filter = Filter {
                statuses: Some(vec![200]),
                ..of(slug)
            };
            let reading = scan(&store, &[day], filter, Options::default());
            let projection: Vec<usize> = names
                .iter()
                .map(|name| schema::pageviews().index_of(name).unwrap())
                .collect();
            let batches = read(&reading, &projection).unwrap();
            let stats = reading.stats();
            assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 909, "{slug}");
            assert_eq!(stats.row_groups, 200);
            let of_the_day = stats.footer_requests + stats.data_requests;
            assert!(of_the_day <= 2 && stats.waves <= 2, "{slug} {names:?}: {stats:?}");
            let percent = stats.bytes as f64 * 100.0 / file.len() as f64;
            assert!(
                percent < 3.0,
                "{slug} {names:?}: {percent:.2} % of {} bytes, {stats:?}",
                file.len()
            );
        }
    }
}

/// The traffic of a day in which ids are strewn over the slugs, as they are where projects come and go.
fn strewn(projects: usize, rows_each: usize, day: Day) -> impl Iterator<Item = RecordBatch> {
    traffic(projects, rows_each, day)
        .enumerate()
        .map(move |(number, batch)| {
            let id = strewn_id(number, projects);
            let mut columns = batch.columns().to_vec();
            let place = schema::pageviews().index_of(schema::PROJECT_ID).unwrap();
            columns[place] = Arc::new(Int32Array::from(vec![id; batch.num_rows()]));
            RecordBatch::try_new(batch.schema(), columns).unwrap()
        })
}

fn strewn_id(number: usize, projects: usize) -> i32 {
    (number * 7_919 % projects) as i32
}

#[test]
fn a_project_by_its_id_alone_takes_one_wave_more_the_first_time_and_few_bytes() {
    let (store, day) = (store(), date("2026-07-01"));
    let layout = Layout {
        group_rows: 20_000,
        ..Layout::default()
    };
    let file = write(strewn(4_001, 100, day), layout.properties());
    put(&store, &key(day), &file);
    for number in [7, 1_234, 2_000, 3_333] {
        let filter = Filter {
            project_id: Some(strewn_id(number, 4_001)),
            ..Filter::default()
        };
        let first = scan(&store, &[day], filter.clone(), Options::default());
        let found = rows(&first);
        assert_eq!(
            found,
            rows(&scan(
                &store,
                &[day],
                of(&format!("project-{number:05}")),
                Options::default()
            ))
        );
        assert_eq!(found.len(), 100);
        let stats = first.stats();
        assert!(stats.waves <= 3, "{stats:?}");
        assert!(
            stats.bytes * 3 < file.len() as u64,
            "{} of {}: {stats:?}",
            stats.bytes,
            file.len()
        );
        assert!(stats.rows_decoded < 200, "{stats:?}");
        // Also with another status: where the rows are is known now.
        let again = Filter {
            statuses: Some(vec![404]),
            ..filter
        };
        let again = scan(&store, &[day], again, Options::default());
        assert_eq!(rows(&again).len(), found.iter().filter(|row| row.status == 404).count());
        assert_eq!((again.stats().waves, again.stats().footer_requests), (1, 0));
    }
}

#[test]
fn a_file_that_is_replaced_while_its_ids_are_read_is_read_in_its_new_version() {
    let (store, day) = (store(), date("2026-07-01"));
    let file = |seed| small_pages().file(&sample(seed, 3_000, day));
    put(&store, &key(day), &file(1));
    let options = Options {
        narrow_rows: 0,
        ..Options::default()
    };
    let filter = Filter {
        project_id: Some(12),
        ..Filter::default()
    };
    // Its footer is remembered, and holds no longer.
    scan(&store, &[day], of("nobody"), options.clone()).prepare().unwrap();
    put(&store, &key(day), &file(2));
    let expected: Vec<Row> = sample(2, 3_000, day)
        .into_iter()
        .filter(|row| row.project_id == 12)
        .collect();
    assert_eq!(rows(&scan(&store, &[day], filter, options)), expected);
}

#[test]
fn a_small_file_is_read_with_its_footer_in_one_request() {
    let (store, day) = (store(), date("2026-07-01"));
    let all = sample(1, 500, day);
    put(&store, &key(day), &small_pages().file(&all));
    let reading = scan(&store, &[day], Filter::default(), Options::default());
    assert_eq!(rows(&reading), all);
    let stats = reading.stats();
    assert_eq!((stats.footer_requests, stats.data_requests, stats.waves), (1, 0, 1));
}

#[test]
fn thirty_days_take_two_waves_and_with_footers_at_hand_one() {
    let store = store();
    let days: Vec<Day> = Day::range(date("2026-06-02"), date("2026-07-01")).collect();
    let layout = Layout {
        group_rows: 5000,
        ..Layout::default()
    };
    for day in &days {
        put(&store, &key(*day), &write(traffic(40, 500, *day), layout.properties()));
    }
    let ask = || {
        let reading = scan(&store, &days, of("project-00007"), Options::default());
        assert_eq!(
            read(&reading, &[5, 7])
                .unwrap()
                .iter()
                .map(RecordBatch::num_rows)
                .sum::<usize>(),
            30 * 500
        );
        reading.stats()
    };
    let first = ask();
    assert_eq!((first.footer_requests, first.data_requests, first.waves), (30, 30, 2));
    let second = ask();
    assert_eq!((second.footer_requests, second.data_requests, second.waves), (0, 30, 1));
    assert!(second.bytes < first.bytes / 2);
    assert_eq!((second.row_groups, second.row_groups_read), (120, 30));
}

#[test]
fn days_without_a_file_are_absent_and_count_as_such() {
    let store = store();
    let days: Vec<Day> = Day::range(date("2026-06-25"), date("2026-07-01")).collect();
    let all = sample(3, 50, days[2]);
    put(&store, &key(days[2]), &small_pages().file(&all));
    let reading = scan(&store, &days, Filter::default(), Options::default());
    assert_eq!(rows(&reading), all);
    let stats = reading.stats();
    assert_eq!((stats.objects, stats.present, stats.absent), (7, 1, 6));
    assert_eq!(reading.covered().unwrap(), [days[2]]);
    assert_eq!(rows(&scan(&store, &[], Filter::default(), Options::default())), []);
}

#[test]
fn counting_rows_needs_no_data() {
    let (store, day) = (store(), date("2026-07-01"));
    put(
        &store,
        &key(day),
        &write(traffic(50, 2000, day), small_pages().properties()),
    );
    let reading = scan(&store, &[day], Filter::default(), Options::default());
    let batches = read(&reading, &[]).unwrap();
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 100_000);
    assert_eq!(reading.stats().data_requests, 0);
}

/// A scan whose footers are known from before, so that data is read only now.
fn prepared(store: &Store, days: &[Day], options: Options) -> Scan {
    scan(store, days, Filter::default(), options.clone()).prepare().unwrap();
    let reading = scan(store, days, Filter::default(), options);
    reading.prepare().unwrap();
    assert_eq!(reading.stats().footer_requests, 0);
    reading
}

#[test]
fn a_file_that_is_replaced_before_its_data_is_read_is_read_in_its_new_version() {
    for (before, after) in [(500, 900), (900, 500), (900, 30), (30, 900)] {
        let (store, day) = (store(), date("2026-07-01"));
        put(&store, &key(day), &small_pages().file(&sample(1, before, day)));
        let reading = prepared(
            &store,
            &[day],
            Options {
                request_bytes: 3000,
                ..Options::default()
            },
        );
        let new = sample(2, after, day);
        put(&store, &key(day), &small_pages().file(&new));
        assert_eq!(rows(&reading), new, "{before} rows, then {after}");
        assert!(reading.stats().footer_requests >= 1);
    }
}

#[test]
fn a_file_that_vanishes_before_its_data_is_read_is_absent() {
    let (store, days) = (store(), [date("2026-06-30"), date("2026-07-01")]);
    put(&store, &key(days[0]), &small_pages().file(&sample(1, 300, days[0])));
    put(&store, &key(days[1]), &small_pages().file(&sample(2, 300, days[1])));
    let reading = prepared(&store, &days, Options::default());
    parquet_analytics::base::runtime::block_on(&Cancel::new(), store.delete(&key(days[1]))).unwrap();
    assert_eq!(rows(&reading), sample(1, 300, days[0]));
    assert_eq!((reading.stats().present, reading.stats().absent), (1, 1));
}

#[test]
fn a_file_that_is_replaced_while_its_rows_are_handed_out_is_an_error_to_retry_and_never_a_mix() {
    let (store, day) = (store(), date("2026-07-01"));
    put(&store, &key(day), &small_pages().file(&sample(1, 2000, day)));
    // Nothing is fetched ahead, so that most of the data is read after the first rows.
    let options = Options {
        request_bytes: 1,
        ahead_bytes: 1,
        ..Options::default()
    };
    let reading = prepared(&store, &[day], options);
    let mut batches = reading.batches(&ALL).unwrap();
    batches.next().unwrap().unwrap();
    put(&store, &key(day), &small_pages().file(&sample(2, 2000, day)));
    let error = batches.find_map(Result::err).expect("an error");
    assert_eq!(error.kind(), Kind::Retry, "{error:?}");
    assert_eq!((error.day(), error.key()), (Some(day), Some(key(day).as_str())));
    assert!(batches.next().is_none());
    // The next question reads the new version.
    let again = scan(&store, &[day], Filter::default(), Options::default());
    assert_eq!(rows(&again), sample(2, 2000, day));
}

#[test]
fn units_may_be_read_in_any_order_by_several_threads_within_a_small_budget() {
    let store = store();
    let days: Vec<Day> = Day::range(date("2026-06-28"), date("2026-07-01")).collect();
    let mut expected: Vec<Row> = Vec::new();
    for (n, day) in days.iter().enumerate() {
        let all = sample(n as u64, 1000, *day);
        put(&store, &key(*day), &small_pages().file(&all));
        expected.extend(all);
    }
    for seed in 0..20 {
        let reading = prepared(
            &store,
            &days,
            Options {
                ahead_bytes: 2000,
                request_bytes: 4000,
                ..Options::default()
            },
        );
        let mut units = reading.open(&ALL).unwrap();
        assert_eq!(units.len(), 40);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (1..units.len())
            .rev()
            .for_each(|n| units.swap(n, rng.random_range(0..=n)));
        let units = Arc::new(std::sync::Mutex::new(units));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let units = Arc::clone(&units);
                std::thread::spawn(move || {
                    let mut rows = Vec::new();
                    let next = || units.lock().unwrap().pop();
                    while let Some(unit) = next() {
                        unit().unwrap().for_each(|batch| rows.extend(rows_of(&batch.unwrap())));
                    }
                    rows
                })
            })
            .collect();
        let mut found: Vec<Row> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
    }
}

#[test]
fn two_readings_of_one_scan_see_the_same_version() {
    let (store, day) = (store(), date("2026-07-01"));
    put(&store, &key(day), &small_pages().file(&sample(1, 800, day)));
    let reading = prepared(&store, &[day], Options::default());
    assert_eq!(rows(&reading), sample(1, 800, day));
    put(&store, &key(day), &small_pages().file(&sample(2, 800, day)));
    assert_eq!(read(&reading, &ALL).unwrap_err().kind(), Kind::Retry);
}

#[test]
fn a_reading_that_is_given_up_stops_fetching() {
    let (store, day) = (store(), date("2026-07-01"));
    put(&store, &key(day), &small_pages().file(&sample(1, 5000, day)));
    let reading = prepared(
        &store,
        &[day],
        Options {
            request_bytes: 1,
            ahead_bytes: 1,
            ..Options::default()
        },
    );
    let mut batches = reading.batches(&ALL).unwrap();
    batches.next().unwrap().unwrap();
    drop(batches);
    std::thread::sleep(Duration::from_millis(50));
    let requests = reading.stats().data_requests;
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(reading.stats().data_requests, requests);
    // A part is a row group here, of about 110 pages; there are 50, so the whole would be some 5,500 requests.
    assert!(requests < 2000, "{requests}");
}

#[test]
fn a_cancelled_scan_ends() {
    let (store, day) = (store(), date("2026-07-01"));
    put(&store, &key(day), &small_pages().file(&sample(1, 500, day)));
    let cancel = Cancel::new();
    let prefix = Prefix::default();
    let reading = Scan::new(
        store,
        &prefix,
        [day],
        Filter::default(),
        Options::default(),
        cancel.clone(),
    );
    let mut batches = reading.batches(&ALL).unwrap();
    batches.next().unwrap().unwrap();
    cancel.cancel();
    let error = batches.next().unwrap().unwrap_err();
    assert!(matches!(error.inner(), Error::Interrupted), "{error:?}");
    assert!(batches.next().is_none());
    assert!(reading.batches(&ALL).is_err());
}

#[test]
fn a_scan_that_waits_for_a_silent_server_ends_when_cancelled() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", server.local_addr().unwrap());
    let options = [
        ("endpoint_url", endpoint.as_str()),
        ("allow_http", "true"),
        ("access_key_id", "a"),
        ("secret_access_key", "b"),
    ];
    let store = crate::store::open("s3://bucket/silent", &options).unwrap();
    let cancel = Cancel::new();
    let days = [date("2026-06-30"), date("2026-07-01")];
    let reading = Scan::new(
        store,
        &Prefix::default(),
        days,
        Filter::default(),
        Options::default(),
        cancel.clone(),
    );
    let waiting = std::thread::spawn(move || reading.prepare());
    // Both footers are asked for before any is answered.
    let _both = [server.accept().unwrap(), server.accept().unwrap()];
    assert!(!waiting.is_finished());
    let asked = std::time::Instant::now();
    cancel.cancel();
    let error = waiting.join().unwrap().unwrap_err();
    assert!(matches!(error.inner(), Error::Interrupted), "{error:?}");
    assert!(asked.elapsed() < Duration::from_secs(1));
}

/// The same on every kind of store: S3 only where a server runs.
#[test]
fn stores_are_asked_exactly_what_the_scan_counts_and_a_replaced_file_is_read_anew_on_each() {
    let folder = tempfile::tempdir().unwrap();
    let local = crate::store::open(&format!("file://{}", folder.path().display()), &[]).unwrap();
    let s3 = crate::store_s3::s3().map(|server| server.open("reading"));
    let days: Vec<Day> = Day::range(date("2026-06-28"), date("2026-07-01")).collect();
    let layout = Layout {
        group_rows: 20_000,
        ..Layout::default()
    };
    for store in [Some(store()), Some(local), s3].into_iter().flatten() {
        for day in &days[1..] {
            put(&store, &key(*day), &write(traffic(60, 1000, *day), layout.properties()));
        }
        let counters = Arc::new(Counters::default());
        let counted = store.with_counters(Arc::clone(&counters));
        let ask = |filter: Filter| scan(&counted, &days, filter, Options::default());
        let first = ask(of("project-00042"));
        let found = rows(&first);
        assert_eq!(found.len(), 3000, "{store:?}");
        assert!(found.iter().all(|row| row.project_slug == "project-00042"));
        let (requests, bytes) = (counters.requests(), counters.bytes_read());
        let again = ask(of("project-00007"));
        assert_eq!(rows(&again).len(), 3000);
        // Every footer is known, and the missing day too: a request for each file, and none besides.
        assert_eq!(
            (requests, bytes),
            (first.stats().requests, first.stats().bytes),
            "{store:?}"
        );
        assert_eq!(
            (first.stats().footer_requests, again.stats().requests),
            (4, 3),
            "{store:?}"
        );
        assert_eq!(
            (counters.requests() - requests, counters.bytes_read() - bytes),
            (3, again.stats().bytes)
        );

        let reading = ask(Filter::default());
        reading.prepare().unwrap();
        let new = sample(8, 300, days[2]);
        put(&store, &key(days[2]), &small_pages().file(&new));
        let read: Vec<Row> = rows(&reading)
            .into_iter()
            .filter(|row| row.date == days[2].to_date32())
            .collect();
        assert_eq!(read, new, "{store:?}");
    }
}

#[test]
fn explain_says_what_will_be_read_without_reading_data() {
    let (store, day, missing) = (store(), date("2026-07-01"), date("2026-06-30"));
    let layout = Layout {
        group_rows: 5000,
        ..Layout::default()
    };
    put(&store, &key(day), &write(traffic(200, 1000, day), layout.properties()));
    let ask = || scan(&store, &[missing, day], of("project-00042"), Options::default());
    let plans = ask().explain(&[5, 7]).unwrap();
    assert_eq!(
        (plans[0].day, plans[0].state, plans[0].row_groups),
        (day, State::Read, 40)
    );
    assert_eq!(
        (plans[1].day, plans[1].state, plans[1].requests),
        (missing, State::Absent, 0)
    );
    let reading = ask();
    let plans = reading.explain(&[5, 7]).unwrap();
    assert_eq!((plans[0].state, plans[0].row_groups_selected), (State::Cached, 1));
    assert_eq!(reading.stats().data_requests, 0);
    assert!(plans[0].bytes > 0 && plans[0].bytes < plans[0].size / 20);
    let all = read(&reading, &[5, 7]).unwrap();
    assert_eq!(all.iter().map(RecordBatch::num_rows).sum::<usize>(), 1000);
    let stats = reading.stats();
    assert_eq!(
        (stats.data_requests as usize, stats.bytes),
        (plans[0].requests, plans[0].bytes)
    );
    assert_eq!(stats.rows_decoded, plans[0].rows_selected);
    let confirmed = Options {
        max_age: Duration::ZERO,
        ..Options::default()
    };
    assert_eq!(
        scan(&store, &[day], Filter::default(), confirmed).explain(&[]).unwrap()[0].state,
        State::Confirmed
    );
}

#[test]
fn damaged_pages_are_an_error_that_names_the_file_and_never_a_panic() {
    quiet_parquet_panics();
    let (store, day) = (store(), date("2026-07-01"));
    let all = sample(1, 400, day);
    let file = small_pages().file(&all);
    let footer = u32::from_le_bytes(file[file.len() - 8..file.len() - 4].try_into().unwrap()) as usize;
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut kinds = HashSet::new();
    for _ in 0..3000 {
        let mut bytes = file.to_vec();
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(4..bytes.len() - footer - 8);
            bytes[at] = rng.random();
        }
        put(&store, &key(day), &Bytes::from(bytes));
        cold(&store, &[day]);
        match read(&scan(&store, &[day], Filter::default(), Options::default()), &ALL) {
            Ok(_) => kinds.insert("read"),
            Err(error) => {
                assert!(matches!(error.inner(), Error::CorruptFile { .. }), "{error:?}");
                assert_eq!((error.day(), error.key()), (Some(day), Some(key(day).as_str())));
                kinds.insert("refused")
            }
        };
    }
    assert!(kinds.contains("refused"));
}
