//! Adds up the rows of days, and of an older series file, in one pass over all of them.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::sync::Arc;

use arrow::array::{
    Array, AsArray, Int16Array, Int32Array, Int64Array, ListArray, RecordBatch, StringArray, UInt16Array,
};
use arrow::datatypes::{Int16Type, Int32Type, Int64Type, UInt16Type};

use crate::base::error::{Error, Result};
use crate::base::schema;
use crate::engine::Batches;

use super::series::{COUNTS, DAYS, Key};

/// Rows in the order of a day's file.
pub struct Input {
    /// The key of what is read.
    pub name: String,
    pub batches: Batches,
    pub days: Which,
}

/// On which day of the result a row of an input counts.
#[derive(Debug, Clone)]
pub enum Which {
    /// All rows of a day's file.
    Day(u16),
    /// By the day in a series file; `None` leaves it out.
    Series(Arc<[Option<u16>]>),
}

/// The columns of a batch.
struct Columns {
    project_slug: StringArray,
    status: Int16Array,
    path: StringArray,
    version_slug: StringArray,
    project_id: Int32Array,
    version_id: Int32Array,
    full_path: StringArray,
    views: Views,
}

enum Views {
    Day(u16, Int32Array),
    Series(ListArray, ListArray, Arc<[Option<u16>]>),
}

impl Columns {
    fn of(batch: &RecordBatch, days: &Which) -> Result<Self> {
        let column = |name: &str| {
            let column = batch.column_by_name(name);
            column.ok_or_else(|| Error::internal(format!("an input of a merge has no column {name}")))
        };
        let wrong = |name: &str| Error::internal(format!("column {name} of an input of a merge has another type"));
        let text =
            |name: &str| Ok::<_, Error>(column(name)?.as_string_opt::<i32>().ok_or_else(|| wrong(name))?.clone());
        let number = |name: &str| {
            let column = column(name)?.as_primitive_opt::<Int32Type>();
            Ok::<_, Error>(column.ok_or_else(|| wrong(name))?.clone())
        };
        let list = |name: &str| Ok::<_, Error>(column(name)?.as_list_opt::<i32>().ok_or_else(|| wrong(name))?.clone());
        let status = column(schema::STATUS)?.as_primitive_opt::<Int16Type>();
        Ok(Self {
            project_slug: text(schema::PROJECT_SLUG)?,
            status: status.ok_or_else(|| wrong(schema::STATUS))?.clone(),
            path: text(schema::PATH)?,
            version_slug: text(schema::VERSION_SLUG)?,
            project_id: number(schema::PROJECT_ID)?,
            version_id: number(schema::VERSION_ID)?,
            full_path: text(schema::FULL_PATH)?,
            views: match days {
                Which::Day(day) => Views::Day(*day, number(schema::VIEW_COUNT)?),
                Which::Series(days) => Views::Series(list(DAYS)?, list(COUNTS)?, Arc::clone(days)),
            },
        })
    }

    fn len(&self) -> usize {
        self.status.len()
    }

    /// What rows are in order of in each input.
    fn place(&self, row: usize) -> (&str, i16, &str, Option<&str>) {
        (
            self.project_slug.value(row),
            self.status.value(row),
            self.path.value(row),
            optional(&self.version_slug, row),
        )
    }

    /// What tells rows at the same place apart.
    fn rest(&self, row: usize) -> (i32, Option<i32>, Option<&str>) {
        let version_id = self.version_id.is_valid(row).then(|| self.version_id.value(row));
        (self.project_id.value(row), version_id, optional(&self.full_path, row))
    }

