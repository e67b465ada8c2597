//! Gets the bytes of row groups into memory: ahead of their use within a budget, each part in one wave of
//! requests that hold only for the version of the footer. When the object was replaced, before or meanwhile, and none
//! of its rows was handed out yet, it is planned anew; otherwise the scan fails rather than mix versions. An object of
//! which nothing is read is asked whether it is that version still.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared, try_join_all};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;

use super::Context;
use super::decode::Sparse;
use super::narrow;
use super::version::Version;
use crate::base::error::{Error, Result};
use crate::base::keys::Day;
use crate::base::process::lock;
use crate::base::runtime;
use crate::scan::cache::{self, Provenance};
use crate::scan::plan::{self, Filter};
use crate::store::{Part as Bytewise, Precondition, Response};

/// How often an object that is replaced again and again is planned anew.
const REPLANS: u32 = 4;

/// A day's object as one scan sees it.
pub(super) struct Object {
    pub day: Day,
    pub key: String,
    state: Mutex<Seen>,
    /// Held while the object is planned anew, which one task does for all.
    turn: tokio::sync::Mutex<()>,
}

struct Seen {
    version: Arc<Version>,
    provenance: Provenance,
    /// Rows of this version were handed out: no other version may follow.
    delivered: bool,
}

impl Object {
    pub fn new(day: Day, key: String, version: Version) -> Self {
        let state = Mutex::new(Seen {
            provenance: version.provenance,
            version: Arc::new(version),
            delivered: false,
        });
        Self {
            day,
            key,
            state,
            turn: tokio::sync::Mutex::default(),
        }
    }

    pub fn version(&self) -> Arc<Version> {
        Arc::clone(&lock(&self.state).version)
    }

    pub fn provenance(&self) -> Provenance {
        lock(&self.state).provenance
    }

    /// Whether the store said that this is its version, and not only a memory of it.
    pub fn is_confirmed(&self) -> bool {
        self.provenance() != Provenance::Assumed
    }

    /// Notes that the store has just answered with this version.
    fn note_confirmed(&self, context: &Context, version: &Version, asked: Instant) {
        if let Some(footer) = &version.footer {
            cache::confirm(&context.store, &self.key, &footer.etag, asked);
        }
        let mut seen = lock(&self.state);
        if seen.version.generation == version.generation && seen.provenance == Provenance::Assumed {
            seen.provenance = Provenance::Revalidated;
        }
    }

    /// Asks the store whether the version is the one that it has, and takes what it has otherwise. Gives the requests that
    /// had to wait for one another.
    pub async fn confirm(&self, context: &Arc<Context>) -> Result<u64> {
        let _turn = self.turn.lock().await;
        let assumed = {
            let seen = lock(&self.state);
            if seen.provenance != Provenance::Assumed {
                return Ok(0);
            }
            Arc::clone(&seen.version)
        };
        let guess = cache::tail_guess(&context.store, 1);
        let (found, waves) = load(context, self.day, &self.key, guess, assumed.generation + 1).await?;
        let etag = |version: &Version| version.footer.as_ref().map(|footer| footer.etag.clone());
        let mut seen = lock(&self.state);
        seen.provenance = found.provenance;
        if etag(&found) != etag(&assumed) {
            if seen.delivered {
                return Err(cache::changing(&self.key));
            }
            seen.version = Arc::new(found);
        }
        Ok(waves)
    }

    /// Commits the scan to the version of the data that is about to be handed out; `false` when it has
    /// been replaced since the data was read.
    fn deliver(&self, generation: u32) -> bool {
        let mut seen = lock(&self.state);
        let current = seen.version.generation == generation;
        seen.delivered |= current;
        current
    }

    /// Plans the object anew after version `generation` was found replaced. Gives the requests that had to wait for one
    /// another.
    async fn replan(&self, context: &Arc<Context>, generation: u32) -> Result<u64> {
        let _turn = self.turn.lock().await;
        let stale = |seen: &Seen| -> Result<bool> {
            if seen.version.generation != generation {
                return Ok(false);
            }
            if seen.delivered || generation >= REPLANS {
                Err(cache::changing(&self.key))
            } else {
                Ok(true)
            }
        };
        cache::forget(&context.store, &self.key);
        if !stale(&lock(&self.state))? {
            return Ok(0);
        }
        let guess = cache::tail_guess(&context.store, 1);
        let (version, waves) = load(context, self.day, &self.key, guess, generation + 1).await?;
        let mut seen = lock(&self.state);
        if stale(&seen)? {
            seen.provenance = version.provenance;
            seen.version = Arc::new(version);
        }
        Ok(waves)
    }
}

