//! Row groups of a series file, found by its index and decoded without its footer.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock};

use arrow::array::RecordBatch;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder, RowSelection,
};
use parquet::arrow::{ArrowSchemaConverter, ProjectionMask};
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, FileMetaData, ParquetMetaData, RowGroupMetaData};
use parquet::file::reader::ChunkReader;
use parquet::schema::types::SchemaDescPtr;

use crate::base::error::{Error, Result};
use crate::scan::Sparse;

use super::index::Index;
use super::series::{self, COUNTS, DAYS};

/// Where columns (indexes into [`series::columns`], in order) of a row group lie.
pub fn ranges(index: &Index, group: usize, columns: &[usize]) -> Vec<Range<u64>> {
    let Some(group) = index.group(group) else {
        return Vec::new();
    };
    let mut start = group.start;
    let mut ranges = Vec::with_capacity(columns.len());
    for (column, chunk) in group.chunks.iter().enumerate() {
        let end = start.saturating_add(chunk.length);
        if columns.contains(&column) {
            ranges.push(start..end);
        }
        start = end;
    }
    ranges
}

fn schema() -> Result<SchemaDescPtr> {
    static SCHEMA: LazyLock<Result<SchemaDescPtr, String>> = LazyLock::new(|| {
        let schema = ArrowSchemaConverter::new().convert(&series::columns());
        schema.map(Arc::new).map_err(|error| error.to_string())
    });
    SCHEMA.clone().map_err(Error::internal)
}

/// Decodes rows of one row group (counted from its first), whose bytes were compared with their checksums.
///
/// # Errors
/// [`Error::CorruptFile`] when the bytes are not those that were written.
pub(crate) fn decode(
    index: &Index,
    group: usize,
    columns: &[usize],
    bytes: &Sparse,
    rows: &[Range<u64>],
    batch_rows: usize,
) -> Result<impl Iterator<Item = Result<RecordBatch>> + Send + use<>> {
    let corrupt = {
        let key = index.key.clone();
        move |why: &dyn std::fmt::Display| Error::corrupt(key.as_str(), why)
    };
    let schema = schema()?;
    let reader = open(index, group, columns, bytes, rows, batch_rows, &schema).map_err(|error| corrupt(&error))?;
    let mut reader = Some(reader);
    let mut left: u64 = rows.iter().map(|rows| rows.end.saturating_sub(rows.start)).sum();
    Ok(std::iter::from_fn(move || {
        // The parquet crate has assertions that only damaged files violate.
        let next = catch_unwind(AssertUnwindSafe(|| reader.as_mut()?.next()));
        let batch = match next {
            Ok(Some(Ok(batch))) => {
                left = left.saturating_sub(batch.num_rows() as u64);
                return Some(Ok(batch));
            }
            Ok(None) if reader.take().is_some() && left > 0 => {
                Err(corrupt(&"its row group has fewer rows than its index says"))
            }
            Ok(None) => return None,
            Ok(Some(Err(error))) => Err(corrupt(&error)),
            Err(_) => Err(corrupt(&"a page cannot be decoded")),
        };
        reader = None;
        left = 0;
        Some(batch)
    }))
}

/// Compares columns with their checksums.
///
/// # Errors
/// [`Error::CorruptFile`] when the bytes are not those that were written.
pub(crate) fn check(index: &Index, group: usize, columns: &[usize], bytes: &Sparse) -> Result<()> {
    differs(index, group, columns, bytes).map_err(|why| Error::corrupt(index.key.as_str(), why))
}

fn differs(index: &Index, group: usize, columns: &[usize], bytes: &Sparse) -> Result<(), String> {
    let described = index.group(group).ok_or("it has no such row group")?;
    for (column, range) in columns.iter().zip(ranges(index, group, columns)) {
        let length = usize::try_from(range.end - range.start).map_err(|error| error.to_string())?;
        let found = bytes
            .get_bytes(range.start, length)
            .map_err(|error| error.to_string())?;
        let checksum = described.chunks.get(*column).map(|chunk| chunk.checksum);
        if Some(crc32fast::hash(&found)) != checksum {
            return Err(format!(
                "bytes {} to {} are not those that were written",
                range.start, range.end
            ));
        }
    }
    Ok(())
}

fn open(
    index: &Index,
    group: usize,
    columns: &[usize],
    bytes: &Sparse,
    rows: &[Range<u64>],
    batch_rows: usize,
    schema: &SchemaDescPtr,
) -> Result<ParquetRecordBatchReader, ParquetError> {
    let described = index
        .group(group)
        .ok_or_else(|| ParquetError::General("it has no such row group".to_owned()))?;
    let signed = |number: u64| i64::try_from(number).map_err(|error| ParquetError::General(error.to_string()));
    let all = described.rows;
    let mut start = described.start;
    let mut chunks = Vec::with_capacity(described.chunks.len());
    for (column, chunk) in schema.columns().iter().zip(&described.chunks) {
        let list = [DAYS, COUNTS].contains(&column.path().parts()[0].as_str());
        let values = if list { described.entries } else { described.rows };
        let described = ColumnChunkMetaData::builder(Arc::clone(column))
            .set_compression(Compression::ZSTD(Default::default()))
            .set_num_values(signed(values)?)
            .set_total_compressed_size(signed(chunk.length)?)
            .set_total_uncompressed_size(signed(chunk.length)?)
            .set_data_page_offset(signed(start)?)
            .build()?;
        chunks.push(described);
        start = start.saturating_add(chunk.length);
    }
    let group = RowGroupMetaData::builder(Arc::clone(schema))
        .set_num_rows(signed(described.rows)?)
        .set_total_byte_size(signed(start - described.start)?)
        .set_column_metadata(chunks)
        .build()?;
    let file = FileMetaData::new(1, signed(described.rows)?, None, None, Arc::clone(schema), None);
    let metadata = Arc::new(ParquetMetaData::new(file, vec![group]));
    let options = ArrowReaderOptions::new().with_schema(series::columns());
    let metadata = ArrowReaderMetadata::try_new(metadata, options)?;
    let selected = rows.iter().map(|rows| rows.start as usize..rows.end as usize);
    let mask = ProjectionMask::roots(schema, columns.iter().copied());
    ParquetRecordBatchReaderBuilder::new_with_metadata(bytes.clone(), metadata)
        .with_projection(mask)
        .with_row_selection(RowSelection::from_consecutive_ranges(selected, all as usize))
        .with_batch_size(batch_rows)
        .build()
}
