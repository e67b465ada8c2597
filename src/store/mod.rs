//! The store: one object store below one location, with errors that name the key and what to do. Knows
//! nothing of days, Parquet or page views.

mod clients;
mod credentials;
mod disk;
mod error;
mod http;
mod list;
mod local;
mod options;
mod refusal;
mod remote;
mod url;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::base::error::{Error, Result};

pub use credentials::{Credentials, Keys};
use disk::Disk;
pub use disk::Entry;
pub use options::Environment;

/// What kind of place a store is; deletion of database rows is refused for the first two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Memory,
    Local,
    S3,
    GoogleCloud,
    Azure,
}

/// A store below a location. Cloning is cheap and shares connections, and so does opening the same one
/// again. It may be used after a fork: the child makes connections of its own.
#[derive(Clone)]
pub struct Store {
    target: Arc<clients::Target>,
    folder: Option<local::Folder>,
    url: String,
    counters: Option<Arc<Counters>>,
    gate: Option<Arc<dyn Gate>>,
    disk: Option<Arc<Disk>>,
}

/// Stands between a store and whoever uses it, for tests of what happens between any two requests: it may wait, and may
/// answer in the store's place.
#[async_trait]
pub trait Gate: Send + Sync {
    /// Before an operation; what fails here has no effect.
    async fn before(&self, operation: Operation, key: &str) -> Result<()>;

    /// After it took effect; what fails here is an answer that was lost.
    async fn after(&self, operation: Operation, key: &str) -> Result<()>;
}

/// What passes a [`Gate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Get,
    Put,
    Delete,
    List,
}

/// Which bytes of an object to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    All,
    /// Not empty, and inside the object: a range beyond its end is [`Error::CorruptFile`].
    Range(Range<u64>),
    /// The last so many bytes, at least one (all, when the object is smaller).
    Tail(u64),
}

/// On which version of an object a read depends.
#[derive(Debug, Clone, Default)]
pub enum Precondition {
    #[default]
    None,
    /// Only this ETag: [`Response::PreconditionFailed`] otherwise.
    IfMatch(String),
    /// Only when it is no longer this ETag: [`Response::NotModified`] otherwise.
    IfNoneMatch(String),
}

impl Precondition {
    /// What an answer with this ETag is, where it is not the object that was asked for. Every read goes by it, so that
    /// a store which ignores conditions, or a proxy before one, never passes one version off as another.
    fn other_than_asked(&self, etag: &str) -> Option<Response> {
        match self {
            Self::IfMatch(asked) if asked != etag => Some(Response::PreconditionFailed),
            Self::IfNoneMatch(known) if known == etag => Some(Response::NotModified),
            _ => None,
        }
    }
}

/// The answer to a read.
#[derive(Debug, Clone)]
pub enum Response {
    Found(Fetched),
    /// There is no such object (and the store said so with a 404 for the key, nothing else).
    NotFound,
    /// The object is another version than asked for.
    PreconditionFailed,
    /// The object is still the version known.
    NotModified,
}

#[derive(Debug, Clone)]
pub struct Fetched {
    pub bytes: Bytes,
    /// Where `bytes` begin in the object.
    pub offset: u64,
    /// The size of the whole object.
    pub size: u64,
    pub etag: String,
    /// The metadata that the object was written with. Local folders keep it where the file system has extended
    /// attributes.
    pub metadata: BTreeMap<String, String>,
}

/// On what a write depends.
#[derive(Debug, Clone)]
pub enum Write {
    /// Only when there is no object yet.
    Create,
    /// Only over this ETag.
    Replace(String),
    Overwrite,
}

impl Write {
    /// Whether an object with this ETag, or none, is in the way.
    pub fn is_refused_by(&self, found: Option<&str>) -> bool {
        match self {
            Self::Create => found.is_some(),
            Self::Replace(etag) => found != Some(etag),
            Self::Overwrite => false,
        }
    }
}

/// Why an object was not written, as far as can be told.
#[derive(Debug, Clone)]
pub struct NotPut {
    pub error: Error,
    /// An attempt ended without saying that it had no effect: the object may be there.
    pub doubtful: bool,
    /// The last attempt was not answered at all: the store may still be about to write the object.
    pub lost: bool,
}

