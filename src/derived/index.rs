//! The index of a derived file: which runs it has, and where its row groups lie. A hundredth of the file's own footer in
//! size and time, so that a question never reads that.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int16Array, Int32Array, RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::{DataType, Field, Int16Type, Int32Type, Schema, UInt64Type};
use arrow::ipc::CompressionType;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::base::error::{Error, Result};
use crate::base::json;
use crate::base::keys::Day;
use crate::base::schema;

use super::series::{Chunk, Group, Run};

/// The version of the form; another is not read.
const FORMAT: u64 = 1;
const ROWS: &str = "rows";
const ENTRIES: &str = "entries";
const START: &str = "start";
const KEY: &str = "key";
const FIRST: &str = "first";
const DAYS: &str = "days";
const WITHOUT: &str = "without";
/// The ids of runs that have several, by number of the run.
const SEVERAL: &str = "several";

/// A version of a day's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DayFile {
    pub etag: String,
    pub rows: u64,
}

/// Runs in order, and where each begins.
#[derive(Debug, Clone)]
pub struct Index {
    /// The key of the file, below the folder of derived files.
    pub key: String,
    pub first: Day,
    /// From the first on, the versions that the file was made of; `None` for days without a file.
    pub days: Vec<Option<DayFile>>,
    /// Projects whose rows were left out because they were erased; in order.
    pub without: Vec<i32>,
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
    pub fn new(key: String, first: Day, days: Vec<Option<DayFile>>, runs: Vec<Run>, groups: Vec<Group>) -> Self {
        Self {
            key,
            first,
            days,
            without: Vec::new(),
            starts: sums(runs.iter().map(|run| run.rows)),
            group_starts: sums(groups.iter().map(|group| group.rows)),
            runs,
            groups,
        }
    }

    /// The same, of a file from which the rows of these projects were left out.
    #[must_use]
    pub fn without(self, mut projects: Vec<i32>) -> Self {
        projects.sort_unstable();
        Self {
            without: projects,
            ..self
        }
    }

    /// The rows of a day's file; `None` when it has none.
    pub fn rows_of(&self, day: Day) -> Option<u64> {
        let place = usize::try_from(day.to_date32() - self.first.to_date32()).ok()?;
        self.days.get(place)?.as_ref().map(|file| file.rows)
    }

    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    pub fn group(&self, number: usize) -> Option<&Group> {
        self.groups.get(number)
    }

    /// Those of these projects of which it has rows.
    pub fn ids_of(&self, projects: &[i32]) -> BTreeSet<i32> {
        let ids = self.runs.iter().flat_map(|run| &run.project_ids).copied();
        ids.filter(|id| projects.binary_search(id).is_ok()).collect()
    }

