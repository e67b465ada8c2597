//! The options of a store, by name: typed, defaulted from the environment where that counts, and refused when
//! unknown.
//! Nothing here prints a value that can be a secret.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Kind;
use crate::base::error::{Error, Result};

/// Environment variables by name.
pub type Environment = BTreeMap<String, String>;

/// How requests are sent; the same for every store that is reached by HTTP.
#[derive(Clone)]
pub(super) struct Http {
    pub allow_http: bool,
    /// Seconds for a connection, default 5.
    pub connect_timeout: Duration,
    /// Seconds for one attempt, default 30; a long upload gets more, by its size.
    pub request_timeout: Duration,
    /// Default 5.
    pub max_retries: usize,
    pub proxy_url: Option<String>,
    /// A PEM file of certificates that are trusted besides the system's.
    pub ca_bundle: Option<String>,
    /// Whether the server's certificate is checked, default true.
    pub verify: bool,
    /// Whether the environment says what is left open: proxies, keys, the region. Otherwise there is no proxy but
    /// `proxy_url`.
    pub environment: bool,
}

#[derive(Clone)]
pub(super) struct S3 {
    pub http: Http,
    pub region: String,
    /// With the bucket where the addressing style wants it; None is AWS itself.
    pub endpoint: Option<String>,
    pub virtual_hosted: bool,
    pub auth: Auth,
    pub encryption: Option<Encryption>,
}

#[derive(Clone)]
pub(super) enum Auth {
    Anonymous,
    Keys {
        access_key_id: String,
        secret_access_key: String,
        session_token: Option<String>,
    },
    /// What the environment offers besides keys: a web identity, a container's role, the instance's.
    Ambient(Environment),
    /// A callback.
    Callback,
    /// Nothing, and nobody is to be asked for an instance's role: why.
    Nothing(&'static str),
}

#[derive(Clone)]
pub(super) struct Encryption {
    pub algorithm: String,
    pub kms_key_id: Option<String>,
    pub bucket_key: Option<bool>,
}

/// Google Cloud and Azure: options handed on under `object_store`'s names.
#[derive(Clone)]
pub(super) struct Other {
    pub http: Http,
    pub settings: Vec<(String, String)>,
}

#[derive(Clone)]
pub(super) enum Options {
    None,
    S3(Box<S3>),
    Other(Box<Other>),
}

/// Takes options out by name; what is left over at the end was not known.
struct Taker<'a> {
    given: &'a BTreeMap<String, String>,
    /// None where it does not count.
    env: Option<&'a Environment>,
    known: BTreeSet<&'static str>,
}

