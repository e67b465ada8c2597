//! A stored day with other things to say of itself: the same pages, byte for byte, under a new footer.

use std::path::Path;

use parquet::column::writer::ColumnCloseResult;
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;

use crate::error::{Error, Result};
use crate::spool::Spool;
use crate::stored::StoredDay;
use crate::writer::{FileFacts, Hashed, Written};

/// Writes the stored rows anew, with these facts in the place of those that the file has.
pub fn stamp(stored: &StoredDay, facts: &FileFacts, temp_dir: Option<&Path>) -> Result<(Spool, Written)> {
    let tally = stored
        .recorded
        .clone()
        .ok_or_else(|| Error::internal(format!("{} does not say what its rows add up to", stored.key)))?;
    let (hashed, bytes, sha256) = rewritten(stored, facts, Spool::create(temp_dir)?)
        .map_err(|error| Error::Io {
            message: format!(
                "{} could not be written anew: {error}; is there room in the temporary folder?",
                stored.key
            ),
        })?
        .finish();
    Ok((hashed, Written { tally, bytes, sha256 }))
}

fn rewritten(stored: &StoredDay, facts: &FileFacts, spool: Spool) -> Result<Hashed<Spool>, ParquetError> {
    let metadata = stored.metadata();
    let about = metadata.file_metadata();
    let ours = facts.to_metadata();
    let mut pairs: Vec<KeyValue> = about.key_value_metadata().cloned().unwrap_or_default();
    pairs.retain(|pair| !FileFacts::KEYS.contains(&pair.key.as_str()));
    pairs.extend(
        ours.into_iter()
            .map(|(key, value)| KeyValue::new(key.to_owned(), value)),
    );
    let properties = WriterProperties::builder()
        .set_created_by(about.created_by().unwrap_or_default().to_owned())
        .set_key_value_metadata(Some(pairs))
        .set_sorting_columns(
            metadata
                .row_groups()
                .first()
                .and_then(|group| group.sorting_columns().cloned()),
        )
        .build();
    let schema = about.schema_descr().root_schema_ptr();
    let mut writer = SerializedFileWriter::new(Hashed::new(spool), schema, properties.into())?;
    for (number, group) in metadata.row_groups().iter().enumerate() {
        let mut copy = writer.next_row_group()?;
        for (place, column) in group.columns().iter().enumerate() {
            let index = metadata
                .column_index()
                .and_then(|index| index.get(number)?.get(place).cloned());
            let offsets = metadata
                .offset_index()
                .and_then(|index| index.get(number)?.get(place).cloned());
            let close = ColumnCloseResult {
                bytes_written: column.compressed_size().unsigned_abs(),
                rows_written: group.num_rows().unsigned_abs(),
                metadata: column.clone(),
                bloom_filter: None,
                column_index: index,
                offset_index: offsets,
            };
            copy.append_column(&stored.bytes, close)?;
        }
        copy.close()?;
    }
    writer.into_inner()
}
