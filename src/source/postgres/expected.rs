//! Ids that a day's file has: which of them a read has not met on the day.

use std::sync::Arc;

use arrow::array::{BooleanBufferBuilder, RecordBatch};

use crate::base::error::Result;
use crate::file::rows::id_column;

/// Which of the expected ids were among the rows.
pub struct Seen {
    expected: Arc<[i64]>,
    seen: BooleanBufferBuilder,
}

impl Seen {
    pub fn new(expected: Arc<[i64]>) -> Self {
        let mut seen = BooleanBufferBuilder::new(expected.len());
        seen.append_n(expected.len(), false);
        Self { expected, seen }
    }

    pub fn add(&mut self, batch: &RecordBatch) -> Result<()> {
        if self.expected.is_empty() {
            return Ok(());
        }
        for id in id_column(batch)? {
            if let Ok(number) = self.expected.binary_search(&id) {
                self.seen.set_bit(number, true);
            }
        }
        Ok(())
    }

    /// Ascending.
    pub fn missing(&self) -> Vec<i64> {
        let all = self.expected.iter().enumerate();
        all.filter_map(|(number, id)| (!self.seen.get_bit(number)).then_some(*id))
            .collect()
    }
}
