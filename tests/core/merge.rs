//! Whether an export has written the rows that were stored already.

use arrow::array::RecordBatch;
use parquet_analytics::archive::merge::{SameRows, without, without_ids};
use parquet_analytics::base::error::{Error, Result};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::support::{Row, batch_of, random_rows, rows_of};

/// The rows in batches of any length, some of them empty.
fn cut(rng: &mut impl Rng, rows: &[Row]) -> Vec<RecordBatch> {
    let mut batches = Vec::new();
    let mut at = 0;
    while at < rows.len() || rng.random_bool(0.3) {
        let length = rng.random_range(0..=4).min(rows.len() - at);
        batches.push(batch_of(&rows[at..at + length]));
        at += length;
    }
    batches
}

fn same(ours: &[RecordBatch], theirs: Vec<RecordBatch>) -> Result<bool> {
    let mut same = SameRows::new(theirs.into_iter().map(Ok));
    for batch in ours {
        same.push(batch)?;
    }
    same.finish()
}

#[test]
fn rows_are_the_same_however_they_are_cut_and_not_if_one_is_other_lacking_or_too_many() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for number in 0..500 {
        let count = rng.random_range(0..12);
        let rows = random_rows(&mut rng, count);
        let mut other = rows.clone();
        let change = number % 5;
        match change {
            1 if !rows.is_empty() => other[rng.random_range(0..count)].view_count ^= 1,
            2 => drop(other.pop()),
            3 => other.push(Row {
                id: 99,
                ..random_rows(&mut rng, 1)[0].clone()
            }),
            4 if count > 1 => other.swap(0, count - 1),
            _ => {}
        }
        let expected = rows == other;
        let (ours, theirs) = (cut(&mut rng, &rows), cut(&mut rng, &other));
        assert_eq!(same(&ours, theirs).unwrap(), expected, "{rows:?} {other:?}");
    }
}

#[test]
fn no_more_is_read_than_it_takes_to_find_a_difference_and_what_cannot_be_read_is_an_error() {
    let rows = random_rows(&mut ChaCha8Rng::seed_from_u64(1), 4);
    let other = Row {
        path: "/other".to_owned(),
        ..rows[0].clone()
    };
    let failing = |first: &[Row]| {
        let first = Ok(batch_of(first));
        SameRows::new([first, Err(Error::internal("it is damaged"))].into_iter())
    };
    let mut found = failing(&[other]);
    found.push(&batch_of(&rows)).unwrap();
    assert!(!found.finish().unwrap());
    assert!(failing(&rows[..2]).push(&batch_of(&rows)).is_err());
    let mut found = failing(&rows);
    found.push(&batch_of(&rows)).unwrap();
    assert!(found.finish().is_err());
}

#[test]
fn rows_of_some_projects_and_with_some_ids_are_left_out() {
    let rows = random_rows(&mut ChaCha8Rng::seed_from_u64(3), 40);
    for (projects, ids) in [(vec![], vec![]), (vec![11, 12], vec![0, 7, 39]), (vec![99], vec![99])] {
        let left = rows_of(&without(batch_of(&rows), &projects).unwrap());
        let expected = rows.iter().filter(|row| !projects.contains(&row.project_id));
        assert!(left.iter().eq(expected));
        let left = rows_of(&without_ids(batch_of(&rows), &ids).unwrap());
        assert!(left.iter().eq(rows.iter().filter(|row| !ids.contains(&row.id))));
    }
}
