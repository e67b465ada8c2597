//! What a scan knows and keeps of one version of a day's file until it is read.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::Context;
use crate::file::footer::Footer;
use crate::file::footer::GroupPlan;
use crate::scan::cache::{Lookup, Provenance};
use crate::scan::plan;

/// One version of a day's file, or its absence, and what of it can matter.
pub(super) struct Version {
    /// Counts how often the object was found replaced.
    pub generation: u32,
    pub footer: Option<Arc<Footer>>,
    pub groups: Vec<GroupPlan>,
    pub provenance: Provenance,
    /// The end of the object, when it has just been read: small files are in it whole.
    pub tail: Option<(u64, Bytes)>,
}

impl Version {
    pub fn new(
        context: &Context,
        generation: u32,
        lookup: Lookup,
        provenance: Provenance,
        tail: Option<(u64, Bytes)>,
    ) -> Self {
        let footer = match lookup {
            Lookup::Present(footer) => Some(footer),
            Lookup::Absent => None,
        };
        let groups = footer
            .as_ref()
            .map(|footer| plan::select(footer, &context.given))
            .unwrap_or_default();
        Self {
            generation,
            footer,
            groups,
            provenance,
            tail,
        }
    }

    /// As it is kept until it is read: what many days' take together is bounded.
    pub fn kept(mut self, context: &Context) -> Self {
        if let Some((_, bytes)) = &self.tail {
            let size = bytes.len() as u64;
            if context.tails.fetch_add(size, Ordering::Relaxed) + size > context.options.tail_bytes {
                context.tails.fetch_sub(size, Ordering::Relaxed);
                self.tail = None;
            }
        }
        if let Some(footer) = self.footer.as_ref().filter(|_| context.reduced) {
            let numbers: Vec<usize> = self.groups.iter().map(|group| group.group).collect();
            self.footer = Some(Arc::new(footer.reduced(&numbers)));
            for (number, group) in self.groups.iter_mut().enumerate() {
                group.group = number;
            }
        }
        self
    }

    pub fn ranges(&self, groups: &[GroupPlan], columns: &[usize]) -> Vec<Range<u64>> {
        let Some(footer) = &self.footer else { return Vec::new() };
        groups
            .iter()
            .flat_map(|group| plan::ranges(footer, group, columns))
            .collect()
    }

    pub fn in_tail(&self, ranges: &[Range<u64>]) -> bool {
        self.tail
            .as_ref()
            .is_some_and(|(offset, _)| ranges.iter().all(|range| range.start >= *offset))
    }

    /// The row groups of unit number `unit` of `units`, which were counted for another version perhaps.
    pub fn share(&self, unit: usize, units: usize) -> &[GroupPlan] {
        let total = self.groups.len();
        self.groups
            .get(unit * total / units..(unit + 1) * total / units)
            .unwrap_or_default()
    }
}
