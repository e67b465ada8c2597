//! Any bytes as a COPY stream: whole and in pieces the same rows or an error, within memory in proportion.
//!
//! The first byte says which columns the table has, what becomes of bad rows, and how the stream is cut; the rest is the stream.

#![no_main]

use libfuzzer_sys::fuzz_target;
use parquet_analytics::source::BadRows;
use parquet_analytics::source::postgres::copy::Layout;
use parquet_analytics_fuzz::{ask, memory, seeds};

fuzz_target!(init: seeds::write_on_demand(seeds::copy_streams), |data: &[u8]| {
    let Some((how, stream)) = data.split_first() else {
        return;
    };
    let layout = Layout {
        version_id: how & 1 != 0,
        full_path: how & 2 != 0,
        status: how & 4 != 0,
    };
    let bad_rows = if how & 8 != 0 { BadRows::Leave } else { BadRows::Fail };
    let (whole, peak) = memory::peak_of(|| ask::decode(layout, bad_rows, [stream]));
    assert!(peak <= 32 * stream.len() + (1 << 20), "{peak} bytes of memory for {}", stream.len());
    let pieces = ask::decode(layout, bad_rows, stream.chunks(usize::from(how >> 4) + 1));
    assert_eq!(whole.ok(), pieces.ok());
});
