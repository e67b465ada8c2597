//! Between `object_store` and its HTTP client: counts what is really sent, retries included, gives every
//! attempt a time limit that fits its size, and remembers the store's last answer, whose code and region
//! `object_store`'s errors do not keep apart.

use std::error::Error as _;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::TryStreamExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
    ReqwestConnector,
};

/// A body this long still fits the ordinary time limit.
const SMALL_BODY: usize = 1 << 20;
/// The slowest upload that is waited for, in bytes per second.
const SLOWEST_UPLOAD: u64 = 256 * 1024;
/// More of an error's body is not read.
const LONGEST_BODY: usize = 64 << 10;
/// More of an error's text is not kept.
const LONGEST_MESSAGE: usize = 300;

tokio::task_local! {
    static TRACE: Arc<Trace>;
}

/// What one operation sent and was answered.
#[derive(Debug, Default)]
pub(super) struct Trace {
    requests: AtomicU64,
    /// Attempts that may have taken effect without saying so.
    doubtful: AtomicU64,
    answer: Mutex<Answer>,
}

/// The last answer of the store.
#[derive(Debug, Default, Clone)]
pub(super) struct Answer {
    pub status: Option<u16>,
    pub code: Option<String>,
    pub message: Option<String>,
    /// The region that the bucket is in, when the store says so.
    pub region: Option<String>,
    /// The body has no bytes.
    pub empty: bool,
    /// There was no answer: why, and what kind of failure it was.
    pub transport: Option<String>,
    /// There was no answer, but the request may have arrived.
    pub lost: bool,
    /// No request was sent, because there were no credentials to sign it with.
    pub credentials: Option<String>,
}

impl Trace {
    /// Runs an operation; what it sends is recorded here.
    pub async fn follow<T>(self: &Arc<Self>, operation: impl Future<Output = T>) -> T {
        TRACE.scope(Arc::clone(self), operation).await
    }

    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Whether an attempt failed in a way that does not say that it had no effect: no answer, or a fault of the server.
    pub fn doubtful(&self) -> bool {
        self.doubtful.load(Ordering::Relaxed) > 0
    }

    pub fn answer(&self) -> Answer {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn credentials_failed(why: &str) {
        Self::record(Answer {
            credentials: Some(why.to_owned()),
            ..Answer::default()
        });
    }

    fn sent() {
        let _ = TRACE.try_with(|trace| trace.requests.fetch_add(1, Ordering::Relaxed));
    }

    fn doubt() {
        let _ = TRACE.try_with(|trace| trace.doubtful.fetch_add(1, Ordering::Relaxed));
    }

    fn record(answer: Answer) {
        let _ = TRACE.try_with(|trace| *trace.answer.lock().unwrap_or_else(PoisonError::into_inner) = answer);
    }
}

/// Makes HTTP clients that report to the [`Trace`] of the running operation.
#[derive(Debug)]
pub(super) struct Connector {
    pub request_timeout: Duration,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let ordinary = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Traced {
            ordinary,
            patient: OnceLock::new(),
            options: options.clone(),
            timeout: self.request_timeout,
        }))
    }
}

struct Traced {
    ordinary: HttpClient,
    /// Without a time limit of its own, for uploads; made when first needed.
    patient: OnceLock<HttpClient>,
    options: ClientOptions,
    timeout: Duration,
}

// The options can hold a proxy's password.
impl fmt::Debug for Traced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Traced")
    }
}

impl Traced {
    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let size = request.body().content_length();
        if size <= SMALL_BODY {
            return self.ordinary.execute(request).await;
        }
        let client = match self.patient.get() {
            Some(client) => client.clone(),
            None => {
                let options = self.options.clone().with_timeout_disabled();
                let client = ReqwestConnector::default()
                    .connect(&options)
                    .map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
                self.patient.get_or_init(|| client).clone()
            }
        };
        let limit = self.timeout + Duration::from_secs(size as u64 / SLOWEST_UPLOAD);
        tokio::time::timeout(limit, client.execute(request))
            .await
            .unwrap_or_else(|elapsed| Err(HttpError::new(HttpErrorKind::Timeout, elapsed)))
    }
}

