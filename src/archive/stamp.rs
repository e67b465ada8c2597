//! A stored day with other things to say of itself: the same pages, byte for byte, under a new footer.

use std::path::Path;

use parquet::column::writer::ColumnCloseResult;
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;

use crate::archive::manifest::{Rows, publish_day};
use crate::archive::publish::interrupted_publish;
use crate::archive::stored::StoredDay;
use crate::archive::verify::verify;
use crate::base::error::{Error, Result};
use crate::base::keys::Prefix;
use crate::base::runtime::{Cancel, block_on};
use crate::base::schema::meta;
use crate::file::spool::Spool;
use crate::file::writer::{FileFacts, Hashed, Written};
use crate::store::{Store, Write};

/// How many earlier versions of the same rows a file names.
const REMEMBERED_VERSIONS: usize = 16;

/// The version that is about to be written over, and those before it: whoever has verified one of them knows these rows.
pub fn earlier(stored: &StoredDay) -> Vec<String> {
    let mut etags = stored.same_rows_as.clone();
    etags.push(stored.etag.clone());
    etags.split_off(etags.len().saturating_sub(REMEMBERED_VERSIONS))
}

/// Puts what was written from a version of a day in the place of that very version, and reads it back.
///
/// # Errors
/// [`Error::Conflict`] when it was written by somebody else.
pub fn publish_over(
    store: &Store,
    prefix: &Prefix,
    stored: &StoredDay,
    spool: Spool,
    (file, rows): (&Written, Rows),
    run_id: &str,
    cancel: &Cancel,
) -> Result<StoredDay> {
    let about = [
        (meta::ROWS, file.tally.rows.to_string()),
        (meta::SHA256, file.sha256.clone()),
    ];
    let (key, over) = (stored.key.clone(), Write::Replace(stored.etag.clone()));
    let write = (spool.into_bytes()?, over);
    let written = publish_day(store, prefix, stored.day, write, run_id, &about, rows);
    let etag = block_on(cancel, written).map_err(|error| interrupted_publish(store, &key, run_id, error))?;
    let found = verify(store, prefix, stored.day, cancel)?.stored;
    if found.etag == etag && found.sha256 != file.sha256 {
        return Err(Error::Mismatch {
            message: format!(
                "{} holds other bytes than were written to it; delete no rows",
                store.url_of(&key)
            ),
            key,
        });
    }
    if found.etag != etag && !found.same_rows_as.contains(&etag) {
        return Err(Error::Conflict {
            message: format!("{key} was written by somebody else meanwhile; run it again"),
            key,
        });
    }
    Ok(found)
}

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
