//! From fetched bytes to record batches: decodes the planned rows of a row group, drops the rows that do
//! not pass the filter, and puts the columns into the order asked for.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::{
    Array, AsArray, BooleanArray, Int16Array, Int32Array, RecordBatch, RecordBatchOptions, StringArray,
};
use arrow::buffer::BooleanBuffer;
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Date32Type, SchemaRef};
use arrow::error::ArrowError;
use bytes::Bytes;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, RowSelection, RowSelector};
use parquet::arrow::{ProjectionMask, parquet_to_arrow_field_levels};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};

use super::fetch::{Data, Part};
use super::pages::{self, Group};
use crate::base::error::{Error, Result};
use crate::base::keys::Day;
use crate::base::schema;
use crate::engine::Batches;
use crate::file::footer::GroupPlan;
use crate::file::footer::{Footer, rows};
use crate::scan::plan::Filter;

/// The parts of an object that are in memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sparse {
    size: u64,
    /// By offset, apart from each other.
    chunks: Arc<Vec<(u64, Bytes)>>,
}

impl Sparse {
    pub fn new(size: u64, mut chunks: Vec<(u64, Bytes)>) -> Self {
        chunks.sort_unstable_by_key(|(offset, _)| *offset);
        Self {
            size,
            chunks: Arc::new(chunks),
        }
    }

    /// The bytes from `start` to the end of their chunk.
    fn from(&self, start: u64) -> Result<Bytes, ParquetError> {
        let after = self.chunks.partition_point(|(offset, _)| *offset <= start);
        let found = after
            .checked_sub(1)
            .and_then(|at| self.chunks.get(at))
            .and_then(|(offset, bytes)| {
                let skip = usize::try_from(start - offset).ok()?;
                (skip < bytes.len()).then(|| bytes.slice(skip..))
            });
        found.ok_or_else(|| ParquetError::EOF(format!("byte {start} is not in a page that the footer names")))
    }
}

impl Length for Sparse {
    fn len(&self) -> u64 {
        self.size
    }
}

impl ChunkReader for Sparse {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(bytes::Buf::reader(self.from(start)?))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let bytes = self.from(start)?;
        if bytes.len() < length {
            return Err(ParquetError::EOF(format!(
                "{length} bytes from {start} on reach beyond what the footer names"
            )));
        }
        Ok(bytes.slice(..length))
    }
}

/// How a decoded batch becomes what was asked for.
#[derive(Clone)]
pub(super) struct Output {
    schema: SchemaRef,
    /// Where each column asked for is in a decoded batch.
    positions: Arc<[usize]>,
}

impl Output {
    /// `projection` and `needed` are indexes into [`schema::pageviews`]; batches are decoded with the
    /// needed columns, in file order.
    pub fn new(projection: &[usize], needed: &[usize]) -> Result<Self> {
        let schema = schema::pageviews()
            .project(projection)
            .map_err(|error| Error::internal(error.to_string()))?;
        let positions = projection
            .iter()
            .filter_map(|column| needed.binary_search(column).ok())
            .collect();
        Ok(Self {
            schema: Arc::new(schema),
            positions,
        })
    }

    fn apply(&self, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
        let columns = self
            .positions
            .iter()
            .map(|position| Arc::clone(batch.column(*position)))
            .collect();
        self.rows(columns, batch.num_rows())
    }

    fn rows(&self, columns: Vec<Arc<dyn Array>>, rows: usize) -> Result<RecordBatch, ArrowError> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)
    }
}

/// Decodes unit number `unit` of a part, which it waits for.
pub(super) fn unit(part: &Arc<Part>, unit: usize, output: Output) -> Result<Batches> {
    let data = part.wait()?;
    Ok(Box::new(Decoder {
        part: Arc::clone(part),
        data,
        unit,
        next: 0,
        reader: None,
        left: 0,
        output,
        failed: false,
    }))
}

struct Decoder {
    part: Arc<Part>,
    data: Arc<Data>,
    unit: usize,
    /// The next row group of the unit.
    next: usize,
    reader: Option<ParquetRecordBatchReader>,
    /// Rows of the row group that are planned, and not decoded yet.
    left: u64,
    output: Output,
    failed: bool,
}

impl Iterator for Decoder {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        // The parquet crate has assertions that only damaged files violate.
        let next = catch_unwind(AssertUnwindSafe(|| self.advance()));
        let next = next.unwrap_or_else(|_| Err(self.corrupt("a page cannot be decoded")));
        self.failed = next.is_err();
        next.map_err(|error| error.on_day(self.part.object.day)).transpose()
    }
}

