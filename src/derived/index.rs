//! The index of a derived file: which runs it has, and where its row groups lie. A hundredth of the file's own footer in
//! size and time, so that a question never reads that.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int16Array, Int32Array, RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::{DataType, Field, Int16Type, Int32Type, Schema, UInt64Type};
use arrow::ipc::CompressionType;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};

use sha2::{Digest, Sha256};

use crate::base::error::{Error, Result};
use crate::base::schema;

use super::series::{Group, Run};

const ROWS: &str = "rows";

/// Runs in order, and where each begins.
#[derive(Debug, Clone)]
pub struct Index {
    runs: Vec<Run>,
    /// Rows before each run, and in all.
    starts: Vec<u64>,
    groups: Vec<Group>,
    /// Rows before each group, and in all.
    group_starts: Vec<u64>,
}

/// Rows of the file, and in which row groups they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub rows: Range<u64>,
    pub groups: Range<usize>,
}

fn sums(rows: impl Iterator<Item = u64>) -> Vec<u64> {
    std::iter::once(0)
        .chain(rows.scan(0, |sum, rows| {
            *sum += rows;
            Some(*sum)
        }))
        .collect()
}

impl Index {
    pub fn new(runs: Vec<Run>, groups: Vec<Group>) -> Self {
        Self {
            starts: sums(runs.iter().map(|run| run.rows)),
            group_starts: sums(groups.iter().map(|group| group.rows)),
            runs,
            groups,
        }
    }

    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    pub fn group(&self, number: usize) -> Option<&Group> {
        self.groups.get(number)
    }

    /// Where the rows of a run are.
    pub fn piece(&self, run: usize) -> Option<Piece> {
        let rows = *self.starts.get(run)?..*self.starts.get(run + 1)?;
        let first = self
            .group_starts
            .partition_point(|start| *start <= rows.start)
            .checked_sub(1)?;
        let end = self.group_starts.partition_point(|start| *start < rows.end);
        Some(Piece {
            rows,
            groups: first..end,
        })
    }

    /// The first row of a group.
    pub fn start(&self, group: usize) -> Option<u64> {
        self.group_starts.get(group).copied()
    }

    /// The SHA-256 of what follows, and two tables as streams of Arrow's IPC.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let text = self.runs.iter().map(|run| run.project_slug.as_str());
        let runs = RecordBatch::try_from_iter([
            (
                schema::PROJECT_SLUG,
                Arc::new(StringArray::from_iter_values(text)) as ArrayRef,
            ),
            (
                schema::STATUS,
                Arc::new(Int16Array::from_iter_values(self.runs.iter().map(|run| run.status))),
            ),
            (
                schema::PROJECT_ID,
                Arc::new(self.runs.iter().map(|run| run.project_id).collect::<Int32Array>()),
            ),
            (
                ROWS,
                Arc::new(UInt64Array::from_iter_values(self.runs.iter().map(|run| run.rows))),
            ),
        ]);
        let numbers = |name: String, of: &dyn Fn(&Group) -> u64| -> (Field, ArrayRef) {
            let column = UInt64Array::from_iter_values(self.groups.iter().map(of));
            (Field::new(name, DataType::UInt64, false), Arc::new(column))
        };
        let width = self.groups.first().map_or(0, |group| group.lengths.len());
        let mut columns = vec![
            numbers(ROWS.to_owned(), &|group| group.rows),
            numbers("start".to_owned(), &|group| group.start),
        ];
        columns.extend((0..width).map(|column| {
            let length = move |group: &Group| group.lengths.get(column).copied().unwrap_or_default();
            numbers(format!("length{column}"), &length)
        }));
        let (fields, columns): (Vec<Field>, Vec<ArrayRef>) = columns.into_iter().unzip();
        let groups = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns);
        let mut bytes = Vec::new();
        for batch in [runs, groups] {
            write(&batch.map_err(internal)?, &mut bytes)?;
        }
        Ok([Sha256::digest(&bytes).as_slice(), &bytes].concat())
    }
}

