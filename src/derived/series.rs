//! A series file: of each page of a project its views by day, for the days of a slot. It is derived from the days' files,
//! stores a path once instead of once a day, and is exact for any of its days.
//!
//! Rows are in the order of [`Key`]. Those of one project and status are a run. A run of many rows has row groups of its
//! own, small ones share one, and the columns that reports need come first: so what a question needs of a file lies in
//! one piece.

use std::io::Write;
use std::sync::{Arc, LazyLock};

use arrow::array::{
    Array, ArrayRef, AsArray, Int16Array, Int32Builder, Int64Builder, ListBuilder, RecordBatch, StringArray,
    StringBuilder, UInt16Builder,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::schema::types::ColumnPath;

use crate::base::error::{Error, Result};
use crate::base::schema;
use crate::file::writer::Hashed;

/// The version of the form of these files.
pub const FORMAT: u32 = 1;

/// Views over all days of the file.
pub const VIEWS: &str = "views";
/// Days with views, counted from the file's first.
pub const DAYS: &str = "days";
/// The views of each of those days.
pub const COUNTS: &str = "counts";

/// A run of so many rows has row groups of its own; smaller ones are packed into groups of at most so many.
pub const GROUP_ROWS: usize = 4096;
/// Rows of the largest row group: several threads decode a large run.
const LARGEST_GROUP_ROWS: usize = 1 << 16;
/// Text that is held in memory until it is written, and of a row group, each of which ends early otherwise.
const PENDING_TEXT: usize = 4 << 20;
const GROUP_TEXT: usize = 64 << 20;
const ZSTD_LEVEL: i32 = 3;

/// The columns of a series file, those that reports need first.
pub fn columns() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        let list = |name: &str, item: DataType| {
            Field::new(name, DataType::List(Arc::new(Field::new("item", item, false))), false)
        };
        Arc::new(Schema::new(vec![
            Field::new(schema::PATH, DataType::Utf8, false),
            Field::new(VIEWS, DataType::Int64, false),
            list(DAYS, DataType::UInt16),
            list(COUNTS, DataType::Int64),
            Field::new(schema::VERSION_SLUG, DataType::Utf8, true),
            Field::new(schema::PROJECT_ID, DataType::Int32, false),
            Field::new(schema::VERSION_ID, DataType::Int32, true),
            Field::new(schema::FULL_PATH, DataType::Utf8, true),
            Field::new(schema::STATUS, DataType::Int16, false),
            Field::new(schema::PROJECT_SLUG, DataType::Utf8, false),
        ]))
    });
    Arc::clone(&SCHEMA)
}

/// What views are added up by, in the order of a series file: bytes, nulls first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key<'a> {
    pub project_slug: &'a str,
    pub status: i16,
    pub path: &'a str,
    pub version_slug: Option<&'a str>,
    pub project_id: i32,
    pub version_id: Option<i32>,
    pub full_path: Option<&'a str>,
}

/// The rows of a project and status, which stand together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub project_slug: String,
    pub status: i16,
    /// In order; several when the slug passed from one project to another.
    pub project_ids: Vec<i32>,
    pub rows: u64,
}

/// A row group: its rows, their days in all, and where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub rows: u64,
    pub entries: u64,
    pub start: u64,
    /// Its columns, which follow one another.
    pub chunks: Vec<Chunk>,
}

/// A column of a row group: its bytes, and their CRC-32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    pub length: u64,
    pub checksum: u32,
}

/// What was written.
pub struct Written<W> {
    pub sink: W,
    pub bytes: u64,
    pub sha256: String,
    pub runs: Vec<Run>,
    pub groups: Vec<Group>,
}

fn properties(about: Vec<KeyValue>) -> Result<WriterProperties> {
    let zstd = ZstdLevel::try_new(ZSTD_LEVEL).map_err(|error| Error::internal(error.to_string()))?;
    let mut builder = WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_created_by(format!("parquet-analytics {}", env!("CARGO_PKG_VERSION")))
        .set_compression(Compression::ZSTD(zstd))
        // Row groups end where the writer says so.
        .set_max_row_group_row_count(None)
        .set_key_value_metadata(Some(about))
        .set_dictionary_enabled(false)
        // The index says where a project is.
        .set_statistics_enabled(EnabledStatistics::None);
    for (column, encoding) in [
        (vec![schema::PATH], Encoding::DELTA_BYTE_ARRAY),
        (vec![schema::FULL_PATH], Encoding::DELTA_BYTE_ARRAY),
        (vec![schema::VERSION_SLUG], Encoding::DELTA_BYTE_ARRAY),
        (vec![schema::PROJECT_SLUG], Encoding::DELTA_BYTE_ARRAY),
        (vec![VIEWS], Encoding::DELTA_BINARY_PACKED),
        (vec![DAYS, "list", "item"], Encoding::DELTA_BINARY_PACKED),
        (vec![COUNTS, "list", "item"], Encoding::DELTA_BINARY_PACKED),
        (vec![schema::PROJECT_ID], Encoding::DELTA_BINARY_PACKED),
        (vec![schema::VERSION_ID], Encoding::DELTA_BINARY_PACKED),
        (vec![schema::STATUS], Encoding::DELTA_BINARY_PACKED),
    ] {
        let column = ColumnPath::new(column.into_iter().map(str::to_owned).collect());
        builder = builder.set_column_encoding(column, encoding);
    }
    Ok(builder.build())
}

