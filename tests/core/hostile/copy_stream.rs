use std::cell::Cell;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use parquet_analytics::base::error::Error;
use parquet_analytics::source::BadRows::{Fail, Leave};
use parquet_analytics::source::postgres::copy::Layout;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::alone;
use super::ask::decode;
use super::memory::peak_of;

const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

fn layouts() -> impl Strategy<Value = Layout> {
    any::<[bool; 3]>().prop_map(|[version_id, full_path, status]| Layout {
        version_id,
        full_path,
        status,
    })
}

fn fields(layout: Layout) -> usize {
    4 + [layout.version_id, layout.full_path, layout.status]
        .iter()
        .filter(|there| **there)
        .count()
}

/// Any text: every plane, private use, noncharacters, controls, and what means something to COPY's text format.
fn text() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => prop::collection::vec(any::<char>(), 0..20).prop_map(|chars| String::from_iter(chars).into_bytes()),
        1 => prop::sample::select(vec!["\\N", "\\.", "\u{ffff}", "PGCOPY\n\u{ff}\r\n\0", "\0\0\0\x07", "\t\r\n", ""])
            .prop_map(|text| text.as_bytes().to_vec()),
        1 => (0..5000_usize).prop_map(|length| vec![b'/'; length]),
    ]
}

/// A stream of rows that are all fine, with integers of any width that holds them.
fn stream(layout: Layout) -> impl Strategy<Value = (Vec<i64>, Vec<u8>)> {
    let integer = |value: i64, width: usize| match (width, i16::try_from(value), i32::try_from(value)) {
        (2, Ok(value), _) => value.to_be_bytes().to_vec(),
        (4, _, Ok(value)) => value.to_be_bytes().to_vec(),
        _ => value.to_be_bytes().to_vec(),
    };
    let number = (0..=i64::from(i32::MAX), prop::sample::select(vec![2_usize, 4, 8]));
    let number = prop_oneof![
        3 => number.prop_map(move |(value, width)| integer(value, width)),
        1 => prop::sample::select(vec![0, 1, i64::from(i32::MAX)]).prop_map(move |value| integer(value, 4)),
    ];
    let id = prop_oneof![any::<i64>(), prop::sample::select(vec![0, -1, i64::MIN, i64::MAX])];
    let status = (0..=i16::MAX).prop_map(move |value| integer(value.into(), 2));
    let row = (
        id,
        number.clone(),
        prop::option::of(number.clone()),
        text(),
        prop::option::of(text()),
        number,
        status,
    );
    prop::collection::vec(row, 0..12).prop_map(move |rows| {
        let mut bytes = HEADER.to_vec();
        for (id, project, version, path, full_path, views, status) in &rows {
            bytes.extend((fields(layout) as i16).to_be_bytes());
            let id = id.to_be_bytes().to_vec();
            let fields = [
                (true, Some(&id)),
                (true, Some(project)),
                (layout.version_id, version.as_ref()),
                (true, Some(path)),
                (layout.full_path, full_path.as_ref()),
                (true, Some(views)),
                (layout.status, Some(status)),
            ];
            for field in fields.into_iter().filter_map(|(there, field)| there.then_some(field)) {
                bytes.extend(field.map_or(-1, |field| field.len() as i32).to_be_bytes());
                bytes.extend(field.into_iter().flatten());
            }
        }
        bytes.extend((-1_i16).to_be_bytes());
        (rows.into_iter().map(|row| row.0).collect(), bytes)
    })
}

fn streams() -> impl Strategy<Value = (Layout, Vec<i64>, Vec<u8>)> {
    layouts().prop_flat_map(|layout| stream(layout).prop_map(move |(ids, bytes)| (layout, ids, bytes)))
}

/// The same bytes in pieces that end at these places.
fn pieces(bytes: &[u8], mut ends: Vec<usize>) -> Vec<&[u8]> {
    ends.retain(|end| *end <= bytes.len());
    ends.extend([0, bytes.len()]);
    ends.sort_unstable();
    ends.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

fn ids(batches: &[RecordBatch]) -> Vec<i64> {
    batches
        .iter()
        .flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec())
        .collect()
}

#[derive(Debug, Clone)]
enum Damage {
    Flip(prop::sample::Index, u8),
    Set(prop::sample::Index, u8),
    Insert(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index, usize),
    Repeat(prop::sample::Index, usize),
    /// A length or number of four bytes.
    Number(prop::sample::Index, i32),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<prop::sample::Index>;
    let absurd = prop::sample::select(vec![
        0,
        1,
        -1,
        -2,
        i32::MAX,
        i32::MIN,
        64 << 20,
        (64 << 20) + 1,
        1 << 30,
    ]);
    prop_oneof![
        (at(), 0..8_u8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        (at(), any::<u8>()).prop_map(|(at, value)| Damage::Set(at, value)),
        (at(), prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        (at(), 1..9_usize).prop_map(|(at, count)| Damage::Remove(at, count)),
        (at(), 1..100_usize).prop_map(|(at, count)| Damage::Repeat(at, count)),
        (at(), prop_oneof![any::<i32>(), absurd]).prop_map(|(at, number)| Damage::Number(at, number)),
    ]
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let end = |at: usize, count: usize, bytes: &[u8]| bytes.len().min(at + count);
        if bytes.is_empty() {
            return;
        }
        match self {
            Self::Flip(at, bit) => *at.get_mut(bytes) ^= 1 << bit,
            Self::Set(at, value) => *at.get_mut(bytes) = *value,
            Self::Insert(at, more) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, more.iter().copied());
            }
            Self::Remove(at, count) => {
                let at = at.index(bytes.len());
                bytes.drain(at..end(at, *count, bytes));
            }
            Self::Repeat(at, count) => {
                let at = at.index(bytes.len());
                let part = bytes[at..end(at, *count, bytes)].to_vec();
                bytes.splice(at..at, part);
            }
            Self::Number(at, number) => {
                let at = at.index(bytes.len());
                let end = end(at, 4, bytes);
                bytes.splice(at..end, number.to_be_bytes());
            }
        }
    }
}

