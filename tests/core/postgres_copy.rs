//! The decoder of binary COPY data: whatever the bytes are, rows or an error.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int16Type, Int32Type, Int64Type};
use parquet_analytics::base::error::{Error, Result};
use parquet_analytics::base::schema;
use parquet_analytics::source::BadRows;
use parquet_analytics::source::postgres::copy::{Decoder, Layout};
use proptest::prelude::*;

const ALL: Layout = Layout {
    version_id: true,
    full_path: true,
    status: true,
};

fn header() -> Vec<u8> {
    b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec()
}

fn row(fields: &[Option<&[u8]>]) -> Vec<u8> {
    let mut row = (fields.len() as i16).to_be_bytes().to_vec();
    for field in fields {
        match field {
            None => row.extend((-1_i32).to_be_bytes()),
            Some(bytes) => {
                row.extend((bytes.len() as i32).to_be_bytes());
                row.extend_from_slice(bytes);
            }
        }
    }
    row
}

/// A row with id 7 whose field `index` is `field`.
fn row_with(index: usize, field: Option<&[u8]>) -> Vec<u8> {
    let mut fields: Vec<Option<&[u8]>> = vec![
        Some(&[0, 0, 0, 0, 0, 0, 0, 7]),
        Some(&[0, 0, 0, 1]),
        Some(&[0, 0, 0, 2]),
        Some(b"/index.html"),
        Some("/en/latest/é.html".as_bytes()),
        Some(&[0, 0, 0, 3]),
        Some(&[0, 0, 0, 200]),
    ];
    fields[index] = field;
    row(&fields)
}

fn whole(rows: &[Vec<u8>]) -> Vec<u8> {
    [header(), rows.concat(), (-1_i16).to_be_bytes().to_vec()].concat()
}

fn decode(layout: Layout, pieces: &[&[u8]]) -> Result<Vec<RecordBatch>> {
    let mut batches = Vec::new();
    let mut sink = |batch| {
        batches.push(batch);
        Ok(())
    };
    let mut decoder = Decoder::new(layout, BadRows::Fail);
    for piece in pieces {
        decoder.push(piece, &mut sink)?;
    }
    decoder.finish(&mut sink)?;
    Ok(batches)
}

