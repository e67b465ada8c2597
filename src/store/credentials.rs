//! Access keys that somebody else refreshes, such as a boto3 session, handed to the S3 client.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use object_store::CredentialProvider;
use object_store::aws::{AwsCredential, AwsCredentialProvider};

use super::http::Trace;

/// Keys are asked for again this long before they expire.
const MARGIN: Duration = Duration::from_secs(120);
/// How long keys without an expiry are believed; whoever hands them over has a cache of its own.
const WITHOUT_EXPIRY: Duration = Duration::from_secs(60);

/// Access keys of S3. `Debug` shows none of them.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    pub access_key_id: String,
    pub secret_access_key: String,
    pub session_token: Option<String>,
    /// When they stop working, if they ever do.
    pub expires: Option<SystemTime>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// Where access keys come from when they change over time.
pub trait Credentials: Send + Sync {
    /// The keys of now. Called on a thread where blocking is allowed, and only when the last ones are about to expire.
    /// The error is text for the user and holds no secret.
    fn keys(&self) -> Result<Keys, String>;

    /// Equal for sources of the same rights (a profile's name, a digest of the first access key); holds no secret.
    fn id(&self) -> String;
}

/// A [`Credentials`] as `object_store` wants it.
pub(super) struct Refreshing {
    source: Arc<dyn Credentials>,
    last: Mutex<Option<(Arc<AwsCredential>, Until)>>,
}

#[derive(Clone, Copy)]
enum Until {
    Clock(SystemTime),
    Age(Instant),
}

impl Until {
    fn fresh(self) -> bool {
        match self {
            Self::Clock(expires) => expires
                .duration_since(SystemTime::now())
                .is_ok_and(|left| left > MARGIN),
            Self::Age(fetched) => fetched.elapsed() < WITHOUT_EXPIRY,
        }
    }
}

impl Refreshing {
    pub fn provider(source: Arc<dyn Credentials>) -> AwsCredentialProvider {
        Arc::new(Self {
            source,
            last: Mutex::new(None),
        })
    }

    fn cached(&self) -> Option<Arc<AwsCredential>> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref()
            .filter(|(_, until)| until.fresh())
            .map(|(keys, _)| Arc::clone(keys))
    }
}

impl fmt::Debug for Refreshing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Refreshing")
    }
}

#[async_trait]
impl CredentialProvider for Refreshing {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        if let Some(keys) = self.cached() {
            return Ok(keys);
        }
        let source = Arc::clone(&self.source);
        let keys = tokio::task::spawn_blocking(move || source.keys())
            .await
            .map_err(|error| error.to_string())
            .and_then(|keys| keys);
        let keys = keys.map_err(|error| failed(&error))?;
        let until = keys.expires.map_or_else(|| Until::Age(Instant::now()), Until::Clock);
        let credential = Arc::new(AwsCredential {
            key_id: keys.access_key_id,
            secret_key: keys.secret_access_key,
            token: keys.session_token,
        });
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((Arc::clone(&credential), until));
        Ok(credential)
    }
}

/// A provider of `object_store`'s own (web identity, container, instance), whose failure is told apart
/// from one of the store.
#[derive(Debug)]
pub(super) struct Ambient(pub AwsCredentialProvider);

#[async_trait]
impl CredentialProvider for Ambient {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        // The text of such an error can hold the answer of a token service, so it is not shown.
        self.0
            .get_credential()
            .await
            .map_err(|_| failed("neither the environment, a web identity, a container nor the instance gave any"))
    }
}

/// There are no keys, and nobody is to be asked for any: why.
#[derive(Debug)]
pub(super) struct NoCredentials(pub &'static str);

#[async_trait]
impl CredentialProvider for NoCredentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        Err(failed(self.0))
    }
}

fn failed(why: &str) -> object_store::Error {
    Trace::credentials_failed(why);
    object_store::Error::Generic {
        store: "credentials",
        source: why.into(),
    }
}
