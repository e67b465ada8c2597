//! Refusals whose status says something else than what is wrong: a 403 for an archived object, a 400 for a request that
//! was too slow. The store's code says it, or where that is a general one, its message.

use super::error::Doing;

/// What a refusal means, as the beginning of a sentence, and whether the same request can succeed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    pub why: &'static str,
    pub retryable: bool,
}

const fn fix(why: &'static str) -> Option<Refusal> {
    let retryable = false;
    Some(Refusal { why, retryable })
}

const fn retry(why: &'static str) -> Option<Refusal> {
    let retryable = true;
    Some(Refusal { why, retryable })
}

/// Codes that say little, so that the message has to be looked at. S3 itself, and what is like it, write it in English.
const GENERAL: [&str; 6] = [
    "",
    "AccessDenied",
    "InvalidArgument",
    "InvalidRequest",
    "MethodNotAllowed",
    "PermissionDenied",
];

/// What a code, or a message, is known to mean; of `status` only that of a store without room, and of a request that it
/// does not know, count.
pub(super) fn refusal(status: Option<u16>, code: &str, message: &str) -> Option<Refusal> {
    let of_message = || {
        GENERAL
            .contains(&code)
            .then(|| of_message(&message.to_ascii_lowercase()))?
    };
    of_code(code).or_else(of_message).or(match status {
        Some(507) => NO_ROOM,
        Some(501) => UNKNOWN,
        _ => None,
    })
}

const ARCHIVED: Option<Refusal> = fix(
    "the object is archived (a storage class such as Glacier), where it cannot be read; restore it \
     (aws s3api restore-object), and let no lifecycle rule or tiering archive page views",
);
const LOCKED: Option<Refusal> = fix(
    "a retention rule, a legal hold or a lock (Object Lock, WORM) keeps the object as it is; files are written anew when rows \
     come late and when projects are erased, so use a bucket without one, or wait until it ends",
);
const NO_ROOM: Option<Refusal> = fix("the bucket or the account is full (its quota); make room, or have it raised");
const ACCOUNT: Option<Refusal> = fix(
    "the provider has closed, suspended or not yet opened the account that the bucket belongs to; look at its billing and at the \
     provider's messages",
);
const UNKNOWN: Option<Refusal> =
    fix("the store does not know such a request (a conditional write, perhaps); use a newer version of it, or another");
const REQUESTER_PAYS: Option<Refusal> =
    fix("the bucket charges whoever asks (Requester Pays), to which requests here do not agree; switch that off");
const SLOW_DOWN: Option<Refusal> = retry("the store asks for fewer requests; try again later");
const TOO_SLOW: Option<Refusal> =
    retry("the request took too long to arrive; try again later, and look at the network if it goes on");
const UNAVAILABLE: Option<Refusal> = retry("the store is not available now; try again later");
const CHANGED_UNDER_WAY: Option<Refusal> = retry(
    "the bytes did not arrive as they were sent; try again, and look at the network and at proxies if it goes on",
);

