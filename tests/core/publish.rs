//! What becomes of a write whose answer is lost, late or odd, against a server that answers as it is told.

use bytes::Bytes;
use parquet_analytics::archive::publish::{LARGEST_FILE, check_size, heeds_conditions, ignored_conditions, publish};
use parquet_analytics::base::error::{Error, Kind, Result};
use parquet_analytics::base::keys::Prefix;
use parquet_analytics::store::{Part, Precondition, Response, Write};

use crate::store::{open, run};
use crate::store_s3::{LAST_MODIFIED, Script, response};

const RUN: &str = "run-1";

/// The connection is closed without an answer.
fn nothing() -> String {
    String::new()
}

fn stored() -> String {
    response("200 OK", &["ETag: \"mine\""], "")
}

fn refused() -> String {
    response(
        "412 Precondition Failed",
        &[],
        "<Error><Code>PreconditionFailed</Code></Error>",
    )
}

fn failing(status: &str) -> String {
    response(
        status,
        &[],
        "<Error><Code>InternalError</Code><Message>oh</Message></Error>",
    )
}

/// The last byte of an object that this run has written.
fn object_of(run: &str) -> String {
    let id = format!("x-amz-meta-parquet_analytics.run_id: {run}");
    let headers = ["ETag: \"mine\"", "Content-Range: bytes 9-9/10", LAST_MODIFIED, &id];
    response("206 Partial Content", &headers, "x")
}

fn missing() -> String {
    response("404 Not Found", &[], "<Error><Code>NoSuchKey</Code></Error>")
}

/// The methods of the requests, and how the write ended; the store's client retries nothing by itself.
fn published(write: Write, answers: Vec<String>) -> (String, Result<String>) {
    published_with("0", write, answers)
}

fn published_with(retries: &str, write: Write, answers: Vec<String>) -> (String, Result<String>) {
    let script = Script::new(answers);
    let store = script.store(&[("max_retries", retries)]);
    let bytes = Bytes::from_static(b"0123456789");
    let ended = run(publish(&store, "k", bytes, write, RUN, &[]));
    let methods: Vec<String> = script
        .requests()
        .iter()
        .map(|head| head.split(' ').next().unwrap_or_default().to_owned())
        .collect();
    (methods.join(" "), ended)
}

#[test]
fn an_answer_that_was_lost_after_the_write_took_effect_is_found_out_by_run_id() {
    let server_error = || failing("500 Internal Server Error");
    for write in [Write::Create, Write::Replace("\"old\"".to_owned())] {
        for (retries, answers, methods) in [
            ("0", vec![nothing(), object_of(RUN)], "PUT GET"),
            ("0", vec![server_error(), object_of(RUN)], "PUT GET"),
            // The store failed after it had written, and the retry got in its own way.
            ("1", vec![server_error(), refused(), object_of(RUN)], "PUT PUT GET"),
            ("1", vec![nothing(), refused(), object_of(RUN)], "PUT PUT GET"),
            // Sent twice by something in between.
            ("0", vec![refused(), object_of(RUN)], "PUT GET"),
            ("0", vec![response("409 Conflict", &[], ""), object_of(RUN)], "PUT GET"),
            // Success that is not said as it should be.
            ("0", vec![response("200 OK", &[], "<html>"), object_of(RUN)], "PUT GET"),
        ] {
            let (sent, ended) = published_with(retries, write.clone(), answers);
            assert_eq!((sent.as_str(), ended.unwrap()), (methods, "\"mine\"".to_owned()));
        }
    }
}

#[test]
fn somebody_elses_object_is_a_conflict() {
    for answers in [
        vec![refused(), object_of("another")],
        vec![nothing(), object_of("another"), refused(), object_of("another")],
        vec![
            failing("500 Internal Server Error"),
            object_of("another"),
            refused(),
            object_of("another"),
        ],
    ] {
        let (sent, ended) = published(Write::Create, answers);
        assert!(matches!(ended, Err(Error::Conflict { .. })), "{sent}: {ended:?}");
    }
}

#[test]
fn a_write_that_got_lost_without_effect_is_sent_again_under_the_same_condition() {
    for (answers, methods) in [
        (vec![nothing(), missing(), stored()], "PUT GET PUT"),
        (
            vec![nothing(), missing(), nothing(), missing(), stored()],
            "PUT GET PUT GET PUT",
        ),
        // The first one arrives while the second is under way.
        (vec![nothing(), missing(), refused(), object_of(RUN)], "PUT GET PUT GET"),
        (
            vec![response("200 OK", &[], "<Error/>"), missing(), stored()],
            "PUT GET PUT",
        ),
    ] {
        let (sent, ended) = published(Write::Create, answers);
        assert_eq!((sent.as_str(), ended.unwrap()), (methods, "\"mine\"".to_owned()));
    }
}

