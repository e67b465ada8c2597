//! Page views from PostgreSQL to one sorted Parquet file a day on object storage, and fast answers from
//! the files. Read top to bottom this is the way of a row: out of a source, sorted, written, published;
//! then planned, scanned and asked about.

pub mod error;
pub mod json;
pub mod keys;
pub mod process;
pub mod runtime;
pub mod schema;

pub mod store;

pub mod position;
pub mod source;

pub mod rows;
pub mod sort;
pub mod tally;

pub mod spool;
pub mod writer;

pub mod copies;
pub mod deleted;
pub mod erased;
pub mod publish;

pub mod footer;
pub mod merge;
pub mod remaining;
pub mod stamp;
pub mod stored;

pub mod delete;
pub mod erase;
pub mod export;
pub mod restore;
pub mod steps;
pub mod verify;

pub mod cache;
pub mod plan;
pub mod scan;

pub mod engine;
pub mod query;

pub mod sample;

#[cfg(feature = "python")]
mod python;