/// A failure that certainly had no effect.
impl From<Error> for NotPut {
    fn from(error: Error) -> Self {
        Self {
            error,
            doubtful: false,
            lost: false,
        }
    }
}

/// Counts what a store does, for one query or one export.
#[derive(Debug, Default)]
pub struct Counters {
    requests: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

impl Counters {
    /// Requests sent, retries included; one per operation where there is no network.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    pub fn bytes_written(&self) -> u64 {
        self.bytes_written.load(Ordering::Relaxed)
    }

    fn add(&self, requests: u64, read: u64, written: u64) {
        self.requests.fetch_add(requests, Ordering::Relaxed);
        self.bytes_read.fetch_add(read, Ordering::Relaxed);
        self.bytes_written.fetch_add(written, Ordering::Relaxed);
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.url).finish()
    }
}

impl Store {
    /// The store at `s3://bucket/prefix`, `file:///folder`, `memory://name`, and experimentally
    /// `gs://bucket/prefix` or `az://container/prefix`. What the options leave open comes from the
    /// environment. Does no I/O.
    ///
    /// Options of S3: `endpoint_url`, `region` (default `AWS_REGION`, `AWS_DEFAULT_REGION`, us-east-1),
    /// `addressing_style` (auto, path, virtual), `access_key_id`, `secret_access_key`, `session_token`, `anonymous`,
    /// `server_side_encryption` (AES256, aws:kms, aws:kms:dsse), `kms_key_id`, `bucket_key`. Of Google Cloud:
    /// `service_account_path`, `endpoint_url`, `anonymous`. Of Azure: `account_name`, `account_key`, `sas_token`,
    /// `endpoint_url`, `anonymous`. Of all three: `allow_http`, `connect_timeout` (seconds, default 5), `request_timeout`
    /// (seconds for one attempt, default 30, more for long uploads), `max_retries` (default 5), `proxy_url`, `ca_bundle` (a PEM file),
    /// `verify`. Flags are `true` or `false`.
    ///
    /// # Errors
    /// [`Error::Configuration`] for a URL or an option that is not understood, without repeating secrets.
    pub fn open(url: &str, options: &BTreeMap<String, String>) -> Result<Self> {
        Self::open_for(url, options, None)
    }

    /// [`Self::open`] with access keys that somebody else refreshes.
    pub fn open_for(
        url: &str,
        options: &BTreeMap<String, String>,
        credentials: Option<Arc<dyn Credentials>>,
    ) -> Result<Self> {
        let texts = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
        Self::open_with(
            url,
            options,
            credentials,
            &std::env::vars_os().filter_map(texts).collect(),
        )
    }

    /// [`Self::open_for`] whatever the environment says, for somebody who has decided everything: what the options leave
    /// open is the provider's own default, and there are no credentials and no proxy but those that are given.
    pub fn open_exactly(
        url: &str,
        options: &BTreeMap<String, String>,
        credentials: Option<Arc<dyn Credentials>>,
    ) -> Result<Self> {
        Self::make(url, options, credentials, None)
    }

    /// [`Self::open_for`] in a given environment.
    pub fn open_with(
        url: &str,
        options: &BTreeMap<String, String>,
        credentials: Option<Arc<dyn Credentials>>,
        env: &Environment,
    ) -> Result<Self> {
        Self::make(url, options, credentials, Some(env))
    }

    fn make(
        url: &str,
        options: &BTreeMap<String, String>,
        credentials: Option<Arc<dyn Credentials>>,
        env: Option<&Environment>,
    ) -> Result<Self> {
        let location = url::Location::parse(url)?;
        let kind = location.kind;
        let id = id(&location, options, credentials.as_deref(), env);
        let options = options::Options::parse(kind, &location.bucket, options, env, credentials.is_some())?;
        let folder = (kind == Kind::Local).then(|| local::Folder::new(location.path()));
        let url = location.url();
        Ok(Self {
            target: Arc::new(clients::Target {
                location,
                options,
                credentials,
                id,
            }),
            folder,
            url,
            counters: None,
            gate: None,
            disk: None,
        })
    }