/// Finds out about a day's object through the cache, and plans it. Gives the requests that had to wait for one another too.
pub(super) async fn load(
    context: &Arc<Context>,
    day: Day,
    key: &str,
    guess: u64,
    generation: u32,
) -> Result<(Version, u64)> {
    let mut waves = 0;
    for _ in 0..=REPLANS {
        let turn = permit(context).await?;
        let loaded = cache::load(&context.store, key, context.options.max_age, guess)
            .await
            .map_err(|error| error.on_day(day))?;
        drop(turn);
        context.count(|counters| &counters.footer_requests, loaded.requests.into());
        context.count(|counters| &counters.bytes, loaded.bytes);
        waves += u64::from(loaded.requests);
        let version = Version::new(context, generation, loaded.lookup, loaded.provenance, loaded.tail);
        let narrowed = narrow::to_project(context, key, version)
            .await
            .map_err(|error| error.on_day(day))?;
        if let Some(version) = narrowed {
            return Ok((version.kept(context), waves));
        }
        cache::forget(&context.store, key);
    }
    Err(cache::changing(key))
}

async fn permit(context: &Context) -> Result<tokio::sync::SemaphorePermit<'_>> {
    context
        .requests
        .acquire()
        .await
        .map_err(|_| Error::internal("the limit of requests is closed"))
}

/// The bytes of a part, all of one version.
pub(super) struct Data {
    pub version: Arc<Version>,
    pub bytes: Sparse,
    _budget: Option<OwnedSemaphorePermit>,
}

type Pending = Shared<BoxFuture<'static, Result<Arc<Data>>>>;

/// Neighbouring units of an object whose bytes are fetched together and kept until the last is decoded.
pub(super) struct Part {
    pub context: Arc<Context>,
    pub object: Arc<Object>,
    units: Range<usize>,
    /// Units of the whole object.
    pub total: usize,
    pub columns: Arc<[usize]>,
    /// Which of the rows are handed out.
    pub filter: Arc<Filter>,
    size: u64,
    slot: Mutex<Option<(Pending, AbortHandle)>>,
}

impl Part {
    pub fn new(
        context: &Arc<Context>,
        object: &Arc<Object>,
        units: Range<usize>,
        total: usize,
        columns: Arc<[usize]>,
        filter: Arc<Filter>,
        size: u64,
    ) -> Arc<Self> {
        let (context, object, slot) = (Arc::clone(context), Arc::clone(object), Mutex::default());
        Arc::new(Self {
            context,
            object,
            units,
            total,
            columns,
            filter,
            size,
            slot,
        })
    }

    /// Begins to fetch unless that was begun before.
    fn start(
        &self,
        slot: &mut Option<(Pending, AbortHandle)>,
        budget: Option<OwnedSemaphorePermit>,
    ) -> Result<Pending> {
        if let Some((pending, _)) = slot {
            return Ok(pending.clone());
        }
        let (context, object, columns) = (
            Arc::clone(&self.context),
            Arc::clone(&self.object),
            Arc::clone(&self.columns),
        );
        let (units, total) = (self.units.clone(), self.total);
        let task = runtime::handle()?.spawn(async move {
            let fetched = fetch(&context, &object, units, total, &columns).await;
            let (version, bytes) = fetched.map_err(|error| error.on_day(object.day))?;
            Ok(Arc::new(Data {
                version,
                bytes,
                _budget: budget,
            }))
        });
        let abort = task.abort_handle();
        let pending = async move { runtime::ended(task.await) }.boxed().shared();
        *slot = Some((pending.clone(), abort));
        Ok(pending)
    }