#[async_trait]
impl HttpService for Traced {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        Trace::sent();
        let secrets = secrets_of(&request);
        let response = match self.send(request).await {
            Ok(response) => response,
            Err(error) => {
                let sent = error.kind() != HttpErrorKind::Connect;
                if sent {
                    Trace::doubt();
                }
                Trace::record(Answer {
                    transport: Some(causes(&error)),
                    lost: sent,
                    ..Answer::default()
                });
                return Err(error);
            }
        };
        let status = response.status().as_u16();
        let header = |name: &str| {
            response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned)
        };
        let mut answer = Answer {
            status: Some(status),
            region: header("x-amz-bucket-region").filter(|name| is_region(name)),
            code: header("x-ms-error-code"),
            empty: header("content-length").as_deref() == Some("0"),
            ..Answer::default()
        };
        if status < 400 {
            Trace::record(answer);
            return Ok(response);
        }
        if status >= 500 || status == 408 {
            Trace::doubt();
        }
        let (parts, body) = response.into_parts();
        let body = beginning(body).await?;
        let text = String::from_utf8_lossy(&body);
        answer.code = answer.code.or_else(|| element(&text, "Code"));
        answer.message = element(&text, "Message").or_else(|| element(&text, "message"));
        let region = element(&text, "Region").filter(|name| is_region(name));
        answer.region = answer.region.or(region);
        for told in [&mut answer.code, &mut answer.message].into_iter().flatten() {
            // A server, gateway or proxy may repeat what it was sent.
            let repeated = secrets.iter().any(|secret| told.contains(secret.as_str()));
            *told = if repeated || told.contains("Basic ") || told.contains("Bearer ") {
                "(it repeats a secret, so it is not shown)".to_owned()
            } else {
                told.chars().take(LONGEST_MESSAGE).collect()
            };
        }
        Trace::record(answer);
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::from(body)))
    }
}

/// As much of an error's body as is looked at; some servers never come to an end.
async fn beginning(body: HttpResponseBody) -> Result<Vec<u8>, HttpError> {
    let mut read = Vec::new();
    let mut stream = body.bytes_stream();
    while let Some(bytes) = stream.try_next().await? {
        read.extend_from_slice(&bytes);
        if read.len() > LONGEST_BODY {
            read.truncate(LONGEST_BODY);
            break;
        }
    }
    Ok(read)
}

/// What a request holds that nobody should read: the signature or key, the session's token, a signed query.
fn secrets_of(request: &HttpRequest) -> Vec<String> {
    let header = |name: &str| request.headers().get(name)?.to_str().ok().map(str::to_owned);
    let authorization = header("authorization");
    let bearer = authorization.as_deref().and_then(|value| value.strip_prefix("Bearer "));
    let query = request.uri().query();
    // As it was before it was encoded.
    let signature = query
        .into_iter()
        .flat_map(|query| query.split('&'))
        .find_map(|pair| pair.strip_prefix("sig="))
        .map(|value| {
            percent_encoding::percent_decode_str(value)
                .decode_utf8_lossy()
                .into_owned()
        });
    [
        bearer.map(str::to_owned),
        query.map(str::to_owned),
        signature,
        header("x-amz-security-token"),
        authorization,
    ]
    .into_iter()
    .flatten()
    .filter(|secret| secret.len() >= 8)
    .collect()
}

fn is_region(name: &str) -> bool {
    (1..=40).contains(&name.len())
        && name
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

/// The text of an XML element. Nothing else of an error's body is looked at: what the server says that it
/// signed can hold a session token.
fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    let text = text
        .replace("&quot;", "\"")
        .replace("&apos;", "'")
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&");
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// The last causes of a failed request in one line: "tcp connect error: Connection refused".
fn causes(error: &HttpError) -> String {
    let mut chain = Vec::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if chain.last().is_some_and(|last: &String| last.contains(&text)) {
            // The wrapping error has said this already.
        } else {
            chain.push(text);
        }
        cause = error.source();
    }
    let from = chain.len().saturating_sub(2);
    chain.get(from..).unwrap_or_default().join(": ")
}