    /// The same store, which adds what it does to `counters`.
    #[must_use]
    pub fn with_counters(&self, counters: Arc<Counters>) -> Self {
        Self {
            counters: Some(counters),
            ..self.clone()
        }
    }

    /// The same store behind a gate.
    #[must_use]
    pub fn behind(&self, gate: Arc<dyn Gate>) -> Self {
        Self {
            gate: Some(gate),
            ..self.clone()
        }
    }

    /// The same store, of whose objects some are remembered in a folder of this host, up to so many bytes. Where objects are
    /// no further away than that, it makes no difference.
    #[must_use]
    pub fn remembered_in(&self, folder: &Path, capacity: u64) -> Self {
        let far = !matches!(self.kind(), Kind::Local | Kind::Memory);
        Self {
            disk: far.then(|| Arc::new(Disk::new(folder, capacity))),
            ..self.clone()
        }
    }

    /// What is remembered of an object on this host; it may be another by now.
    pub fn recall(&self, key: &str) -> Option<Entry> {
        self.disk.as_ref()?.read(&self.url_of(key))
    }

    /// Remembers a version of an object, or its end.
    pub fn remember(&self, key: &str, etag: &str, size: u64, bytes: &Bytes) {
        let Some(disk) = self.disk.clone() else { return };
        let url = self.url_of(key);
        let entry = Entry {
            etag: etag.to_owned(),
            size,
            bytes: bytes.clone(),
        };
        let write = move || disk.write(&url, &entry);
        match tokio::runtime::Handle::try_current() {
            // Nobody waits for it.
            Ok(runtime) => drop(runtime.spawn_blocking(write)),
            Err(_) => write(),
        }
    }

    /// Does something that passes the gate.
    async fn passed<T, E: From<Error>>(
        &self,
        operation: Operation,
        key: &str,
        work: impl Future<Output = Result<T, E>>,
        lost: impl FnOnce(Error) -> E,
    ) -> Result<T, E> {
        let Some(gate) = &self.gate else {
            return work.await;
        };
        gate.before(operation, key).await?;
        let done = work.await?;
        gate.after(operation, key).await.map_err(lost)?;
        Ok(done)
    }

    pub fn kind(&self) -> Kind {
        self.target.location.kind
    }

    /// The store's URL, without any secret.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Equal for stores that reach the same place with the same rights: the key of process-wide caches.
    pub fn id(&self) -> &str {
        &self.target.id
    }

    /// The URL of an object: `s3://bucket/location/key` as plain text, or `file:///folder/key`, percent-encoded.
    pub fn url_of(&self, key: &str) -> String {
        self.target.location.url_of(key)
    }

    /// Reads a part of an object, in one request. (Two for a tail on Azure, which has no suffix ranges, and
    /// for a tail of an empty object.)
    ///
    /// # Errors
    /// [`Error::Permission`] when the store denies it, [`Error::Configuration`] for a missing bucket, wrong credentials or a
    /// wrong region, [`Error::CorruptFile`] for a range beyond the end, [`Error::Store`] for everything else.
    pub async fn get(&self, key: &str, part: Part, version: Precondition) -> Result<Response> {
        match &part {
            Part::Range(range) if range.start >= range.end => {
                return Err(Error::internal(format!("an empty range of {key}")));
            }
            Part::Tail(0) => return Err(Error::internal(format!("an empty tail of {key}"))),
            _ => {}
        }
        self.passed(Operation::Get, key, self.get_now(key, part, version), |lost| lost)
            .await
    }

    async fn get_now(&self, key: &str, part: Part, version: Precondition) -> Result<Response> {
        let Some(folder) = self.folder.clone() else {
            return self.target.get(key, &part, &version, self.counters.as_deref()).await;
        };
        let key = self.target.location.full_key(key)?;
        let response = blocking(move || folder.get(&key, &part, &version)).await?;
        let read = if let Response::Found(found) = &response {
            found.bytes.len() as u64
        } else {
            0
        };
        self.count(read, 0);
        Ok(response)
    }

