//! A stored day, read back whole and proven to be what it says: the bytes against the hash recorded with the
//! object, the rows decoded from them against the numbers that were recorded when the file was written.

use std::collections::HashMap;

use arrow::array::AsArray;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use parquet::file::metadata::ParquetMetaData;

use crate::base::error::{Error, Result};
use crate::base::keys::Day;
use crate::base::runtime::Cancel;
use crate::base::schema::{self, meta};
use crate::file::footer::{Footer, Parsed};
use crate::file::position::Position;
use crate::file::remaining::Remaining;
use crate::file::rows::{check_ids, id_column};
use crate::file::sort::BATCH_ROWS;
use crate::file::tally::Tally;
use crate::file::writer::sha256;
use crate::scan::WholeFile;
use crate::store::{Part, Precondition, Response, Store};

/// One version of a day's file, whole.
#[derive(Debug, Clone)]
pub struct StoredDay {
    pub day: Day,
    pub key: String,
    pub etag: String,
    pub bytes: Bytes,
    /// Of the bytes that were read.
    pub sha256: String,
    /// As the object's metadata has it; `None` in a folder whose file system keeps no metadata.
    pub recorded_sha256: Option<String>,
    pub run_id: Option<String>,
    pub source: Option<String>,
    pub snapshot_time: Option<DateTime<Utc>>,
    /// What the file says that its rows add up to. The writer compared it with the database's count.
    pub recorded: Option<Tally>,
    pub position: Option<Position>,
    /// Once rows of the day were deleted from the database.
    pub remaining: Option<Remaining>,
    /// ETags of earlier versions with the same rows.
    pub same_rows_as: Vec<String>,
    footer: Footer,
}

impl StoredDay {
    /// Reads the day's file; `None` when there is none.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when its bytes are not those whose hash was recorded, [`Error::CorruptFile`] when they
    /// are no page-view file, or that of another day, otherwise what [`Store::get`] says.
    pub async fn read(store: &Store, key: &str, day: Day) -> Result<Option<Self>> {
        let found = match store.get(key, Part::All, Precondition::None).await? {
            Response::Found(found) => found,
            _ => return Ok(None),
        };
        let sha = sha256(&found.bytes);
        let recorded_sha256 = found.metadata.get(meta::SHA256).cloned();
        if let Some(recorded) = recorded_sha256.as_ref().filter(|recorded| **recorded != sha) {
            return Err(mismatch(
                store,
                key,
                &format!("its bytes have the SHA-256 {sha}, and {recorded} was recorded when it was written"),
            ));
        }
        let size = found.bytes.len() as u64;
        let Parsed::Footer(footer) = Footer::parse(key, &found.etag, size, 0, &found.bytes)? else {
            return Err(Error::corrupt(key, "its footer lies outside of it"));
        };
        let pairs: HashMap<String, String> = footer
            .metadata()
            .file_metadata()
            .key_value_metadata()
            .into_iter()
            .flatten()
            .filter_map(|pair| Some((pair.key.clone(), pair.value.clone()?)))
            .collect();
        let position = pairs.get(meta::POSITION).map(|text| text.parse::<Position>());
        let remaining = pairs.get(meta::REMAINING).map(|text| text.parse::<Remaining>());
        Ok(Some(Self {
            day,
            key: key.to_owned(),
            etag: found.etag,
            sha256: sha,
            recorded_sha256,
            run_id: pairs.get(meta::RUN_ID).cloned(),
            source: pairs.get(meta::SOURCE).cloned(),
            snapshot_time: pairs.get(meta::SNAPSHOT_TIME).and_then(|text| text.parse().ok()),
            recorded: Tally::from_metadata(&pairs),
            position: position.transpose().map_err(|error| Error::corrupt(key, error))?,
            remaining: remaining.transpose().map_err(|error| Error::corrupt(key, error))?,
            same_rows_as: pairs
                .get(meta::SAME_ROWS_AS)
                .map(|etags| etags.split_ascii_whitespace().map(str::to_owned).collect())
                .unwrap_or_default(),
            bytes: found.bytes,
            footer,
        }))
    }

