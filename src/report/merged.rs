//! Pages of streams that are in order of pages meet as in a merge, so that only those that are shown are kept.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::thread::Builder;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::Int64Type;

use super::{Memory, Name, Page, Views, plus, shape, text};
use crate::base::error::{Error, Result};
use crate::base::process::lock;
use crate::base::runtime::Cancel;
use crate::engine::{Batches, Limits, Unit};

/// Rows in order of their names, one after the other.
struct InOrder<'a> {
    batches: Box<dyn Iterator<Item = Result<RecordBatch>> + 'a>,
    /// The columns of the present batch, of which there is none at the end.
    columns: Option<(StringArray, Option<StringArray>, Int64Array)>,
    row: usize,
}

/// Decoded batches that wait for their turn, of each stream.
const WAITING: usize = 2;

impl InOrder<'_> {
    fn name(&self) -> Option<Name<'_>> {
        let (paths, versions, _) = self.columns.as_ref()?;
        Some((
            text(paths, self.row),
            versions.as_ref().and_then(|versions| text(versions, self.row)),
        ))
    }

    fn count(&self) -> i64 {
        self.columns.as_ref().map_or(0, |(_, _, counts)| counts.value(self.row))
    }

    fn advance(&mut self) -> Result<()> {
        self.row += 1;
        while self
            .columns
            .as_ref()
            .is_none_or(|(_, _, counts)| self.row >= counts.len())
        {
            let Some(batch) = self.batches.next().transpose()? else {
                self.columns = None;
                return Ok(());
            };
            let text = |column: &ArrayRef| column.as_string_opt::<i32>().cloned().ok_or_else(shape);
            let (paths, versions, counts) = match batch.columns() {
                [paths, counts] => (text(paths)?, None, counts),
                [paths, versions, counts] => (text(paths)?, Some(text(versions)?), counts),
                _ => return Err(shape()),
            };
            let counts = counts.as_primitive_opt::<Int64Type>().ok_or_else(shape)?;
            (self.columns, self.row) = (Some((paths, versions, counts.clone())), 0);
        }
        Ok(())
    }
}

/// A page that is kept; the greatest is the one that others push out.
struct Kept(Page);

impl Ord for Kept {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.order(&other.0)
    }
}

impl PartialOrd for Kept {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Kept {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Kept {}

/// The most viewed pages of streams that are in order of pages, and of others: they meet as in a merge, so that of all
/// others nothing has to be kept. Each stream is decoded by a thread of its own, as far as there are any.
pub(super) fn merged(
    ordered: Vec<Vec<Unit>>,
    others: Views<'_>,
    wanted: usize,
    limits: &Limits,
    cancel: &Cancel,
) -> Result<Vec<Page>> {
    let memory = others.memory;
    let mut others: Vec<Page> = others.pages.into_iter().collect();
    others.sort_unstable_by(|page, other| page.name().cmp(&other.name()));
    std::thread::scope(|scope| {
        let mut streams = Vec::with_capacity(ordered.len());
        for (number, units) in ordered.into_iter().enumerate() {
            let batches = batches_of(units);
            let batches = if number + 1 < limits.threads {
                let shared = Arc::new(Mutex::new(Some(batches)));
                let (send, receive) = sync_channel(WAITING);
                let theirs = Arc::clone(&shared);
                let decode = move || {
                    let Some(mut batches) = lock(&theirs).take() else {
                        return;
                    };
                    while let Some(batch) = catch_unwind(AssertUnwindSafe(|| batches.next()))
                        .unwrap_or_else(|_| Some(Err(Error::internal("a thread that decodes page views has panicked"))))
                    {
                        let failed = batch.is_err();
                        // Nobody waits for it any more.
                        if send.send(batch).is_err() || failed {
                            return;
                        }
                    }
                };
                match Builder::new().spawn_scoped(scope, decode) {
                    Ok(_) => Box::new(receive.into_iter()),
                    // Where no more threads can be had, this one does the work.
                    Err(_) => lock(&shared).take().unwrap_or_else(|| Box::new(std::iter::empty())),
                }
            } else {
                batches
            };
            streams.push(InOrder {
                batches,
                columns: None,
                row: 0,
            });
        }
        most_viewed(streams, others, wanted, memory, cancel)
    })
}

fn batches_of(units: Vec<Unit>) -> Batches {
    let mut units = units.into_iter();
    let mut current: Option<Batches> = None;
    Box::new(std::iter::from_fn(move || {
        loop {
            if let Some(batch) = current.as_mut().and_then(Iterator::next) {
                return Some(batch);
            }
            current = match units.next()?() {
                Ok(batches) => Some(batches),
                Err(error) => return Some(Err(error)),
            };
        }
    }))
}

fn most_viewed(
    mut streams: Vec<InOrder<'_>>,
    others: Vec<Page>,
    wanted: usize,
    memory: &Memory,
    cancel: &Cancel,
) -> Result<Vec<Page>> {
    for stream in &mut streams {
        stream.advance()?;
    }
    let mut others = others.into_iter().peekable();
    let mut kept = MostViewed {
        pages: BinaryHeap::new(),
        wanted,
        memory,
    };
    let (mut path, mut version): (Option<String>, Option<String>) = (None, None);
    for turn in 0_usize.. {
        if turn.is_multiple_of(4096) {
            cancel.check()?;
        }
        streams.retain(|stream| stream.columns.is_some());
        let first = streams
            .iter()
            .filter_map(InOrder::name)
            .chain(others.peek().map(Page::name))
            .min();
        let Some(first) = first else {
            break;
        };
        set(&mut path, first.0);
        set(&mut version, first.1);
        let name = (path.as_deref(), version.as_deref());
        let mut count = 0;
        for stream in &mut streams {
            while stream.name() == Some(name) {
                count = plus(count, stream.count())?;
                stream.advance()?;
            }
        }
        while let Some(page) = others.next_if(|page| page.name() == name) {
            count = plus(count, page.count)?;
        }
        kept.offer(name, count)?;
    }
    Ok(kept.pages.into_sorted_vec().into_iter().map(|kept| kept.0).collect())
}

/// Copies a text into what there is room in.
fn set(into: &mut Option<String>, text: Option<&str>) {
    match (&mut *into, text) {
        (Some(into), Some(text)) => {
            into.clear();
            into.push_str(text);
        }
        _ => *into = text.map(str::to_owned),
    }
}

/// The pages that are shown, as far as is known.
struct MostViewed<'a> {
    pages: BinaryHeap<Kept>,
    wanted: usize,
    memory: &'a Memory,
}

impl MostViewed<'_> {
    fn offer(&mut self, name: Name<'_>, count: i64) -> Result<()> {
        let full = self.pages.len() >= self.wanted;
        // They come in order of names, which decides between equals.
        if full && self.pages.peek().is_none_or(|Kept(last)| last.count >= count) {
            return Ok(());
        }
        let page = Page {
            path: name.0.map(Box::from),
            version: name.1.map(Box::from),
            count,
        };
        self.memory.take(page.bytes())?;
        self.pages.push(Kept(page));
        if full && let Some(Kept(page)) = self.pages.pop() {
            self.memory.taken.fetch_sub(page.bytes(), Relaxed);
        }
        Ok(())
    }
}
