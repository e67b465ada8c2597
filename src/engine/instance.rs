//! DuckDB instances that can do nothing but compute, kept for the next statement because opening one
//! takes longer than most statements. Every statement gets a connection of its own, so that nothing it
//! could set (a temporary table, a variable, a seed) outlives it.

use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::{Arc, Mutex, MutexGuard};

use duckdb::ffi;

use super::Limits;
use super::table_function::{self, QueryState, Slot};
use crate::base::error::{Error, Result};
use crate::base::process::PerProcess;

/// Idle instances kept by a process; each holds little memory, and threads that sleep.
const MAX_IDLE: usize = 4;

/// Settings of every instance. Locking comes last: no statement can change any of them.
const SANDBOX: [(&CStr, &CStr); 15] = [
    (c"temp_directory", c""),
    (c"max_temp_directory_size", c"0B"),
    (c"enable_external_access", c"false"),
    (c"autoinstall_known_extensions", c"false"),
    (c"autoload_known_extensions", c"false"),
    (c"allow_community_extensions", c"false"),
    (c"allow_unsigned_extensions", c"false"),
    (c"allow_persistent_secrets", c"false"),
    (c"disabled_filesystems", c"LocalFileSystem"),
    // The scan has no order to preserve, and keeping one costs threads and memory.
    (c"preserve_insertion_order", c"false"),
    (c"TimeZone", c"UTC"),
    (c"errors_as_json", c"false"),
    // Deeper nesting takes the planner minutes, in which it cannot be interrupted, and overflows the stack.
    (c"max_expression_depth", c"250"),
    (c"enable_logging", c"false"),
    (c"lock_configuration", c"true"),
];

/// An open in-memory database.
pub(super) struct Instance {
    database: ffi::duckdb_database,
    slot: Arc<Slot>,
    limits: (usize, u64),
}

// SAFETY: a database handle may be used by any thread.
unsafe impl Send for Instance {}

impl Instance {
    fn open(limits: &Limits) -> Result<Self> {
        let mut instance = Self {
            database: std::ptr::null_mut(),
            slot: Arc::default(),
            limits: (limits.threads, limits.memory_bytes),
        };
        let config = Config::new()?;
        config.set(c"threads", &c_string(limits.threads.max(1).to_string())?)?;
        config.set(c"memory_limit", &c_string(format!("{}B", limits.memory_bytes))?)?;
        let mut message: *mut c_char = std::ptr::null_mut();
        // SAFETY: all pointers are valid for the call; DuckDB allocates the message, which is freed here.
        unsafe {
            let state = ffi::duckdb_open_ext(c":memory:".as_ptr(), &mut instance.database, config.0, &mut message);
            if state != ffi::DuckDBSuccess {
                let text = text(message);
                ffi::duckdb_free(message.cast::<c_void>());
                return Err(Error::internal(format!("DuckDB cannot be opened: {text}")));
            }
        }
        let connection = instance.connect()?;
        table_function::register(instance.database, connection.0, &instance.slot)?;
        for (name, value) in SANDBOX {
            connection.set(name, value)?;
        }
        Ok(instance)
    }

    /// A new connection, whose statement reads the given state's relation.
    pub(super) fn connect(&self) -> Result<Connection> {
        let mut connection = std::ptr::null_mut();
        // SAFETY: the database is open.
        match unsafe { ffi::duckdb_connect(self.database, &mut connection) } {
            ffi::DuckDBSuccess => Ok(Connection(connection)),
            _ => Err(Error::internal("DuckDB refused a connection")),
        }
    }

    /// What the relation's name means from now on.
    pub(super) fn serve(&self, state: Option<Arc<QueryState>>) {
        self.slot.set(state);
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // SAFETY: opened here, closed once; a null handle is let be.
        unsafe { ffi::duckdb_close(&mut self.database) };
    }
}

struct Config(ffi::duckdb_config);

impl Config {
    fn new() -> Result<Self> {
        let mut config = std::ptr::null_mut();
        // SAFETY: the pointer is valid.
        match unsafe { ffi::duckdb_create_config(&mut config) } {
            ffi::DuckDBSuccess => Ok(Self(config)),
            _ => Err(Error::internal("DuckDB gave no configuration")),
        }
    }