#[test]
fn what_cannot_be_found_out_is_called_unknown() {
    let denied = || response("403 Forbidden", &[], "<Error><Code>AccessDenied</Code></Error>");
    let busy = || failing("503 Slow Down");
    for answers in [
        // It may still arrive.
        vec![nothing(), missing(), nothing(), missing(), nothing(), missing()],
        // So may one of them, whatever the store has said of the others.
        vec![nothing(), missing(), busy(), missing(), busy(), missing()],
        vec![busy(), missing(), busy(), missing(), nothing(), missing()],
        vec![nothing(), denied()],
        vec![refused(), denied()],
        vec![failing("500 Internal Server Error")],
        vec![nothing(), missing(), denied(), denied()],
    ] {
        let (sent, ended) = published(Write::Create, answers);
        let error = ended.unwrap_err();
        assert_eq!(
            (error.kind(), error.key()),
            (Kind::Unknown, Some("k")),
            "{sent}: {error}"
        );
        let text = error.to_string();
        for part in ["s3://bucket/below/k", RUN, "export the day again"] {
            assert!(text.contains(part), "{text}");
        }
    }
}

#[test]
fn a_failure_that_certainly_had_no_effect_is_no_doubt() {
    let denied = response("403 Forbidden", &[], "<Error><Code>AccessDenied</Code></Error>");
    let (sent, ended) = published(Write::Create, vec![denied]);
    assert_eq!(sent, "PUT");
    assert!(matches!(ended, Err(Error::Permission { .. })), "{ended:?}");

    // The store has answered all attempts, and the object is not there.
    let failed = || failing("503 Slow Down");
    let answers = vec![failed(), missing(), failed(), missing(), failed(), missing()];
    let (sent, ended) = published(Write::Create, answers);
    let error = ended.unwrap_err();
    assert_eq!(
        (sent.as_str(), error.kind()),
        ("PUT GET PUT GET PUT GET", Kind::Retry),
        "{error}"
    );
    assert!(error.to_string().contains("nothing was written"), "{error}");
}

#[test]
fn a_file_above_the_stated_size_is_refused_before_anything_is_sent() {
    assert!(check_size("k", LARGEST_FILE, LARGEST_FILE).is_ok());
    let error = check_size("k", LARGEST_FILE + 1, LARGEST_FILE).unwrap_err();
    assert_eq!((error.kind(), error.key()), (Kind::Fix, Some("k")));
    assert!(error.to_string().contains("1073741825 bytes"), "{error}");
}

#[test]
fn a_store_that_ignores_conditions_is_found_out_and_asked_once() {
    let ignoring = Script::new(vec![stored()]);
    let store = ignoring.store(&[]);
    assert!(!run(heeds_conditions(&store, &Prefix::default())).unwrap());
    let asked = ignoring.requests().len();
    let ignored = run(ignored_conditions(&store, &Prefix::default())).unwrap();
    assert_eq!(
        ignored,
        [
            "If-None-Match on writes",
            "If-Match on writes",
            "If-Match on reads",
            "If-None-Match on reads"
        ]
    );
    assert_eq!(ignoring.requests().len(), asked);

    // It refuses to create twice, but replaces whatever the condition is.
    let half = Script::new(vec![refused(), stored()]);
    assert!(!run(heeds_conditions(&half.store(&[]), &Prefix::default())).unwrap());

    let heeding = Script::new(vec![refused()]);
    let store = heeding.store(&[]);
    assert!(run(heeds_conditions(&store, &Prefix::default())).unwrap());
    let asked = heeding.requests().len();
    assert!(run(heeds_conditions(&store, &Prefix::default())).unwrap());
    assert_eq!(heeding.requests().len(), asked);
    assert!(heeding.requests()[0].contains("/_derived/conditional-write-probe"));

    let memory = open("memory://heeds", &[]).unwrap();
    assert!(run(heeds_conditions(&memory, &Prefix::default())).unwrap());
    let probe = run(memory.get(&Prefix::default().probe_key(), Part::All, Precondition::None)).unwrap();
    assert!(matches!(probe, Response::Found(_)));
}
