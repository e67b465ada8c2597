//! Merges sorted runs with one batch of each in memory.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use arrow::array::RecordBatch;
use arrow::compute::interleave_record_batch;

use crate::base::error::{Error, Result};

use super::Run;
use super::order::Keys;

pub struct Merge {
    runs: Vec<Run>,
    heads: BinaryHeap<Head>,
    batch_rows: usize,
}

/// The next row of a run.
struct Head {
    run: usize,
    batch: RecordBatch,
    row: usize,
    head: u128,
}

impl Head {
    fn at(run: usize, batch: RecordBatch, row: usize) -> Result<Self> {
        let head = Keys::of(&batch)?.head(row);
        Ok(Self { run, batch, row, head })
    }
}

impl Ord for Head {
    /// Reversed, because the heap gives its greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        let tail = || match (Keys::of(&self.batch), Keys::of(&other.batch)) {
            (Ok(keys), Ok(others)) => keys.tail(self.row, &others, other.row),
            _ => Ordering::Equal,
        };
        self.head.cmp(&other.head).then_with(tail).reverse()
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

impl Merge {
    pub fn new(mut runs: Vec<Run>, batch_rows: usize) -> Result<Self> {
        let mut heads = BinaryHeap::with_capacity(runs.len());
        for (index, run) in runs.iter_mut().enumerate() {
            if let Some(batch) = run.next() {
                heads.push(Head::at(index, batch?, 0)?);
            }
        }
        Ok(Self {
            runs,
            heads,
            batch_rows,
        })
    }

    pub fn next_batch(&mut self) -> Result<Option<RecordBatch>> {
        let mut batches: Vec<RecordBatch> = Vec::new();
        // Per run: where its present batch is in `batches`.
        let mut places: Vec<Option<usize>> = vec![None; self.runs.len()];
        let mut rows = Vec::with_capacity(self.batch_rows);
        while rows.len() < self.batch_rows {
            let Some(Head { run, batch, row, .. }) = self.heads.pop() else {
                break;
            };
            let place = *places[run].get_or_insert_with(|| {
                batches.push(batch.clone());
                batches.len() - 1
            });
            rows.push((place, row));
            if row + 1 < batch.num_rows() {
                self.heads.push(Head::at(run, batch, row + 1)?);
            } else {
                places[run] = None;
                if let Some(next) = self.runs[run].next() {
                    self.heads.push(Head::at(run, next?, 0)?);
                }
            }
        }
        if rows.is_empty() {
            return Ok(None);
        }
        let batches: Vec<&RecordBatch> = batches.iter().collect();
        interleave_record_batch(&batches, &rows)
            .map(Some)
            .map_err(|error| Error::internal(error.to_string()))
    }
}