impl Index {
    /// # Errors
    /// [`Error::CorruptFile`] when the bytes are no index, or one that contradicts itself.
    pub fn parse(key: &str, bytes: &[u8]) -> Result<Self> {
        let read = || Self::read(bytes);
        // The arrow crate has assertions that only damaged bytes violate.
        let read = catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err("it cannot be decoded".to_owned()));
        read.map_err(|why| Error::corrupt(key, why))
    }

    fn read(bytes: &[u8]) -> Result<Self, String> {
        let (sum, mut bytes) = bytes.split_first_chunk::<32>().ok_or("it is too short")?;
        if Sha256::digest(bytes).as_slice() != sum {
            return Err("its bytes are not those that were written".to_owned());
        }
        let runs = next(&mut bytes)?;
        let groups = next(&mut bytes)?;
        let wrong = || "its columns have other types".to_owned();
        let column = |batch: &RecordBatch, name: &str| batch.column_by_name(name).cloned().ok_or_else(wrong);
        let (slugs, statuses) = (column(&runs, schema::PROJECT_SLUG)?, column(&runs, schema::STATUS)?);
        let (ids, rows) = (column(&runs, schema::PROJECT_ID)?, column(&runs, ROWS)?);
        let slugs = slugs.as_string_opt::<i32>().ok_or_else(wrong)?;
        let statuses = statuses.as_primitive_opt::<Int16Type>().ok_or_else(wrong)?;
        let ids = ids.as_primitive_opt::<Int32Type>().ok_or_else(wrong)?;
        let rows = rows.as_primitive_opt::<UInt64Type>().ok_or_else(wrong)?;
        let runs: Vec<Run> = (0..runs.num_rows())
            .map(|row| Run {
                project_slug: slugs.value(row).to_owned(),
                status: statuses.value(row),
                project_id: ids.is_valid(row).then(|| ids.value(row)),
                rows: rows.value(row),
            })
            .collect();
        let numbers = groups
            .columns()
            .iter()
            .map(|column| column.as_primitive_opt::<UInt64Type>().ok_or_else(wrong))
            .collect::<Result<Vec<_>, _>>()?;
        let [rows, starts, lengths @ ..] = numbers.as_slice() else {
            return Err(wrong());
        };
        let groups: Vec<Group> = (0..groups.num_rows())
            .map(|row| Group {
                rows: rows.value(row),
                start: starts.value(row),
                lengths: lengths.iter().map(|lengths| lengths.value(row)).collect(),
            })
            .collect();
        let in_order = runs.is_sorted_by(|a, b| (&a.project_slug, a.status) < (&b.project_slug, b.status));
        let (of_runs, of_groups) = (runs.iter().map(|run| run.rows), groups.iter().map(|group| group.rows));
        let same = checked_sum(of_runs).is_some_and(|rows| Some(rows) == checked_sum(of_groups));
        if !in_order || !same {
            return Err("its runs and row groups contradict each other".to_owned());
        }
        Ok(Self::new(runs, groups))
    }
}

fn checked_sum(mut numbers: impl Iterator<Item = u64>) -> Option<u64> {
    numbers.try_fold(0_u64, u64::checked_add)
}

/// The only batch of the stream that the bytes begin with.
fn next(bytes: &mut &[u8]) -> Result<RecordBatch, String> {
    let mut reader = StreamReader::try_new(bytes, None).map_err(|error| error.to_string())?;
    let batch = reader
        .next()
        .ok_or("it has no batch")?
        .map_err(|error| error.to_string())?;
    match reader.next() {
        None => Ok(batch),
        Some(_) => Err("it has more than one batch".to_owned()),
    }
}

fn internal(error: impl std::fmt::Display) -> Error {
    Error::internal(error.to_string())
}

fn write(batch: &RecordBatch, bytes: &mut Vec<u8>) -> Result<()> {
    let options = IpcWriteOptions::default()
        .try_with_compression(Some(CompressionType::ZSTD))
        .map_err(internal)?;
    let mut writer = StreamWriter::try_new_with_options(bytes, &batch.schema(), options).map_err(internal)?;
    writer.write(batch).map_err(internal)?;
    writer.finish().map_err(internal)
}
