//! Tests of the Rust core against its public items, in one binary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod arrow_source;
mod cache;
mod compact;
mod derived;
mod engine;
mod engine_sandbox;
mod files;
mod freshness;
mod hostile;
mod keys;
mod merge;
mod plan;
mod position;
mod postgres;
mod postgres_copy;
mod postgres_sessions;
mod postgres_tables;
mod postgres_target;
mod publish;
mod remaining;
mod report;
mod rows;
mod sample;
mod scan;
mod services;
mod sort;
mod store;
mod store_local;
mod store_refusals;
mod store_s3;
mod support;
mod torture;
mod writer;
