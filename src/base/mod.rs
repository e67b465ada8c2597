//! Errors, keys, the schema and the runtime: what everything else stands on.

pub mod error;
pub mod json;
pub mod keys;
pub mod process;
pub mod runtime;
pub mod schema;
pub mod steps;
