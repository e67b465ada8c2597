//! What only S3 can answer: denials, missing buckets, wrong keys, wrong regions and broken connections. A
//! real server where it can be made to answer so, a scripted one for the rest.

use std::io::{BufRead, BufReader, Read, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use parquet_analytics::base::error::{Error, Kind as ErrorKind};
use parquet_analytics::store::{Counters, Credentials, Environment, Keys, Part, Precondition, Response, Store, Write};

use crate::services;
use crate::store::{found, get, open, options, put, run};

/// The tests' own S3 server.
pub struct Server(serde_json::Value);

pub fn s3() -> Option<Server> {
    services::s3().map(Server)
}

impl Server {
    fn get(&self, name: &str) -> &str {
        self.0[name]
            .as_str()
            .unwrap_or_else(|| panic!("the S3 server has no {name}"))
    }

    fn options(&self) -> Vec<(&str, &str)> {
        let names = ["endpoint_url", "access_key_id", "secret_access_key", "region"];
        let mut options: Vec<_> = names.into_iter().map(|name| (name, self.get(name))).collect();
        options.push(("allow_http", "true"));
        options
    }

    fn with(&self, name: &str, value: &str) -> Store {
        self.with_bucket(self.get("bucket"), name, value)
    }

    fn with_bucket(&self, bucket: &str, name: &str, value: &str) -> Store {
        let mut options = self.options();
        options.retain(|(known, _)| *known != name);
        options.push((name, value));
        open(&format!("s3://{bucket}/below"), &options).unwrap()
    }

    pub fn open(&self, location: &str) -> Store {
        open(&format!("s3://{}/{location}", self.get("bucket")), &self.options()).unwrap()
    }
}

#[test]
fn a_missing_bucket_is_a_configuration_error_not_an_absence() {
    let Some(server) = s3() else { return };
    let store = server.with_bucket("no-such-bucket-here", "region", server.get("region"));
    for error in [
        get(&store, "k", Part::All, Precondition::None).map(drop).unwrap_err(),
        get(&store, "k", Part::Tail(8), Precondition::None)
            .map(drop)
            .unwrap_err(),
        put(&store, "k", "x", Write::Create).map(drop).unwrap_err(),
    ] {
        assert!(matches!(error, Error::Configuration { .. }), "{error:?}");
        assert!(
            error.to_string().contains("no bucket named no-such-bucket-here"),
            "{error}"
        );
    }
}

#[test]
fn wrong_keys_are_told_apart_and_not_shown() {
    let Some(server) = s3() else { return };
    for (name, words) in [
        ("access_key_id", "does not know this access key id"),
        ("secret_access_key", "check secret_access_key"),
    ] {
        let store = server.with(name, "hunter2-hunter2");
        for error in [
            get(&store, "k", Part::All, Precondition::None).map(drop).unwrap_err(),
            put(&store, "k", "x", Write::Create).map(drop).unwrap_err(),
        ] {
            assert!(matches!(error, Error::Configuration { .. }), "{error:?}");
            let text = format!("{error} {error:?}");
            assert!(
                text.contains(words) && !text.contains("hunter2") && !text.contains(server.get("secret_access_key")),
                "{text}"
            );
        }
    }
}

#[test]
fn a_denial_names_the_permission_and_is_never_an_absence() {
    let Some(server) = s3() else { return };
    let denied = Server(server.0["denied"].clone());
    let mut options = server.options();
    options.retain(|(name, _)| !name.contains("access_key"));
    options.push(("access_key_id", denied.get("access_key_id")));
    options.push(("secret_access_key", denied.get("secret_access_key")));
    let bucket = server.get("bucket");
    let store = open(&format!("s3://{bucket}/below"), &options).unwrap();
    for (error, action) in [
        (
            get(&store, "missing", Part::All, Precondition::None)
                .map(drop)
                .unwrap_err(),
            "s3:GetObject",
        ),
        (
            get(&store, "missing", Part::Tail(8), Precondition::None)
                .map(drop)
                .unwrap_err(),
            "s3:GetObject",
        ),
        (
            put(&store, "missing", "x", Write::Create).map(drop).unwrap_err(),
            "s3:PutObject",
        ),
        (run(store.delete("missing")).unwrap_err(), "s3:DeleteObject"),
    ] {
        assert!(
            matches!(&error, Error::Permission { key, .. } if key == "missing"),
            "{error:?}"
        );
        assert_eq!(error.kind(), ErrorKind::Fix);
        assert!(
            error
                .to_string()
                .contains(&format!("{action} on arn:aws:s3:::{bucket}/below/missing")),
            "{error}"
        );
    }
    let text = get(&store, "missing", Part::All, Precondition::None)
        .unwrap_err()
        .to_string();
    assert!(text.contains("s3:ListBucket"), "{text}");
}

#[test]
fn an_anonymous_reader_is_denied_where_the_bucket_is_private() {
    let Some(server) = s3() else { return };
    let options = [
        ("endpoint_url", server.get("endpoint_url")),
        ("allow_http", "true"),
        ("anonymous", "true"),
    ];
    let store = open(&format!("s3://{}", server.get("bucket")), &options).unwrap();
    let error = get(&store, "k", Part::All, Precondition::None).unwrap_err();
    assert!(matches!(error, Error::Permission { .. }), "{error:?}");
}

struct Rotating {
    keys: Keys,
    asked: Mutex<usize>,
}

impl Credentials for Rotating {
    fn keys(&self) -> Result<Keys, String> {
        *self.asked.lock().unwrap() += 1;
        Ok(self.keys.clone())
    }

    fn id(&self) -> String {
        format!("rotating-{:?}", self.keys.expires)
    }
}

#[test]
fn a_credentials_callback_is_asked_again_only_when_its_keys_expire() {
    let Some(server) = s3() else { return };
    for (lifetime, asked) in [(3600, 1), (10, 3)] {
        let keys = Keys {
            access_key_id: server.get("access_key_id").to_owned(),
            secret_access_key: server.get("secret_access_key").to_owned(),
            session_token: None,
            expires: Some(SystemTime::now() + Duration::from_secs(lifetime)),
        };
        let callback = Arc::new(Rotating {
            keys,
            asked: Mutex::new(0),
        });
        let mut given = server.options();
        given.retain(|(name, _)| !name.contains("access_key"));
        let url = format!("s3://{}/callback", server.get("bucket"));
        let store = Store::open_with(
            &url,
            &options(&given),
            Some(Arc::clone(&callback) as _),
            &Environment::new(),
        )
        .unwrap();
        for _ in 0..3 {
            assert!(matches!(
                get(&store, "k", Part::All, Precondition::None).unwrap(),
                Response::NotFound
            ));
        }
        assert_eq!(*callback.asked.lock().unwrap(), asked);
    }
}

/// Answers each connection's request with the next response; the last one again and again.
pub struct Script {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Script {
    /// Answers in this order, the last one for ever; an empty answer closes the connection.
    pub fn new(responses: Vec<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let (mut head, mut length) = (String::new(), 0);
                loop {
                    let mut line = String::new();
                    if reader.read_line(&mut line).unwrap_or(0) == 0 || line == "\r\n" {
                        break;
                    }
                    if let Some((name, value)) = line.split_once(':')
                        && name.eq_ignore_ascii_case("content-length")
                    {
                        length = value.trim().parse().unwrap();
                    }
                    head.push_str(&line);
                }
                let _ = reader.read_exact(&mut vec![0; length]);
                let response = {
                    let mut seen = seen.lock().unwrap();
                    seen.push(head);
                    responses.get(seen.len() - 1).or(responses.last()).cloned().unwrap()
                };
                let _ = stream.write_all(response.as_bytes());
            }
        });
        Self { url, requests }
    }

    pub fn store(&self, extra: &[(&str, &str)]) -> Store {
        let mut options = vec![
            ("endpoint_url", self.url.as_str()),
            ("allow_http", "true"),
            ("access_key_id", "AKIAEXAMPLE"),
            ("secret_access_key", "hunter2"),
            ("session_token", "hunter2-token"),
            ("region", "eu-west-1"),
        ];
        options.extend_from_slice(extra);
        open("s3://bucket/below", &options).unwrap()
    }

    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

