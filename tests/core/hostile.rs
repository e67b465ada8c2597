//! Bytes from outside that were damaged, or made to do damage: rows or an error, within bounded memory.

pub mod ask;
mod copy_stream;
mod forge;
pub mod memory;
mod stored_file;

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

/// Runs the rest of a test in a process of its own, whose memory is nobody else's: `true` there.
fn alone(name: &str) -> bool {
    const CHILD: &str = "PARQUET_ANALYTICS_TEST_ALONE";
    if std::env::var_os(CHILD).is_some() {
        crate::files::quiet_parquet_panics();
        return true;
    }
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            &format!("hostile::{name}"),
            "--nocapture",
            "--include-ignored",
        ])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    let complained = String::from_utf8_lossy(&child.stderr);
    assert!(
        child.status.success() && said.contains("1 passed"),
        "{}\n{said}\n{complained}",
        child.status
    );
    print!("{said}");
    false
}
