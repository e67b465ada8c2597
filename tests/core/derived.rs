//! Series files: what days add up to, in one file that is read by its index.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int16Type, Int32Type, Int64Type, UInt16Type};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet_analytics::base::error::Error;
use parquet_analytics::derived::index::{DayFile, Index};
use parquet_analytics::derived::merge::{Input, Which, merge};
use parquet_analytics::derived::series::{GROUP_ROWS, SeriesWriter, Written};

use crate::files::date;
use crate::scan::sample;
use crate::support::{Row, batch_of};

/// What tells rows of a series file apart.
type Key = (String, i16, String, Option<String>, i32, Option<i32>, Option<String>);
type Series = BTreeMap<Key, BTreeMap<u16, i64>>;

fn key(row: &Row) -> Key {
    (
        row.project_slug.clone(),
        row.status,
        row.path.clone(),
        row.version_slug.clone(),
        row.project_id,
        row.version_id,
        row.full_path.clone(),
    )
}

fn add(series: &mut Series, day: u16, rows: &[Row]) {
    for row in rows {
        let views = series.entry(key(row)).or_default().entry(day).or_default();
        *views += i64::from(row.view_count);
    }
}

fn day_input(day: u16, rows: &[Row], batch_rows: usize) -> Input {
    let mut rows = rows.to_vec();
    rows.sort();
    let batches: Vec<_> = rows.chunks(batch_rows).map(|rows| Ok(batch_of(rows))).collect();
    Input {
        name: "a day".to_owned(),
        batches: Box::new(batches.into_iter()),
        days: Which::Day(day),
    }
}

fn written(inputs: Vec<Input>) -> Written<Vec<u8>> {
    let mut writer = SeriesWriter::new(Vec::new(), Vec::new()).unwrap();
    merge(inputs, |key, views| writer.push(key, views)).unwrap();
    writer.finish().unwrap()
}

fn index_of(file: &Written<Vec<u8>>) -> Index {
    let day = DayFile {
        etag: "\"1\"".to_owned(),
        rows: 7,
    };
    let days = vec![Some(day), None];
    Index::new(
        "series/a".to_owned(),
        date("2026-07-01"),
        days,
        file.runs.clone(),
        file.groups.clone(),
    )
}

fn batches(file: &[u8]) -> Vec<RecordBatch> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::copy_from_slice(file)).unwrap();
    reader.build().unwrap().map(Result::unwrap).collect()
}

fn read(file: &[u8]) -> Vec<(Key, BTreeMap<u16, i64>)> {
    let mut found = Vec::new();
    for batch in batches(file) {
        let text = |name: &str, row: usize| {
            let column = batch.column_by_name(name).unwrap().as_string::<i32>();
            column.is_valid(row).then(|| column.value(row).to_owned())
        };
        let number = |name: &str, row: usize| {
            let column = batch.column_by_name(name).unwrap().as_primitive::<Int32Type>();
            column.is_valid(row).then(|| column.value(row))
        };
        for row in 0..batch.num_rows() {
            let list = |name: &str| batch.column_by_name(name).unwrap().as_list::<i32>().value(row);
            let days = list("days").as_primitive::<UInt16Type>().values().to_vec();
            let counts = list("counts").as_primitive::<Int64Type>().values().to_vec();
            let views: BTreeMap<u16, i64> = days.iter().copied().zip(counts.iter().copied()).collect();
            assert_eq!(views.len(), days.len());
            assert!(days.is_sorted());
            let total = batch
                .column_by_name("views")
                .unwrap()
                .as_primitive::<Int64Type>()
                .value(row);
            assert_eq!(total, counts.iter().sum::<i64>());
            let key = (
                text("project_slug", row).unwrap(),
                batch
                    .column_by_name("status")
                    .unwrap()
                    .as_primitive::<Int16Type>()
                    .value(row),
                text("path", row).unwrap(),
                text("version_slug", row),
                number("project_id", row).unwrap(),
                number("version_id", row),
                text("full_path", row),
            );
            found.push((key, views));
        }
    }
    found
}

#[test]
fn days_add_up_to_a_series_in_order_whatever_their_batches() {
    for seed in 0..10 {
        let mut expected = Series::new();
        let mut inputs = Vec::new();
        for day in 0..5_u16 {
            let rows = sample(seed * 10 + u64::from(day), 300, date("2026-07-01"));
            add(&mut expected, day, &rows);
            inputs.push(day_input(day, &rows, [1, 7, 1000][usize::from(day) % 3]));
        }
        let expected: Vec<_> = expected.into_iter().collect();
        assert_eq!(read(&written(inputs).sink), expected);
    }
    assert_eq!(read(&written(Vec::new()).sink), []);
}

