//! The order of rows: (project_slug, status, path, version_slug, id) as bytes, with ranks for the slugs.

use std::cmp::Ordering;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use arrow::array::{Int16Array, Int64Array, RecordBatch, StringArray, UInt32Array};

use crate::base::error::{Error, Result};
use crate::base::runtime::Cancel;
use crate::base::schema;

use super::typed;

/// Comparisons between two looks at whether a stop was asked for.
const COMPARED_AT_ONCE: u32 = 1 << 16;

/// The columns that decide a row's place.
pub struct Keys<'a> {
    project: &'a UInt32Array,
    status: &'a Int16Array,
    path: &'a StringArray,
    version: &'a UInt32Array,
    id: &'a Int64Array,
}

impl<'a> Keys<'a> {
    pub fn of(batch: &'a RecordBatch) -> Result<Self> {
        Ok(Self {
            project: typed(batch, schema::PROJECT_SLUG)?,
            status: typed(batch, schema::STATUS)?,
            path: typed(batch, schema::PATH)?,
            version: typed(batch, schema::VERSION_SLUG)?,
            id: typed(batch, schema::ID)?,
        })
    }

    /// Project, status and the first bytes of the path in one number that sorts as they do.
    pub fn head(&self, row: usize) -> u128 {
        let path = self.path.value(row).as_bytes();
        let mut start = [0_u8; 10];
        let length = path.len().min(start.len());
        start[..length].copy_from_slice(&path[..length]);
        let path = start
            .iter()
            .fold(0_u128, |number, byte| number << 8 | u128::from(*byte));
        let status = (self.status.value(row) as u16) ^ 0x8000;
        u128::from(self.project.value(row)) << 96 | u128::from(status) << 80 | path
    }

    /// The order of two rows whose heads are equal.
    pub fn tail(&self, row: usize, other: &Keys<'_>, other_row: usize) -> Ordering {
        (
            self.path.value(row).as_bytes(),
            self.version.value(row),
            self.id.value(row),
        )
            .cmp(&(
                other.path.value(other_row).as_bytes(),
                other.version.value(other_row),
                other.id.value(other_row),
            ))
    }
}

/// A row's head and where it is: the batch in the upper half, the row in the lower.
#[derive(Clone, Copy)]
pub struct Row {
    head: u128,
    place: u64,
}

impl Row {
    pub fn place(&self) -> (usize, usize) {
        ((self.place >> 32) as usize, self.place as u32 as usize)
    }
}

/// All rows of the batches in order.
pub fn sorted(batches: &[RecordBatch], cancel: &Cancel) -> Result<Vec<Row>> {
    let keys = batches.iter().map(Keys::of).collect::<Result<Vec<_>>>()?;
    let total = batches.iter().map(RecordBatch::num_rows).sum();
    let mut rows: Vec<Row> = Vec::new();
    rows.try_reserve_exact(total).map_err(|_| Error::Io {
        message: format!("no memory to sort {total} rows; lower the sort's memory bound"),
    })?;
    for (batch, keys) in keys.iter().enumerate() {
        for row in 0..keys.id.len() {
            rows.push(Row {
                head: keys.head(row),
                place: (batch as u64) << 32 | row as u64,
            });
        }
    }
    cancel.check()?;
    let mut compared = 0_u32;
    let sort = AssertUnwindSafe(|| {
        rows.sort_unstable_by(|one, other| {
            compared = compared.wrapping_add(1);
            if compared.is_multiple_of(COMPARED_AT_ONCE) && cancel.check().is_err() {
                // Millions of rows take seconds, and a sort has no other way out. No panic is reported by this.
                resume_unwind(Box::new(()));
            }
            one.head.cmp(&other.head).then_with(|| {
                let ((batch, row), (other_batch, other_row)) = (one.place(), other.place());
                keys[batch].tail(row, &keys[other_batch], other_row)
            })
        });
    });
    let sorted = catch_unwind(sort);
    cancel.check()?;
    sorted.map_or_else(|panic| resume_unwind(panic), |()| Ok(rows))
}
