//! Makes the clients of S3, Google Cloud, Azure and memory from their options: when first used, and once per
//! process and store.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsCredentialProvider};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::memory::InMemory;
use object_store::{BackoffConfig, Certificate, ClientOptions, ObjectStore, RetryConfig};

use super::Kind;
use super::credentials::{Ambient, Credentials, NoCredentials, Refreshing};
use super::http::Connector;
use super::options::{Auth, Environment, Http, Options, S3};
use super::url::Location;
use crate::base::error::{Error, Result};
use crate::base::process::PerProcess;

/// So many clients are kept; credentials that change make new ones.
const KEPT_CLIENTS: usize = 32;

/// Names and addresses.
const EVERY_HOST: &str = "*, 0.0.0.0/0, ::/0";

pub(super) type Client = Arc<dyn ObjectStore>;

/// What it takes to make a client.
#[derive(Clone)]
pub(super) struct Target {
    pub location: Location,
    pub options: Options,
    pub credentials: Option<Arc<dyn Credentials>>,
    pub id: String,
}

impl Target {
    /// The client of this process. One that came through a fork shares its connections, and the list of those that
    /// the kernel watches, with the parent: it is left alone, not even dropped.
    pub fn client(&self) -> Result<Client> {
        static CLIENTS: PerProcess<Mutex<Vec<(String, Client)>>> = PerProcess::new();
        if self.location.kind == Kind::Memory {
            return Ok(memory(&self.location.bucket));
        }
        let mut clients = CLIENTS.lock();
        if let Some(at) = clients.iter().position(|(id, _)| *id == self.id) {
            let entry = clients.remove(at);
            let client = Arc::clone(&entry.1);
            clients.push(entry);
            return Ok(client);
        }
        let client = self.build()?;
        clients.push((self.id.clone(), Arc::clone(&client)));
        if clients.len() > KEPT_CLIENTS {
            clients.remove(0);
        }
        Ok(client)
    }

    fn build(&self) -> Result<Client> {
        let bucket = &self.location.bucket;
        let fail = |_| {
            Error::configuration(format!(
                "the client for {} could not be made; check its storage options",
                self.location.url()
            ))
        };
        match &self.options {
            Options::S3(options) => self.build_s3(options),
            Options::Other(options) if self.location.kind == Kind::GoogleCloud => {
                let mut builder = GoogleCloudStorageBuilder::new();
                for (name, value) in &options.settings {
                    builder = name
                        .parse()
                        .map_or(builder.clone(), |key| builder.with_config(key, value));
                }
                let builder = builder
                    .with_bucket_name(bucket)
                    .with_client_options(options.http.client()?)
                    .with_retry(options.http.retry());
                Ok(Arc::new(
                    builder
                        .with_http_connector(options.http.connector())
                        .build()
                        .map_err(fail)?,
                ))
            }
            Options::Other(options) => {
                let mut builder = MicrosoftAzureBuilder::new();
                for (name, value) in &options.settings {
                    builder = name
                        .parse()
                        .map_or(builder.clone(), |key| builder.with_config(key, value));
                }
                let builder = builder
                    .with_container_name(bucket)
                    .with_client_options(options.http.client()?)
                    .with_retry(options.http.retry());
                Ok(Arc::new(
                    builder
                        .with_http_connector(options.http.connector())
                        .build()
                        .map_err(fail)?,
                ))
            }
            Options::None => Err(Error::internal("a store without a client")),
        }
    }