#[test]
fn a_day_of_an_older_series_is_replaced_in_one_pass() {
    let days: Vec<Vec<Row>> = (0..6).map(|day| sample(day, 200, date("2026-07-01"))).collect();
    let old = written((0..5).map(|day| day_input(day as u16, &days[day], 64)).collect());
    // Of the old one the third day is dropped, and all others move by one.
    let which: Arc<[Option<u16>]> = (0..5).map(|day| (day != 2).then_some(day + 1)).collect();
    let series = Input {
        name: "a series".to_owned(),
        batches: Box::new(batches(&old.sink).into_iter().map(Ok)),
        days: Which::Series(which),
    };
    let new = written(vec![series, day_input(3, &days[5], 50)]);
    let mut expected = Series::new();
    for (day, rows) in [(1, 0), (2, 1), (3, 5), (4, 3), (5, 4)] {
        add(&mut expected, day, &days[rows]);
    }
    assert_eq!(read(&new.sink), expected.into_iter().collect::<Vec<_>>());
}

/// Rows of projects with so many pages each.
fn pages(counts: &[usize]) -> Vec<Row> {
    let one = sample(1, 1, date("2026-07-01")).remove(0);
    let row = |(project, page): (usize, usize)| Row {
        project_slug: format!("project-{project:03}"),
        project_id: project as i32,
        status: if page.is_multiple_of(10) { 404 } else { 200 },
        path: format!("/{page:07}"),
        id: (project * 1_000_000 + page) as i64,
        ..one.clone()
    };
    let places = counts
        .iter()
        .enumerate()
        .flat_map(|(project, pages)| (0..*pages).map(move |page| (project, page)));
    places.map(row).collect()
}

#[test]
fn runs_of_many_rows_have_row_groups_of_their_own_and_small_ones_share_them() {
    let many = GROUP_ROWS * 3;
    let counts = [10, 500, many, 3, 3000, 3000, GROUP_ROWS * 10 / 9 + 10, 1];
    let file = written(vec![day_input(0, &pages(&counts), 8192)]);
    let index = index_of(&file);
    let total: usize = counts.iter().sum();
    assert_eq!(file.groups.iter().map(|group| group.rows).sum::<u64>(), total as u64);
    for (number, run) in index.runs().iter().enumerate() {
        let piece = index.piece(number).unwrap();
        let groups: Vec<u64> = piece
            .groups
            .clone()
            .map(|group| index.group(group).unwrap().rows)
            .collect();
        let start = index.start(piece.groups.start).unwrap();
        if run.rows >= GROUP_ROWS as u64 {
            assert_eq!(
                (start, groups.iter().sum::<u64>()),
                (piece.rows.start, run.rows),
                "{run:?}"
            );
        } else {
            assert_eq!(groups.len(), 1, "{run:?}");
            assert!(groups[0] <= GROUP_ROWS as u64);
        }
        assert!(start <= piece.rows.start);
    }
    assert_eq!(index.piece(index.runs().len()), None);
}

#[test]
fn an_index_is_read_as_it_was_written_and_damage_is_named() {
    let file = written(vec![day_input(0, &pages(&[10, 5000, 3]), 8192)]);
    let index = index_of(&file);
    let bytes = index.to_bytes().unwrap();
    let again = Index::parse("an/index", &bytes).unwrap();
    assert_eq!(again.runs(), index.runs());
    assert_eq!(
        (&again.key, again.first, &again.days),
        (&index.key, index.first, &index.days)
    );
    assert_eq!(
        (0..10).map(|n| again.group(n).cloned()).collect::<Vec<_>>(),
        (0..10).map(|n| index.group(n).cloned()).collect::<Vec<_>>()
    );
    for at in 0..bytes.len() {
        let damaged = [&bytes[..at], &[bytes[at] ^ 0x41], &bytes[at + 1..]].concat();
        if let Err(error) = Index::parse("an/index", &damaged) {
            assert!(matches!(error.inner(), Error::CorruptFile { .. }), "{error:?}");
            assert!(error.to_string().contains("an/index"));
        }
        assert!(Index::parse("an/index", &bytes[..at]).is_err(), "cut after {at} bytes");
    }
}

#[test]
fn long_texts_end_row_groups_early_and_nothing_else_changes() {
    let mut rows = pages(&[3, 70_000, 5]);
    for (number, row) in rows.iter_mut().enumerate() {
        if row.project_id == 1 && (100..4_000).contains(&number) {
            // In order still.
            row.path = format!("{}{}", row.path, "ä".repeat(1_000));
        }
        if row.project_id == 2 {
            row.version_slug = Some("v".repeat(1_500_000));
        }
    }
    let mut expected = Series::new();
    add(&mut expected, 0, &rows);
    let file = written(vec![day_input(0, &rows, 8192)]);
    assert_eq!(read(&file.sink), expected.into_iter().collect::<Vec<_>>());
    assert!(file.groups.len() > 3, "{}", file.groups.len());
    assert!(file.groups.iter().all(|group| group.rows <= (1 << 16) + 4096));
    let index = index_of(&file);
    assert_eq!(index.runs().iter().map(|run| run.rows).sum::<u64>(), rows.len() as u64);
}
