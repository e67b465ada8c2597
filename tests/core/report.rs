//! Named reports over relations in memory: the same sums as a plain map, whatever the threads, and what ends them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, AsArray, Date32Array, Int16Array, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{Date32Type, Int64Type};
use parquet_analytics::base::error::{Error, Result};
use parquet_analytics::base::keys::Day;
use parquet_analytics::base::runtime::Cancel;
use parquet_analytics::base::schema;
use parquet_analytics::engine::Limits;
use parquet_analytics::report::{Pages, daily_totals, top_pages, within};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::engine::{Memory, Trouble};

const FIRST: i32 = 20_000;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    path: String,
    version: Option<String>,
    full_path: Option<String>,
    views: i32,
    date: i32,
}

fn rows(seed: u64, count: usize) -> Vec<Row> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let texts = ["", "/", "/a", "/a/b", "/ä", "/日本", "/😀", "/a\u{0}b", "/A"];
    let mut text = || texts[random.random_range(0..texts.len())].to_owned();
    let texts: Vec<(String, String, String)> = (0..count).map(|_| (text(), text(), text())).collect();
    texts
        .into_iter()
        .map(|(path, version, full_path)| Row {
            path,
            version: random.random_bool(0.7).then_some(version),
            full_path: random.random_bool(0.7).then_some(full_path),
            views: random.random_range(-3..i32::MAX),
            date: FIRST + random.random_range(0..7),
        })
        .collect()
}

fn batch(rows: &[Row]) -> RecordBatch {
    let count = rows.len();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(0..count as i64)),
        Arc::new(Int32Array::from(vec![1; count])),
        Arc::new(StringArray::from(vec!["docs"; count])),
        Arc::new(Int32Array::from(vec![None::<i32>; count])),
        Arc::new(rows.iter().map(|row| row.version.as_deref()).collect::<StringArray>()),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.path))),
        Arc::new(rows.iter().map(|row| row.full_path.as_deref()).collect::<StringArray>()),
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.views))),
        Arc::new(Date32Array::from_iter_values(rows.iter().map(|row| row.date))),
        Arc::new(Int16Array::from(vec![200; count])),
    ];
    RecordBatch::try_new(schema::pageviews(), columns).unwrap()
}

/// Units of a few batches each.
fn relation(rows: &[Row]) -> Memory {
    let batches: Vec<RecordBatch> = rows.chunks(50).map(batch).collect();
    Memory::new(batches.chunks(3).map(<[RecordBatch]>::to_vec).collect())
}

fn limits(threads: usize) -> Limits {
    Limits {
        threads,
        ..Limits::default()
    }
}

fn texts(column: &ArrayRef) -> Vec<Option<String>> {
    column
        .as_string::<i32>()
        .iter()
        .map(|text| text.map(str::to_owned))
        .collect()
}

fn found(answer: &RecordBatch) -> Vec<(i64, Option<String>, Option<String>)> {
    let first = texts(answer.column(0));
    let versions = match answer.column_by_name(schema::VERSION_SLUG) {
        Some(versions) => texts(versions),
        None => vec![None; first.len()],
    };
    let counts = answer.column(1).as_primitive::<Int64Type>().values().to_vec();
    let pages = counts.into_iter().zip(first).zip(versions);
    pages.map(|((count, first), version)| (count, first, version)).collect()
}

#[test]
fn pages_are_summed_and_put_in_order_as_a_plain_map_does() {
    for seed in 0..20 {
        let rows = rows(seed, 1500);
        for pages in [Pages::Path, Pages::PathAndVersion, Pages::FullPath] {
            let mut sums: BTreeMap<(Option<String>, Option<String>), i64> = BTreeMap::new();
            for row in &rows {
                let name = match pages {
                    Pages::Path => (Some(row.path.clone()), None),
                    Pages::PathAndVersion => (Some(row.path.clone()), row.version.clone()),
                    Pages::FullPath => (row.full_path.clone(), None),
                };
                *sums.entry(name).or_default() += i64::from(row.views);
            }
            let mut all: Vec<_> = sums
                .into_iter()
                .map(|((path, version), count)| (count, path, version))
                .collect();
            // Stable, so that names stay in order among equal counts.
            all.sort_by_key(|(count, ..)| std::cmp::Reverse(*count));
            for (limit, offset) in [
                (10, 0),
                (3, 2),
                (usize::MAX, 0),
                (0, 0),
                (5, 1_000),
                (usize::MAX, usize::MAX),
            ] {
                for threads in [1, 4] {
                    let answer = top_pages(
                        &relation(&rows),
                        pages,
                        (limit, offset),
                        &limits(threads),
                        &Cancel::new(),
                    )
                    .unwrap();
                    let expected: Vec<_> = all.iter().skip(offset).take(limit).cloned().collect();
                    assert_eq!(
                        found(&answer),
                        expected,
                        "{pages:?}, {limit} from {offset} on, {threads} threads"
                    );
                }
            }
        }
    }
}