impl Decoder {
    fn corrupt(&self, error: impl std::fmt::Display) -> Error {
        Error::corrupt(self.part.object.key.as_str(), error)
    }

    fn advance(&mut self) -> Result<Option<RecordBatch>> {
        let context = &self.part.context;
        loop {
            context.cancel.check()?;
            let Some(reader) = &mut self.reader else {
                let groups = self.data.version.share(self.unit, self.part.total);
                let (Some(footer), Some(group)) = (&self.data.version.footer, groups.get(self.next)) else {
                    return Ok(None);
                };
                self.next += 1;
                context.count(|counters| &counters.row_groups_read, 1);
                if self.part.columns.is_empty() {
                    // Nothing but the number of rows was asked for.
                    let rows = group.selected();
                    context.count(|counters| &counters.rows, rows);
                    let batch = self.output.rows(Vec::new(), rows as usize);
                    return batch.map(Some).map_err(|error| Error::internal(error.to_string()));
                }
                let reader = open(
                    footer,
                    group,
                    &self.part.columns,
                    &self.data.bytes,
                    context.options.batch_rows,
                );
                self.reader = Some(reader.map_err(|error| self.corrupt(error))?);
                self.left = group.selected();
                continue;
            };
            let Some(batch) = reader.next() else {
                self.reader = None;
                if self.left > 0 {
                    return Err(self.corrupt("its pages have fewer rows than its footer counts"));
                }
                continue;
            };
            let batch = batch.map_err(|error| self.corrupt(error))?;
            if !all_of_day(&batch, self.part.object.day) {
                return Err(self.corrupt("it holds rows of another day"));
            }
            self.left = self.left.saturating_sub(batch.num_rows() as u64);
            context.count(|counters| &counters.rows_decoded, batch.num_rows() as u64);
            let passed =
                filter(&batch, &self.part.filter, &self.part.columns).and_then(|batch| self.output.apply(&batch));
            let passed = passed.map_err(|error| self.corrupt(error))?;
            if passed.num_rows() > 0 {
                context.count(|counters| &counters.rows, passed.num_rows() as u64);
                return Ok(Some(passed));
            }
        }
    }
}

/// All rows of a file that is in memory, in file order and with all columns.
pub struct WholeFile {
    key: String,
    footer: Footer,
    bytes: Sparse,
    batch_rows: usize,
    /// The next row group.
    next: usize,
    reader: Option<ParquetRecordBatchReader>,
    /// Rows of the row group that are not decoded yet.
    left: u64,
    failed: bool,
}

impl WholeFile {
    pub(crate) fn new(key: &str, footer: &Footer, bytes: &Bytes, batch_rows: usize) -> Self {
        Self {
            key: key.to_owned(),
            footer: footer.clone(),
            bytes: Sparse::new(bytes.len() as u64, vec![(0, bytes.clone())]),
            batch_rows,
            next: 0,
            reader: None,
            left: 0,
            failed: false,
        }
    }

    fn advance(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            let Some(reader) = &mut self.reader else {
                let Some(group) = self.footer.metadata().row_groups().get(self.next) else {
                    return Ok(None);
                };
                let columns: Vec<usize> = (0..group.num_columns()).collect();
                self.left = rows(group);
                if self.left > 0 {
                    let plan = GroupPlan {
                        group: self.next,
                        rows: std::iter::once(0..self.left).collect(),
                    };
                    let reader = open(&self.footer, &plan, &columns, &self.bytes, self.batch_rows);
                    self.reader = Some(reader.map_err(|error| Error::corrupt(self.key.as_str(), error))?);
                }
                self.next += 1;
                continue;
            };
            match reader.next().transpose() {
                Ok(Some(batch)) => {
                    self.left = self.left.saturating_sub(batch.num_rows() as u64);
                    return Ok(Some(batch));
                }
                Ok(None) if self.left > 0 => {
                    return Err(Error::corrupt(
                        self.key.as_str(),
                        "its pages have fewer rows than its footer counts",
                    ));
                }
                Ok(None) => self.reader = None,
                Err(error) => return Err(Error::corrupt(self.key.as_str(), error)),
            }
        }
    }
}

impl Iterator for WholeFile {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        // The parquet crate has assertions that only damaged files violate.
        let next = catch_unwind(AssertUnwindSafe(|| self.advance()));
        let next = next.unwrap_or_else(|_| Err(Error::corrupt(self.key.as_str(), "a page cannot be decoded")));
        self.failed = next.is_err();
        next.transpose()
    }
}