fn of_code(code: &str) -> Option<Refusal> {
    match code {
        "InvalidObjectState" | "BlobArchived" | "BlobBeingRehydrated" | "ObjectNotInActiveTierError" => ARCHIVED,
        "ObjectLocked"
        | "ObjectUnderActiveHold"
        | "RetentionPolicyNotMet"
        | "FileImmutable"
        | "BlobImmutableDueToPolicy"
        | "BlobImmutableDueToLegalHold"
        | "LeaseIdMissing" => LOCKED,
        "StorageFull" | "XMinioStorageFull" | "XMinioDiskFull" | "InsufficientStorage" | "InsufficientCapacity" => {
            NO_ROOM
        }
        code if code.contains("Quota") => NO_ROOM,
        "AccountProblem"
        | "AllAccessDisabled"
        | "NotSignedUp"
        | "InvalidPayer"
        | "UserSuspended"
        | "AccountSuspended"
        | "AccountDisabled"
        | "AccountIsDisabled"
        | "BillingDisabled"
        | "UserProjectAccountProblem" => ACCOUNT,
        "UserProjectMissing" => REQUESTER_PAYS,
        "NotImplemented" | "UnsupportedOperation" => UNKNOWN,
        "SlowDown"
        | "Throttling"
        | "ThrottlingException"
        | "ThrottledException"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "RequestLimitExceeded"
        | "BandwidthLimitExceeded"
        | "TooManyRequests"
        | "TooManyRequestsException" => SLOW_DOWN,
        "RequestTimeout" | "RequestTimeoutException" | "IncompleteBody" => TOO_SLOW,
        "ServiceUnavailable" | "ServerBusy" | "InternalError" | "InternalFailure" | "OperationTimedOut" => UNAVAILABLE,
        "OperationAborted" | "ConditionalRequestConflict" | "PriorRequestNotComplete" => {
            retry("somebody else was writing at the same time; try again")
        }
        "BadDigest" | "XAmzContentSHA256Mismatch" | "Md5Mismatch" => CHANGED_UNDER_WAY,
        _ => code.contains("KMS").then(|| of_kms(code))?,
    }
}

/// Refusals of the key service, which S3 passes on as `KMS.` with its own code.
fn of_kms(code: &str) -> Option<Refusal> {
    let is = |part: &str| code.contains(part);
    if is("AccessDenied") {
        None // A missing permission like others.
    } else if is("Throttl") || is("LimitExceeded") {
        retry("the key service (KMS) asks for fewer requests; try again later, or have bucket_key save some")
    } else if is("Timeout") || is("Internal") || is("Unavailable") {
        retry("the key service (KMS) does not answer; try again later")
    } else if is("Disabled") {
        fix("the KMS key that encrypts the object is disabled; enable it")
    } else if is("NotFound") {
        fix(
            "there is no such KMS key in this region and account; check kms_key_id, and the bucket's default encryption",
        )
    } else if is("InvalidState") {
        fix(
            "the KMS key that encrypts the object cannot be used as it is; cancel its deletion, enable it or import its material",
        )
    } else if is("KeyUsage") {
        fix("the KMS key is not one that encrypts objects (symmetric); name another with kms_key_id")
    } else {
        fix("the KMS key that encrypts the object cannot be used; look at it in the key service")
    }
}

/// `message` in lower case.
fn of_message(message: &str) -> Option<Refusal> {
    let is = |part: &str| message.contains(part);
    if is("requester pays") {
        REQUESTER_PAYS
    } else if is("object lock parameters") {
        // Of a bucket whose default retention wants a checksum with each write.
        fix(
            "the bucket's default retention (Object Lock) asks for checksums that are not sent; use a bucket without it",
        )
    } else if is("object lock") || is("worm protected") || is("legal hold") || is("retention") {
        LOCKED
    } else if is("stored using a form of server side encryption") || is("sse-c") || is("customer provided key") {
        fix("the object is encrypted with a key of the customer's own (SSE-C), which is not supported; copy it without")
    } else if is("quota") {
        NO_ROOM
    } else {
        None
    }
}

/// The permission that a denial names: "... is not authorized to perform: kms:Decrypt on resource ...".
pub(super) fn denied_action(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once("not authorized to perform")?;
    let action = rest.trim_start_matches([':', ' ']).split_whitespace().next()?;
    let (service, name) = action.split_once(':')?;
    let plain =
        |text: &str| (1..=60).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    (plain(service) && plain(name)).then_some(action)
}

/// What a denial that is about the key service needs.
pub(super) fn denied_key(code: &str, message: &str, doing: Doing) -> Option<&'static str> {
    let about_keys = code.contains("KMS")
        || message.contains("kms:")
        || message.contains("KMS key")
        || message.contains("The ciphertext refers to a customer master key");
    about_keys.then_some(match doing {
        // What was written is read back.
        Doing::Writing => "kms:GenerateDataKey and kms:Decrypt",
        Doing::Reading | Doing::Deleting => "kms:Decrypt",
    })
}