impl<'a> Taker<'a> {
    /// A variable of the environment, where that counts.
    fn var(&self, name: &str) -> Option<&'a str> {
        self.env?
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    fn text(&mut self, name: &'static str) -> Option<&'a str> {
        self.known.insert(name);
        self.given
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    fn flag(&mut self, name: &'static str) -> Result<Option<bool>> {
        self.text(name)
            .map(|value| match value.to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => Ok(true),
                "false" | "0" | "no" | "off" => Ok(false),
                _ => Err(Error::configuration(format!(
                    "the storage option {name} must be true or false"
                ))),
            })
            .transpose()
    }

    fn seconds(&mut self, name: &'static str, default: u64) -> Result<Duration> {
        let Some(value) = self.text(name) else {
            return Ok(Duration::from_secs(default));
        };
        value
            .parse()
            .ok()
            .filter(|seconds: &f64| *seconds > 0.0 && *seconds <= 86_400.0)
            .map(Duration::from_secs_f64)
            .ok_or_else(|| {
                Error::configuration(format!(
                    "the storage option {name} is a number of seconds between 0 and 86400"
                ))
            })
    }

    fn one_of(&mut self, name: &'static str, allowed: &[&'static str]) -> Result<Option<&'a str>> {
        match self.text(name) {
            Some(value) if !allowed.contains(&value) => Err(Error::configuration(format!(
                "the storage option {name} must be one of {}",
                allowed.join(", ")
            ))),
            value => Ok(value),
        }
    }

    fn http(&mut self) -> Result<Http> {
        Ok(Http {
            allow_http: self.flag("allow_http")?.unwrap_or(false),
            connect_timeout: self.seconds("connect_timeout", 5)?,
            request_timeout: self.seconds("request_timeout", 30)?,
            max_retries: match self.text("max_retries") {
                None => 5,
                Some(value) => value.parse().ok().filter(|retries| *retries <= 100).ok_or_else(|| {
                    Error::configuration("the storage option max_retries is a number between 0 and 100")
                })?,
            },
            proxy_url: self.text("proxy_url").map(str::to_owned),
            ca_bundle: self.text("ca_bundle").map(str::to_owned),
            verify: self.flag("verify")?.unwrap_or(true),
            environment: self.env.is_some(),
        })
    }

    /// An http endpoint is refused unless asked for: keys sign requests there, but data and tokens travel in the clear.
    fn endpoint(&mut self, default: Option<&'a str>, http: &Http) -> Result<Option<String>> {
        let Some(endpoint) = self.text("endpoint_url").or(default) else {
            return Ok(None);
        };
        let refuse = |why: &str| Error::configuration(format!("the storage option endpoint_url {why}"));
        let url = url::Url::parse(endpoint).map_err(|_| refuse("is not a URL such as https://s3.example.com"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refuse(
                "holds a user or a password; give access_key_id and secret_access_key instead",
            ));
        }
        if url.query().is_some() || url.fragment().is_some() || url.host_str().is_none() {
            return Err(refuse(
                "must be a scheme, a host and perhaps a port, such as https://s3.example.com",
            ));
        }
        match url.scheme() {
            "https" => {}
            "http" if http.allow_http => {}
            "http" => {
                return Err(refuse(&format!(
                    "({endpoint}) is not encrypted; use https, or set the option allow_http to true to accept that"
                )));
            }
            _ => {
                return Err(refuse(
                    "must begin with https:// (or http:// with the option allow_http)",
                ));
            }
        }
        Ok(Some(endpoint.trim_end_matches('/').to_owned()))
    }

    fn finish(self, place: &str) -> Result<()> {
        let Some(unknown) = self.given.keys().find(|name| !self.known.contains(name.as_str())) else {
            return Ok(());
        };
        let shown: String = unknown.chars().take(60).collect();
        let known: Vec<_> = self.known.into_iter().collect();
        let known = if known.is_empty() {
            "it has none".to_owned()
        } else {
            format!("it knows {}", known.join(", "))
        };
        Err(Error::configuration(format!(
            "{place} has no storage option {shown:?}; {known}"
        )))
    }
}

impl Options {
    /// Without an environment, what is not given is the provider's own default.
    pub fn parse(
        kind: Kind,
        bucket: &str,
        given: &BTreeMap<String, String>,
        env: Option<&Environment>,
        callback: bool,
    ) -> Result<Self> {
        let mut taker = Taker {
            given,
            env,
            known: BTreeSet::new(),
        };
        if callback && kind != Kind::S3 {
            return Err(Error::configuration("a credentials callback is for s3:// only"));
        }
        let options = match kind {
            Kind::Memory | Kind::Local => Self::None,
            Kind::S3 => Self::S3(Box::new(S3::take(&mut taker, bucket, callback)?)),
            Kind::GoogleCloud => Self::Other(Box::new(Other::google(&mut taker)?)),
            Kind::Azure => Self::Other(Box::new(Other::azure(&mut taker)?)),
        };
        taker.finish(match kind {
            Kind::Memory => "a store in memory",
            Kind::Local => "a local folder",
            Kind::S3 => "an S3 store",
            Kind::GoogleCloud => "a Google Cloud store",
            Kind::Azure => "an Azure store",
        })?;
        Ok(options)
    }
}

