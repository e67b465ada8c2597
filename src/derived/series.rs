//! A series file: of each page of a project its views by day, for the days of a slot. It is derived from the days' files,
//! stores a path once instead of once a day, and is exact for any of its days.
//!
//! Rows are in the order of [`Key`]. Those of one project and status are a run. A run of many rows has row groups of its
//! own, small ones share one, and the columns that reports need come first: so what a question needs of a file lies in
//! one piece.

use std::io::Write;
use std::sync::{Arc, LazyLock};

use arrow::array::{
    ArrayRef, Int16Array, Int32Builder, Int64Builder, ListBuilder, RecordBatch, StringArray, StringBuilder,
    UInt16Builder,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::{KeyValue, RowGroupMetaData};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::schema::types::ColumnPath;

use crate::base::error::{Error, Result};
use crate::base::schema;
use crate::file::writer::Hashed;

/// Views over all days of the file.
pub const VIEWS: &str = "views";
/// Days with views, counted from the file's first.
pub const DAYS: &str = "days";
/// The views of each of those days.
pub const COUNTS: &str = "counts";

/// A run of so many rows has row groups of its own; smaller ones are packed into groups of at most so many.
pub const GROUP_ROWS: usize = 4096;
/// Rows of the largest row group.
const LARGEST_GROUP_ROWS: usize = 1 << 20;
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
    /// `None` when projects of several ids had the slug.
    pub project_id: Option<i32>,
    pub rows: u64,
}

/// A row group: its rows, where it begins, and the bytes of its columns, which follow one another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub rows: u64,
    pub start: u64,
    pub lengths: Vec<u64>,
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
        .set_max_row_group_row_count(Some(LARGEST_GROUP_ROWS))
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
    }

    fn take(&mut self, run: &Run) -> Result<RecordBatch> {
        let rows = std::mem::take(&mut self.rows);
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
    parquet: ArrowWriter<Hashed<W>>,
    pending: Pending,
    /// Rows of the row group that is open.
    open: usize,
    /// Whether the run that is being written has row groups of its own.
    large: bool,
    runs: Vec<Run>,
}

impl<W: Write + Send> SeriesWriter<W> {
    pub fn new(sink: W, about: Vec<KeyValue>) -> Result<Self> {
        let options = ArrowWriterOptions::new().with_properties(properties(about)?);
        Ok(Self {
            parquet: ArrowWriter::try_new_with_options(Hashed::new(sink), columns(), options).map_err(failed)?,
            pending: Pending::default(),
            open: 0,
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
                project_id: Some(key.project_id),
                rows: 0,
            });
        }
        if let Some(run) = self.runs.last_mut() {
            run.rows += 1;
            run.project_id = run.project_id.filter(|id| *id == key.project_id);
        }
        self.pending.push(key, views);
        if self.pending.rows >= GROUP_ROWS {
            if !self.large {
                self.cut()?;
                self.large = true;
            }
            self.write()?;
        }
        Ok(())
    }

    fn end_run(&mut self) -> Result<()> {
        if !self.large && self.open + self.pending.rows > GROUP_ROWS {
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
        let batch = self.pending.take(run)?;
        self.open += batch.num_rows();
        self.parquet.write(&batch).map_err(failed)
    }

    /// Ends the row group that is open.
    fn cut(&mut self) -> Result<()> {
        if std::mem::take(&mut self.open) > 0 {
            self.parquet.flush().map_err(failed)?;
        }
        Ok(())
    }

    pub fn finish(mut self) -> Result<Written<W>> {
        self.end_run()?;
        self.cut()?;
        let groups = self
            .parquet
            .flushed_row_groups()
            .iter()
            .map(group)
            .collect::<Result<_>>()?;
        let (sink, bytes, sha256) = self.parquet.into_inner().map_err(failed)?.finish();
        Ok(Written {
            sink,
            bytes,
            sha256,
            runs: self.runs,
            groups,
        })
    }
}

fn group(group: &RowGroupMetaData) -> Result<Group> {
    let places: Vec<(u64, u64)> = group.columns().iter().map(|chunk| chunk.byte_range()).collect();
    if places.windows(2).any(|two| two[0].0 + two[0].1 != two[1].0) {
        return Err(Error::internal("the columns of a row group do not follow one another"));
    }
    Ok(Group {
        rows: group.num_rows().unsigned_abs(),
        start: places.first().map_or(0, |(start, _)| *start),
        lengths: places.into_iter().map(|(_, length)| length).collect(),
    })
}

fn failed(error: parquet::errors::ParquetError) -> Error {
    Error::Io {
        message: format!("a derived file could not be written: {error}; is there room in the temporary folder?"),
    }
}