pub fn response(status: &str, headers: &[&str], body: &str) -> String {
    let mut text = format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    );
    for header in headers {
        text.push_str(&format!("{header}\r\n"));
    }
    format!("{text}\r\n{body}")
}

pub const LAST_MODIFIED: &str = "Last-Modified: Wed, 01 Jul 2026 00:00:00 GMT";

fn failure(answer: String) -> Error {
    let script = Script::new(vec![answer]);
    let error = get(
        &script.store(&[("max_retries", "1")]),
        "k",
        Part::All,
        Precondition::None,
    )
    .unwrap_err();
    assert!(!script.requests().is_empty());
    let text = format!("{error} {error:?}");
    assert!(!text.contains("hunter2"), "{text}");
    error
}

#[test]
fn another_region_is_named() {
    for answer in [
        response("301 Moved Permanently", &["x-amz-bucket-region: ap-south-1"], ""),
        response(
            "400 Bad Request",
            &[],
            "<Error><Code>AuthorizationHeaderMalformed</Code><Message>expecting 'ap-south-1'</Message><Region>ap-south-1</Region></Error>",
        ),
    ] {
        let error = failure(answer);
        assert!(matches!(error, Error::Configuration { .. }), "{error:?}");
        assert!(
            error.to_string().contains("not in region eu-west-1") && error.to_string().contains("region to ap-south-1"),
            "{error}"
        );
    }
}