impl S3 {
    fn take(taker: &mut Taker<'_>, bucket: &str, callback: bool) -> Result<Self> {
        let mut http = taker.http()?;
        if taker.text("allow_http").is_none() {
            http.allow_http = taker
                .var("AWS_ALLOW_HTTP")
                .is_some_and(|value| value.eq_ignore_ascii_case("true"));
        }
        let region = taker
            .text("region")
            .or_else(|| taker.var("AWS_REGION"))
            .or_else(|| taker.var("AWS_DEFAULT_REGION"))
            .unwrap_or("us-east-1")
            .to_owned();
        let endpoint = taker
            .var("AWS_ENDPOINT_URL_S3")
            .or_else(|| taker.var("AWS_ENDPOINT_URL"));
        let endpoint = taker.endpoint(endpoint, &http)?;
        let style = taker
            .one_of("addressing_style", &["auto", "path", "virtual"])?
            .unwrap_or("auto");
        // A certificate for *.s3.region.amazonaws.com covers one label, so a bucket with dots needs its name in the path.
        let virtual_hosted = match style {
            "virtual" => true,
            "path" => false,
            _ => endpoint.is_none() && !bucket.contains(['.', '_']) && bucket == bucket.to_ascii_lowercase(),
        };
        let endpoint = match endpoint {
            None if region.starts_with("cn-") => Some(format!("https://s3.{region}.amazonaws.com.cn")),
            endpoint => endpoint,
        };
        let endpoint = endpoint.map(|endpoint| match endpoint.split_once("://") {
            Some((scheme, host)) if virtual_hosted => format!("{scheme}://{bucket}.{host}"),
            _ => endpoint,
        });
        let auth = Auth::take(taker, callback)?;
        let algorithm = taker.one_of("server_side_encryption", &["AES256", "aws:kms", "aws:kms:dsse"])?;
        let kms_key_id = taker.text("kms_key_id").map(str::to_owned);
        let bucket_key = taker.flag("bucket_key")?;
        let encryption = match algorithm {
            Some(algorithm) => {
                if algorithm == "AES256" && (kms_key_id.is_some() || bucket_key.is_some()) {
                    return Err(Error::configuration(
                        "the storage options kms_key_id and bucket_key go with server_side_encryption aws:kms or aws:kms:dsse",
                    ));
                }
                Some(Encryption {
                    algorithm: algorithm.to_owned(),
                    kms_key_id,
                    bucket_key,
                })
            }
            None if kms_key_id.is_some() || bucket_key.is_some() => {
                return Err(Error::configuration(
                    "the storage options kms_key_id and bucket_key need server_side_encryption as well",
                ));
            }
            None => None,
        };
        Ok(Self {
            http,
            region,
            endpoint,
            virtual_hosted,
            auth,
            encryption,
        })
    }
}

