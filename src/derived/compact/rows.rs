//! The rows of a series file, for the one that takes its place.

use std::ops::Range;

use arrow::array::RecordBatch;

use super::INPUT_BYTES;
use crate::base::error::{Error, Result};
use crate::base::runtime::{Cancel, block_on};
use crate::derived::group;
use crate::derived::index::Index;
use crate::derived::series;
use crate::engine::Batches;
use crate::scan::Sparse;
use crate::store::{Part, Precondition, Response, Store};

/// All rows of a series file, fetched a few row groups at a time.
pub(super) struct SeriesRows {
    pub store: Store,
    pub key: String,
    pub etag: String,
    pub index: Index,
    pub cancel: Cancel,
    /// The next row group.
    pub next: usize,
    /// Row groups whose bytes are here.
    pub fetched: (Range<usize>, Sparse),
    pub current: Option<Batches>,
}

impl SeriesRows {
    fn advance(&mut self) -> Result<Option<RecordBatch>> {
        let columns: Vec<usize> = (0..series::columns().fields().len()).collect();
        loop {
            if let Some(batch) = self.current.as_mut().and_then(Iterator::next) {
                return batch.map(Some);
            }
            self.current = None;
            let Some(group) = self.index.group(self.next) else {
                return Ok(None);
            };
            let rows = group.rows;
            if !self.fetched.0.contains(&self.next) {
                self.fetched = self.fetch()?;
            }
            group::check(&self.index, self.next, &columns, &self.fetched.1)?;
            let batches = group::decode(
                &self.index,
                self.next,
                &columns,
                &self.fetched.1,
                std::slice::from_ref(&(0..rows)),
                BATCH_ROWS,
            )?;
            self.current = Some(Box::new(batches));
            self.next += 1;
        }
    }

    fn fetch(&self) -> Result<(Range<usize>, Sparse)> {
        let place = |group: usize| {
            let group = self.index.group(group)?;
            let length: u64 = group.chunks.iter().map(|chunk| chunk.length).sum();
            Some(group.start..group.start.saturating_add(length))
        };
        let Some(mut range) = place(self.next) else {
            return Err(Error::internal("no row group is left to fetch"));
        };
        let mut end = self.next + 1;
        while let Some(more) =
            place(end).filter(|more| more.start == range.end && more.end - range.start <= INPUT_BYTES)
        {
            (range.end, end) = (more.end, end + 1);
        }
        let (part, condition) = (Part::Range(range.clone()), Precondition::IfMatch(self.etag.clone()));
        match block_on(&self.cancel, self.store.get(&self.key, part, condition))? {
            Response::Found(found) => Ok((
                self.next..end,
                Sparse::new(range.end, vec![(found.offset, found.bytes)]),
            )),
            _ => Err(Error::Store {
                key: Some(self.key.clone()),
                message: format!("{} is gone while it was read; compact again", self.key),
                retryable: true,
            }),
        }
    }
}

const BATCH_ROWS: usize = 4096;

impl Iterator for SeriesRows {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().transpose()
    }
}
