//! What only a folder can get wrong: half-written files, locks, permissions, names.

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use parquet_analytics::base::error::Error;
use parquet_analytics::store::{Part, Precondition, Response, Store, Write};

use crate::store::{found, get, open, put, run};

fn folder() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&format!("file://{}", folder.path().display()), &[]).unwrap();
    (folder, store)
}

fn files(path: &std::path::Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            names.extend(files(&entry.path()));
        } else {
            names.push(entry.path().to_str().unwrap().to_owned());
        }
    }
    names.sort();
    names
}

#[test]
fn keys_are_paths_below_the_folder_and_nothing_else_is_left_behind() {
    let (folder, store) = folder();
    let mut expected = Vec::new();
    for key in ["a/100%/x.parquet", "a/日本語/x.parquet", "a/*/it's", "b"] {
        put(&store, key, "1", Write::Create).unwrap();
        put(&store, key, "2", Write::Create).unwrap_err();
        put(&store, key, "2", Write::Overwrite).unwrap();
        expected.push(folder.path().join(key).to_str().unwrap().to_owned());
    }
    expected.sort();
    assert_eq!(files(folder.path()), expected);
    let mode = std::fs::metadata(folder.path().join("b")).unwrap().permissions().mode();
    assert_ne!(mode & 0o444, 0o400, "readable by its owner only: {mode:o}");
}

#[test]
fn a_reader_sees_the_old_file_or_the_new_one_and_the_etag_tells_which() {
    let (_folder, store) = folder();
    let size = 256 * 1024;
    let content = |round: u8| vec![round; size];
    let first = put(&store, "k", content(0), Write::Create).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !done.load(Ordering::Relaxed) || reads == 0 {
                let got = found(&store, "k", Part::All);
                assert!(
                    got.bytes.len() == size && got.bytes.iter().all(|byte| *byte == got.bytes[0]),
                    "a mix"
                );
                reads += 1;
            }
        });
        let mut etags = vec![first];
        for round in 1..=60 {
            etags.push(
                put(
                    &store,
                    "k",
                    content(round),
                    Write::Replace(etags.last().unwrap().clone()),
                )
                .unwrap(),
            );
        }
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
        let count = etags.len();
        etags.sort();
        etags.dedup();
        assert_eq!(etags.len(), count, "an ETag came twice");
    });
}

#[test]
fn the_etag_changes_even_when_the_clock_stands_still() {
    let (folder, store) = folder();
    let first = put(&store, "k", "one", Write::Create).unwrap();
    let file = std::fs::File::options()
        .write(true)
        .open(folder.path().join("k"))
        .unwrap();
    let future = std::time::SystemTime::now() + std::time::Duration::from_secs(3600);
    file.set_modified(future).unwrap();
    let in_future = found(&store, "k", Part::All).etag;
    assert_ne!(first, in_future);
    put(&store, "k", "two", Write::Replace(in_future)).unwrap();
    let after = std::fs::metadata(folder.path().join("k")).unwrap().modified().unwrap();
    assert!(after > future, "the time of change went backwards");
}

#[test]
fn a_path_that_is_not_a_folder_is_named() {
    let (folder, _) = folder();
    std::fs::write(folder.path().join("file"), "x").unwrap();
    let store = open(&format!("file://{}/file", folder.path().display()), &[]).unwrap();
    for error in [
        get(&store, "a/k", Part::All, Precondition::None).map(drop).unwrap_err(),
        put(&store, "a/k", "x", Write::Create).map(drop).unwrap_err(),
        run(store.delete("a/k")).unwrap_err(),
    ] {
        assert!(matches!(error, Error::Configuration { .. }), "{error:?}");
        assert!(
            error.to_string().contains("/file") && error.to_string().contains("not a folder"),
            "{error}"
        );
    }
}

#[test]
fn a_folder_in_the_place_of_an_object_is_an_error_not_an_absence() {
    let (folder, store) = folder();
    std::fs::create_dir(folder.path().join("k")).unwrap();
    assert!(
        get(&store, "k", Part::All, Precondition::None)
            .unwrap_err()
            .to_string()
            .contains("is not a file")
    );
    put(&store, "k", "x", Write::Overwrite).unwrap_err();
    assert_eq!(files(folder.path()), Vec::<String>::new());
}

#[test]
fn a_missing_folder_reads_as_absent_and_is_not_created_by_reading() {
    let (folder, _) = folder();
    let store = open(&format!("file://{}/later/on", folder.path().display()), &[]).unwrap();
    assert!(matches!(
        get(&store, "a/k", Part::Tail(9), Precondition::None).unwrap(),
        Response::NotFound
    ));
    run(store.delete("a/k")).unwrap();
    assert!(!folder.path().join("later").exists());
    put(&store, "a/k", "x", Write::Create).unwrap();
    assert!(folder.path().join("later/on/a/k").exists());
}

#[test]
fn a_name_longer_than_the_file_system_takes_is_refused() {
    let (_folder, store) = folder();
    let key = format!("a/{}", "x".repeat(300));
    assert!(matches!(
        put(&store, &key, "x", Write::Create).unwrap_err(),
        Error::InvalidInput { .. }
    ));
    put(&store, &format!("a/{}", "x".repeat(255)), "x", Write::Create).unwrap();
}

#[test]
fn missing_permissions_are_named_with_the_path() {
    let (folder, store) = folder();
    put(&store, "a/k", "x", Write::Create).unwrap();
    std::fs::set_permissions(folder.path().join("a"), PermissionsExt::from_mode(0o000)).unwrap();
    if std::fs::read_dir(folder.path().join("a")).is_ok() {
        println!("nothing to see: this user (root) may read everything");
        return;
    }
    for error in [
        get(&store, "a/k", Part::All, Precondition::None).map(drop).unwrap_err(),
        put(&store, "a/k", "x", Write::Overwrite).map(drop).unwrap_err(),
        run(store.delete("a/k")).unwrap_err(),
    ] {
        assert!(matches!(error, Error::Permission { .. }), "{error:?}");
        assert!(error.to_string().contains(folder.path().to_str().unwrap()), "{error}");
    }
    std::fs::set_permissions(folder.path().join("a"), PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn what_a_killed_writer_left_is_removed_a_day_later_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&format!("file://{}", folder.path().display()), &[]).unwrap();
    put(&store, "day/a.parquet", "first", Write::Create).unwrap();
    let day = folder.path().join("day");
    let yesterday = SystemTime::now() - Duration::from_secs(25 * 60 * 60);
    for (name, time) in [
        (".0123456789abcdef0123456789abcdef.parquet.tmp", yesterday),
        (".fedcba9876543210fedcba9876543210.parquet.tmp", SystemTime::now()),
        (".hidden", yesterday),
        ("notes.tmp", yesterday),
    ] {
        std::fs::write(day.join(name), "x").unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(day.join(name)).unwrap();
        file.set_modified(time).unwrap();
    }
    put(&store, "day/a.parquet", "second", Write::Overwrite).unwrap();
    let mut left: Vec<_> = std::fs::read_dir(&day)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(
        left,
        [
            ".fedcba9876543210fedcba9876543210.parquet.tmp",
            ".hidden",
            "a.parquet",
            "notes.tmp"
        ]
    );
}
