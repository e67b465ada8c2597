use std::time::Instant;

use arrow::datatypes::Schema;
use parquet_analytics::base::runtime::Cancel;
use parquet_analytics::base::schema;
use parquet_analytics::file::sort::{SortOptions, Sorter};
use parquet_analytics::source::Slugs;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::support::{Row, batch_of, day, random_rows, rows_of};

fn sorted(rows: &[Row], batch_rows: usize, memory_bytes: usize, with_slugs: bool) -> Vec<Row> {
    let mut sorter = Sorter::new(
        day(),
        SortOptions {
            memory_bytes,
            temp_dir: None,
        },
    );
    let mut slugs = Slugs::default();
    for part in rows.chunks(batch_rows) {
        let batch = batch_of(part);
        if with_slugs {
            sorter.push(&batch).unwrap();
        } else {
            let facts: &Schema = &schema::facts();
            let columns: Vec<usize> = facts
                .fields()
                .iter()
                .map(|field| batch.schema().index_of(field.name()).unwrap())
                .collect();
            sorter.push(&batch.project(&columns).unwrap()).unwrap();
            for row in part {
                slugs.projects.insert(row.project_id, row.project_slug.clone());
                if let (Some(id), Some(slug)) = (row.version_id, row.version_slug.clone()) {
                    slugs.versions.insert(id, slug);
                }
            }
        }
    }
    assert_eq!(sorter.rows(), rows.len() as u64);
    let result = sorter.finish(Some(&slugs), &Cancel::new()).unwrap();
    result.flat_map(|batch| rows_of(&batch.unwrap())).collect()
}

#[test]
fn rows_come_out_whole_and_in_byte_order_in_memory_and_spilled() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for count in [0, 1, 2, 100, 20_000, 50_000] {
        let rows = random_rows(&mut rng, count);
        let mut expected = rows.clone();
        expected.sort();
        for memory_bytes in [usize::MAX, 1 << 20, 1] {
            for with_slugs in [true, false] {
                let got = sorted(&rows, 3000, memory_bytes, with_slugs);
                assert!(
                    got == expected,
                    "{count} rows, {memory_bytes} bytes, with slugs: {with_slugs}"
                );
            }
        }
    }
}

#[test]
fn a_missing_slug_is_named() {
    let rows = random_rows(&mut ChaCha8Rng::seed_from_u64(1), 10);
    let batch = batch_of(&rows);
    let columns: Vec<usize> = schema::facts()
        .fields()
        .iter()
        .map(|field| batch.schema().index_of(field.name()).unwrap())
        .collect();
    let mut sorter = Sorter::new(day(), SortOptions::default());
    sorter.push(&batch.project(&columns).unwrap()).unwrap();
    let error = sorter.finish(Some(&Slugs::default()), &Cancel::new()).err().unwrap();
    assert!(error.to_string().contains("no slug for project 1"), "{error}");
}

/// In the middle of it, which takes seconds for millions of rows.
#[test]
fn a_stop_request_breaks_a_sort_off() {
    let rows = random_rows(&mut ChaCha8Rng::seed_from_u64(1), 600_000);
    let batch = batch_of(&rows);
    let sort = |cancel: &Cancel| {
        let mut sorter = Sorter::new(day(), SortOptions::default());
        sorter.push(&batch).unwrap();
        let begun = Instant::now();
        (sorter.finish(None, cancel).is_ok(), begun.elapsed())
    };
    let (done, whole) = sort(&Cancel::new());
    assert!(done);
    let cancel = Cancel::new();
    let (done, broken_off) = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(whole / 4);
            cancel.cancel();
        });
        sort(&cancel)
    });
    assert!(!done && broken_off < whole * 3 / 4, "{broken_off:?} of {whole:?}");
}

#[test]
fn a_stop_request_ends_the_sort() {
    let rows = random_rows(&mut ChaCha8Rng::seed_from_u64(1), 10);
    let mut sorter = Sorter::new(day(), SortOptions::default());
    sorter.push(&batch_of(&rows)).unwrap();
    let cancel = Cancel::new();
    cancel.cancel();
    assert!(sorter.finish(None, &cancel).is_err());
}
