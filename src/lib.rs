//! Page views from PostgreSQL to one sorted Parquet file a day on object storage, and fast answers from
//! the files. Read top to bottom this is the way of a row: out of a source, sorted, written, published;
//! then planned, scanned and asked about.

pub mod base;

pub mod store;

pub mod source;

pub mod file;

pub mod engine;

pub mod scan;

pub mod archive;

pub mod derived;

pub mod report;

pub mod query;

pub mod sample;

#[cfg(feature = "python")]
mod python;