fn bad(index: usize, field: Option<&[u8]>) -> (Option<i64>, &'static str, String) {
    match decode(ALL, &[&whole(&[row_with(index, field)])]) {
        Err(Error::BadRow {
            row_id,
            column,
            message,
        }) => (row_id, column, message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_column_arrives_with_its_nulls() {
    let data = whole(&[row_with(2, None), row_with(4, None), row_with(3, Some(b""))]);
    let batches = decode(ALL, &[&data]).unwrap();
    assert_eq!(batches.len(), 1);
    let batch = &batches[0];
    assert_eq!(batch.schema(), schema::facts());
    assert_eq!(batch.column(0).as_primitive::<Int64Type>().values(), &[7, 7, 7]);
    assert_eq!(batch.column(1).as_primitive::<Int32Type>().values(), &[1, 1, 1]);
    let versions: Vec<_> = batch.column(2).as_primitive::<Int32Type>().iter().collect();
    assert_eq!(versions, [None, Some(2), Some(2)]);
    let paths: Vec<_> = batch.column(3).as_string::<i32>().iter().collect();
    assert_eq!(paths, [Some("/index.html"), Some("/index.html"), Some("")]);
    let full: Vec<_> = batch.column(4).as_string::<i32>().iter().collect();
    assert_eq!(full, [Some("/en/latest/é.html"), None, Some("/en/latest/é.html")]);
    assert_eq!(batch.column(5).as_primitive::<Int32Type>().values(), &[3, 3, 3]);
    assert_eq!(batch.column(6).as_primitive::<Int16Type>().values(), &[200, 200, 200]);
}

#[test]
fn columns_that_a_table_lacks_are_null_and_the_status_200() {
    let few = Layout {
        version_id: false,
        full_path: false,
        status: false,
    };
    let id = 5_i64.to_be_bytes();
    let data = whole(&[row(&[Some(&id), Some(&[0, 9]), Some(b"/"), Some(&[0, 1])])]);
    let batch = decode(few, &[&data]).unwrap().remove(0);
    assert_eq!(batch.column(1).as_primitive::<Int32Type>().value(0), 9);
    assert!(batch.column(2).is_null(0) && batch.column(4).is_null(0));
    assert_eq!(batch.column(6).as_primitive::<Int16Type>().value(0), 200);
}

#[test]
fn integers_of_every_width_are_converted() {
    for field in [&[0_u8, 12][..], &[0, 0, 0, 12], &[0, 0, 0, 0, 0, 0, 0, 12]] {
        for (index, column) in [(0, 0), (1, 1), (2, 2), (5, 5), (6, 6)] {
            let batch = decode(ALL, &[&whole(&[row_with(index, Some(field))])])
                .unwrap()
                .remove(0);
            let value = arrow::util::display::array_value_to_string(batch.column(column), 0).unwrap();
            assert_eq!(value, "12", "field {index}");
        }
    }
}

#[test]
fn a_value_that_does_not_fit_names_row_column_and_value() {
    let large = (i64::from(i32::MAX) + 1).to_be_bytes();
    for (index, name) in [(1, "project_id"), (2, "version_id"), (5, "view_count")] {
        let (row, column, message) = bad(index, Some(&large));
        assert_eq!((row, column), (Some(7), name));
        assert!(message.contains("id 7") && message.contains(name) && message.contains("2147483648"));
    }
    let (_, column, message) = bad(6, Some(&40_000_i32.to_be_bytes()));
    assert!(column == "status" && message.contains("40000"), "{message}");
    for (index, name) in [(5, "view_count"), (6, "status")] {
        let (row, column, message) = bad(index, Some(&(-1_i32).to_be_bytes()));
        assert_eq!((row, column), (Some(7), name));
        assert!(message.contains("-1"), "{message}");
    }
    assert_eq!(bad(5, Some(&[1, 2, 3])).1, "view_count");
}

#[test]
fn null_in_a_required_column_names_row_and_column() {
    for (index, name) in [(1, "project_id"), (3, "path"), (5, "view_count"), (6, "status")] {
        let (row, column, message) = bad(index, None);
        assert_eq!((row, column), (Some(7), name));
        assert!(message.contains("NULL"), "{message}");
    }
    assert_eq!((bad(0, None).0, bad(0, None).1), (None, "id"));
}

#[test]
fn text_that_is_not_utf8_names_row_and_column() {
    for (index, name) in [(3, "path"), (4, "full_path")] {
        let (row, column, message) = bad(index, Some(b"/caf\xe9"));
        assert_eq!((row, column), (Some(7), name));
        assert!(message.contains("UTF-8"), "{message}");
    }
}

#[test]
fn data_cut_off_anywhere_is_an_error_and_cut_into_pieces_anywhere_is_not() {
    let data = whole(&[row_with(2, None), row_with(4, None)]);
    let expected = decode(ALL, &[&data]).unwrap();
    for at in 0..data.len() {
        let (start, end) = data.split_at(at);
        match decode(ALL, &[start]) {
            Err(Error::Database { message, .. }) => assert!(message.contains("damaged"), "{message}"),
            other => panic!("cut at {at}: {other:?}"),
        }
        assert_eq!(decode(ALL, &[start, end]).unwrap(), expected, "cut at {at}");
    }
    let bytes: Vec<&[u8]> = data.chunks(1).collect();
    assert_eq!(decode(ALL, &bytes).unwrap(), expected);
}

#[test]
fn damage_is_an_error() {
    let fine = whole(&[row_with(2, None)]);
    let damaged = |at: usize, bytes: &[u8]| {
        let mut data = fine.clone();
        data[at..at + bytes.len()].copy_from_slice(bytes);
        decode(ALL, &[&data]).is_err()
    };
    assert!(damaged(0, b"X"), "signature");
    assert!(damaged(11, &[0, 1, 0, 0]), "a flag with rows of another form");
    assert!(
        damaged(15, &[0x7f, 0xff, 0xff, 0xff]),
        "a header longer than everything"
    );
    assert!(damaged(19, &[0, 6]), "a row with a field too few");
    assert!(damaged(19, &[0xff, 0xfe]), "a row with -2 fields");
    assert!(damaged(21, &[0xff, 0xff, 0xff, 0xfe]), "a field of -2 bytes");
    assert!(damaged(21, &[0x7f, 0xff, 0xff, 0xff]), "a field of 2 GiB");
    let mut more = fine.clone();
    more.push(0);
    assert!(decode(ALL, &[&more]).is_err(), "something after the end");
    let mut extended = header();
    extended.splice(15..19, [0, 0, 0, 3, b'a', b'b', b'c']);
    extended.extend((-1_i16).to_be_bytes());
    assert_eq!(decode(ALL, &[&extended]).unwrap().len(), 0, "an extension is skipped");
}

#[test]
fn many_rows_come_in_batches_that_are_all_there() {
    let one = row_with(2, None);
    let rows = vec![one; 150_000];
    let data = whole(&rows);
    let pieces: Vec<&[u8]> = data.chunks(7_919).collect();
    let batches = decode(ALL, &pieces).unwrap();
    let lengths: Vec<usize> = batches.iter().map(RecordBatch::num_rows).collect();
    assert_eq!(lengths, [65_536, 65_536, 18_928]);
}

#[test]
fn an_error_of_the_sink_ends_it() {
    let mut decoder = Decoder::new(ALL, BadRows::Fail);
    let data = whole(&[row_with(2, None)]);
    let mut sink = |_| Err(Error::Interrupted);
    decoder.push(&data, &mut sink).unwrap();
    assert!(matches!(decoder.finish(&mut sink), Err(Error::Interrupted)));
}

proptest! {
    #[test]
    fn any_bytes_at_all_give_rows_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 0_usize..300) {
        let data = [header(), bytes].concat();
        let (start, end) = data.split_at(cut.min(data.len()));
        let _ = decode(ALL, &[start, end]);
    }

    #[test]
    fn changed_bytes_give_rows_or_an_error(at in 0_usize..400, value in any::<u8>(), cut in 0_usize..400) {
        let mut data = whole(&[row_with(2, None), row_with(4, None), row_with(0, Some(&[0, 1]))]);
        let length = data.len();
        data[at % length] = value;
        let (start, end) = data.split_at(cut % length);
        let in_one = decode(ALL, &[&data]).ok();
        prop_assert_eq!(decode(ALL, &[start, end]).ok(), in_one);
    }
}
