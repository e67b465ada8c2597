//! Arrow streams as a source: what is converted, what is refused, and what the errors name.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, Date64Array, Decimal128Array, DictionaryArray, Float64Array, Int32Array,
    Int64Array, LargeStringArray, NullArray, RecordBatch, RecordBatchIterator, StringArray, StringViewArray,
    TimestampMicrosecondArray, UInt8Array, UInt64Array,
};
use arrow::datatypes::{Field, Int32Type, Int64Type, Schema};
use arrow::error::ArrowError;
use parquet_analytics::base::error::{Error, Kind, Result};
use parquet_analytics::base::runtime::Cancel;
use parquet_analytics::base::schema;
use parquet_analytics::source::arrow::{ArrowSource, MAX_BATCH_ROWS, Stream};
use parquet_analytics::source::{BadRows, Source};
use rand::SeedableRng;

use crate::support::{Row, batch_of, day, random_rows, rows_of};

fn stream(batches: Vec<RecordBatch>) -> Stream {
    let schema = batches[0].schema();
    Box::new(RecordBatchIterator::new(batches.into_iter().map(Ok), schema))
}

fn read(stream: Stream) -> Result<Vec<RecordBatch>> {
    let mut batches = Vec::new();
    let mut keep = |batch| {
        batches.push(batch);
        Ok(())
    };
    ArrowSource::once(stream).read(day(), BadRows::Fail, &mut keep, &Cancel::new())?;
    Ok(batches)
}

fn rows(count: usize) -> Vec<Row> {
    random_rows(&mut rand_chacha::ChaCha8Rng::seed_from_u64(1), count)
}

