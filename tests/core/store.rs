//! One suite of guarantees that every store has to keep, and what a store's URL and options may be.
//!
//! The suite runs on memory, on a folder and on a real S3 server.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use parquet_analytics::base::error::{Error, Kind as ErrorKind, Result};
use parquet_analytics::base::runtime::{Cancel, block_on};
use parquet_analytics::store::{
    Counters, Credentials, Environment, Fetched, Keys, Kind, Part, Precondition, Response, Store, Write,
};

use crate::store_s3::s3;

/// Keys that stores, URLs and file systems like to change.
const ODD_KEYS: [&str; 10] = [
    "plain/2026/07/01/pageviews_2026-07-01.parquet",
    "project/100%/x.parquet",
    "project/%2e%2e/x.parquet",
    "project/日本語/x.parquet",
    "project/it's/x.parquet",
    "project/a b+c&d=e/x.parquet",
    "project/*?[1]/x.parquet",
    "project/#1;{}^`|<>\"/x.parquet",
    "project/..hidden~/x.parquet",
    "project/e\u{301}/x#1",
];

pub fn run<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    block_on(&Cancel::new(), future)
}

pub fn options(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// A store with options and an empty environment.
pub fn open(url: &str, pairs: &[(&str, &str)]) -> Result<Store> {
    Store::open_with(url, &options(pairs), None, &Environment::new())
}

pub fn get(store: &Store, key: &str, part: Part, version: Precondition) -> Result<Response> {
    run(store.get(key, part, version))
}

pub fn put(store: &Store, key: &str, bytes: impl Into<Bytes>, write: Write) -> Result<String> {
    run(store.put(key, bytes.into(), write, &[]))
}

pub fn found(store: &Store, key: &str, part: Part) -> Fetched {
    match get(store, key, part, Precondition::None).unwrap() {
        Response::Found(found) => found,
        other => panic!("{key}: {other:?}"),
    }
}

fn stores(test: &str) -> Vec<(Store, Option<tempfile::TempDir>)> {
    let unique = uuid::Uuid::new_v4();
    let folder = tempfile::tempdir().unwrap();
    let local = open(
        &format!("file://{}/not%20there%20yet/{test}", folder.path().display()),
        &[],
    )
    .unwrap();
    let mut stores = vec![
        (open(&format!("memory://{test}-{unique}"), &[]).unwrap(), None),
        (open(&format!("memory://{test}-{unique}/below/it"), &[]).unwrap(), None),
        (local, Some(folder)),
    ];
    if let Some(server) = s3() {
        stores.push((server.open(&format!("{test}-{unique}")), None));
        stores.push((server.open(&format!("{test}-{unique}/below 100%/日本")), None));
    }
    stores
}

#[test]
fn what_was_written_is_read_back_with_its_etag_size_and_metadata() {
    for (store, _folder) in stores("roundtrip") {
        let metadata = [
            ("parquet_analytics.run_id", "a-1".to_owned()),
            ("parquet_analytics.source", "café 100%\n".to_owned()),
        ];
        let etag = run(store.put(
            "a/b.parquet",
            Bytes::from_static(b"0123456789"),
            Write::Create,
            &metadata,
        ))
        .unwrap();
        let all = found(&store, "a/b.parquet", Part::All);
        assert_eq!(
            (&all.bytes[..], all.offset, all.size, &all.etag),
            (&b"0123456789"[..], 0, 10, &etag),
            "{store:?}"
        );
        // Not every file system keeps metadata; then there is none at all.
        if store.kind() != Kind::Local || !all.metadata.is_empty() {
            assert_eq!(all.metadata["parquet_analytics.run_id"], "a-1");
            assert_eq!(all.metadata["parquet_analytics.source"], "café 100%\n");
        }
        let big = vec![7_u8; 3 << 20];
        put(&store, "big", big.clone(), Write::Overwrite).unwrap();
        assert_eq!(found(&store, "big", Part::All).bytes, big);
    }
}

#[test]
fn ranges_and_tails_give_exactly_those_bytes() {
    for (store, _folder) in stores("ranges") {
        put(&store, "k", "0123456789", Write::Create).unwrap();
        for (part, bytes, offset) in [
            (Part::Range(0..1), "0", 0),
            (Part::Range(3..7), "3456", 3),
            (Part::Range(9..10), "9", 9),
            (Part::Tail(1), "9", 9),
            (Part::Tail(4), "6789", 6),
            (Part::Tail(10), "0123456789", 0),
            (Part::Tail(65_536), "0123456789", 0),
        ] {
            let got = found(&store, "k", part.clone());
            assert_eq!(
                (&got.bytes[..], got.offset, got.size),
                (bytes.as_bytes(), offset, 10),
                "{store:?} {part:?}"
            );
        }
        for part in [Part::Range(9..11), Part::Range(10..11), Part::Range(50..60)] {
            let error = get(&store, "k", part.clone(), Precondition::None).unwrap_err();
            assert!(
                matches!(error, Error::CorruptFile { .. }),
                "{store:?} {part:?}: {error}"
            );
        }
        for part in [Part::Tail(0), Part::Range(3..3)] {
            assert!(get(&store, "k", part, Precondition::None).is_err());
        }
    }
}

#[test]
fn an_empty_object_is_found_whole_and_by_its_tail() {
    for (store, _folder) in stores("empty") {
        let etag = put(&store, "k", "", Write::Create).unwrap();
        for part in [Part::All, Part::Tail(8)] {
            let got = found(&store, "k", part);
            assert_eq!(
                (got.bytes.len(), got.size, got.offset, &got.etag),
                (0, 0, 0, &etag),
                "{store:?}"
            );
        }
        assert!(
            matches!(
                get(&store, "k", Part::Tail(8), Precondition::IfNoneMatch(etag)).unwrap(),
                Response::NotModified
            ),
            "{store:?}"
        );
    }
}

#[test]
fn a_missing_object_is_absent_in_every_form_of_reading() {
    for (store, _folder) in stores("absent") {
        for key in ["nothing", "no/folder/nothing"] {
            for part in [Part::All, Part::Range(0..4), Part::Tail(4)] {
                for version in [Precondition::None, Precondition::IfNoneMatch("\"x\"".into())] {
                    let got = get(&store, key, part.clone(), version.clone()).unwrap();
                    assert!(
                        matches!(got, Response::NotFound),
                        "{store:?} {part:?} {version:?}: {got:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn reads_depend_on_the_version_that_is_known() {
    for (store, _folder) in stores("versions") {
        let first = put(&store, "k", "one", Write::Create).unwrap();
        for part in [Part::All, Part::Range(0..2), Part::Tail(2)] {
            let get = |version| get(&store, "k", part.clone(), version).unwrap();
            assert!(
                matches!(get(Precondition::IfMatch(first.clone())), Response::Found(_)),
                "{store:?} {part:?}"
            );
            assert!(
                matches!(get(Precondition::IfNoneMatch(first.clone())), Response::NotModified),
                "{store:?} {part:?}"
            );
        }
        let second = put(&store, "k", "two", Write::Replace(first.clone())).unwrap();
        assert_ne!(first, second, "{store:?}");
        for part in [Part::All, Part::Range(0..2), Part::Tail(2)] {
            let get = |version| get(&store, "k", part.clone(), version).unwrap();
            assert!(
                matches!(get(Precondition::IfMatch(first.clone())), Response::PreconditionFailed),
                "{store:?} {part:?}"
            );
            assert!(
                matches!(get(Precondition::IfNoneMatch(first.clone())), Response::Found(_)),
                "{store:?} {part:?}"
            );
        }
    }
}

#[test]
fn a_write_whose_condition_is_not_met_changes_nothing() {
    for (store, _folder) in stores("conditions") {
        let conflict = |result: Result<String>| {
            let error = result.unwrap_err();
            assert!(matches!(error, Error::Conflict { .. }), "{store:?}: {error:?}");
            assert_eq!((error.key(), error.kind()), (Some("k"), ErrorKind::Retry));
        };
        conflict(put(&store, "k", "x", Write::Replace("\"0\"".into())));
        assert!(matches!(
            get(&store, "k", Part::All, Precondition::None).unwrap(),
            Response::NotFound
        ));
        let first = put(&store, "k", "one", Write::Create).unwrap();
        conflict(put(&store, "k", "x", Write::Create));
        let second = put(&store, "k", "two", Write::Replace(first.clone())).unwrap();
        conflict(put(&store, "k", "x", Write::Replace(first)));
        assert_eq!(found(&store, "k", Part::All).bytes, "two");
        put(&store, "k", "three", Write::Overwrite).unwrap();
        conflict(put(&store, "k", "x", Write::Replace(second)));
        assert_eq!(found(&store, "k", Part::All).bytes, "three");
    }
}

#[test]
fn of_many_concurrent_creations_exactly_one_succeeds() {
    for (store, _folder) in stores("race") {
        let (wins, losses) = race(&store, "create", &Write::Create);
        assert_eq!((wins, losses), (1, 11), "{store:?}");
        let etag = found(&store, "k", Part::All).etag;
        let (wins, losses) = race(&store, "replace", &Write::Replace(etag));
        assert_eq!((wins, losses), (1, 11), "{store:?}");
    }
}

/// Twelve writers at once. Their contents differ, because S3's ETag is that of the content.
fn race(store: &Store, round: &str, write: &Write) -> (usize, usize) {
    let threads: Vec<_> = (0..12)
        .map(|writer| {
            let (store, write, content) = (store.clone(), write.clone(), format!("{round} {writer}"));
            std::thread::spawn(move || put(&store, "k", content, write))
        })
        .collect();
    let mut outcome = (0, 0);
    for thread in threads {
        match thread.join().unwrap() {
            Ok(_) => outcome.0 += 1,
            Err(Error::Conflict { .. }) => outcome.1 += 1,
            Err(error) => panic!("{store:?}: {error}"),
        }
    }
    outcome
}

#[test]
fn deleting_is_idempotent_and_a_new_object_gets_a_new_etag() {
    for (store, _folder) in stores("delete") {
        run(store.delete("k/l")).unwrap();
        let first = put(&store, "k/l", "one", Write::Create).unwrap();
        run(store.delete("k/l")).unwrap();
        run(store.delete("k/l")).unwrap();
        assert!(
            matches!(
                get(&store, "k/l", Part::All, Precondition::None).unwrap(),
                Response::NotFound
            ),
            "{store:?}"
        );
        assert_ne!(put(&store, "k/l", "two", Write::Create).unwrap(), first, "{store:?}");
    }
}

#[test]
fn odd_keys_stay_apart_and_as_they_are() {
    for (store, _folder) in stores("keys") {
        for key in ODD_KEYS {
            put(&store, key, key, Write::Create).unwrap_or_else(|error| panic!("{store:?} {key}: {error}"));
        }
        for key in ODD_KEYS {
            assert_eq!(found(&store, key, Part::All).bytes, key, "{store:?}");
            assert_eq!(
                found(&store, key, Part::Tail(3)).bytes,
                key[key.len() - 3..],
                "{store:?}"
            );
        }
    }
}

#[test]
fn hostile_keys_are_refused_before_anything_is_sent() {
    for (store, _folder) in stores("hostile") {
        let counters = Arc::new(Counters::default());
        let store = store.with_counters(Arc::clone(&counters));
        let long = "x".repeat(1100);
        for key in [
            "",
            "/",
            "/a",
            "a/",
            "a//b",
            "..",
            "a/../../b",
            ".",
            "./a",
            "a\\..\\b",
            "a\0b",
            "a\nb",
            "a\u{7f}",
            &long,
        ] {
            for error in [
                get(&store, key, Part::All, Precondition::None).map(drop).unwrap_err(),
                put(&store, key, "x", Write::Overwrite).map(drop).unwrap_err(),
                run(store.delete(key)).unwrap_err(),
            ] {
                assert!(
                    matches!(error, Error::InvalidInput { .. }),
                    "{store:?} {key:?}: {error}"
                );
            }
        }
        assert_eq!(counters.requests(), 0);
    }
}

#[test]
fn counters_tell_requests_and_bytes_of_the_store_they_were_given_to_only() {
    for (plain, _folder) in stores("counters") {
        let counters = Arc::new(Counters::default());
        let store = plain.with_counters(Arc::clone(&counters));
        put(&store, "k", "0123456789", Write::Create).unwrap();
        assert_eq!(
            (counters.requests(), counters.bytes_read(), counters.bytes_written()),
            (1, 0, 10),
            "{store:?}"
        );
        found(&store, "k", Part::Tail(4));
        found(&store, "k", Part::Range(1..3));
        get(&store, "absent", Part::All, Precondition::None).unwrap();
        found(&plain, "k", Part::All);
        assert_eq!((counters.requests(), counters.bytes_read()), (4, 6), "{store:?}");
    }
}

#[test]
fn stores_in_memory_of_the_same_name_share_their_content() {
    let name = format!("memory://shared-{}", uuid::Uuid::new_v4());
    put(&open(&name, &[]).unwrap(), "below/k", "x", Write::Create).unwrap();
    assert_eq!(
        found(&open(&format!("{name}/below"), &[]).unwrap(), "k", Part::All).bytes,
        "x"
    );
    let other = open(&format!("{name}x"), &[]).unwrap();
    assert!(matches!(
        get(&other, "below/k", Part::All, Precondition::None).unwrap(),
        Response::NotFound
    ));
}

#[test]
fn urls_that_are_not_understood_are_refused_without_repeating_a_secret() {
    for (url, word) in [
        ("", "scheme"),
        ("bucket/prefix", "scheme"),
        ("/tmp/folder", "scheme"),
        ("ftp://host/x", "unknown"),
        ("https://bucket.s3.amazonaws.com/x", "unknown"),
        ("s3://", "bucket is missing"),
        ("s3:///prefix", "bucket is missing"),
        ("az://", "container is missing"),
        ("memory://", "name is missing"),
        ("s3://key:hunter2@bucket/x", "password"),
        ("s3://hunter2@bucket/x", "password"),
        ("s3://bucket/x?secret_access_key=hunter2", "query"),
        ("s3://bucket/x#hunter2", "fragment"),
        ("s3://bucket/../x", ".."),
        ("s3://bucket/a//b", "empty part"),
        ("s3://bucket/a\n", "control"),
        ("s3://buck et/a", "bucket's name"),
        ("file://folder/x", "absolute"),
        ("file://", "absolute"),
        ("file:///", "root"),
        ("file:///tmp/../etc", ".."),
        ("file:///tmp/%2e%2e/etc", ".."),
        ("file:///tmp/%ff", "UTF-8"),
    ] {
        let error = open(url, &[]).unwrap_err();
        assert!(matches!(error, Error::Configuration { .. }), "{url}: {error:?}");
        let text = error.to_string();
        assert!(text.contains(word), "{url}: {text}");
        assert!(!text.contains("hunter2"), "{text}");
        assert!(
            text.contains("s3://bucket/prefix") || text.contains("file:///folder"),
            "{text}"
        );
    }
}

#[test]
fn urls_of_objects_are_readable_or_true_file_urls() {
    let url = |store: &str, key: &str| open(store, &[]).unwrap().url_of(key);
    assert_eq!(url("s3://b", "100%/日本 x"), "s3://b/100%/日本 x");
    assert_eq!(url("s3://b/some/where/", "k"), "s3://b/some/where/k");
    assert_eq!(url("gs://b/x", "k"), "gs://b/x/k");
    assert_eq!(
        url("file:///a%20b/c/", "100%/日 #?"),
        "file:///a%20b/c/100%25/%E6%97%A5%20%23%3F"
    );
}

#[test]
fn options_are_refused_by_name_without_their_values() {
    for (url, pairs, words) in [
        ("s3://b", vec![("acces_key_id", "hunter2")], "acces_key_id"),
        ("memory://b", vec![("region", "x")], "it has none"),
        (
            "file:///b",
            vec![("region", "x")],
            "a local folder has no storage option",
        ),
        ("s3://b", vec![("access_key_id", "hunter2")], "belong together"),
        ("s3://b", vec![("secret_access_key", "hunter2")], "belong together"),
        ("s3://b", vec![("session_token", "hunter2")], "belong together"),
        (
            "s3://b",
            vec![
                ("anonymous", "true"),
                ("access_key_id", "k"),
                ("secret_access_key", "hunter2"),
            ],
            "anonymous",
        ),
        (
            "s3://b",
            vec![("anonymous", "perhaps")],
            "anonymous must be true or false",
        ),
        ("s3://b", vec![("endpoint_url", "http://127.0.0.1:9")], "allow_http"),
        (
            "s3://b",
            vec![("endpoint_url", "https://u:hunter2@h")],
            "holds a user or a password",
        ),
        ("s3://b", vec![("endpoint_url", "127.0.0.1:9")], "endpoint_url"),
        ("s3://b", vec![("addressing_style", "funny")], "auto, path, virtual"),
        ("s3://b", vec![("server_side_encryption", "rot13")], "aws:kms"),
        ("s3://b", vec![("kms_key_id", "k")], "need server_side_encryption"),
        (
            "s3://b",
            vec![("server_side_encryption", "AES256"), ("kms_key_id", "k")],
            "go with server_side_encryption aws:kms",
        ),
        ("s3://b", vec![("max_retries", "-1")], "max_retries"),
        ("s3://b", vec![("request_timeout", "soon")], "request_timeout"),
    ] {
        let error = open(url, &pairs).unwrap_err();
        assert!(matches!(error, Error::Configuration { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(words) && !text.contains("hunter2"), "{text}");
    }
}

#[test]
fn ids_are_equal_for_the_same_place_and_rights_only_and_hold_no_secret() {
    let keys = [("access_key_id", "AKIAEXAMPLE"), ("secret_access_key", "hunter2")];
    let id = |url: &str, pairs: &[(&str, &str)]| open(url, pairs).unwrap().id().to_owned();
    let base = id("s3://b/x", &keys);
    assert_eq!(base, id("s3://b/x/", &keys));
    let mut other_secret = keys;
    other_secret[1].1 = "hunter3";
    let ids = [
        base.clone(),
        id("s3://b/y", &keys),
        id("s3://b/x", &[]),
        id("s3://b/x", &other_secret),
        id("s3://b/x", &[keys[0], keys[1], ("region", "eu-west-1")]),
        id(
            "s3://b/x",
            &[keys[0], keys[1], ("endpoint_url", "https://s3.example.com")],
        ),
    ];
    for (at, one) in ids.iter().enumerate() {
        assert!(!one.contains("hunter") && !one.contains("AKIAEXAMPLE"), "{one}");
        assert!(ids[at + 1..].iter().all(|other| other != one), "{ids:?}");
    }
    let env = |region: &str| Environment::from([("AWS_REGION".to_owned(), region.to_owned())]);
    let with = |region| {
        Store::open_with("s3://b/x", &BTreeMap::new(), None, &env(region))
            .unwrap()
            .id()
            .to_owned()
    };
    assert_ne!(with("eu-west-1"), with("eu-west-2"));
    assert!(!format!("{:?}", open("s3://b/x", &keys).unwrap()).contains("AKIA"));
}

#[test]
fn half_of_a_pair_of_keys_in_the_environment_is_refused() {
    let env = Environment::from([("AWS_ACCESS_KEY_ID".to_owned(), "AKIAEXAMPLE".to_owned())]);
    let error = Store::open_with("s3://b", &BTreeMap::new(), None, &env).unwrap_err();
    assert!(
        error.to_string().contains("AWS_SECRET_ACCESS_KEY") && !error.to_string().contains("AKIAEXAMPLE"),
        "{error}"
    );
}

#[test]
fn without_any_credentials_the_error_says_how_to_give_some() {
    let env = Environment::from([("AWS_EC2_METADATA_DISABLED".to_owned(), "true".to_owned())]);
    let store = Store::open_with(
        "s3://b",
        &options(&[("endpoint_url", "https://127.0.0.1:9")]),
        None,
        &env,
    )
    .unwrap();
    let error = get(&store, "k", Part::All, Precondition::None).unwrap_err();
    assert!(matches!(error, Error::Configuration { .. }), "{error:?}");
    assert!(
        error.to_string().contains("no credentials") && error.to_string().contains("AWS_ACCESS_KEY_ID"),
        "{error}"
    );
}

struct Failing;

impl Credentials for Failing {
    fn keys(&self) -> std::result::Result<Keys, String> {
        Err("the session is over".to_owned())
    }

    fn id(&self) -> String {
        "failing".to_owned()
    }
}

#[test]
fn a_failing_credentials_callback_is_reported_with_its_reason() {
    let callback: Arc<dyn Credentials> = Arc::new(Failing);
    let options = options(&[("endpoint_url", "https://127.0.0.1:9")]);
    let store = Store::open_with("s3://b", &options, Some(Arc::clone(&callback)), &Environment::new()).unwrap();
    let error = get(&store, "k", Part::All, Precondition::None).unwrap_err();
    assert!(
        matches!(error, Error::Configuration { .. }) && error.to_string().contains("the session is over"),
        "{error}"
    );
    let keys = Keys {
        access_key_id: "AKIA".into(),
        secret_access_key: "hunter2".into(),
        session_token: None,
        expires: Some(SystemTime::now()),
    };
    assert!(!format!("{keys:?}").contains("AKIA") && !format!("{keys:?}").contains("hunter2"));
    assert!(Store::open_with("memory://x", &BTreeMap::new(), Some(callback), &Environment::new()).is_err());
}
