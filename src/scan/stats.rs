//! What a scan has done, and what it would do.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::base::keys::Day;

/// What a scan has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Days asked about, with and without a file.
    pub objects: u64,
    pub present: u64,
    pub absent: u64,
    pub footer_requests: u64,
    /// For the list of erased projects.
    pub erasure_requests: u64,
    pub data_requests: u64,
    /// For the manifest and the indexes of derived files.
    pub manifest_requests: u64,
    pub index_requests: u64,
    /// Days of which derived files were read, and not their own.
    pub days_derived: u64,
    /// 1 when the answer is one that was given before, and still holds.
    pub answers_remembered: u64,
    /// All kinds together; there are no others.
    pub requests: u64,
    /// Round trips that had to wait for one another.
    pub waves: u64,
    /// Bytes received.
    pub bytes: u64,
    /// Row groups of the files, and those of them that could matter.
    pub row_groups: u64,
    pub row_groups_read: u64,
    /// Rows decoded, and those of them that passed the filter.
    pub rows_decoded: u64,
    pub rows: u64,
}

/// What a scan would do on a day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DayPlan {
    pub day: Day,
    pub key: String,
    pub state: State,
    /// Size of the object in bytes.
    pub size: u64,
    pub rows: u64,
    pub row_groups: usize,
    /// Row groups that can matter, and the rows of them to decode.
    pub row_groups_selected: usize,
    pub rows_selected: u64,
    /// Requests for data, and their bytes.
    pub requests: usize,
    pub bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Absent,
    /// The footer was at hand.
    Cached,
    /// The footer was at hand, and the store said that it still holds.
    Confirmed,
    /// The footer had to be read.
    Read,
}

#[derive(Default)]
pub(super) struct Counters {
    pub footer_requests: AtomicU64,
    pub erasure_requests: AtomicU64,
    pub data_requests: AtomicU64,
    pub footer_waves: AtomicU64,
    pub narrow_waves: AtomicU64,
    pub data_waves: AtomicU64,
    pub bytes: AtomicU64,
    pub rows_decoded: AtomicU64,
    pub rows: AtomicU64,
    pub row_groups_read: AtomicU64,
}

impl Counters {
    /// The counts so far; what is known about the objects is not among them.
    pub fn read(&self) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (footer_requests, data_requests) = (read(&self.footer_requests), read(&self.data_requests));
        let erasure_requests = read(&self.erasure_requests);
        Stats {
            footer_requests,
            data_requests,
            erasure_requests,
            requests: footer_requests + data_requests + erasure_requests,
            waves: read(&self.footer_waves) + read(&self.narrow_waves) + read(&self.data_waves),
            bytes: read(&self.bytes),
            row_groups_read: read(&self.row_groups_read),
            rows_decoded: read(&self.rows_decoded),
            rows: read(&self.rows),
            ..Stats::default()
        }
    }
}