#[test]
fn what_the_server_says_it_signed_is_not_repeated() {
    let body = "<Error><Code>SignatureDoesNotMatch</Code><Message>The signature does not match</Message>\
                <CanonicalRequest>x-amz-security-token:hunter2-token</CanonicalRequest></Error>";
    let error = failure(response("403 Forbidden", &[], body));
    assert!(error.to_string().contains("secret_access_key"), "{error}");
    let error = failure(response(
        "400 Bad Request",
        &[],
        "<Error><Code>ExpiredToken</Code><Message>expired</Message></Error>",
    ));
    assert!(
        matches!(error, Error::Configuration { .. }) && error.to_string().contains("session token has expired"),
        "{error}"
    );
}

#[test]
fn a_404_that_does_not_name_the_key_is_an_error() {
    for body in ["", "<html>not found</html>", "<Error><Code>NoSuchUpload</Code></Error>"] {
        let error = failure(response("404 Not Found", &[], body));
        assert!(matches!(error, Error::Store { retryable: false, .. }), "{error:?}");
    }
}

#[test]
fn a_busy_server_is_asked_again_and_every_request_is_counted() {
    let busy = response(
        "503 Service Unavailable",
        &[],
        "<Error><Code>SlowDown</Code><Message>slow down</Message></Error>",
    );
    let fine = response("200 OK", &["ETag: \"e\"", LAST_MODIFIED], "content");
    let script = Script::new(vec![busy.clone(), busy.clone(), fine]);
    let counters = Arc::new(Counters::default());
    let store = script.store(&[]).with_counters(Arc::clone(&counters));
    assert_eq!(found(&store, "k", Part::All).bytes, "content");
    assert_eq!(counters.requests(), 3);

    let error = failure(busy);
    assert!(matches!(error, Error::Store { retryable: true, .. }), "{error:?}");
    assert!(
        error.to_string().contains("503") && error.to_string().contains("SlowDown"),
        "{error}"
    );
}

#[test]
fn a_body_shorter_than_announced_is_never_taken_for_the_object() {
    let cut = format!(
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 100\r\nETag: \"e\"\r\n{LAST_MODIFIED}\r\n\r\nonly this"
    );
    let error = failure(cut);
    assert!(matches!(error, Error::Store { retryable: true, .. }), "{error:?}");
}

#[test]
fn an_answer_without_an_etag_or_with_a_weak_one_is_an_error() {
    for headers in [vec![LAST_MODIFIED], vec![LAST_MODIFIED, "ETag: W/\"e\""]] {
        let error = failure(response("200 OK", &headers, "content"));
        assert!(
            matches!(error, Error::Store { retryable: false, .. }) && error.to_string().contains("ETag"),
            "{error:?}"
        );
    }
}

#[test]
fn a_server_that_ignores_ranges_is_an_error() {
    let script = Script::new(vec![response("200 OK", &["ETag: \"e\"", LAST_MODIFIED], "content")]);
    for part in [Part::Tail(2), Part::Range(1..2)] {
        let error = get(&script.store(&[]), "k", part, Precondition::None).unwrap_err();
        assert!(matches!(error, Error::Store { retryable: false, .. }), "{error:?}");
    }
}

#[test]
fn a_server_that_is_not_there_or_does_not_answer_is_a_retryable_error() {
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_url = format!("http://{}", silent.local_addr().unwrap());
    for (url, words) in [(closed, "refused"), (silent_url, "timed out")] {
        let options = [
            ("endpoint_url", url.as_str()),
            ("allow_http", "true"),
            ("access_key_id", "AKIAEXAMPLE"),
            ("secret_access_key", "hunter2"),
            ("max_retries", "1"),
            ("request_timeout", "0.3"),
        ];
        let store = open("s3://bucket", &options).unwrap();
        let error = get(&store, "k", Part::All, Precondition::None).unwrap_err();
        assert!(matches!(error, Error::Store { retryable: true, .. }), "{error:?}");
        assert!(
            error.to_string().contains(words) && error.to_string().contains(&url),
            "{error}"
        );
        let failed = run(async { Ok(store.try_put("k", "x".into(), Write::Create, &[]).await) });
        let failed = failed.unwrap().unwrap_err();
        // What never left this machine certainly had no effect.
        assert_eq!(failed.lost, words == "timed out", "{}", failed.error);
    }
}