    /// Whether the file is from as late as this in the history of the same table, and says the same of what remains there.
    pub fn says(&self, position: Option<&Position>, remaining: Option<&Remaining>) -> bool {
        let as_late = match (&self.position, position) {
            (Some(stored), Some(seen)) => stored.identity == seen.identity && stored.covers(seen).is_ok(),
            (None, None) => true,
            _ => false,
        };
        as_late && self.remaining.as_ref() == remaining
    }

    /// Whether it was exported before the day was over, so that rows that came later are not in it.
    pub fn is_early(&self) -> bool {
        self.snapshot_time.is_some_and(|time| time < self.day.end())
    }

    /// All rows in file order.
    pub fn batches(&self) -> WholeFile {
        WholeFile::new(&self.key, &self.footer, &self.bytes, BATCH_ROWS)
    }

    pub(crate) fn metadata(&self) -> &ParquetMetaData {
        self.footer.metadata()
    }

    /// Decodes everything and adds it up; gives the ids too, ascending. No id may repeat, and every row has to be of the day.
    pub fn decode(&self, cancel: &Cancel) -> Result<(Tally, Vec<i64>)> {
        let mut tally = Tally::default();
        let mut ids = Vec::new();
        for batch in self.batches() {
            cancel.check()?;
            let batch = batch?;
            tally.add(&batch)?;
            ids.extend(id_column(&batch)?);
            let dates = batch
                .column_by_name(schema::DATE)
                .and_then(|dates| dates.as_primitive_opt::<arrow::datatypes::Date32Type>())
                .ok_or_else(|| Error::internal("a stored batch without date"))?;
            if dates.values().iter().any(|date| *date != self.day.to_date32()) {
                return Err(Error::corrupt(&self.key, "it holds rows of another day"));
            }
        }
        check_ids(&mut ids).map_err(|error| Error::Mismatch {
            key: self.key.clone(),
            message: format!("{}: {error}", self.key),
        })?;
        Ok((tally, ids))
    }

    /// What was read has to be what the file says of itself, as far as it says anything; gives the ids, ascending. Damage that
    /// is merged would be the truth from then on.
    ///
    /// # Errors
    /// [`Error::Mismatch`] that says what differs.
    pub fn check(&self, store: &Store, cancel: &Cancel) -> Result<Vec<i64>> {
        let (found, ids) = self.decode(cancel)?;
        match self.recorded.as_ref().and_then(|recorded| found.difference(recorded)) {
            None => Ok(ids),
            Some(difference) => Err(mismatch(store, &self.key, &format!("it holds {difference}"))),
        }
    }

    /// The rows that were read back have to add up to `expected`, or to what the file itself says.
    ///
    /// # Errors
    /// [`Error::Mismatch`] that says what differs.
    pub fn verify(&self, store: &Store, expected: Option<&Tally>, cancel: &Cancel) -> Result<Tally> {
        let (found, _) = self.decode(cancel)?;
        let recorded = self.recorded.as_ref();
        for expected in [expected, recorded].into_iter().flatten() {
            if let Some(difference) = found.difference(expected) {
                return Err(mismatch(store, &self.key, &format!("it holds {difference}")));
            }
        }
        if expected.or(recorded).is_none() {
            return Err(mismatch(
                store,
                &self.key,
                "it does not say what its rows add up to, so there is nothing to compare them with",
            ));
        }
        Ok(found)
    }
}

fn mismatch(store: &Store, key: &str, why: &str) -> Error {
    Error::Mismatch {
        key: key.to_owned(),
        message: format!(
            "{} is not what was written: {why}. Delete no rows; keep the object for examination, and export the day again elsewhere \
             or with replace=True",
            store.url_of(key)
        ),
    }
}