    /// Whether the store itself heeds the condition of a read: it does not send an object for which it is not met.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn heeds(&self, key: &str, version: Precondition) -> Result<bool> {
        if self.folder.is_some() {
            return Ok(true);
        }
        self.target.heeds(key, &version, self.counters.as_deref()).await
    }

    /// Writes an object whole, with metadata where the store keeps any, and gives its ETag. A reader sees
    /// the old object or the new one, never a part.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the condition is not met. A creation that was sent twice, because the first answer was lost,
    /// conflicts with itself: read the object back and compare its metadata. Otherwise as [`Self::get`]; after an
    /// [`Error::Store`] the object may or may not have been written.
    pub async fn put(
        &self,
        key: &str,
        bytes: Bytes,
        write: Write,
        metadata: &[(&'static str, String)],
    ) -> Result<String> {
        self.try_put(key, bytes, write, metadata)
            .await
            .map_err(|failed| failed.error)
    }

    /// [`Self::put`], telling of a failure whether it can have had an effect.
    pub async fn try_put(
        &self,
        key: &str,
        bytes: Bytes,
        write: Write,
        metadata: &[(&'static str, String)],
    ) -> Result<String, NotPut> {
        let lost = |error| NotPut {
            error,
            doubtful: true,
            lost: true,
        };
        self.passed(Operation::Put, key, self.put_now(key, bytes, write, metadata), lost)
            .await
    }

    async fn put_now(
        &self,
        key: &str,
        bytes: Bytes,
        write: Write,
        metadata: &[(&'static str, String)],
    ) -> Result<String, NotPut> {
        let Some(folder) = self.folder.clone() else {
            return self
                .target
                .put(key, bytes, &write, metadata, self.counters.as_deref())
                .await;
        };
        let key = self.target.location.full_key(key)?;
        let written = bytes.len() as u64;
        let metadata = metadata.to_vec();
        let etag = blocking(move || folder.put(&key, &bytes, &write, &metadata)).await?;
        self.count(0, written);
        Ok(etag)
    }

    /// Deletes an object; it is no error when there is none.
    pub async fn delete(&self, key: &str) -> Result<()> {
        self.passed(Operation::Delete, key, self.delete_now(key), |lost| lost)
            .await
    }

    async fn delete_now(&self, key: &str) -> Result<()> {
        let Some(folder) = self.folder.clone() else {
            return self.target.delete(key, self.counters.as_deref()).await;
        };
        let key = self.target.location.full_key(key)?;
        blocking(move || folder.delete(&key)).await?;
        self.count(0, 0);
        Ok(())
    }

    fn count(&self, read: u64, written: u64) {
        if let Some(counters) = &self.counters {
            counters.add(1, read, written);
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal(format!("a file operation broke off: {error}")))?
}

/// Which bytes a part is in an object of this size.
fn span(key: &str, part: &Part, size: u64) -> Result<Range<u64>> {
    match part {
        Part::All => Ok(0..size),
        Part::Range(range) if range.end > size => {
            let Range { start, end } = range;
            Err(Error::corrupt(
                key,
                format_args!("it has {size} bytes, and bytes {start} to {end} were asked for"),
            ))
        }
        Part::Range(range) => Ok(range.clone()),
        Part::Tail(length) => Ok(size.saturating_sub(*length)..size),
    }
}

/// The URL, and a digest of everything else that decides where requests go and with which rights.
fn id(
    location: &url::Location,
    options: &BTreeMap<String, String>,
    credentials: Option<&dyn Credentials>,
    env: Option<&Environment>,
) -> String {
    let mut digest = Sha256::new();
    let mut add = |text: &str| {
        digest.update((text.len() as u64).to_le_bytes());
        digest.update(text.as_bytes());
    };
    for (name, value) in options.iter().chain(options::relevant(location.kind, env)) {
        add(name);
        add(value);
    }
    add(&credentials.map(Credentials::id).unwrap_or_default());
    // Without an environment a client has no proxy either.
    add(if env.is_some() { "environment" } else { "" });
    format!("{}#{:x}", location.url(), digest.finalize())
}
