//! State that belongs to one process. A child of fork() inherits its parent's state, with locks that nobody
//! will ever release and threads that did not come along: it makes its own and leaves the parent's alone.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// The value of a mutex, also after a thread panicked with it: what is kept in ours is whole between any two steps.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A value that every process makes for itself when it first asks, found by the process id along the chain
/// of its ancestors. Values are never dropped.
pub struct PerProcess<T: 'static> {
    first: OnceLock<Box<Link<T>>>,
}

struct Link<T: 'static> {
    process: u32,
    value: T,
    child: OnceLock<Box<Link<T>>>,
}

impl<T> PerProcess<T> {
    pub const fn new() -> Self {
        Self { first: OnceLock::new() }
    }

    pub fn get_or_make(&'static self, make: impl Fn() -> T) -> &'static T {
        let process = std::process::id();
        let link = || {
            Box::new(Link {
                process,
                value: make(),
                child: OnceLock::new(),
            })
        };
        let mut found = self.first.get_or_init(link);
        while found.process != process {
            found = found.child.get_or_init(link);
        }
        &found.value
    }
}

impl<T> Default for PerProcess<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Default> PerProcess<Mutex<T>> {
    /// The process's own value, locked.
    pub fn lock(&'static self) -> MutexGuard<'static, T> {
        self.get_or_make(Mutex::default)
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