    /// The data, fetched now if it was not yet; never called from async code. The scan is bound to the
    /// version that this returns.
    pub fn wait(&self) -> Result<Arc<Data>> {
        loop {
            let pending = self.start(&mut lock(&self.slot), None)?;
            let data = runtime::block_on(&self.context.cancel, pending.clone())?;
            if self.object.deliver(data.version.generation) {
                return Ok(data);
            }
            // Another part of the object found it replaced. All that wait here begin anew, together.
            let mut slot = lock(&self.slot);
            if slot.as_ref().is_some_and(|(current, _)| current.ptr_eq(&pending)) {
                *slot = None;
            }
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some((_, abort)) = &*lock(&self.slot) {
            abort.abort();
        }
    }
}

/// Fetches parts in their order as long as there is room for them. Parts that nobody wants any more are
/// skipped; a part that is wanted before its turn is fetched at once, so that no reader ever waits for
/// another one to free memory.
pub(super) fn ahead(context: &Arc<Context>, parts: Vec<Weak<Part>>) -> Result<()> {
    const UNIT: u64 = 1024;
    let most = u32::try_from(context.options.ahead_bytes.div_ceil(UNIT))
        .unwrap_or(u32::MAX)
        .max(1);
    let budget = Arc::new(Semaphore::new(most as usize));
    let cancel = context.cancel.clone();
    let run = async move {
        for part in parts {
            let Some(size) = part.upgrade().map(|part| part.size) else {
                continue;
            };
            let size = u32::try_from(size.div_ceil(UNIT)).unwrap_or(u32::MAX).clamp(1, most);
            let Ok(permit) = Arc::clone(&budget).acquire_many_owned(size).await else {
                return;
            };
            if let Some(part) = part.upgrade() {
                // An error is met again by whoever waits for the part.
                let _ = part.start(&mut lock(&part.slot), Some(permit));
            }
        }
    };
    runtime::handle()?.spawn(async move {
        tokio::select! {
            () = cancel.cancelled() => {}
            () = run => {}
        }
    });
    Ok(())
}

async fn fetch(
    context: &Arc<Context>,
    object: &Object,
    units: Range<usize>,
    total: usize,
    columns: &[usize],
) -> Result<(Arc<Version>, Sparse)> {
    // Requests that had to wait for one another.
    let mut waves = 0;
    for _ in 0..=REPLANS {
        let version = object.version();
        let ranges = units
            .clone()
            .flat_map(|unit| version.ranges(version.share(unit, total), columns))
            .collect::<Vec<_>>();
        let Some(footer) = version.footer.as_ref().filter(|_| !ranges.is_empty()) else {
            if object.is_confirmed() {
                return Ok((version, Sparse::default()));
            }
            waves += object.confirm(context).await?;
            context.counters.data_waves.fetch_max(waves, Ordering::Relaxed);
            continue;
        };
        if let Some((offset, bytes)) = version.tail.as_ref().filter(|_| version.in_tail(&ranges)) {
            let bytes = Sparse::new(footer.size, vec![(*offset, bytes.clone())]);
            return Ok((version, bytes));
        }
        let requests = plan::coalesce(ranges, context.options.gap, context.options.request_bytes);
        waves += 1;
        context.counters.data_waves.fetch_max(waves, Ordering::Relaxed);
        let asked = Instant::now();
        let chunks = try_join_all(
            requests
                .into_iter()
                .map(|range| get(context, &object.key, &footer.etag, range)),
        )
        .await?;
        if let Some(chunks) = chunks.into_iter().collect::<Option<Vec<_>>>() {
            let bytes = Sparse::new(footer.size, chunks);
            object.note_confirmed(context, &version, asked);
            return Ok((version, bytes));
        }
        waves += object.replan(context, version.generation).await?;
        context.counters.data_waves.fetch_max(waves, Ordering::Relaxed);
    }
    Err(cache::changing(&object.key))
}

/// Bytes of a version of an object; `None` when there is another one, or none.
pub(super) async fn get(context: &Context, key: &str, etag: &str, range: Range<u64>) -> Result<Option<(u64, Bytes)>> {
    let _turn = permit(context).await?;
    context.count(|counters| &counters.data_requests, 1);
    match context
        .store
        .get(
            key,
            Bytewise::Range(range.clone()),
            Precondition::IfMatch(etag.to_owned()),
        )
        .await?
    {
        Response::Found(found) => {
            context.count(|counters| &counters.bytes, found.bytes.len() as u64);
            if found.offset != range.start || found.bytes.len() as u64 != range.end - range.start {
                let message = format!("{key}: the store returned other bytes than asked for; ask again");
                return Err(Error::Store {
                    key: Some(key.to_owned()),
                    message,
                    retryable: true,
                });
            }
            Ok(Some((found.offset, found.bytes)))
        }
        Response::NotFound | Response::PreconditionFailed | Response::NotModified => Ok(None),
    }
}
