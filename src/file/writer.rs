//! Writes sorted rows as one Parquet file: the one place that fixes encodings, row groups and footer.

use std::io::Write;

use arrow::array::{AsArray, RecordBatch};
use chrono::{DateTime, SecondsFormat, Utc};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::schema::types::ColumnPath;
use sha2::{Digest, Sha256};

use crate::base::error::{Error, Result};
use crate::base::keys::Day;
use crate::base::schema::{self, meta};
use crate::file::position::Position;
use crate::file::remaining::Remaining;
use crate::file::tally::Tally;

/// Rows in a row group: small enough that a project's question touches little else, large enough that a
/// busy day's footer stays small.
pub const ROW_GROUP_ROWS: usize = 122_880;

/// Rows in a data page, the smallest unit that a reader can leave out.
pub const PAGE_ROWS: usize = 8192;

/// A row group with long texts ends early, because it is held in memory until then.
const ROW_GROUP_BYTES: usize = 128 << 20;

/// Texts that are written at once; a page holds that much more than 1 MiB at most.
const PART_TEXT_BYTES: usize = 4 << 20;

/// More does little for page views: the sorted, delta-encoded bytes are nearly as small at 1.
const ZSTD_LEVEL: i32 = 3;

/// Bytes of a column's smallest and greatest value that the footer keeps.
const STATISTICS_BYTES: usize = 64;

/// What the file says about itself.
#[derive(Debug, Clone)]
pub struct FileFacts {
    pub day: Day,
    pub source: String,
    pub run_id: String,
    pub snapshot_time: DateTime<Utc>,
    /// Of the newest snapshot in the file, where the source has positions.
    pub position: Option<Position>,
    /// Once rows of the day were deleted from the database.
    pub remaining: Option<Remaining>,
    /// ETags of earlier versions with the same rows.
    pub same_rows_as: Vec<String>,
}

impl FileFacts {
    /// The keys of all facts.
    pub const KEYS: [&str; 9] = [
        meta::FORMAT,
        meta::VERSION,
        meta::DAY,
        meta::SOURCE,
        meta::RUN_ID,
        meta::SNAPSHOT_TIME,
        meta::POSITION,
        meta::REMAINING,
        meta::SAME_ROWS_AS,
    ];