impl Auth {
    /// Explicit keys, then a callback, then what the environment has, in the order of AWS's own tools.
    fn take(taker: &mut Taker<'_>, callback: bool) -> Result<Self> {
        let anonymous = taker.flag("anonymous")?.unwrap_or(false);
        let given = (
            taker.text("access_key_id"),
            taker.text("secret_access_key"),
            taker.text("session_token"),
        );
        let refuse = |why: &str| Err(Error::configuration(why));
        let var = |name: &str| taker.var(name);
        let keys = |(id, secret, token): (Option<&str>, Option<&str>, Option<&str>)| match (id, secret) {
            (Some(id), Some(secret)) => Some(Self::Keys {
                access_key_id: id.to_owned(),
                secret_access_key: secret.to_owned(),
                session_token: token.map(str::to_owned),
            }),
            _ => None,
        };
        match given {
            (None, None, None) => {}
            _ if anonymous => return refuse("the storage option anonymous goes without access keys"),
            _ if callback => return refuse("give either access keys or a credentials callback, not both"),
            given => {
                return keys(given).map_or_else(
                    || refuse("the storage options access_key_id and secret_access_key belong together"),
                    Ok,
                );
            }
        }
        if anonymous {
            return if callback {
                refuse("the storage option anonymous goes without a credentials callback")
            } else {
                Ok(Self::Anonymous)
            };
        }
        if callback {
            return Ok(Self::Callback);
        }
        if taker.env.is_none() {
            return Ok(Self::Nothing("its own client found none"));
        }
        let from_env = (
            var("AWS_ACCESS_KEY_ID"),
            var("AWS_SECRET_ACCESS_KEY"),
            var("AWS_SESSION_TOKEN"),
        );
        if from_env.0.is_some() != from_env.1.is_some() {
            return refuse("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY belong together; one of them is not set");
        }
        if let Some(keys) = keys(from_env) {
            return Ok(keys);
        }
        let ambient: Environment = [
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_ROLE_ARN",
            "AWS_ROLE_SESSION_NAME",
            "AWS_ENDPOINT_URL_STS",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
            "AWS_METADATA_ENDPOINT",
        ]
        .into_iter()
        .filter_map(|name| var(name).map(|value| (name.to_owned(), value.to_owned())))
        .collect();
        let elsewhere = ambient
            .keys()
            .any(|name| name.contains("TOKEN_FILE") || name.contains("CREDENTIALS"));
        if !elsewhere && var("AWS_EC2_METADATA_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(Self::Nothing(
                "the environment gives none and AWS_EC2_METADATA_DISABLED is set",
            ));
        }
        Ok(Self::Ambient(ambient))
    }
}

impl Other {
    fn google(taker: &mut Taker<'_>) -> Result<Self> {
        let http = taker.http()?;
        let mut settings = from_environment(taker.env, "GOOGLE_");
        settings.extend(
            taker
                .text("service_account_path")
                .map(|path| ("google_service_account".to_owned(), path.to_owned())),
        );
        settings.extend(
            taker
                .endpoint(None, &http)?
                .map(|url| ("google_base_url".to_owned(), url)),
        );
        if taker.flag("anonymous")? == Some(true) {
            settings.push(("google_skip_signature".to_owned(), "true".to_owned()));
        }
        Ok(Self { http, settings })
    }

    fn azure(taker: &mut Taker<'_>) -> Result<Self> {
        let http = taker.http()?;
        let mut settings = from_environment(taker.env, "AZURE_");
        for (name, setting) in [
            ("account_name", "azure_storage_account_name"),
            ("account_key", "azure_storage_account_key"),
            ("sas_token", "azure_storage_sas_token"),
        ] {
            settings.extend(taker.text(name).map(|value| (setting.to_owned(), value.to_owned())));
        }
        settings.extend(
            taker
                .endpoint(None, &http)?
                .map(|url| ("azure_storage_endpoint".to_owned(), url)),
        );
        if taker.flag("anonymous")? == Some(true) {
            settings.push(("azure_skip_signature".to_owned(), "true".to_owned()));
        }
        Ok(Self { http, settings })
    }
}

fn from_environment(env: Option<&Environment>, prefix: &str) -> Vec<(String, String)> {
    let ours = env.into_iter().flatten().filter(|(name, _)| name.starts_with(prefix));
    ours.map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
        .collect()
}

/// The part of the environment that decides where a store is and who may read it.
pub(super) fn relevant(kind: Kind, env: Option<&Environment>) -> impl Iterator<Item = (&String, &String)> {
    let prefix = match kind {
        Kind::S3 => Some("AWS_"),
        Kind::GoogleCloud => Some("GOOGLE_"),
        Kind::Azure => Some("AZURE_"),
        Kind::Memory | Kind::Local => None,
    };
    env.into_iter()
        .flatten()
        .filter(move |(name, _)| prefix.is_some_and(|prefix| name.starts_with(prefix)))
}
