use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Int32Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use bytes::Bytes;
use parquet::file::properties::EnabledStatistics;
use parquet_analytics::base::error::{Error, Kind, Result};
use parquet_analytics::base::runtime::{Cancel, block_on};
use parquet_analytics::base::schema;
use parquet_analytics::scan::cache::{self, Loaded, Lookup, Provenance};
use parquet_analytics::store::Store;
use rand::{Rng, SeedableRng};

use crate::files::{Layout, put, quiet_parquet_panics, store, traffic, write};
use crate::support::{batch_of, day, random_rows};

const KEY: &str = "analytics/pageviews/2026/07/01/pageviews_2026-07-01.parquet";
const LONG: Duration = Duration::from_secs(3600);

fn load(store: &Store, max_age: Duration, guess: u64) -> Result<Loaded> {
    block_on(&Cancel::new(), cache::load(store, KEY, max_age, guess))
}

fn rows(loaded: &Loaded) -> Option<u64> {
    match &loaded.lookup {
        Lookup::Present(footer) => Some(footer.rows()),
        Lookup::Absent => None,
    }
}

fn small(rows: usize) -> Bytes {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(rows as u64);
    let layout = Layout {
        group_rows: 100,
        page_rows: 10,
        ..Layout::default()
    };
    layout.file(&random_rows(&mut rng, rows))
}

/// The error that a file with these bytes meets.
fn refusal(bytes: impl Into<Bytes>) -> String {
    let store = store();
    put(&store, KEY, &bytes.into());
    let error = load(&store, LONG, 1 << 20).unwrap_err();
    assert!(
        matches!(&error, Error::CorruptFile { key, .. } if key == KEY),
        "{error:?}"
    );
    assert_eq!(error.kind(), Kind::Fix);
    assert!(error.to_string().contains(KEY), "{error}");
    error.to_string()
}

#[test]
fn footer_and_page_index_of_200_row_groups_take_one_request() {
    let layout = Layout {
        group_rows: 500,
        ..Layout::default()
    };
    let file = write(traffic(100, 1000, day()), layout.properties());
    let store = store();
    put(&store, KEY, &file);
    let loaded = load(&store, LONG, cache::tail_guess(&store, 1)).unwrap();
    let Lookup::Present(footer) = &loaded.lookup else {
        panic!("absent")
    };
    assert_eq!(footer.metadata().num_row_groups(), 200);
    assert!(footer.metadata().column_index().is_some() && footer.metadata().offset_index().is_some());
    assert_eq!((loaded.requests, loaded.provenance), (1, Provenance::Fetched));
    let learned = cache::tail_guess(&store, 1);
    assert!(
        learned > footer.tail && learned < footer.tail * 2,
        "{learned} for {}",
        footer.tail
    );
}

#[test]
fn many_unknown_footers_are_not_asked_for_with_large_guesses() {
    let store = store();
    assert!(cache::tail_guess(&store, 1) >= 361_000);
    assert!(30 * cache::tail_guess(&store, 30) <= 4 << 20);
}

#[test]
fn what_is_known_is_believed_for_its_time_and_then_confirmed_without_bytes() {
    let store = store();
    put(&store, KEY, &small(1000));
    assert_eq!(load(&store, LONG, 1 << 20).unwrap().provenance, Provenance::Fetched);
    let again = load(&store, LONG, 1 << 20).unwrap();
    assert_eq!(
        (again.provenance, again.requests, rows(&again)),
        (Provenance::Cached, 0, Some(1000))
    );
    let old = load(&store, Duration::ZERO, 1 << 20).unwrap();
    assert_eq!(
        (old.provenance, old.requests, old.bytes, rows(&old)),
        (Provenance::Revalidated, 1, 0, Some(1000))
    );
}

#[test]
fn a_replaced_file_is_seen_once_its_time_is_over_or_it_is_forgotten() {
    let store = store();
    put(&store, KEY, &small(1000));
    load(&store, LONG, 1 << 20).unwrap();
    put(&store, KEY, &small(1200));
    assert_eq!(rows(&load(&store, LONG, 1 << 20).unwrap()), Some(1000));
    assert_eq!(rows(&load(&store, Duration::ZERO, 1 << 20).unwrap()), Some(1200));
    put(&store, KEY, &small(1400));
    cache::forget(&store, KEY);
    assert_eq!(rows(&load(&store, LONG, 1 << 20).unwrap()), Some(1400));
}