    fn set(&self, name: &CStr, value: &CStr) -> Result<()> {
        // SAFETY: the strings are valid for the call, which copies them.
        match unsafe { ffi::duckdb_set_config(self.0, name.as_ptr(), value.as_ptr()) } {
            ffi::DuckDBSuccess => Ok(()),
            _ => Err(Error::internal(format!("DuckDB refused the setting {name:?}"))),
        }
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        // SAFETY: made here, destroyed once.
        unsafe { ffi::duckdb_destroy_config(&mut self.0) };
    }
}

/// A connection; one for each statement.
pub(super) struct Connection(pub(super) ffi::duckdb_connection);

// SAFETY: a connection may move between threads; only `duckdb_interrupt` is called beside its owner.
unsafe impl Send for Connection {}

impl Connection {
    /// Whether the instance logs its statements.
    pub(super) fn logs(&self) -> bool {
        // SAFETY: the connection is open; context and value are made for us and destroyed once.
        unsafe {
            let (mut context, mut scope) = (std::ptr::null_mut(), 0);
            ffi::duckdb_connection_get_client_context(self.0, &mut context);
            let name = c"enable_logging".as_ptr();
            let mut value = ffi::duckdb_client_context_get_config_option(context, name, &mut scope);
            let logs = value.is_null() || ffi::duckdb_get_bool(value);
            ffi::duckdb_destroy_value(&mut value);
            ffi::duckdb_destroy_client_context(&mut context);
            logs
        }
    }

    fn set(&self, name: &CStr, value: &CStr) -> Result<()> {
        let (name, value) = (name.to_string_lossy(), value.to_string_lossy());
        let sql = c_string(format!("SET GLOBAL {name} = '{value}'"))?;
        // SAFETY: the result is initialized by DuckDB in any case and destroyed once.
        unsafe {
            let mut result = std::mem::zeroed();
            let state = ffi::duckdb_query(self.0, sql.as_ptr(), &mut result);
            let message = text(ffi::duckdb_result_error(&mut result));
            ffi::duckdb_destroy_result(&mut result);
            if state == ffi::DuckDBSuccess {
                Ok(())
            } else {
                Err(Error::internal(format!("DuckDB refused the setting {name}: {message}")))
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: made by `Instance::connect`, closed once.
        unsafe { ffi::duckdb_disconnect(&mut self.0) };
    }
}

/// The idle instances of this process. A parent's are never touched nor freed: their threads and locks did not
/// come along.
fn idle() -> MutexGuard<'static, Vec<Instance>> {
    static IDLE: PerProcess<Mutex<Vec<Instance>>> = PerProcess::new();
    IDLE.lock()
}

/// An instance for one statement: an idle one, or a new one.
pub(super) fn check_out(limits: &Limits) -> Result<Instance> {
    let wanted = (limits.threads, limits.memory_bytes);
    let idle = {
        let mut idle = idle();
        let found = idle.iter().rposition(|instance| instance.limits == wanted);
        found.map(|index| idle.remove(index))
    };
    idle.map_or_else(|| Instance::open(limits), Ok)
}

/// Keeps a healthy instance for the next statement.
pub(super) fn check_in(instance: Instance) {
    let surplus = {
        let mut idle = idle();
        idle.push(instance);
        if idle.len() > MAX_IDLE {
            Some(idle.remove(0))
        } else {
            None
        }
    };
    drop(surplus);
}

pub(super) fn c_string(text: impl Into<Vec<u8>>) -> Result<CString> {
    CString::new(text).map_err(|_| super::refused("the statement or a name in it has a NUL character"))
}

/// A message of DuckDB's.
///
/// # Safety
/// The pointer must be null or a C string.
pub(super) unsafe fn text(message: *const c_char) -> String {
    if message.is_null() {
        return String::new();
    }
    // SAFETY: not null, and the caller vouches for the rest.
    unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned()
}
