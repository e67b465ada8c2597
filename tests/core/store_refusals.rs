//! Refusals that are not what their status says: what a store's code and message mean, to a reader and to a writer.

use parquet_analytics::base::error::{Error, Kind};
use parquet_analytics::store::{Part, Precondition, Write};

use crate::store::{get, put, run};
use crate::store_s3::{Script, response};

/// Status, code and message of an answer, words that have to be in the error, and what it means to the caller.
type Case = (&'static str, &'static str, &'static str, &'static [&'static str], Kind);

const OF_A_READ: &[Case] = &[
    (
        "403 Forbidden",
        "InvalidObjectState",
        "The operation is not valid for the object's storage class",
        &["archived", "restore", "lifecycle"],
        Kind::Fix,
    ),
    (
        "409 Conflict",
        "BlobArchived",
        "not permitted on an archived blob",
        &["archived"],
        Kind::Fix,
    ),
    (
        "400 Bad Request",
        "KMS.DisabledException",
        "arn is disabled",
        &["KMS key", "enable it"],
        Kind::Fix,
    ),
    (
        "400 Bad Request",
        "KMS.NotFoundException",
        "Invalid arn",
        &["no such KMS key", "kms_key_id"],
        Kind::Fix,
    ),
    (
        "400 Bad Request",
        "KMS.KMSInvalidStateException",
        "arn is pending deletion",
        &["cancel its deletion"],
        Kind::Fix,
    ),
    (
        "400 Bad Request",
        "KMS.ThrottlingException",
        "Rate exceeded",
        &["KMS", "try again later"],
        Kind::Retry,
    ),
    (
        "400 Bad Request",
        "KMS.DependencyTimeoutException",
        "timed out",
        &["KMS", "try again later"],
        Kind::Retry,
    ),
    (
        "400 Bad Request",
        "KMS.SomethingNew",
        "who knows",
        &["KMS key", "cannot be used"],
        Kind::Fix,
    ),
    (
        "403 Forbidden",
        "AccessDenied",
        "User: arn:aws:sts::1:assumed-role/x is not authorized to perform: kms:Decrypt on resource: arn:aws:kms:eu:1:key/2",
        &["kms:Decrypt", "KMS key"],
        Kind::Fix,
    ),
    (
        "400 Bad Request",
        "KMS.AccessDeniedException",
        "The ciphertext refers to a customer master key that does not exist",
        &["kms:Decrypt"],
        Kind::Fix,
    ),
    (
        "400 Bad Request",
        "InvalidRequest",
        "The object was stored using a form of Server Side Encryption. The correct parameters must be provided",
        &["SSE-C"],
        Kind::Fix,
    ),
    (
        "403 Forbidden",
        "AccessDenied",
        "Bucket is a requester pays bucket",
        &["Requester Pays"],
        Kind::Fix,
    ),
    (
        "400 Bad Request",
        "UserProjectMissing",
        "no user project",
        &["Requester Pays"],
        Kind::Fix,
    ),
    (
        "403 Forbidden",
        "AccountProblem",
        "There is a problem with your account",
        &["account", "billing"],
        Kind::Fix,
    ),
    (
        "403 Forbidden",
        "AllAccessDisabled",
        "All access has been disabled",
        &["account"],
        Kind::Fix,
    ),
    ("403 Forbidden", "UserSuspended", "suspended", &["account"], Kind::Fix),
    (
        "400 Bad Request",
        "RequestTimeout",
        "not read from or written to",
        &["took too long"],
        Kind::Retry,
    ),
    (
        "503 Slow Down",
        "SlowDown",
        "Reduce your request rate",
        &["fewer requests", "503"],
        Kind::Retry,
    ),
    (
        "429 Too Many Requests",
        "TooManyRequests",
        "slower",
        &["fewer requests"],
        Kind::Retry,
    ),
    (
        "503 Service Unavailable",
        "ServiceUnavailable",
        "down",
        &["not available now"],
        Kind::Retry,
    ),
    (
        "403 Forbidden",
        "AccessDenied",
        "User: arn:aws:iam::1:user/x is not authorized to perform: s3:ListBucket on resource: arn:aws:s3:::bucket",
        &["s3:ListBucket on arn:aws:s3:::bucket "],
        Kind::Fix,
    ),
    (
        "403 Forbidden",
        "AccessDenied",
        "Access Denied",
        &["s3:GetObject", "s3:ListBucket"],
        Kind::Fix,
    ),
];

const OF_A_WRITE: &[Case] = &[
    ("403 Forbidden", "QuotaExceeded", "", &["full", "quota"], Kind::Fix),
    (
        "400 Bad Request",
        "XMinioAdminBucketQuotaExceeded",
        "Bucket quota exceeded",
        &["full"],
        Kind::Fix,
    ),
    (
        "507 Insufficient Storage",
        "XMinioStorageFull",
        "no space",
        &["full"],
        Kind::Fix,
    ),
    (
        "403 Forbidden",
        "AccessDenied",
        "Access Denied because object protected by object lock.",
        &["retention", "Object Lock"],
        Kind::Fix,
    ),
    (
        "400 Bad Request",
        "InvalidRequest",
        "Object is WORM protected",
        &["retention"],
        Kind::Fix,
    ),
    (
        "409 Conflict",
        "BlobImmutableDueToPolicy",
        "immutable",
        &["retention"],
        Kind::Fix,
    ),
    (
        "412 Precondition Failed",
        "LeaseIdMissing",
        "There is a lease",
        &["lock"],
        Kind::Fix,
    ),
    (
        "400 Bad Request",
        "InvalidRequest",
        "Content-MD5 HTTP header is required for Put Object requests with Object Lock parameters",
        &["default retention", "checksums"],
        Kind::Fix,
    ),
    (
        "403 Forbidden",
        "AccessDenied",
        "User: x is not authorized to perform: kms:GenerateDataKey on resource: y with an explicit deny in a resource-based policy",
        &["kms:GenerateDataKey", "denies it explicitly"],
        Kind::Fix,
    ),
    (
        "403 Forbidden",
        "AccessDenied",
        "User: x is not authorized to perform: s3:PutObject on resource: y with an explicit deny in a resource-based policy",
        &["s3:PutObject on arn:aws:s3:::bucket/below/k", "denies it explicitly"],
        Kind::Fix,
    ),
    (
        "501 Not Implemented",
        "NotImplemented",
        "A header implies functionality",
        &["conditional"],
        Kind::Fix,
    ),
    (
        "400 Bad Request",
        "BadDigest",
        "The Content-MD5 did not match",
        &["did not arrive as they were sent"],
        Kind::Retry,
    ),
    (
        "400 Bad Request",
        "IncompleteBody",
        "too few bytes",
        &["took too long"],
        Kind::Retry,
    ),
];

fn answer((status, code, message, _, _): &Case) -> Script {
    let body = format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
    Script::new(vec![response(status, &[], &body)])
}

fn check((_, code, message, words, kind): &Case, error: &Error) {
    let text = error.to_string();
    for word in *words {
        assert!(text.contains(word), "{word} is missing in {text}");
    }
    assert!(text.contains(code) && text.contains(message), "{text}");
    assert_eq!((error.kind(), error.key()), (*kind, Some("k")), "{text}");
    let denied =
        code.contains("AccessDenied") && words.iter().any(|word| word.contains("kms:") || word.contains("s3:"));
    assert_eq!(matches!(error, Error::Permission { .. }), denied, "{text}");
}

#[test]
fn a_refusal_of_a_read_is_told_as_what_it_is() {
    for case in OF_A_READ {
        let store = answer(case).store(&[("max_retries", "0")]);
        check(
            case,
            &get(&store, "k", Part::All, Precondition::None).map(drop).unwrap_err(),
        );
        let version = Precondition::IfMatch("\"e\"".to_owned());
        check(
            case,
            &get(&store, "k", Part::Range(0..1), version).map(drop).unwrap_err(),
        );
    }
}

#[test]
fn a_refusal_of_a_write_is_told_as_what_it_is_and_never_as_somebody_elses_write() {
    for case in OF_A_WRITE {
        for write in [Write::Create, Write::Replace("\"e\"".to_owned())] {
            let store = answer(case).store(&[("max_retries", "0")]);
            check(case, &put(&store, "k", "x", write).map(drop).unwrap_err());
        }
    }
}

#[test]
fn a_refusal_inside_of_a_bulk_deletion_is_told_as_what_it_is() {
    for (code, message, word) in [
        (
            "AccessDenied",
            "Access Denied because object protected by object lock.",
            "retention",
        ),
        ("AccessDenied", "Access Denied", "s3:DeleteObject"),
        ("SlowDown", "Reduce your request rate", "fewer requests"),
    ] {
        let body = format!(
            "<DeleteResult><Error><Key>below/k</Key><Code>{code}</Code><Message>{message}</Message></Error></DeleteResult>"
        );
        let store = Script::new(vec![response("200 OK", &[], &body)]).store(&[]);
        let text = run(store.delete("k")).unwrap_err().to_string();
        assert!(text.contains(word), "{text}");
    }
}