    fn build_s3(&self, options: &S3) -> Result<Client> {
        let fail = |_| {
            Error::configuration(format!(
                "the client for {} could not be made; check its storage options",
                self.location.url()
            ))
        };
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&self.location.bucket)
            .with_region(&options.region)
            .with_virtual_hosted_style_request(options.virtual_hosted)
            .with_client_options(options.http.client()?)
            .with_retry(options.http.retry())
            .with_http_connector(options.http.connector());
        if let Some(endpoint) = &options.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        if let Some(encryption) = &options.encryption {
            let bucket_key = encryption.bucket_key.map(|on| on.to_string());
            for (name, value) in [
                ("aws_server_side_encryption", Some(encryption.algorithm.as_str())),
                ("aws_sse_kms_key_id", encryption.kms_key_id.as_deref()),
                ("aws_sse_bucket_key_enabled", bucket_key.as_deref()),
            ] {
                if let Some(value) = value {
                    builder = builder.with_config(name.parse().map_err(fail)?, value);
                }
            }
        }
        let builder = match &options.auth {
            Auth::Anonymous => builder.with_skip_signature(true),
            Auth::Keys {
                access_key_id,
                secret_access_key,
                session_token,
            } => {
                let builder = builder
                    .with_access_key_id(access_key_id)
                    .with_secret_access_key(secret_access_key);
                match session_token {
                    Some(token) => builder.with_token(token),
                    None => builder,
                }
            }
            Auth::Callback => match &self.credentials {
                Some(source) => builder.with_credentials(Refreshing::provider(Arc::clone(source))),
                None => return Err(Error::internal("a credentials callback was announced but not given")),
            },
            Auth::Ambient(env) => builder.with_credentials(Arc::new(Ambient(ambient(options, env).map_err(fail)?))),
            Auth::Nothing(why) => builder.with_credentials(Arc::new(NoCredentials(why))),
        };
        let client: AmazonS3 = builder.build().map_err(fail)?;
        Ok(Arc::new(client))
    }
}

/// The same name is the same content, process-wide.
fn memory(name: &str) -> Client {
    static STORES: LazyLock<Mutex<HashMap<String, Arc<InMemory>>>> = LazyLock::new(Mutex::default);
    let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
    let store = stores.entry(name.to_owned()).or_default();
    Arc::clone(store) as Client
}

/// What `object_store` finds by itself. Its requests go to token services, so they are not traced as the store's.
fn ambient(options: &S3, env: &Environment) -> object_store::Result<AwsCredentialProvider> {
    // Where there is no metadata service, nobody should have to wait long to hear it.
    let retry = RetryConfig {
        max_retries: 2,
        retry_timeout: Duration::from_secs(10),
        ..RetryConfig::default()
    };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name("any")
        .with_region(&options.region)
        .with_retry(retry);
    for (name, value) in env {
        let key: AmazonS3ConfigKey = name.to_ascii_lowercase().parse()?;
        builder = builder.with_config(key, value);
    }
    Ok(Arc::clone(builder.build()?.credentials()))
}

impl Http {
    fn client(&self) -> Result<ClientOptions> {
        let mut options = ClientOptions::new()
            .with_allow_http(self.allow_http)
            .with_connect_timeout(self.connect_timeout)
            .with_timeout(self.request_timeout)
            .with_allow_invalid_certificates(!self.verify)
            .with_default_content_type("application/vnd.apache.parquet");
        if let Some(proxy) = &self.proxy_url {
            options = options.with_proxy_url(proxy);
        } else if !self.environment {
            // A proxy for no host at all takes the place of those that the environment names.
            options = options
                .with_proxy_url("http://127.0.0.1")
                .with_proxy_excludes(EVERY_HOST);
        }
        if let Some(bundle) = &self.ca_bundle {
            let pem = std::fs::read(bundle)
                .map_err(|error| Error::configuration(format!("reading the ca_bundle {bundle}: {error}")))?;
            let refuse = || Error::configuration(format!("the ca_bundle {bundle} holds no certificates in PEM format"));
            let certificates = Certificate::from_pem_bundle(&pem)
                .ok()
                .filter(|found| !found.is_empty())
                .ok_or_else(refuse)?;
            for certificate in certificates {
                options = options.with_root_certificate(certificate);
            }
        }
        Ok(options)
    }

    fn retry(&self) -> RetryConfig {
        RetryConfig {
            max_retries: self.max_retries,
            backoff: BackoffConfig::default(),
            ..RetryConfig::default()
        }
    }

    fn connector(&self) -> Connector {
        Connector {
            request_timeout: self.request_timeout,
        }
    }
}