    /// As metadata of the file.
    pub fn to_metadata(&self) -> Vec<(&'static str, String)> {
        let snapshot_time = self.snapshot_time.to_rfc3339_opts(SecondsFormat::Micros, true);
        let position = self
            .position
            .as_ref()
            .map(|position| (meta::POSITION, position.to_string()));
        let remaining = self.remaining.as_ref().map(|ids| (meta::REMAINING, ids.to_string()));
        let always = [
            (meta::FORMAT, schema::FORMAT.to_string()),
            (meta::VERSION, env!("CARGO_PKG_VERSION").to_owned()),
            (meta::DAY, self.day.to_string()),
            (meta::SOURCE, self.source.clone()),
            (meta::RUN_ID, self.run_id.clone()),
            (meta::SNAPSHOT_TIME, snapshot_time),
        ];
        let same = (!self.same_rows_as.is_empty()).then(|| (meta::SAME_ROWS_AS, self.same_rows_as.join(" ")));
        always
            .into_iter()
            .chain(position)
            .chain(remaining)
            .chain(same)
            .collect()
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub tally: Tally,
    pub bytes: u64,
    /// Of the whole file, in lowercase hexadecimal digits.
    pub sha256: String,
}

fn properties(row_group_rows: usize) -> Result<WriterProperties> {
    let zstd = ZstdLevel::try_new(ZSTD_LEVEL).map_err(|error| Error::internal(error.to_string()))?;
    let order = schema::SORT_ORDER
        .iter()
        .map(|name| {
            Ok(SortingColumn {
                column_idx: schema::column(name)? as i32,
                descending: false,
                nulls_first: true,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let mut builder = WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_created_by(format!("parquet-analytics {}", env!("CARGO_PKG_VERSION")))
        .set_compression(Compression::ZSTD(zstd))
        .set_max_row_group_row_count(Some(row_group_rows))
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_write_batch_size(PAGE_ROWS)
        .set_sorting_columns(Some(order))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_statistics_truncate_length(Some(STATISTICS_BYTES))
        .set_column_index_truncate_length(Some(STATISTICS_BYTES));
    // Page statistics only where readers leave out pages by them; on all columns they would double the footer.
    for name in [schema::PROJECT_SLUG, schema::PROJECT_ID, schema::STATUS] {
        builder = builder.set_column_statistics_enabled(ColumnPath::from(name), EnabledStatistics::Page);
    }
    // Sorted paths share their beginnings; ids within a project have no order but lie close together.
    for (name, encoding) in [
        (schema::PATH, Encoding::DELTA_BYTE_ARRAY),
        (schema::FULL_PATH, Encoding::DELTA_BYTE_ARRAY),
        (schema::ID, Encoding::DELTA_BINARY_PACKED),
    ] {
        let column = ColumnPath::from(name);
        builder = builder
            .set_column_dictionary_enabled(column.clone(), false)
            .set_column_encoding(column, encoding);
    }
    Ok(builder.build())
}

/// Writes batches of [`schema::pageviews`], already in order, to `sink`.
pub struct DayWriter<W: Write + Send> {
    parquet: ArrowWriter<Hashed<W>>,
    tally: Tally,
}

impl<W: Write + Send> DayWriter<W> {
    pub fn new(sink: W, facts: &FileFacts, row_group_rows: usize) -> Result<Self> {
        let options = ArrowWriterOptions::new().with_properties(properties(row_group_rows)?);
        let mut parquet =
            ArrowWriter::try_new_with_options(Hashed::new(sink), schema::pageviews(), options).map_err(failed)?;
        for (key, value) in facts.to_metadata() {
            parquet.append_key_value_metadata(KeyValue::new(key.to_owned(), value));
        }
        Ok(Self {
            parquet,
            tally: Tally::default(),
        })
    }

    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.tally.add(batch)?;
        self.write_parts(batch)
    }

    /// Pages and row groups end between writes at the earliest: a batch of long texts is written in parts.
    fn write_parts(&mut self, batch: &RecordBatch) -> Result<()> {
        let (rows, text) = (batch.num_rows(), text_bytes(batch));
        if text > PART_TEXT_BYTES && rows > 1 {
            self.write_parts(&batch.slice(0, rows / 2))?;
            return self.write_parts(&batch.slice(rows / 2, rows - rows / 2));
        }
        self.parquet.write(batch).map_err(failed)?;
        if self.parquet.in_progress_size() > ROW_GROUP_BYTES {
            self.parquet.flush().map_err(failed)?;
        }
        Ok(())
    }

    pub fn rows(&self) -> u64 {
        self.tally.rows
    }

    /// Writes the footer and gives the sink back.
    pub fn finish(mut self) -> Result<(W, Written)> {
        for (key, value) in self.tally.to_metadata() {
            self.parquet
                .append_key_value_metadata(KeyValue::new(key.to_owned(), value));
        }
        let (sink, bytes, sha256) = self.parquet.into_inner().map_err(failed)?.finish();
        let written = Written {
            tally: self.tally,
            bytes,
            sha256,
        };
        Ok((sink, written))
    }
}

/// The SHA-256 of bytes, in lowercase hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text_bytes(batch: &RecordBatch) -> usize {
    let texts = batch
        .columns()
        .iter()
        .filter_map(|column| column.as_string_opt::<i32>());
    texts
        .filter_map(|text| Some((text.value_offsets().last()? - text.value_offsets().first()?) as usize))
        .sum()
}

fn failed(error: parquet::errors::ParquetError) -> Error {
    Error::Io {
        message: format!("the Parquet file could not be written: {error}; is there room in the temporary folder?"),
    }
}

/// Counts and hashes what passes through.
pub(crate) struct Hashed<W> {
    sink: W,
    hash: Sha256,
    bytes: u64,
}

impl<W> Hashed<W> {
    pub(crate) fn new(sink: W) -> Self {
        Self {
            sink,
            hash: Sha256::new(),
            bytes: 0,
        }
    }

    /// What was written to, how many bytes and their SHA-256.
    pub(crate) fn finish(self) -> (W, u64, String) {
        (self.sink, self.bytes, hex(&self.hash.finalize()))
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let taken = self.sink.write(bytes)?;
        self.hash.update(&bytes[..taken]);
        self.bytes += taken as u64;
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.sink.flush()
    }
}
