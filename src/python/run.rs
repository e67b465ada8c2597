//! Runs the core's work without the GIL on a thread of its own, while the calling thread looks out for
//! signals: Ctrl-C and soft time limits get through, and a panic becomes an ordinary exception.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use pyo3::prelude::*;

use crate::base::error::{Error, Kind, Result};
use crate::base::runtime::Cancel;

use super::errors::{OrRaise, to_exception};

/// How often signals are looked at and progress is told.
const TICK: Duration = Duration::from_millis(50);

/// Runs `work` to its end, or until a signal handler or `tick` raises: then it is asked to stop, waited for,
/// and what was raised goes to the caller.
pub fn run<T: Send>(
    py: Python<'_>,
    cancel: &Cancel,
    work: impl FnOnce() -> Result<T> + Send,
    mut tick: impl FnMut(Python<'_>) -> PyResult<()>,
) -> PyResult<T> {
    let (sender, mut receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        let body = move || {
            let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(panicked(panic.as_ref())));
            // The receiver outlives this thread.
            let _ = sender.send(result);
        };
        std::thread::Builder::new()
            .name("parquet-analytics-call".to_owned())
            .spawn_scoped(scope, body)
            .map_err(|error| Error::io("no thread could be started", error))
            .or_raise()?;
        loop {
            let waiting = &mut receiver;
            match py.detach(move || waiting.recv_timeout(TICK)) {
                Ok(result) => {
                    tick(py)?;
                    return result.or_raise();
                }
                Err(RecvTimeoutError::Timeout) => {
                    if let Err(raised) = py.check_signals().and_then(|()| tick(py)) {
                        cancel.cancel();
                        let waiting = &mut receiver;
                        let ended = py.detach(move || waiting.recv());
                        // A write that was under way may have taken effect: the exception's cause says so.
                        if let Ok(Err(error)) = ended
                            && error.kind() == Kind::Unknown
                        {
                            raised.set_cause(py, Some(to_exception(py, &error)));
                        }
                        return Err(raised);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::internal("a call ended without an answer")).or_raise();
                }
            }
        }
    })
}

/// [`run`] for work that has nothing to tell meanwhile.
pub fn run_quietly<T: Send>(py: Python<'_>, work: impl FnOnce(&Cancel) -> Result<T> + Send) -> PyResult<T> {
    let cancel = Cancel::new();
    run(py, &cancel, || work(&cancel), |_| Ok(()))
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    let said = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "it did not say why".to_owned());
    Error::internal(format!("the native code panicked: {said}"))
}