/// The rows of a run that are not written yet.
#[derive(Default)]
struct Pending {
    path: StringBuilder,
    views: Int64Builder,
    days: Days,
    counts: Counts,
    version_slug: StringBuilder,
    project_id: Int32Builder,
    version_id: Int32Builder,
    full_path: StringBuilder,
    rows: usize,
    text: usize,
}

struct Days(ListBuilder<UInt16Builder>);
struct Counts(ListBuilder<Int64Builder>);

impl Default for Days {
    fn default() -> Self {
        let item = Field::new("item", DataType::UInt16, false);
        Self(ListBuilder::new(UInt16Builder::new()).with_field(item))
    }
}

impl Default for Counts {
    fn default() -> Self {
        let item = Field::new("item", DataType::Int64, false);
        Self(ListBuilder::new(Int64Builder::new()).with_field(item))
    }
}

impl Pending {
    fn push(&mut self, key: &Key<'_>, views: &[(u16, i64)]) {
        self.path.append_value(key.path);
        self.views.append_value(views.iter().map(|(_, count)| count).sum());
        for (day, count) in views {
            self.days.0.values().append_value(*day);
            self.counts.0.values().append_value(*count);
        }
        self.days.0.append(true);
        self.counts.0.append(true);
        self.version_slug.append_option(key.version_slug);
        self.project_id.append_value(key.project_id);
        self.version_id.append_option(key.version_id);
        self.full_path.append_option(key.full_path);
        self.rows += 1;
        let optional = [key.full_path, key.version_slug].into_iter().flatten();
        self.text += key.path.len() + key.project_slug.len() + optional.map(str::len).sum::<usize>();
    }

    fn take(&mut self, run: &Run) -> Result<RecordBatch> {
        let rows = std::mem::take(&mut self.rows);
        self.text = 0;
        let arrays: Vec<ArrayRef> = vec![
            Arc::new(self.path.finish()),
            Arc::new(self.views.finish()),
            Arc::new(self.days.0.finish()),
            Arc::new(self.counts.0.finish()),
            Arc::new(self.version_slug.finish()),
            Arc::new(self.project_id.finish()),
            Arc::new(self.version_id.finish()),
            Arc::new(self.full_path.finish()),
            Arc::new(Int16Array::from_value(run.status, rows)),
            Arc::new(StringArray::from_iter_values(std::iter::repeat_n(
                &run.project_slug,
                rows,
            ))),
        ];
        RecordBatch::try_new(columns(), arrays).map_err(|error| Error::internal(error.to_string()))
    }
}

/// Writes a series file; rows come in the order of their keys.
pub struct SeriesWriter<W: Write + Send> {
    parquet: ArrowWriter<Kept<Hashed<W>>>,
    pending: Pending,
    /// Rows, text and entries of the row group that is open.
    open: usize,
    open_text: usize,
    entries: u64,
    groups: Vec<Group>,
    /// Whether the run that is being written has row groups of its own.
    large: bool,
    runs: Vec<Run>,
}

impl<W: Write + Send> SeriesWriter<W> {
    pub fn new(sink: W, about: Vec<KeyValue>) -> Result<Self> {
        let options = ArrowWriterOptions::new().with_properties(properties(about)?);
        Ok(Self {
            parquet: ArrowWriter::try_new_with_options(Kept::new(Hashed::new(sink)), columns(), options)
                .map_err(failed)?,
            pending: Pending::default(),
            open: 0,
            open_text: 0,
            entries: 0,
            groups: Vec::new(),
            large: false,
            runs: Vec::new(),
        })
    }

