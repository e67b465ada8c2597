use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaDataReader};
use parquet_analytics::base::schema;
use parquet_analytics::file::writer::{DayWriter, FileFacts};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use crate::support::{batch_of, day, random_rows, rows_of};

fn facts() -> FileFacts {
    FileFacts {
        day: day(),
        source: "postgresql://db:5432/docs/analytics_pageview".to_owned(),
        run_id: "run".to_owned(),
        snapshot_time: "2026-07-02T03:04:05Z".parse().unwrap(),
        position: None,
        remaining: None,
        same_rows_as: Vec::new(),
    }
}

#[test]
fn a_file_says_what_it_is_and_holds_what_was_written() {
    let mut rows = random_rows(&mut ChaCha8Rng::seed_from_u64(3), 30_000);
    rows.sort();
    let mut writer = DayWriter::new(Vec::new(), &facts(), 10_000).unwrap();
    for part in rows.chunks(4000) {
        writer.write(&batch_of(part)).unwrap();
    }
    let (bytes, written) = writer.finish().unwrap();
    assert_eq!(written.tally.rows, 30_000);
    assert_eq!(
        written.tally.views,
        rows.iter().map(|row| i64::from(row.view_count)).sum::<i64>()
    );
    assert_eq!(written.bytes, bytes.len() as u64);
    let digest: String = Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(written.sha256, digest);

    let bytes = Bytes::from(bytes);
    let metadata = ParquetMetaDataReader::new()
        .with_page_index_policy(PageIndexPolicy::Required)
        .parse_and_finish(&bytes)
        .unwrap();
    assert_eq!(metadata.num_row_groups(), 3);
    let file = metadata.file_metadata();
    let said = |key: &str| {
        let entries = file.key_value_metadata().unwrap();
        entries
            .iter()
            .find(|entry| entry.key == key)
            .and_then(|entry| entry.value.clone())
            .unwrap()
    };
    assert_eq!(said("parquet_analytics.format"), "1");
    assert_eq!(said("parquet_analytics.day"), "2026-07-01");
    assert_eq!(said("parquet_analytics.source"), facts().source);
    assert_eq!(said("parquet_analytics.run_id"), "run");
    assert_eq!(said("parquet_analytics.rows"), "30000");
    assert_eq!(said("parquet_analytics.views"), written.tally.views.to_string());
    assert_eq!(said("parquet_analytics.snapshot_time"), "2026-07-02T03:04:05.000000Z");
    for group in metadata.row_groups() {
        let order = group.sorting_columns().unwrap();
        let names: Vec<_> = order
            .iter()
            .map(|by| schema::pageviews().field(by.column_idx as usize).name().clone())
            .collect();
        assert_eq!(names, schema::SORT_ORDER);
        assert!(order.iter().all(|by| by.nulls_first && !by.descending));
        assert!(group.columns().iter().all(|column| column.statistics().is_some()));
    }

    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes)
        .unwrap()
        .build()
        .unwrap();
    let read: Vec<_> = reader.flat_map(|batch| rows_of(&batch.unwrap())).collect();
    assert!(read == rows);
}

#[test]
fn a_day_without_rows_is_a_readable_file() {
    let (bytes, written) = DayWriter::new(Vec::new(), &facts(), 10).unwrap().finish().unwrap();
    assert_eq!((written.tally.rows, written.tally.views), (0, 0));
    let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(bytes)).unwrap();
    assert_eq!(reader.schema().fields(), schema::pageviews().fields());
    assert_eq!(reader.build().unwrap().count(), 0);
}