pub(super) fn open(
    footer: &Footer,
    plan: &GroupPlan,
    columns: &[usize],
    bytes: &Sparse,
    batch_rows: usize,
) -> Result<ParquetRecordBatchReader, ParquetError> {
    let metadata = footer.metadata();
    let total = metadata.row_groups().get(plan.group).map_or(0, rows);
    let selected = plan
        .rows
        .iter()
        .map(|range: &Range<u64>| range.start as usize..range.end as usize);
    let mut selected: Vec<RowSelector> = RowSelection::from_consecutive_ranges(selected, total as usize).into();
    // With many small selections the crate would decode the pages between them, which were not fetched. Rows to
    // skip at the end, which it leaves out itself, make this look like few.
    selected.push(RowSelector::skip(1 << 40));
    let schema = metadata.file_metadata().schema_descr();
    let mask = ProjectionMask::leaves(schema, columns.iter().copied());
    let group = Group {
        bytes: bytes.clone(),
        metadata,
        number: plan.group,
    };
    ParquetRecordBatchReader::try_new_with_row_groups(
        &parquet_to_arrow_field_levels(schema, mask, None)?,
        &group,
        pages::batch_rows(metadata, plan, columns, batch_rows),
        Some(selected.into()),
    )
}

/// Whether every row of a batch is of the day, as far as it was read.
fn all_of_day(batch: &RecordBatch, day: Day) -> bool {
    let dates = batch
        .column_by_name(schema::DATE)
        .and_then(|dates| dates.as_primitive_opt::<Date32Type>());
    dates.is_none_or(|dates| dates.values().iter().all(|date| *date == day.to_date32()))
}

/// The rows of a decoded batch that pass.
fn filter(batch: &RecordBatch, filter: &Filter, columns: &[usize]) -> Result<RecordBatch, ArrowError> {
    let schema = schema::pageviews();
    let column = |name: &str| {
        let position = schema
            .index_of(name)
            .ok()
            .and_then(|column| columns.binary_search(&column).ok());
        position
            .map(|position| batch.column(position).as_any())
            .ok_or_else(|| ArrowError::SchemaError(format!("{name} was not read")))
    };
    let wrong = |name: &str| ArrowError::SchemaError(format!("{name} has another type"));
    let mut passes: Option<BooleanBuffer> = None;
    let mut also = |next: BooleanBuffer| passes = Some(passes.take().map_or(next.clone(), |passes| &passes & &next));
    if let Some(slugs) = &filter.projects {
        let values = column(schema::PROJECT_SLUG)?
            .downcast_ref::<StringArray>()
            .ok_or_else(|| wrong(schema::PROJECT_SLUG))?;
        also(BooleanBuffer::collect_bool(values.len(), |row| {
            slugs
                .binary_search_by(|slug| slug.as_str().cmp(values.value(row)))
                .is_ok()
        }));
    }
    if let Some(id) = filter.project_id {
        let values = column(schema::PROJECT_ID)?
            .downcast_ref::<Int32Array>()
            .ok_or_else(|| wrong(schema::PROJECT_ID))?;
        also(BooleanBuffer::collect_bool(values.len(), |row| values.value(row) == id));
    }
    if let Some(ids) = &filter.any_project {
        let values = column(schema::PROJECT_ID)?
            .downcast_ref::<Int32Array>()
            .ok_or_else(|| wrong(schema::PROJECT_ID))?;
        also(BooleanBuffer::collect_bool(values.len(), |row| {
            ids.binary_search(&values.value(row)).is_ok()
        }));
    }
    if !filter.hidden.is_empty() {
        let values = column(schema::PROJECT_ID)?
            .downcast_ref::<Int32Array>()
            .ok_or_else(|| wrong(schema::PROJECT_ID))?;
        also(BooleanBuffer::collect_bool(values.len(), |row| {
            filter.hidden.binary_search(&values.value(row)).is_err()
        }));
    }
    if let Some(statuses) = &filter.statuses {
        let values = column(schema::STATUS)?
            .downcast_ref::<Int16Array>()
            .ok_or_else(|| wrong(schema::STATUS))?;
        also(BooleanBuffer::collect_bool(values.len(), |row| {
            statuses.binary_search(&values.value(row)).is_ok()
        }));
    }
    if let Some(versions) = &filter.versions {
        let values = column(schema::VERSION_ID)?
            .downcast_ref::<Int32Array>()
            .ok_or_else(|| wrong(schema::VERSION_ID))?;
        also(BooleanBuffer::collect_bool(values.len(), |row| {
            let version = values.is_valid(row).then(|| values.value(row));
            versions.binary_search(&version).is_ok()
        }));
    }
    match passes {
        None => Ok(batch.clone()),
        Some(passes) if passes.count_set_bits() == batch.num_rows() => Ok(batch.clone()),
        Some(passes) => filter_record_batch(batch, &BooleanArray::new(passes, None)),
    }
}