    /// The runs of a project.
    pub fn runs_of(&self, slug: &str) -> Range<usize> {
        let before = |run: &Run| run.project_slug.as_str() < slug;
        let first = self.runs.partition_point(before);
        let count = self.runs[first..].partition_point(|run| run.project_slug == slug);
        first..first + count
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

    /// What it takes in memory, about.
    pub fn memory_size(&self) -> usize {
        let runs = self
            .runs
            .iter()
            .map(|run| size_of::<Run>() + 8 + run.project_slug.len());
        let groups = self
            .groups
            .iter()
            .map(|group| size_of::<Group>() + 8 + group.chunks.len() * size_of::<Chunk>());
        runs.sum::<usize>() + groups.sum::<usize>() + self.days.len() * 100 + 1000
    }

    /// The SHA-256 of what follows; as JSON with its length before it what the file was made of; and two tables as streams
    /// of Arrow's IPC.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let days = self
            .days
            .iter()
            .map(|day| day.as_ref().map(|day| json!([day.etag, day.rows])));
        let several = self
            .runs
            .iter()
            .enumerate()
            .filter(|(_, run)| run.project_ids.len() != 1);
        let several: Map<String, Value> = several
            .map(|(number, run)| (number.to_string(), json!(run.project_ids)))
            .collect();
        let about = json!({
            SEVERAL: several,
            WITHOUT: self.without,
            json::FORMAT: FORMAT,
            KEY: self.key,
            FIRST: self.first.to_string(),
            DAYS: days.collect::<Vec<_>>(),
        });
        let about = about.to_string().into_bytes();
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
                Arc::new(self.runs.iter().map(only).collect::<Int32Array>()),
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
        let mut columns = vec![
            numbers(ROWS.to_owned(), &|group| group.rows),
            numbers(ENTRIES.to_owned(), &|group| group.entries),
            numbers(START.to_owned(), &|group| group.start),
        ];
        for column in 0..self.groups.first().map_or(0, |group| group.chunks.len()) {
            let chunk = move |group: &Group| group.chunks.get(column).copied();
            let length = |group: &Group| chunk(group).map_or(0, |chunk| chunk.length);
            columns.push(numbers(format!("length{column}"), &length));
            let checksum = |group: &Group| chunk(group).map_or(0, |chunk| chunk.checksum.into());
            columns.push(numbers(format!("checksum{column}"), &checksum));
        }
        let (fields, columns): (Vec<Field>, Vec<ArrayRef>) = columns.into_iter().unzip();
        let groups = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns);
        let length = u32::try_from(about.len()).map_err(internal)?;
        let mut bytes = [length.to_le_bytes().as_slice(), &about].concat();
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
        const SHORT: &str = "it is too short";
        let (sum, bytes) = bytes.split_first_chunk::<32>().ok_or(SHORT)?;
        if Sha256::digest(bytes).as_slice() != sum {
            return Err("its bytes are not those that were written".to_owned());
        }
        let (length, bytes) = bytes.split_first_chunk::<4>().ok_or(SHORT)?;
        let (about, mut bytes) = bytes
            .split_at_checked(u32::from_le_bytes(*length) as usize)
            .ok_or(SHORT)?;
        let About {
            key,
            first,
            days,
            without,
            mut several,
        } = read_about(about)?;
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
                project_ids: match ids.is_valid(row) {
                    true => vec![ids.value(row)],
                    false => several.remove(&row).unwrap_or_default(),
                },
                rows: rows.value(row),
            })
            .collect();
        let numbers = groups
            .columns()
            .iter()
            .map(|column| column.as_primitive_opt::<UInt64Type>().ok_or_else(wrong))
            .collect::<Result<Vec<_>, _>>()?;
        let [rows, entries, starts, chunks @ ..] = numbers.as_slice() else {
            return Err(wrong());
        };
        let chunk = |two: &[&UInt64Array], row: usize| match two {
            [length, checksum] => Some(Chunk {
                length: length.value(row),
                checksum: u32::try_from(checksum.value(row)).ok()?,
            }),
            _ => None,
        };
        let groups: Vec<Group> = (0..groups.num_rows())
            .map(|row| {
                Some(Group {
                    rows: rows.value(row),
                    entries: entries.value(row),
                    start: starts.value(row),
                    chunks: chunks.chunks(2).map(|two| chunk(two, row)).collect::<Option<_>>()?,
                })
            })
            .collect::<Option<_>>()
            .ok_or_else(wrong)?;
        let in_order = runs.is_sorted_by(|a, b| (&a.project_slug, a.status) < (&b.project_slug, b.status));
        let (of_runs, of_groups) = (runs.iter().map(|run| run.rows), groups.iter().map(|group| group.rows));
        let same = checked_sum(of_runs).is_some_and(|rows| Some(rows) == checked_sum(of_groups));
        if !in_order || !same {
            return Err("its runs and row groups contradict each other".to_owned());
        }
        Ok(Self::new(key, first, days, runs, groups).without(without))
    }
}

fn ids_of(ids: &Value) -> Option<Vec<i32>> {
    let ids = ids.as_array()?.iter().map(|id| i32::try_from(id.as_i64()?).ok());
    ids.collect()
}

/// What an index says besides its tables.
struct About {
    key: String,
    first: Day,
    days: Vec<Option<DayFile>>,
    without: Vec<i32>,
    several: BTreeMap<usize, Vec<i32>>,
}

/// The id of a run that has one.
fn only(run: &Run) -> Option<i32> {
    match run.project_ids.as_slice() {
        [id] => Some(*id),
        _ => None,
    }
}

fn read_about(bytes: &[u8]) -> Result<About, String> {
    let about = json::object(bytes, FORMAT)?;
    let text = |name: &str| about.get(name).and_then(Value::as_str);
    let (Some(key), Some(first), Some(Value::Array(days))) = (text(KEY), text(FIRST), about.get(DAYS)) else {
        return Err("it does not say what it is of".to_owned());
    };
    let day = |day: &Value| match day {
        Value::Null => Some(None),
        Value::Array(file) => match file.as_slice() {
            [Value::String(etag), rows] => Some(Some(DayFile {
                etag: etag.clone(),
                rows: rows.as_u64()?,
            })),
            _ => None,
        },
        _ => None,
    };
    let days: Option<Vec<_>> = days.iter().map(day).collect();
    let several = about.get(SEVERAL).and_then(Value::as_object);
    let several = several.ok_or("it does not say which runs have several ids")?.iter();
    let several = several.map(|(run, ids)| Some((run.parse().ok()?, ids_of(ids)?)));
    let without = about.get(WITHOUT).and_then(ids_of);
    Ok(About {
        key: key.to_owned(),
        first: first.parse().map_err(|_| "its first day is none".to_owned())?,
        days: days.ok_or("it does not say what versions of days it is of")?,
        without: without.ok_or("it does not say which projects were left out")?,
        several: several.collect::<Option<_>>().ok_or("its runs have no ids")?,
    })
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