#[test]
fn encryption_metadata_and_conditions_are_sent_as_asked_for() {
    let fine = response("200 OK", &["ETag: \"e\""], "");
    let script = Script::new(vec![fine]);
    let store = script.store(&[
        ("server_side_encryption", "aws:kms"),
        ("kms_key_id", "key-1"),
        ("bucket_key", "true"),
    ]);
    run(store.put(
        "100%/日",
        "x".into(),
        Write::Create,
        &[("parquet_analytics.run_id", "r-1".to_owned())],
    ))
    .unwrap();
    put(&store, "k", "x", Write::Replace("\"old\"".into())).unwrap();
    let requests = script.requests();
    let (create, replace) = (requests[0].to_ascii_lowercase(), requests[1].to_ascii_lowercase());
    assert!(create.starts_with("put /bucket/below/100%25/%e6%97%a5 "), "{create}");
    for header in [
        "if-none-match: *",
        "x-amz-server-side-encryption: aws:kms",
        "x-amz-server-side-encryption-aws-kms-key-id: key-1",
        "x-amz-server-side-encryption-bucket-key-enabled: true",
        "x-amz-meta-parquet_analytics.run_id: r-1",
        "x-amz-security-token: hunter2-token",
    ] {
        assert!(
            create.contains(&format!("{header}\r\n")),
            "{header} is missing in {create}"
        );
    }
    assert!(replace.contains("if-match: \"old\"\r\n"), "{replace}");
}

#[test]
fn a_read_is_one_request_with_range_and_condition_and_no_listing() {
    let script = Script::new(vec![
        response(
            "206 Partial Content",
            &["ETag: \"e\"", LAST_MODIFIED, "Content-Range: bytes 5-6/7"],
            "nt",
        ),
        response(
            "412 Precondition Failed",
            &[],
            "<Error><Code>PreconditionFailed</Code></Error>",
        ),
        response("304 Not Modified", &["ETag: \"e\""], ""),
    ]);
    let store = script.store(&[]);
    assert_eq!(found(&store, "k", Part::Tail(2)).offset, 5);
    assert!(matches!(
        get(&store, "k", Part::Range(0..2), Precondition::IfMatch("\"x\"".into())).unwrap(),
        Response::PreconditionFailed
    ));
    assert!(matches!(
        get(
            &store,
            "k",
            Part::Range(0..2),
            Precondition::IfNoneMatch("\"e\"".into())
        )
        .unwrap(),
        Response::NotModified
    ));
    let requests: Vec<_> = script
        .requests()
        .iter()
        .map(|request| request.to_ascii_lowercase())
        .collect();
    assert_eq!(requests.len(), 3);
    assert!(
        requests
            .iter()
            .all(|request| request.starts_with("get /bucket/below/k http/1.1"))
    );
    assert!(requests[0].contains("range: bytes=-2\r\n"), "{}", requests[0]);
    assert!(
        requests[1].contains("range: bytes=0-1\r\n") && requests[1].contains("if-match: \"x\"\r\n"),
        "{}",
        requests[1]
    );
    assert!(requests[2].contains("if-none-match: \"e\"\r\n"), "{}", requests[2]);
}

#[test]
fn an_answer_of_another_version_than_asked_for_is_never_taken_for_it() {
    let other = response(
        "206 Partial Content",
        &["ETag: \"other\"", LAST_MODIFIED, "Content-Range: bytes 0-1/7"],
        "co",
    );
    let shorter = response(
        "416 Range Not Satisfiable",
        &[],
        "<Error><Code>InvalidRange</Code></Error>",
    );
    let first = response(
        "206 Partial Content",
        &["ETag: \"other\"", LAST_MODIFIED, "Content-Range: bytes 0-0/1"],
        "c",
    );
    let cut = response(
        "206 Partial Content",
        &["ETag: \"other\"", LAST_MODIFIED, "Content-Range: bytes 0-0/1"],
        "c",
    );
    for answers in [vec![other.clone()], vec![shorter, first], vec![cut]] {
        let store = Script::new(answers).store(&[]);
        let got = get(
            &store,
            "k",
            Part::Range(0..2),
            Precondition::IfMatch("\"asked\"".into()),
        )
        .unwrap();
        assert!(matches!(got, Response::PreconditionFailed), "{got:?}");
    }
    let store = Script::new(vec![other]).store(&[]);
    let got = get(
        &store,
        "k",
        Part::Range(0..2),
        Precondition::IfNoneMatch("\"other\"".into()),
    )
    .unwrap();
    assert!(matches!(got, Response::NotModified), "{got:?}");
    assert!(!run(store.heeds("k", Precondition::IfMatch("\"asked\"".into()))).unwrap_or(true));
}