/// The batch with one column replaced, whatever its type; `None` takes it out.
fn with(batch: &RecordBatch, name: &str, values: Option<ArrayRef>) -> RecordBatch {
    let mut fields = Vec::new();
    let mut columns = Vec::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        let column = if field.name() == name {
            values.clone()
        } else {
            Some(column.clone())
        };
        if let Some(column) = column {
            fields.push(Field::new(field.name(), column.data_type().clone(), true));
            columns.push(column);
        }
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

fn read_with(count: usize, name: &str, values: ArrayRef) -> Result<Vec<Row>> {
    let batches = read(stream(vec![with(&batch_of(&rows(count)), name, Some(values))]))?;
    Ok(batches.iter().flat_map(rows_of).collect())
}

#[test]
fn every_row_arrives_unchanged_whatever_the_order_of_columns_and_whatever_else_is_there() {
    let rows = rows(1_000);
    let batch = batch_of(&rows);
    let mut backwards: Vec<(String, ArrayRef)> = (batch.schema().fields().iter().zip(batch.columns()))
        .map(|(field, column)| (field.name().clone(), column.clone()))
        .collect();
    backwards.reverse();
    backwards.insert(
        3,
        (
            "unrelated".to_owned(),
            Arc::new(BinaryArray::from(vec![b"\xff".as_slice(); 1_000])),
        ),
    );
    let shuffled = RecordBatch::try_from_iter(backwards).unwrap();
    let read = read(stream(vec![
        shuffled.slice(0, 300),
        shuffled.slice(300, 0),
        shuffled.slice(300, 700),
    ]))
    .unwrap();
    assert!(read.iter().all(|batch| batch.schema() == schema::pageviews()));
    assert_eq!(read.iter().flat_map(rows_of).collect::<Vec<_>>(), rows);
}

#[test]
fn large_batches_are_cut_and_do_not_keep_the_whole_in_memory() {
    let rows = rows(3 * MAX_BATCH_ROWS + 17);
    let whole = batch_of(&rows);
    let read = read(stream(vec![whole.clone()])).unwrap();
    assert_eq!(
        read.iter().map(RecordBatch::num_rows).collect::<Vec<_>>(),
        vec![MAX_BATCH_ROWS, MAX_BATCH_ROWS, MAX_BATCH_ROWS, 17]
    );
    let held: usize = read.iter().map(RecordBatch::get_array_memory_size).sum();
    assert!(held < whole.get_array_memory_size() * 5 / 4, "{held} bytes held");
    assert_eq!(read.iter().flat_map(rows_of).collect::<Vec<_>>(), rows);
}

#[test]
fn other_types_that_lose_nothing_are_converted() {
    let rows = rows(50);
    let batch = batch_of(&rows);
    let slugs = || rows.iter().map(|row| row.project_slug.as_str());
    let versions = || rows.iter().map(|row| row.version_slug.as_deref());
    let midnight = i64::from(day().to_date32()) * 86_400_000;
    let int64 = |values: Vec<i64>| Arc::new(Int64Array::from(values)) as ArrayRef;
    let replacements: Vec<(&str, ArrayRef)> = vec![
        (
            "id",
            Arc::new(UInt64Array::from_iter_values(rows.iter().map(|row| row.id as u64))),
        ),
        (
            "id",
            Arc::new(
                Decimal128Array::from_iter_values(rows.iter().map(|row| i128::from(row.id)))
                    .with_precision_and_scale(38, 0)
                    .unwrap(),
            ),
        ),
        (
            "project_id",
            int64(rows.iter().map(|row| row.project_id.into()).collect()),
        ),
        (
            "project_id",
            Arc::new(UInt8Array::from_iter_values(
                rows.iter().map(|row| row.project_id as u8),
            )),
        ),
        ("project_slug", Arc::new(LargeStringArray::from_iter_values(slugs()))),
        ("project_slug", Arc::new(StringViewArray::from_iter_values(slugs()))),
        (
            "project_slug",
            Arc::new(slugs().collect::<DictionaryArray<Int32Type>>()),
        ),
        (
            "version_slug",
            Arc::new(versions().collect::<DictionaryArray<Int32Type>>()),
        ),
        ("version_slug", Arc::new(versions().collect::<StringViewArray>())),
        (
            "version_id",
            Arc::new(
                rows.iter()
                    .map(|row| row.version_id.map(i64::from))
                    .collect::<Int64Array>(),
            ),
        ),
        (
            "view_count",
            int64(rows.iter().map(|row| row.view_count.into()).collect()),
        ),
        ("status", int64(rows.iter().map(|row| row.status.into()).collect())),
        ("date", Arc::new(Date64Array::from_value(midnight, 50))),
        (
            "date",
            Arc::new(TimestampMicrosecondArray::from_value(midnight * 1_000, 50)),
        ),
        (
            "date",
            Arc::new(TimestampMicrosecondArray::from_value(midnight * 1_000, 50).with_timezone("+02:00")),
        ),
    ];
    for (name, values) in replacements {
        let data_type = values.data_type().clone();
        let read = read(stream(vec![with(&batch, name, Some(values))]))
            .unwrap_or_else(|error| panic!("{name} {data_type}: {error}"));
        assert_eq!(
            read.iter().flat_map(rows_of).collect::<Vec<_>>(),
            rows,
            "{name} as {data_type}"
        );
    }
}

#[test]
fn optional_columns_may_be_missing_or_all_null() {
    let mut expected = rows(20);
    let mut batch = batch_of(&expected);
    for name in ["version_id", "version_slug", "full_path", "status"] {
        batch = with(&batch, name, None);
    }
    for row in &mut expected {
        (row.version_id, row.version_slug, row.full_path, row.status) = (None, None, None, 200);
    }
    assert_eq!(rows_of(&read(stream(vec![batch])).unwrap()[0]), expected);

    let null = read_with(20, "version_id", Arc::new(NullArray::new(20))).unwrap();
    assert!(null.iter().all(|row| row.version_id.is_none()));
}

#[test]
fn missing_columns_are_named_all_at_once() {
    let batch = with(&with(&batch_of(&rows(3)), "path", None), "date", None);
    let error = read(stream(vec![batch])).unwrap_err();
    assert!(matches!(&error, Error::SourceSchema { column: Some(name), .. } if name == "path"));
    assert!(
        error
            .to_string()
            .contains("no column path, date; it has: id, project_id"),
        "{error}"
    );
    assert_eq!(error.kind(), Kind::Fix);
}

#[test]
fn a_column_that_is_there_twice_is_refused() {
    let batch = batch_of(&rows(3));
    let mut fields: Vec<_> = batch.schema().fields().iter().cloned().collect();
    fields.push(fields[5].clone());
    let mut columns = batch.columns().to_vec();
    columns.push(columns[5].clone());
    let twice = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
    let error = read(stream(vec![twice])).unwrap_err();
    assert!(error.to_string().contains("more than one column \"path\""), "{error}");
}

#[test]
fn lossy_types_are_refused_by_name_before_any_row_is_read() {
    let midnight = i64::from(day().to_date32()) * 86_400_000_000;
    let lossy: Vec<(&str, ArrayRef, &str)> = vec![
        (
            "version_id",
            Arc::new(Float64Array::from(vec![Some(1.0), None])),
            "Int64",
        ),
        (
            "view_count",
            Arc::new(StringArray::from(vec!["1", "2"])),
            "whole numbers",
        ),
        (
            "view_count",
            Arc::new(
                Decimal128Array::from(vec![100, 200])
                    .with_precision_and_scale(10, 2)
                    .unwrap(),
            ),
            "fraction",
        ),
        ("path", Arc::new(BinaryArray::from(vec![b"/".as_slice(); 2])), "text"),
        ("path", Arc::new(Int32Array::from(vec![1, 2])), "text"),
        (
            "date",
            Arc::new(StringArray::from(vec!["2026-07-01"; 2])),
            "a date is needed",
        ),
        (
            "status",
            Arc::new(TimestampMicrosecondArray::from_value(midnight, 2)),
            "whole numbers",
        ),
    ];
    for (name, values, hint) in lossy {
        let batch = with(&batch_of(&rows(2)), name, Some(values));
        let empty = RecordBatchIterator::new(std::iter::empty::<Result<RecordBatch, ArrowError>>(), batch.schema());
        let error = read(Box::new(empty)).unwrap_err();
        assert!(
            matches!(&error, Error::SourceSchema { column: Some(column), .. } if column == name),
            "{error}"
        );
        assert!(
            error.to_string().contains(hint) && error.to_string().contains(name),
            "{error}"
        );
    }
}

#[test]
fn a_value_that_does_not_fit_is_named_by_row_and_column() {
    let dictionary_with_null = [Some("a"), None, Some("b"), Some("c")]
        .into_iter()
        .collect::<DictionaryArray<Int32Type>>();
    let midnight = i64::from(day().to_date32()) * 86_400_000;
    let int64 = |values: [i64; 4]| Arc::new(Int64Array::from(values.to_vec())) as ArrayRef;
    let bad: Vec<(&'static str, ArrayRef, i64, &str)> = vec![
        (
            "project_id",
            int64([1, 2, 3_000_000_000, 4]),
            2,
            "3000000000 is outside -2147483648 to 2147483647",
        ),
        (
            "project_id",
            Arc::new(Int32Array::from(vec![Some(1), None, None, Some(2)])),
            1,
            "NULL",
        ),
        ("version_id", int64([1, 2, 3, -3_000_000_000]), 3, "-3000000000"),
        (
            "view_count",
            int64([0, 2_147_483_647, 2_147_483_648, 0]),
            2,
            "2147483648",
        ),
        ("view_count", int64([0, 1, -1, 0]), 2, "-1 is outside 0 to"),
        (
            "status",
            int64([200, 404, 32_768, 200]),
            2,
            "32768 is outside 0 to 32767",
        ),
        ("status", int64([200, -404, 0, 200]), 1, "-404"),
        (
            "view_count",
            Arc::new(UInt64Array::from(vec![1, 2, 3, u64::MAX])),
            3,
            "18446744073709551615",
        ),
        (
            "project_slug",
            Arc::new(StringArray::from(vec!["a", "b", "", "c"])),
            2,
            "it is empty",
        ),
        ("project_slug", Arc::new(dictionary_with_null), 1, "NULL"),
        ("path", Arc::new(NullArray::new(4)), 0, "NULL"),
        (
            "date",
            Arc::new(Date64Array::from(vec![midnight, midnight, midnight + 1, midnight])),
            2,
            "not a midnight in UTC",
        ),
        (
            "date",
            Arc::new(arrow::array::Date32Array::from(vec![None, Some(1), None, None])),
            0,
            "NULL",
        ),
    ];
    for (name, values, id, why) in bad {
        let error = read_with(4, name, values).unwrap_err();
        assert!(
            matches!(&error, Error::BadRow { row_id: Some(row), column, .. } if *row == id && *column == name),
            "{name}: {error}"
        );
        let message = error.to_string();
        assert!(
            message.contains(why) && message.contains(&format!("id {id}")) && message.contains(name),
            "{message}"
        );
    }
}

#[test]
fn a_row_without_a_usable_id_is_named_by_its_place_in_the_stream() {
    let good = batch_of(&rows(10));
    let id = |values: ArrayRef| {
        read(stream(vec![
            with(&good, "id", Some(good.column(0).clone())),
            with(&good, "id", Some(values)),
        ]))
    };
    let mut ids: Vec<Option<i64>> = (0..10).map(Some).collect();
    ids[4] = None;
    let error = id(Arc::new(Int64Array::from(ids))).unwrap_err();
    assert!(
        matches!(
            error,
            Error::BadRow {
                row_id: None,
                column: "id",
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("row 15 of the stream"), "{error}");
}

#[test]
fn rows_of_another_day_are_an_error_that_counts_them() {
    let mut rows = rows(10);
    rows[3].date += 1;
    rows[8].date -= 400;
    let error = read(stream(vec![batch_of(&rows)])).unwrap_err();
    assert!(
        matches!(
            error,
            Error::BadRow {
                row_id: Some(3),
                column: "date",
                ..
            }
        ),
        "{error}"
    );
    let message = error.to_string();
    assert!(
        message.contains("rows of another day, 2 of the first 10 rows"),
        "{message}"
    );
    assert!(
        message.contains("2026-07-02") && message.contains("2026-07-01"),
        "{message}"
    );
}

#[test]
fn text_that_is_not_utf8_never_gets_through() {
    let batch = batch_of(&rows(3));
    let offsets = arrow::buffer::OffsetBuffer::new(vec![0, 1, 3, 4].into());
    let bytes = arrow::buffer::Buffer::from(b"/\xc3\x28/".as_slice());
    // SAFETY: the bytes are not UTF-8, as a C producer may hand them over; only their bytes are looked at.
    let broken = unsafe { StringArray::new_unchecked(offsets, bytes, None) };
    let error = read(stream(vec![with(&batch, "path", Some(Arc::new(broken)))])).unwrap_err();
    assert!(
        matches!(
            error,
            Error::BadRow {
                row_id: Some(1),
                column: "path",
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("UTF-8"), "{error}");
}

#[test]
fn an_error_of_the_producer_comes_out_in_its_own_words() {
    let batch = batch_of(&rows(7));
    let schema = batch.schema();
    let failing = vec![
        Ok(batch),
        Err(ArrowError::CDataInterface("OperationalError: server closed".to_owned())),
    ];
    let error = read(Box::new(RecordBatchIterator::new(failing, schema))).unwrap_err();
    assert!(matches!(error, Error::Source { .. }), "{error}");
    assert_eq!(
        error.to_string(),
        "the stream failed after 7 rows: OperationalError: server closed"
    );
}

#[test]
fn a_stream_is_read_once_and_a_function_again_and_again() {
    let mut nothing = |_| Ok(());
    let mut once = ArrowSource::once(stream(vec![batch_of(&rows(3))]));
    once.read(day(), BadRows::Fail, &mut nothing, &Cancel::new()).unwrap();
    let error = once
        .read(day(), BadRows::Fail, &mut nothing, &Cancel::new())
        .unwrap_err();
    assert!(error.to_string().contains("only once"), "{error}");

    let mut asked = Vec::new();
    let (sender, receiver) = std::sync::mpsc::channel();
    let mut per_day = ArrowSource::per_day(move |day| {
        sender.send(day).unwrap();
        Ok(stream(vec![batch_of(&rows(3))]))
    })
    .named("a test");
    for _ in 0..2 {
        let summary = per_day
            .read(day(), BadRows::Fail, &mut nothing, &Cancel::new())
            .unwrap();
        assert_eq!(summary.source, "a test");
        assert!(summary.counted.is_none() && summary.slugs.is_none());
        asked.push(receiver.recv().unwrap());
    }
    assert_eq!(asked, vec![day(), day()]);
    assert_eq!(per_day.count(day(), &Cancel::new()).unwrap(), None);
}

#[test]
fn a_stop_is_noticed_between_batches() {
    let cancel = Cancel::new();
    let mut seen = 0;
    let mut stop_at_second = |batch: RecordBatch| {
        seen += batch.column(0).as_primitive::<Int64Type>().len();
        if seen >= 6 {
            cancel.cancel();
        }
        Ok(())
    };
    let batch = batch_of(&rows(3));
    let mut source = ArrowSource::once(stream(vec![batch; 100]));
    let error = source
        .read(day(), BadRows::Fail, &mut stop_at_second, &cancel)
        .unwrap_err();
    assert!(matches!(error, Error::Interrupted));
    assert_eq!(seen, 6);
}
