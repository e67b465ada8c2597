//! From a store's answer to an error that says what to do: which permission, bucket, region or key is
//! wrong. Of an answer only its code and message are shown, never its body, which can hold a token.

use super::http::Answer;
use super::refusal::{Refusal, denied_action, denied_key, refusal};
use super::url::Location;
use super::{Kind, Write};
use crate::base::error::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    Reading,
    Writing,
    Deleting,
}

/// What was being done when an operation failed.
pub(super) struct Context<'a> {
    pub location: &'a Location,
    /// Of S3; None elsewhere.
    pub region: Option<&'a str>,
    /// None is the provider's own.
    pub endpoint: Option<&'a str>,
    /// Whether what is not given may come from the environment.
    pub environment: bool,
    pub key: &'a str,
    pub full_key: &'a str,
    pub doing: Doing,
}

/// What an answer means, before it is put into words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    NoSuchKey,
    NoSuchBucket,
    Denied,
    /// An access key, its secret or its token is wrong.
    BadCredentials,
    WrongRegion,
    /// Something else that is known.
    Refused(Refusal),
    Other,
}

impl Answer {
    pub fn meaning(&self) -> Meaning {
        let code = self.code.as_deref().unwrap_or_default();
        if let Some(refusal) = refusal(self.status, code, self.message.as_deref().unwrap_or_default()) {
            return Meaning::Refused(refusal);
        }
        match code {
            "NoSuchKey" | "BlobNotFound" => return Meaning::NoSuchKey,
            "NoSuchBucket" | "ContainerNotFound" | "InvalidBucketName" => return Meaning::NoSuchBucket,
            "InvalidAccessKeyId"
            | "SignatureDoesNotMatch"
            | "ExpiredToken"
            | "InvalidToken"
            | "TokenRefreshRequired"
            | "InvalidSecurity"
            | "RequestTimeTooSkewed"
            | "AuthenticationFailed" => return Meaning::BadCredentials,
            "PermanentRedirect"
            | "TemporaryRedirect"
            | "AuthorizationHeaderMalformed"
            | "IllegalLocationConstraintException" => {
                return Meaning::WrongRegion;
            }
            "AuthorizationPermissionMismatch" | "AuthorizationFailure" => return Meaning::Denied,
            code if code.contains("AccessDenied") => return Meaning::Denied,
            _ => {}
        }
        match self.status {
            Some(401 | 403) => Meaning::Denied,
            Some(301 | 302 | 307 | 308) => Meaning::WrongRegion,
            _ => Meaning::Other,
        }
    }

    fn said(&self) -> String {
        match (&self.code, &self.message) {
            (Some(code), Some(message)) => format!(" (the store says {code}: {message})"),
            (Some(text), None) | (None, Some(text)) => format!(" (the store says: {text})"),
            (None, None) => String::new(),
        }
    }
}

