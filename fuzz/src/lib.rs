//! Coverage-guided fuzzing of what reads bytes from outside; here is what the targets share with each other and
//! with the tests. It takes a nightly toolchain and cargo-fuzz (`cargo install cargo-fuzz`). From the root:
//!
//!     make fuzz TARGET=stored_file TIME=600        seconds; the other target is copy_decoder
//!
//! The first build takes some ten minutes. What was found is in `fuzz/artifacts/`, and `cargo fuzz run` with its path
//! runs it again; once understood, it becomes a test in `tests/core/hostile/`. There is no sanitizer in the build:
//! the targets count memory themselves, and an instrumented allocator would count in their place.

#[path = "../../tests/core/hostile/ask.rs"]
pub mod ask;
#[path = "../../tests/core/files.rs"]
pub mod files;
#[path = "../../tests/core/hostile/memory.rs"]
pub mod memory;
pub mod seeds;
#[path = "../../tests/core/support.rs"]
pub mod support;

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

/// Lets the panics through that the parquet crate's assertions cause and that are caught: the fuzzer would end the
/// process at each.
pub fn allow_caught_panics() {
    files::quiet_parquet_panics();
}
