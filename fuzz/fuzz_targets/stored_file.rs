//! Any bytes as a stored day: an answer, or an error that names the file, within bounded memory.

#![no_main]

use std::sync::LazyLock;

use bytes::Bytes;
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use parquet_analytics_fuzz::{allow_caught_panics, ask, files, memory, seeds};

const TAIL: usize = 8;

static STORED: LazyLock<ask::Stored> = LazyLock::new(|| ask::Stored { store: files::store() });

fuzz_target!(
    init: {
        seeds::write_on_demand(seeds::files);
        allow_caught_panics();
    },
    |data: &[u8]| {
        let bytes = Bytes::copy_from_slice(data);
        let stored = &*STORED;
        let (_, peak) = memory::peak_of(|| stored.ask(&bytes));
        assert!(peak <= MOST, "{peak} bytes of memory for a file of {}", data.len());
    }
);

/// A few times what a page may hold.
const MOST: usize = 256 << 20;

// Half of the time only the footer changes and its length is put right, or hardly any input would have one.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let footer = size
        .checked_sub(TAIL)
        .and_then(|end| Some((end, u32::from_le_bytes(data[end..end + 4].try_into().ok()?) as usize)))
        .and_then(|(end, length)| Some(end.checked_sub(length)?..end));
    match footer {
        Some(range) if seed % 2 == 0 && max_size > TAIL => {
            let mut footer = data[range.clone()].to_vec();
            let length = footer.len();
            footer.resize(max_size - TAIL - range.start, 0);
            let room = footer.len();
            let length = fuzzer_mutate(&mut footer, length, room);
            let end = range.start + length;
            data[range.start..end].copy_from_slice(&footer[..length]);
            data[end..end + 4].copy_from_slice(&(length as u32).to_le_bytes());
            data[end + 4..end + TAIL].copy_from_slice(b"PAR1");
            end + TAIL
        }
        _ => fuzzer_mutate(data, size, max_size),
    }
});