impl Context<'_> {
    pub fn explain(&self, error: &object_store::Error, answer: &Answer) -> Error {
        let bucket = &self.location.bucket;
        let doing = self.doing();
        if let Some(why) = &answer.credentials {
            let advice = if self.environment {
                "set the storage options access_key_id and secret_access_key, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the \
                 environment, or give the machine a role"
            } else {
                "give the storage access_key and secret_key or a session_profile, or the machine a role, and start the process again"
            };
            return Error::configuration(format!(
                "{doing}: there are no credentials for the store: {why}; {advice}"
            ));
        }
        if let Some(cause) = &answer.transport {
            return self.unreachable(cause);
        }
        let said = answer.said();
        match answer.meaning() {
            Meaning::NoSuchBucket => {
                let what = if self.location.kind == Kind::Azure {
                    "container"
                } else {
                    "bucket"
                };
                Error::configuration(format!(
                    "{doing}: there is no {what} named {bucket}{}; create it, or correct the storage URL",
                    self.at()
                ))
            }
            Meaning::BadCredentials => Error::configuration(format!("{doing}: {}{said}", self.bad_credentials(answer))),
            Meaning::WrongRegion => {
                let set = self.region.unwrap_or("none");
                let advice = match &answer.region {
                    Some(region) => format!("set the storage option region to {region}"),
                    None => "set the storage option region to the bucket's, and check endpoint_url".to_owned(),
                };
                Error::configuration(format!(
                    "{doing}: the bucket {bucket} is not in region {set}{}; {advice}{said}",
                    self.at()
                ))
            }
            Meaning::Denied => Error::Permission {
                key: self.key.to_owned(),
                message: format!("{doing}: access denied; {}{said}", self.permission(answer)),
            },
            Meaning::Refused(Refusal { why, retryable }) => {
                let status = answer.status.unwrap_or_default();
                Error::Store {
                    key: Some(self.key.to_owned()),
                    message: format!("{doing}: {why}; the store answered with status {status}{said}"),
                    retryable,
                }
            }
            Meaning::NoSuchKey | Meaning::Other => {
                let status = answer.status.unwrap_or_default();
                let message = if status == 404 && self.doing != Doing::Deleting && answer.meaning() == Meaning::Other {
                    format!(
                        "{doing}: the answer was 404, but did not say that the object is missing; is this the API of the store?{}{said}",
                        self.at()
                    )
                } else if status >= 400 {
                    format!("{doing}: the store answered with status {status}{said}")
                } else {
                    format!("{doing}: {}", shorten(&error.to_string()))
                };
                let broken_off = status < 400 && error.to_string().contains("HTTP error");
                Error::Store {
                    key: Some(self.key.to_owned()),
                    message,
                    retryable: status >= 500 || status == 429 || status == 408 || broken_off,
                }
            }
        }
    }

    fn doing(&self) -> String {
        let doing = match self.doing {
            Doing::Reading => "reading",
            Doing::Writing => "writing",
            Doing::Deleting => "deleting",
        };
        format!("{doing} {}", self.location.url_of(self.key))
    }

    fn at(&self) -> String {
        self.endpoint
            .map(|endpoint| format!(" at {endpoint}"))
            .unwrap_or_default()
    }

    fn unreachable(&self, cause: &str) -> Error {
        let message = format!("{}: the store{} could not be reached: {cause}", self.doing(), self.at());
        if cause.contains("certificate") {
            return Error::configuration(format!(
                "{message}; name its authority's certificate with the storage option ca_bundle"
            ));
        }
        Error::Store {
            key: Some(self.key.to_owned()),
            message,
            retryable: true,
        }
    }

    fn bad_credentials(&self, answer: &Answer) -> &'static str {
        match answer.code.as_deref().unwrap_or_default() {
            "InvalidAccessKeyId" => {
                "the store does not know this access key id; check access_key_id and that endpoint_url is the store it belongs to"
            }
            "SignatureDoesNotMatch" => {
                "the secret access key does not belong to the access key id; check secret_access_key"
            }
            "ExpiredToken" | "TokenRefreshRequired" => "the session token has expired; give new credentials",
            "InvalidToken" => {
                "the session token is not valid; check session_token, and leave it out for permanent keys"
            }
            "RequestTimeTooSkewed" => "this machine's clock differs from the store's; set the clock",
            _ => "the store does not accept the credentials",
        }
    }

    fn permission(&self, answer: &Answer) -> String {
        let (bucket, key) = (&self.location.bucket, self.full_key);
        match self.location.kind {
            Kind::S3 => {
                let message = answer.message.as_deref().unwrap_or_default();
                let explicitly = if message.contains("explicit deny") {
                    "; a policy denies it explicitly, which no grant outweighs: look for its conditions (encryption, network, account)"
                } else {
                    ""
                };
                if let Some(needed) = denied_key(answer.code.as_deref().unwrap_or_default(), message, self.doing) {
                    return format!(
                        "the credentials need {needed} on the KMS key that encrypts the object, in its key policy or in theirs{explicitly}"
                    );
                }
                if let Some(action) = denied_action(message) {
                    let on = if action == "s3:ListBucket" { "" } else { key };
                    let slash = if on.is_empty() { "" } else { "/" };
                    return format!("the credentials need {action} on arn:aws:s3:::{bucket}{slash}{on}{explicitly}");
                }
                let action = match self.doing {
                    Doing::Reading => "s3:GetObject",
                    Doing::Writing => "s3:PutObject",
                    Doing::Deleting => "s3:DeleteObject",
                };
                let also = match self.doing {
                    Doing::Reading => format!(
                        "; S3 gives this answer for a missing object too, unless s3:ListBucket on arn:aws:s3:::{bucket} is allowed, so allow both"
                    ),
                    _ => String::new(),
                };
                format!("the credentials need {action} on arn:aws:s3:::{bucket}/{key}{also}")
            }
            Kind::GoogleCloud => {
                let action = match self.doing {
                    Doing::Reading => "storage.objects.get",
                    Doing::Writing => "storage.objects.create",
                    Doing::Deleting => "storage.objects.delete",
                };
                format!("the credentials need {action} on the bucket {bucket}")
            }
            Kind::Azure => {
                let role = if self.doing == Doing::Reading {
                    "Storage Blob Data Reader"
                } else {
                    "Storage Blob Data Contributor"
                };
                format!("the credentials need the role {role} on the container {bucket}")
            }
            Kind::Local | Kind::Memory => "this store has no permissions".to_owned(),
        }
    }

    /// The object is there but shorter than asked for.
    pub fn beyond_end(&self, start: u64, end: u64) -> Error {
        Error::corrupt(
            self.key,
            format_args!("it ends before byte {end}, and bytes {start} to {end} were asked for"),
        )
    }

    pub fn broken(&self, why: &str, retryable: bool) -> Error {
        Error::Store {
            key: Some(self.key.to_owned()),
            message: format!("{}: {why}", self.doing()),
            retryable,
        }
    }
}

/// One line, without what follows a `?` in a URL.
fn shorten(text: &str) -> String {
    let words = text
        .split_whitespace()
        .map(|word| word.split_once('?').map_or(word, |(url, _)| url));
    words.collect::<Vec<_>>().join(" ").chars().take(300).collect()
}

pub(super) fn conflict(key: &str, write: &Write) -> Error {
    let message = match write {
        Write::Create => format!("{key} exists already; somebody else wrote it first"),
        _ => format!("{key} was changed by somebody else since it was read"),
    };
    Error::Conflict {
        key: key.to_owned(),
        message,
    }
}

/// Whether a write may go on over the object that is there.
pub(super) fn check_condition(key: &str, write: &Write, present: Option<&str>) -> Result<()> {
    let met = match write {
        Write::Overwrite => true,
        Write::Create => present.is_none(),
        Write::Replace(etag) => present == Some(etag),
    };
    if met { Ok(()) } else { Err(conflict(key, write)) }
}