#[test]
fn a_missing_day_is_remembered_for_its_time_only() {
    let store = store();
    assert_eq!(rows(&load(&store, LONG, 1 << 20).unwrap()), None);
    put(&store, KEY, &small(10));
    let believed = load(&store, LONG, 1 << 20).unwrap();
    assert_eq!((believed.requests, rows(&believed)), (0, None));
    assert_eq!(rows(&load(&store, Duration::ZERO, 1 << 20).unwrap()), Some(10));
}

#[test]
fn stores_do_not_share_what_is_known() {
    let (one, other) = (store(), store());
    put(&one, KEY, &small(10));
    assert_eq!(rows(&load(&one, LONG, 1 << 20).unwrap()), Some(10));
    assert_eq!(rows(&load(&other, LONG, 1 << 20).unwrap()), None);
}

#[test]
fn a_guess_that_is_too_small_costs_requests_but_never_the_answer() {
    let file = small(3000);
    for guess in [1, 7, 8, 9, 100, 5000, 20_000] {
        let store = store();
        put(&store, KEY, &file);
        let loaded = load(&store, LONG, guess);
        match loaded {
            Ok(loaded) => {
                assert_eq!(rows(&loaded), Some(3000));
                assert!(loaded.requests <= 3);
            }
            // The length of the footer has to be in it.
            Err(error) => assert!(guess < 8, "{guess}: {error}"),
        }
    }
}

#[test]
fn a_file_without_page_index_is_read_too() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    let layout = Layout {
        statistics: EnabledStatistics::None,
        page_statistics: false,
        offset_index: false,
        ..Layout::default()
    };
    let store = store();
    put(&store, KEY, &layout.file(&random_rows(&mut rng, 50)));
    assert_eq!(rows(&load(&store, LONG, 1 << 20).unwrap()), Some(50));
}

#[test]
fn what_is_not_parquet_is_refused_by_name() {
    assert!(refusal("").contains("fewer than any Parquet file"));
    assert!(refusal("PAR1").contains("fewer than any Parquet file"));
    assert!(refusal("<html><body>403 Forbidden</body></html>").contains("does not end as a Parquet file"));
    assert!(refusal("PAR1\0\0\0\0PARE").contains("encrypted"));
    assert!(refusal("PAR1\u{7f}\u{7f}\u{7f}\u{7f}PAR1").contains("claims a footer of"));
    assert!(refusal("PAR1\0\0\0\0PAR1").contains("damaged"));
}

#[test]
fn a_truncated_file_is_refused_wherever_it_ends() {
    let file = small(300);
    for length in (0..file.len()).step_by(97).chain(file.len() - 20..file.len()) {
        refusal(file.slice(..length));
    }
}

#[test]
fn a_newer_format_is_refused_by_name_and_another_writer_too() {
    let with = |format: Option<&str>| {
        let layout = Layout {
            format: format.map(str::to_owned),
            ..Layout::default()
        };
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        refusal(layout.file(&random_rows(&mut rng, 10)))
    };
    let newer = with(Some("7"));
    assert!(
        newer.contains("format 7") && newer.contains("upgrade parquet-analytics"),
        "{newer}"
    );
    assert!(with(Some("0")).contains("not a format number"));
    assert!(with(Some("one")).contains("not a format number"));
    assert!(with(None).contains("lacks parquet_analytics.format"));
}