#[test]
fn a_valid_stream_cut_anywhere_gives_all_its_rows_and_ended_anywhere_else_none() {
    let input = (streams(), prop::collection::vec(0..2000_usize, 0..6));
    let mut runner = TestRunner::new(Config::with_cases(300));
    let result = runner.run(&input, |((layout, expected, bytes), ends)| {
        let (whole, _) = decode(layout, Fail, [&bytes[..]]).unwrap();
        prop_assert_eq!(&ids(&whole), &expected);
        prop_assert_eq!(&decode(layout, Fail, pieces(&bytes, ends)).unwrap().0, &whole);
        for end in 0..bytes.len() {
            let cut = decode(layout, Fail, [&bytes[..end]]);
            prop_assert!(
                matches!(&cut, Err(Error::Database { retryable: true, .. })),
                "{} {:?}",
                end,
                cut
            );
        }
        Ok(())
    });
    result.unwrap();
}

#[test]
fn a_damaged_stream_gives_rows_or_an_error_the_same_in_any_pieces_and_within_memory_in_proportion() {
    if !alone(
        "copy_stream::a_damaged_stream_gives_rows_or_an_error_the_same_in_any_pieces_and_within_memory_in_proportion",
    ) {
        return;
    }
    let ends = prop::collection::vec(0..2000_usize, 0..6);
    let input = (streams(), prop::collection::vec(damage(), 1..5), ends);
    let [read, bad, left_out, damaged, most] = [const { Cell::new(0) }; 5];
    let one_more = |count: &Cell<usize>| count.set(count.get() + 1);
    let mut runner = TestRunner::new(Config::with_cases(6000));
    let result = runner.run(&input, |((layout, _, mut bytes), damages, ends)| {
        damages.iter().for_each(|damage| damage.apply(&mut bytes));
        let (whole, memory) = peak_of(|| decode(layout, Fail, [&bytes[..]]));
        // The columns' builders have room for a thousand rows from the beginning.
        prop_assert!(
            memory <= 16 * bytes.len() + (1 << 18),
            "{} bytes of memory for {}",
            memory,
            bytes.len()
        );
        most.set(memory.max(most.get()));
        let cut = decode(layout, Fail, pieces(&bytes, ends.clone()));
        let leaving = decode(layout, Leave, pieces(&bytes, ends));
        match whole {
            Ok(whole) => {
                prop_assert_eq!(&cut.unwrap(), &whole);
                prop_assert_eq!(&leaving.unwrap(), &whole);
                one_more(&read);
            }
            Err(error) => {
                prop_assert_eq!(cut.unwrap_err().to_string(), error.to_string());
                match (error, leaving) {
                    (
                        Error::BadRow {
                            row_id,
                            column,
                            message,
                        },
                        Ok((rows, left)),
                    ) => {
                        let first = &left[0];
                        prop_assert_eq!(
                            (Some(first.id), first.column, &first.reason),
                            (row_id, column, &message)
                        );
                        prop_assert!(rows.iter().all(|batch| batch.num_rows() > 0));
                        one_more(&bad);
                        one_more(&left_out);
                    }
                    // Without an id, or with damage behind it, a bad row cannot be left.
                    (Error::BadRow { .. }, Err(Error::BadRow { row_id: None, .. } | Error::Database { .. })) => {
                        one_more(&bad);
                    }
                    (Error::Database { retryable: true, .. }, Err(Error::Database { .. })) => one_more(&damaged),
                    other => prop_assert!(false, "{:?}", other),
                }
            }
        }
        Ok(())
    });
    result.unwrap();
    let counts = [read, bad, left_out, damaged, most].map(Cell::into_inner);
    assert!(counts.iter().all(|count| *count > 100), "{counts:?}");
    println!("streams read, with bad rows, of these read when those are left, damaged; bytes of memory: {counts:?}");
}

#[test]
fn a_large_row_that_comes_in_small_pieces_takes_time_and_memory_in_proportion() {
    if !alone("copy_stream::a_large_row_that_comes_in_small_pieces_takes_time_and_memory_in_proportion") {
        return;
    }
    let layout = Layout {
        version_id: false,
        full_path: false,
        status: false,
    };
    let path = vec![b'/'; 60 << 20];
    let mut bytes = HEADER.to_vec();
    bytes.extend(4_i16.to_be_bytes());
    for field in [&[0, 7][..], &[0, 1], &path, &[0, 1]] {
        bytes.extend((field.len() as i32).to_be_bytes());
        bytes.extend_from_slice(field);
    }
    let started = std::time::Instant::now();
    let (result, memory) = peak_of(|| decode(layout, Fail, bytes.chunks(4096)));
    let time = started.elapsed();
    assert!(
        matches!(result, Err(Error::BadRow { .. } | Error::Database { .. })),
        "the stream has no end"
    );
    assert!(memory < 8 * bytes.len(), "{memory} bytes of memory for {}", bytes.len());
    // Copying what has come so far again for each piece would take minutes.
    assert!(time.as_secs() < 10, "{time:?}");
    println!("{time:?}, {memory} bytes of memory");
}