    fn key(&self, row: usize) -> Key<'_> {
        let (project_slug, status, path, version_slug) = self.place(row);
        let (project_id, version_id, full_path) = self.rest(row);
        Key {
            project_slug,
            status,
            path,
            version_slug,
            project_id,
            version_id,
            full_path,
        }
    }

    /// Adds the views of a row by day.
    fn views(&self, row: usize, into: &mut Vec<(u16, i64)>) -> Result<()> {
        match &self.views {
            Views::Day(day, counts) => into.push((*day, i64::from(counts.value(row)))),
            Views::Series(days, counts, which) => {
                let (days, counts) = (days.value(row), counts.value(row));
                let days: &UInt16Array = days.as_primitive_opt::<UInt16Type>().ok_or_else(|| wrong(DAYS))?;
                let counts: &Int64Array = counts.as_primitive_opt::<Int64Type>().ok_or_else(|| wrong(COUNTS))?;
                if days.len() != counts.len() {
                    return Err(wrong(COUNTS));
                }
                for (day, count) in days.values().iter().zip(counts.values()) {
                    if let Some(day) = which.get(usize::from(*day)).copied().flatten() {
                        into.push((day, *count));
                    }
                }
            }
        }
        Ok(())
    }
}

fn wrong(name: &str) -> Error {
    Error::internal(format!("column {name} of a series file is damaged"))
}

fn optional(column: &StringArray, row: usize) -> Option<&str> {
    column.is_valid(row).then(|| column.value(row))
}

/// The next row of an input.
struct Head {
    input: usize,
    columns: Arc<Columns>,
    row: usize,
}

impl Ord for Head {
    /// Reversed, because the heap gives its greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.columns.place(other.row).cmp(&self.columns.place(self.row))
    }
}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Head {}

/// Hands over each key with its views by day (the first first), in order of the keys.
pub fn merge(mut inputs: Vec<Input>, mut push: impl FnMut(&Key<'_>, &[(u16, i64)]) -> Result<()>) -> Result<()> {
    let mut heap = BinaryHeap::with_capacity(inputs.len());
    for (input, each) in inputs.iter_mut().enumerate() {
        if let Some(columns) = next(each)? {
            heap.push(Head { input, columns, row: 0 });
        }
    }
    let mut same: Vec<(Arc<Columns>, usize)> = Vec::new();
    let mut views: Vec<(u16, i64)> = Vec::new();
    loop {
        same.clear();
        while let Some(mut top) = heap.peek_mut() {
            if same
                .first()
                .is_some_and(|(columns, row)| columns.place(*row) != top.columns.place(top.row))
            {
                break;
            }
            same.push((Arc::clone(&top.columns), top.row));
            let (row, before) = (top.row, Arc::clone(&top.columns));
            if row + 1 < before.len() {
                top.row += 1;
            } else {
                match next(&mut inputs[top.input])? {
                    Some(columns) => (top.columns, top.row) = (columns, 0),
                    None => {
                        PeekMut::pop(top);
                        continue;
                    }
                }
            }
            if top.columns.place(top.row) < before.place(row) {
                return Err(out_of_order(&inputs[top.input].name));
            }
        }
        if same.is_empty() {
            return Ok(());
        }
        if same.len() > 1 {
            same.sort_by(|(a, row), (b, other)| a.rest(*row).cmp(&b.rest(*other)));
        }
        for key in same.chunk_by(|(a, row), (b, other)| a.rest(*row) == b.rest(*other)) {
            views.clear();
            for (columns, row) in key {
                columns.views(*row, &mut views)?;
            }
            views.sort_unstable_by_key(|(day, _)| *day);
            views.dedup_by(|later, first| {
                let same = later.0 == first.0;
                if same {
                    first.1 = first.1.saturating_add(later.1);
                }
                same
            });
            if let Some((columns, row)) = key.first().filter(|_| !views.is_empty()) {
                push(&columns.key(*row), &views)?;
            }
        }
    }
}

fn out_of_order(name: &str) -> Error {
    Error::corrupt(
        name,
        "its rows are not in the order of a day's file, so nothing can be derived from it; export the day again with replace=True",
    )
}

/// The next batch that has rows.
fn next(input: &mut Input) -> Result<Option<Arc<Columns>>> {
    for batch in input.batches.by_ref() {
        let batch = batch?;
        if batch.num_rows() > 0 {
            return Columns::of(&batch, &input.days).map(|columns| Some(Arc::new(columns)));
        }
    }
    Ok(None)
}