#[test]
fn equal_counts_are_in_order_of_bytes_and_missing_names_come_first() {
    let one = |path: &str, version: Option<&str>| Row {
        path: path.to_owned(),
        version: version.map(str::to_owned),
        full_path: version.map(str::to_owned),
        views: 1,
        date: FIRST,
    };
    let rows = [
        one("/ä", None),
        one("/z", Some("b")),
        one("/z", None),
        one("/Z", Some("")),
    ];
    let ask = |pages| found(&top_pages(&relation(&rows), pages, (10, 0), &limits(2), &Cancel::new()).unwrap());
    let name = |name: &str| Some(name.to_owned());
    assert_eq!(
        ask(Pages::PathAndVersion),
        [
            (1, name("/Z"), name("")),
            (1, name("/z"), None),
            (1, name("/z"), name("b")),
            (1, name("/ä"), None),
        ]
    );
    assert_eq!(
        ask(Pages::FullPath),
        [(2, None, None), (1, name(""), None), (1, name("b"), None)]
    );
}

#[test]
fn days_are_summed_and_those_without_rows_left_out_unless_filled() {
    let rows: Vec<Row> = rows(7, 2000).into_iter().filter(|row| row.date != FIRST + 2).collect();
    let mut sums: BTreeMap<i32, i64> = BTreeMap::new();
    for row in &rows {
        *sums.entry(row.date).or_default() += i64::from(row.views);
    }
    let filled = (FIRST - 1..=FIRST + 7).map(|date| (date, sums.get(&date).copied().unwrap_or_default()));
    let filled: Vec<(i32, i64)> = filled.collect();
    let sums: Vec<(i32, i64)> = sums.clone().into_iter().collect();
    let span = (
        Day::from_date32(FIRST - 1).unwrap(),
        Day::from_date32(FIRST + 7).unwrap(),
    );
    for threads in [1, 4] {
        for (fill, expected) in [(false, &sums), (true, &filled)] {
            let answer = daily_totals(&relation(&rows), span, fill, &limits(threads), &Cancel::new()).unwrap();
            let dates = answer.column(0).as_primitive::<Date32Type>().values().to_vec();
            let counts = answer.column(1).as_primitive::<Int64Type>().values().to_vec();
            assert_eq!(&dates.into_iter().zip(counts).collect::<Vec<_>>(), expected);
        }
    }
}

#[test]
fn pages_that_take_more_memory_than_allowed_end_the_question() {
    let rows: Vec<Row> = (0..1000)
        .map(|number| Row {
            path: format!("/{number:0100}"),
            version: None,
            full_path: None,
            views: 1,
            date: FIRST,
        })
        .collect();
    let ask = |memory_bytes| {
        let limits = Limits {
            memory_bytes,
            ..limits(2)
        };
        top_pages(&relation(&rows), Pages::Path, (1, 0), &limits, &Cancel::new())
    };
    let error = ask(100_000).unwrap_err();
    assert!(
        matches!(error.inner(), Error::Query { retryable: false, .. }),
        "{error:?}"
    );
    assert!(
        error.to_string().contains("100000 bytes; ask for fewer days"),
        "{error}"
    );
    assert_eq!(ask(1_000_000).unwrap().num_rows(), 1);
}

#[test]
fn what_ends_a_unit_ends_the_question_by_name() {
    let rows = rows(1, 5000);
    let ask = |trouble| {
        let mut relation = relation(&rows);
        relation.trouble = trouble;
        let error = top_pages(&relation, Pages::Path, (1, 0), &limits(3), &Cancel::new()).unwrap_err();
        // The others do not read all there is.
        assert!(relation.batches_read.load(std::sync::atomic::Ordering::SeqCst) < 20);
        error
    };
    assert!(matches!(ask(Trouble::Fails).inner(), Error::Permission { .. }));
    assert!(matches!(ask(Trouble::OpenFails).inner(), Error::Permission { .. }));
    assert!(ask(Trouble::Panics).to_string().contains("has panicked"));
    assert!(ask(Trouble::WrongColumns).to_string().contains("other columns"));
    let cancel = Cancel::new();
    cancel.cancel();
    let stopped = daily_totals(
        &relation(&rows),
        (Day::from_date32(FIRST).unwrap(), Day::from_date32(FIRST + 6).unwrap()),
        false,
        &limits(2),
        &cancel,
    );
    assert!(matches!(stopped.unwrap_err().inner(), Error::Interrupted));
}

#[test]
fn a_question_ends_when_its_time_is_up_and_not_before() {
    let wait = |cancel: &Cancel| -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(20) {
            cancel.check()?;
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    };
    let begun = Instant::now();
    let error = within(Some(Duration::from_millis(50)), &Cancel::new(), wait).unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert!(error.to_string().contains("timeout of 0.05 s"), "{error}");
    // Whoever stops it says so, and not the clock.
    let cancel = Cancel::new();
    cancel.cancel();
    let stopped = within(Some(Duration::from_secs(20)), &cancel, wait).unwrap_err();
    assert!(matches!(stopped.inner(), Error::Interrupted));
    assert_eq!(
        within(Some(Duration::from_secs(20)), &Cancel::new(), |_| Ok(5)).unwrap(),
        5
    );
    assert_eq!(within(None, &Cancel::new(), |_| Ok(6)).unwrap(), 6);
}
