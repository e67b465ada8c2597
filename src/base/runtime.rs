//! The process-wide tokio runtime, and the token that stops long work.

use std::future::Future;

use futures::future::{BoxFuture, FutureExt};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::base::error::{Error, Result};
use crate::base::process::PerProcess;

/// Asks long work to stop. Cloning shares the request.
#[derive(Debug, Clone, Default)]
pub struct Cancel(CancellationToken);

impl Cancel {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn cancel(&self) {
        self.0.cancel();
    }

    /// One that is stopped with this one, and may be before.
    #[must_use]
    pub fn child(&self) -> Self {
        Self(self.0.child_token())
    }

    /// An error once a stop was asked for; call it in loops that do not wait on anything.
    pub fn check(&self) -> Result<()> {
        if self.0.is_cancelled() {
            Err(Error::Interrupted)
        } else {
            Ok(())
        }
    }

    /// Resolves when a stop is asked for.
    pub async fn cancelled(&self) {
        self.0.cancelled().await;
    }
}

/// A handle to the runtime of this process.
pub fn handle() -> Result<Handle> {
    static RUNTIME: PerProcess<std::io::Result<Runtime>> = PerProcess::new();
    let start = || {
        Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("parquet-analytics")
            .enable_all()
            .build()
    };
    match RUNTIME.get_or_make(start) {
        Ok(runtime) => Ok(runtime.handle().clone()),
        Err(error) => Err(Error::Io {
            message: format!("the worker threads could not be started: {error}"),
        }),
    }
}

/// Runs a future to its end on the runtime, or until a stop is asked for. Never call it from async code.
pub fn block_on<T>(cancel: &Cancel, future: impl Future<Output = Result<T>>) -> Result<T> {
    handle()?.block_on(async {
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Error::Interrupted),
            result = future => result,
        }
    })
}

/// Runs a future on the runtime as a task of its own, which is stopped when nobody wants its outcome any more.
pub fn spawn<T: Send + 'static>(
    future: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<BoxFuture<'static, Result<T>>> {
    let task = AbortOnDropHandle::new(handle()?.spawn(future));
    Ok(async move { ended(task.await) }.boxed())
}

/// What became of a task.
pub fn ended<T>(task: Result<Result<T>, JoinError>) -> Result<T> {
    match task {
        Ok(result) => result,
        Err(error) if error.is_cancelled() => Err(Error::Interrupted),
        Err(_) => Err(Error::internal("a task that reads has panicked")),
    }
}
