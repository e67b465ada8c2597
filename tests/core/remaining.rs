//! Which rows of a day the database still has: what each deletion and export makes of what was known before.

use parquet_analytics::file::remaining::Remaining;
use parquet_analytics::file::remaining::Remaining::{AtMost, Only, Unknown};

/// As many ids as stand in a file's metadata.
const LISTED: i64 = 1_000;

#[test]
fn a_deletion_that_begins_makes_certain_what_is_there_no_more_and_nothing_else() {
    assert_eq!(Remaining::begun(None), Unknown);
    assert_eq!(Remaining::begun(Some(&Unknown)), Unknown);
    assert_eq!(Remaining::begun(Some(&Only(vec![1, 3]))), AtMost(vec![1, 3]));
    assert_eq!(Remaining::begun(Some(&AtMost(vec![1, 3]))), AtMost(vec![1, 3]));
}

#[test]
fn what_a_deletion_has_left_is_what_it_found_and_what_was_not_gone_before() {
    for (before, found, undecided, after) in [
        (Unknown, vec![], false, Only(vec![])),
        (Unknown, vec![5, 2, 5], false, Only(vec![2, 5])),
        (Unknown, vec![5], true, AtMost(vec![5])),
        (AtMost(vec![1, 2, 3]), vec![9, 3, 1], false, Only(vec![1, 3])),
        (AtMost(vec![1, 2, 3]), vec![9, 3], true, AtMost(vec![3])),
        (Only(vec![4]), vec![4, 5], false, Only(vec![4])),
    ] {
        assert_eq!(
            before.ended(found.iter().copied(), undecided),
            after,
            "{before:?} {found:?}"
        );
    }
}

#[test]
fn an_export_says_what_it_has_seen_and_forgets_nothing_that_is_undecided() {
    for (before, found, undecided, after) in [
        (Unknown, vec![2, 1], false, Only(vec![1, 2])),
        (Unknown, vec![2, 1], true, Unknown),
        (Only(vec![7]), vec![2], false, Only(vec![2])),
        (Only(vec![7]), vec![2], true, Unknown),
        (AtMost(vec![7]), vec![2], false, Only(vec![2])),
        (AtMost(vec![7, 9]), vec![8, 7], true, AtMost(vec![7, 8, 9])),
    ] {
        assert_eq!(
            before.seen(found.iter().copied(), undecided),
            after,
            "{before:?} {found:?}"
        );
    }
    assert_eq!(Remaining::of(vec![3, 1, 3]), Only(vec![1, 3]));
}

#[test]
fn more_ids_than_a_files_metadata_should_hold_are_unknown() {
    let most: Vec<i64> = (1..=LISTED).collect();
    let more: Vec<i64> = (1..=LISTED + 1).collect();
    assert_eq!(Remaining::of(most.clone()), Only(most.clone()));
    assert_eq!(Remaining::of(more.clone()), Unknown);
    assert_eq!(Unknown.ended(most.iter().copied(), true), AtMost(most.clone()));
    assert_eq!(Unknown.ended(more.iter().copied(), true), Unknown);
    assert_eq!(AtMost(more).seen(most.into_iter(), true), Unknown);
}

#[test]
fn a_row_is_gone_where_that_is_certain() {
    for (remaining, of_2, of_5) in [
        (Unknown, None, None),
        (AtMost(vec![2]), None, Some(true)),
        (Only(vec![2]), Some(false), Some(true)),
        (Only(vec![]), Some(true), Some(true)),
    ] {
        assert_eq!(
            (remaining.is_gone(2), remaining.is_gone(5)),
            (of_2, of_5),
            "{remaining:?}"
        );
    }
}

#[test]
fn it_survives_the_way_through_a_files_metadata() {
    for (remaining, text) in [
        (Unknown, "unknown"),
        (Only(vec![]), ""),
        (Only(vec![-4, 2, 70]), "-4 2 70"),
        (AtMost(vec![]), "at-most"),
        (AtMost(vec![1, 2]), "at-most 1 2"),
    ] {
        assert_eq!(remaining.to_string(), text);
        assert_eq!(text.parse::<Remaining>().unwrap(), remaining);
    }
    for nonsense in ["2 1", "x", "1 x", "at-most x", "at-most 2 1", "unknown 1", "Unknown"] {
        assert!(nonsense.parse::<Remaining>().is_err(), "{nonsense:?}");
    }
}
