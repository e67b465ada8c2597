//! Stops a statement when the caller asks for it or its time is up. One task of the process-wide runtime
//! for each statement waits for both; nothing polls.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use duckdb::ffi;
use tokio::task::JoinHandle;

use super::table_function::QueryState;
use super::timed_out;
use crate::base::error::{Error, Result};
use crate::base::process::lock;
use crate::base::runtime::{self, Cancel};

/// DuckDB forgets an interrupt that arrives between two steps, so it is repeated until the statement ends.
const REPEAT: Duration = Duration::from_millis(20);

/// How long a statement without a timeout waits before it looks at the clock again.
const FOREVER: Duration = Duration::from_secs(24 * 3600);

const RUNNING: u8 = 0;
const CANCELLED: u8 = 1;
const TIMED_OUT: u8 = 2;

/// The watch over one statement. Dropping it ends the watch.
pub(super) struct Watch {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    /// Gone once the connection is about to be closed.
    connection: Mutex<Option<Connection>>,
    /// Ends the scans. (Not the whole state: the relation must not outlive the statement by a moment.)
    scans: Arc<AtomicBool>,
    verdict: AtomicU8,
    timeout: Option<Duration>,
    clock: Mutex<Clock>,
}

struct Connection(ffi::duckdb_connection);

// SAFETY: the only call made through it is `duckdb_interrupt`, which any thread may make while the
// connection is open; `Shared::connection` sees to that.
unsafe impl Send for Connection {}

/// The time that DuckDB has worked; while the caller is busy with rows it stands still.
#[derive(Default)]
struct Clock {
    spent: Duration,
    since: Option<Instant>,
}

impl Watch {
    pub(super) fn start(
        connection: ffi::duckdb_connection,
        state: &QueryState,
        timeout: Option<Duration>,
        cancel: &Cancel,
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            connection: Mutex::new(Some(Connection(connection))),
            scans: state.stopped(),
            verdict: AtomicU8::new(RUNNING),
            timeout,
            clock: Mutex::default(),
        });
        let task = runtime::handle()?.spawn(watch(Arc::clone(&shared), cancel.clone()));
        Ok(Self { shared, task })
    }

    /// Runs a step of the statement on the clock.
    pub(super) fn timed<T>(&self, step: impl FnOnce() -> T) -> T {
        lock(&self.shared.clock).since = Some(Instant::now());
        let value = step();
        let mut clock = lock(&self.shared.clock);
        if let Some(since) = clock.since.take() {
            clock.spent += since.elapsed();
        }
        value
    }

    /// Why the statement was stopped, if it was.
    pub(super) fn stopped(&self) -> Option<Error> {
        match self.shared.verdict.load(Ordering::Acquire) {
            CANCELLED => Some(Error::Interrupted),
            TIMED_OUT => Some(timed_out(self.shared.timeout.unwrap_or_default())),
            _ => None,
        }
    }

    /// Stops the statement because nobody wants its rows any more, and ends the watch.
    pub(super) fn finish(&self) {
        self.shared.stop();
        *lock(&self.shared.connection) = None;
        self.task.abort();
    }
}

impl Shared {
    /// Stops the scans and what DuckDB does with their rows.
    fn stop(&self) {
        self.scans.store(true, Ordering::Relaxed);
        if let Some(connection) = &*lock(&self.connection) {
            // SAFETY: the connection is open as long as it is in its place, and the lock is held.
            unsafe { ffi::duckdb_interrupt(connection.0) };
        }
    }

    /// The least time in which the timeout can strike.
    fn left(&self) -> Duration {
        let Some(timeout) = self.timeout else { return FOREVER };
        let clock = lock(&self.clock);
        let spent = clock.spent + clock.since.map_or(Duration::ZERO, |since| since.elapsed());
        timeout.saturating_sub(spent)
    }
}

async fn watch(shared: Arc<Shared>, cancel: Cancel) {
    let verdict = loop {
        let left = shared.left();
        if left.is_zero() {
            break TIMED_OUT;
        }
        tokio::select! {
            () = cancel.cancelled() => break CANCELLED,
            () = tokio::time::sleep(left.max(Duration::from_millis(1))) => {}
        }
    };
    shared.verdict.store(verdict, Ordering::Release);
    loop {
        shared.stop();
        tokio::time::sleep(REPEAT).await;
    }
}
