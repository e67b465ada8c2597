//! Page views from PostgreSQL to one sorted Parquet file a day on object storage, and fast answers from
//! the files. Read top to bottom this is the way of a row: out of a source, sorted, written, published;
//! then planned, scanned and asked about.

pub mod error;
pub mod keys;
pub mod process;
pub mod runtime;
pub mod schema;

pub mod store;

pub mod source;

pub mod sort;

pub mod spool;
pub mod writer;

pub mod copies;
pub mod publish;

pub mod export;

pub mod cache;
pub mod footer;
pub mod plan;
pub mod scan;

pub mod engine;
pub mod query;

pub mod sample;

#[cfg(feature = "python")]
mod python;
