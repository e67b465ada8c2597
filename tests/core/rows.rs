//! Rows by id, and what they add up to, against a plain map of the same rows.

use std::collections::{BTreeMap, HashMap};

use parquet_analytics::base::error::Error;
use parquet_analytics::file::rows::{Match, RowIndexBuilder, check_ids};
use parquet_analytics::file::tally::Tally;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::support::{Row, batch_of, random_rows};

#[test]
fn every_copied_column_counts_and_no_slug_does() {
    let rows = random_rows(&mut ChaCha8Rng::seed_from_u64(2), 50);
    let mut index = RowIndexBuilder::default();
    index.push(&batch_of(&rows)).unwrap();
    let index = index.finish().unwrap();
    let one = |change: &dyn Fn(&mut Row)| {
        let mut row = rows[7].clone();
        change(&mut row);
        index.matches(&batch_of(&[row])).unwrap()[0]
    };
    assert_eq!(one(&|_| {}), Match::Same(7));
    assert_eq!(one(&|row| row.project_slug.push('x')), Match::Same(7));
    assert_eq!(one(&|row| row.version_slug = Some("other".to_owned())), Match::Same(7));
    assert_eq!(one(&|row| row.view_count ^= 1), Match::Changed(7));
    assert_eq!(one(&|row| row.status ^= 1), Match::Changed(7));
    assert_eq!(
        one(&|row| row.version_id = row.version_id.map_or(Some(0), |_| None)),
        Match::Changed(7)
    );
    assert_eq!(
        one(&|row| row.full_path = row.full_path.clone().map_or(Some(String::new()), |_| None)),
        Match::Changed(7)
    );
    assert_eq!(
        one(&|row| row.full_path = Some("/elsewhere".to_owned())),
        Match::Changed(7)
    );
    assert_eq!(one(&|row| row.path.push('\0')), Match::Conflict(7));
    assert_eq!(one(&|row| row.project_id += 1), Match::Conflict(7));
    assert_eq!(one(&|row| row.id = 50), Match::Absent);
}

#[test]
fn an_index_finds_what_a_map_finds() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut rows = random_rows(&mut rng, 5_000);
    for row in &mut rows {
        row.id = row.id.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as i64); // any order, also negative
    }
    let known: HashMap<i64, &Row> = rows.iter().take(4_000).map(|row| (row.id, row)).collect();
    let mut index = RowIndexBuilder::default();
    for part in rows[..4_000].chunks(700) {
        index.push(&batch_of(part)).unwrap();
    }
    let index = index.finish().unwrap();
    assert_eq!(index.len(), 4_000);
    assert!(index.ids().is_sorted());
    let mut changed = rows.clone();
    for row in &mut changed {
        if rng.random_bool(0.3) {
            row.view_count = row.view_count.wrapping_add(1);
        }
    }
    for (row, found) in changed.iter().zip(index.matches(&batch_of(&changed)).unwrap()) {
        match (known.get(&row.id), found) {
            (None, Match::Absent) => {}
            (Some(known), Match::Same(number)) => {
                assert_eq!((known.view_count, index.id(number)), (row.view_count, row.id));
            }
            (Some(known), Match::Changed(number)) => {
                assert!(known.view_count != row.view_count && index.id(number) == row.id);
            }
            (known, found) => panic!("{row:?}: {known:?} {found:?}"),
        }
    }
}

#[test]
fn an_id_that_repeats_is_named() {
    let mut rows = random_rows(&mut ChaCha8Rng::seed_from_u64(4), 100);
    rows[90].id = 17;
    let mut index = RowIndexBuilder::default();
    index.push(&batch_of(&rows)).unwrap();
    assert!(matches!(index.finish(), Err(Error::BadRow { row_id: Some(17), .. })));
    assert!(check_ids(&mut [5, i64::MIN, 4]).is_ok());
    assert!(matches!(
        check_ids(&mut [5, i64::MIN, 5]),
        Err(Error::BadRow { row_id: Some(5), .. })
    ));
}

#[test]
fn a_tally_adds_up_and_survives_the_way_through_metadata() {
    let rows = random_rows(&mut ChaCha8Rng::seed_from_u64(5), 3_000);
    let mut tally = Tally::default();
    for part in rows.chunks(800) {
        tally.add(&batch_of(part)).unwrap();
    }
    let mut statuses = BTreeMap::new();
    for row in &rows {
        *statuses.entry(row.status).or_insert(0) += 1;
    }
    let expected = Tally {
        rows: 3_000,
        views: rows.iter().map(|row| i64::from(row.view_count)).sum(),
        ids: Some((0, 2_999)),
        statuses,
    };
    assert_eq!(tally, expected);
    for tally in [tally, Tally::default()] {
        let pairs: HashMap<String, String> = tally
            .to_metadata()
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        assert_eq!(Tally::from_metadata(&pairs), Some(tally.clone()));
        assert_eq!(tally.difference(&tally), None);
    }
    let mut other = expected.clone();
    other.views += 1;
    assert_eq!(
        other.difference(&expected).unwrap(),
        format!("{} views instead of {}", other.views, expected.views)
    );
    let huge = Tally {
        views: i64::MAX,
        ..Tally::default()
    };
    assert!(huge.plus(&huge).is_err());
}