    /// `views` are those of each day that has any, the first first.
    pub fn push(&mut self, key: &Key<'_>, views: &[(u16, i64)]) -> Result<()> {
        let same = self
            .runs
            .last()
            .is_some_and(|run| run.status == key.status && run.project_slug == key.project_slug);
        if !same {
            self.end_run()?;
            self.runs.push(Run {
                project_slug: key.project_slug.to_owned(),
                status: key.status,
                project_ids: vec![key.project_id],
                rows: 0,
            });
        }
        if let Some(run) = self.runs.last_mut() {
            run.rows += 1;
            if let Err(place) = run.project_ids.binary_search(&key.project_id) {
                run.project_ids.insert(place, key.project_id);
            }
        }
        self.pending.push(key, views);
        if self.pending.rows >= GROUP_ROWS || self.pending.text >= PENDING_TEXT {
            if !self.large {
                self.cut()?;
                self.large = true;
            }
            self.write()?;
            if self.open >= LARGEST_GROUP_ROWS || self.open_text >= GROUP_TEXT {
                self.cut()?;
            }
        }
        Ok(())
    }

    fn end_run(&mut self) -> Result<()> {
        let full = self.open + self.pending.rows > GROUP_ROWS || self.open_text + self.pending.text > GROUP_TEXT;
        if !self.large && full {
            self.cut()?;
        }
        self.write()?;
        if std::mem::take(&mut self.large) {
            self.cut()?;
        }
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        let Some(run) = self.runs.last().filter(|_| self.pending.rows > 0) else {
            return Ok(());
        };
        self.open_text += self.pending.text;
        let batch = self.pending.take(run)?;
        self.open += batch.num_rows();
        self.entries += entries(&batch);
        self.parquet.write(&batch).map_err(failed)
    }

    /// Ends the row group that is open.
    fn cut(&mut self) -> Result<()> {
        self.open_text = 0;
        if std::mem::take(&mut self.open) == 0 {
            return Ok(());
        }
        self.parquet.flush().map_err(failed)?;
        self.parquet.sync().map_err(|error| failed(error.into()))?;
        let entries = std::mem::take(&mut self.entries);
        let written = self.parquet.flushed_row_groups().last();
        let (rows, places) = match written.filter(|_| self.parquet.flushed_row_groups().len() == self.groups.len() + 1)
        {
            Some(group) => (
                group.num_rows().unsigned_abs(),
                group
                    .columns()
                    .iter()
                    .map(|chunk| chunk.byte_range())
                    .collect::<Vec<_>>(),
            ),
            None => return Err(Error::internal("a row group was not written as one")),
        };
        let (at, bytes) = self.parquet.inner_mut().take();
        let chunk = |(start, length): &(u64, u64)| {
            let start = usize::try_from(start.checked_sub(at)?).ok()?;
            let bytes = bytes.get(start..start.checked_add(usize::try_from(*length).ok()?)?)?;
            Some(Chunk {
                length: *length,
                checksum: crc32fast::hash(bytes),
            })
        };
        let chunks = places.iter().map(chunk).collect::<Option<Vec<_>>>();
        let apart = places.windows(2).any(|two| two[0].0 + two[0].1 != two[1].0);
        let chunks = chunks.filter(|_| !apart);
        self.groups.push(Group {
            rows,
            entries,
            start: places.first().map_or(0, |(start, _)| *start),
            chunks: chunks.ok_or_else(|| Error::internal("the columns of a row group do not follow one another"))?,
        });
        Ok(())
    }

    pub fn finish(mut self) -> Result<Written<W>> {
        self.end_run()?;
        self.cut()?;
        let kept = self.parquet.into_inner().map_err(failed)?;
        let (sink, bytes, sha256) = kept.sink.finish();
        Ok(Written {
            sink,
            bytes,
            sha256,
            runs: self.runs,
            groups: self.groups,
        })
    }
}

fn entries(batch: &RecordBatch) -> u64 {
    let days = batch.column_by_name(DAYS).and_then(|days| days.as_list_opt::<i32>());
    days.map_or(0, |days| days.values().len() as u64)
}

/// Keeps what was written since it was taken last.
struct Kept<W> {
    sink: W,
    /// Where that begins in the file.
    at: u64,
    bytes: Vec<u8>,
}

impl<W> Kept<W> {
    fn new(sink: W) -> Self {
        Self {
            sink,
            at: 0,
            bytes: Vec::new(),
        }
    }

    fn take(&mut self) -> (u64, Vec<u8>) {
        let bytes = std::mem::take(&mut self.bytes);
        let at = self.at;
        self.at += bytes.len() as u64;
        (at, bytes)
    }
}

impl<W: Write> Write for Kept<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let taken = self.sink.write(bytes)?;
        self.bytes.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.sink.flush()
    }
}

fn failed(error: parquet::errors::ParquetError) -> Error {
    Error::Io {
        message: format!("a derived file could not be written: {error}; is there room in the temporary folder?"),
    }
}