#[test]
fn another_schema_is_refused_with_the_column() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let good = batch_of(&random_rows(&mut rng, 10));
    let fields: Vec<Field> = good
        .schema()
        .fields()
        .iter()
        .map(|field| field.as_ref().clone())
        .collect();
    let refused = |fields: Vec<Field>, columns: Vec<arrow::array::ArrayRef>| {
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
        refusal(write([batch], Layout::default().properties()))
    };

    let without = |name: &str| {
        good.schema()
            .fields()
            .iter()
            .position(|field| field.name() == name)
            .unwrap()
    };
    let (mut some, mut columns) = (fields.clone(), good.columns().to_vec());
    some.remove(without(schema::STATUS));
    columns.remove(without(schema::STATUS));
    assert!(refused(some, columns).contains("the column status is missing"));

    let (mut some, mut columns) = (fields.clone(), good.columns().to_vec());
    some[without(schema::ID)] = Field::new(schema::ID, DataType::Int32, false);
    columns[without(schema::ID)] = Arc::new(Int32Array::from(vec![1; 10]));
    assert!(refused(some, columns).contains("the column id has the type Int32 instead of Int64"));

    let mut some = fields.clone();
    some[without(schema::PATH)] = Field::new(schema::PATH, DataType::Utf8, true);
    assert!(refused(some, good.columns().to_vec()).contains("the column path may hold NULLs"));

    let (mut some, mut columns) = (fields.clone(), good.columns().to_vec());
    some.swap(0, 1);
    columns.swap(0, 1);
    assert!(refused(some, columns).contains("not where it should be"));

    let (mut some, mut columns) = (fields, good.columns().to_vec());
    some.push(Field::new("referrer", DataType::Int32, false));
    columns.push(Arc::new(Int32Array::from(vec![1; 10])));
    assert!(refused(some, columns).contains("more columns"));
}

#[test]
fn no_damage_to_a_footer_ends_the_process_or_leads_outside_of_the_file() {
    quiet_parquet_panics();
    let file = small(500);
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(99);
    let footer = u32::from_le_bytes(file[file.len() - 8..file.len() - 4].try_into().unwrap()) as usize;
    let store = store();
    let (mut refused, mut read) = (0, 0);
    for _ in 0..20_000 {
        let mut bytes = file.to_vec();
        // Half of the damage in the footer proper, half in footer and page index.
        let reach = footer * if rng.random_bool(0.5) { 1 } else { 2 };
        for _ in 0..rng.random_range(1..4) {
            let at = file.len() - 1 - rng.random_range(0..reach.min(file.len() - 1));
            bytes[at] = if rng.random_bool(0.5) {
                bytes[at] ^ (1 << rng.random_range(0..8))
            } else {
                rng.random()
            };
        }
        put(&store, KEY, &Bytes::from(bytes));
        cache::forget(&store, KEY);
        match load(&store, LONG, 1 << 20) {
            Ok(_) => read += 1,
            Err(Error::CorruptFile { .. }) => refused += 1,
            Err(error) => panic!("{error:?}"),
        }
    }
    assert!(refused > 5000 && read > 100, "{refused} refused, {read} read");
}

/// Runs in a process of its own, because other tests would notice.
#[test]
fn the_memory_for_footers_is_bounded_and_drops_what_was_used_longest_ago() {
    const CHILD: &str = "PARQUET_ANALYTICS_TEST_CACHE_BOUND";
    if std::env::var_os(CHILD).is_none() {
        let name = "cache::the_memory_for_footers_is_bounded_and_drops_what_was_used_longest_ago";
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let layout = Layout {
        group_rows: 10,
        ..Layout::default()
    };
    let file = write(traffic(40, 100, day()), layout.properties());
    let store = store();
    let one = |key: &str| {
        put(&store, key, &file);
        let loaded = block_on(&Cancel::new(), cache::load(&store, key, LONG, 2 << 20)).unwrap();
        // A file in memory shares its bytes, but each footer has its own.
        match loaded.lookup {
            Lookup::Present(footer) => footer.memory_size(),
            Lookup::Absent => panic!("absent"),
        }
    };
    let size = one("used");
    let fits = (256 << 20) / size;
    assert!((20..1000).contains(&fits), "{fits} footers of {size} bytes");
    for n in 0..fits * 2 {
        one(&format!("{n}"));
        assert!(cache::peek(&store, "used", LONG).is_some(), "dropped after {n}");
    }
    let kept = (0..fits * 2).filter(|n| cache::peek(&store, &n.to_string(), LONG).is_some());
    let kept: Vec<usize> = kept.collect();
    assert!(kept.len() < fits && kept.len() > fits / 2, "{} of {fits}", kept.len());
    assert_eq!(kept.last(), Some(&(fits * 2 - 1)));
    assert_eq!(kept[0] + kept.len(), fits * 2, "not the last ones");
}
