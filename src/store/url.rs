//! What a store's URL may look like. Text becomes a [`Location`] here or is refused; no URL is echoed
//! that could hold a password.

use std::path::PathBuf;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use super::Kind;
use crate::base::error::{Error, Result};

const SUPPORTED: &str = "supported are s3://bucket/prefix, file:///folder, memory://name, and experimentally \
                         gs://bucket/prefix and az://container/prefix";

/// The longest key that S3 takes, in bytes, location included.
const LONGEST_KEY: usize = 1024;

/// Characters that may not stand as they are in the path of a file URL.
const FILE_URL: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// A place that a URL names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Location {
    pub kind: Kind,
    /// The bucket, the container, or the name of a store in memory; empty for a folder.
    pub bucket: String,
    /// The folder below which keys live, without leading or trailing slash; for a local folder its absolute path.
    pub root: String,
}

impl Location {
    pub fn parse(url: &str) -> Result<Self> {
        let refuse = |why: &str| Error::configuration(format!("this is not a storage URL: {why}; {SUPPORTED}"));
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(refuse("it does not begin with a scheme and '://'"));
        };
        let kind = match scheme {
            "s3" => Kind::S3,
            "gs" => Kind::GoogleCloud,
            "az" => Kind::Azure,
            "file" => Kind::Local,
            "memory" => Kind::Memory,
            _ => {
                let shown: String = scheme
                    .chars()
                    .filter(|c| c.is_ascii_alphanumeric() || "+-.".contains(*c))
                    .take(20)
                    .collect();
                return Err(refuse(&format!("the scheme '{shown}' is unknown")));
            }
        };
        if rest.contains('?') || rest.contains('#') {
            return Err(refuse(
                "it has a query or a fragment; settings are given as options, not in the URL",
            ));
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if authority.contains('@') {
            return Err(refuse(
                "it holds a user or a password; credentials are given as options or by the environment",
            ));
        }
        if kind == Kind::Local {
            return Self::folder(authority, path, rest.contains('/'));
        }
        if authority.is_empty() {
            let what = match kind {
                Kind::Azure => "the container",
                Kind::Memory => "the name",
                _ => "the bucket",
            };
            return Err(refuse(&format!("{what} is missing after {scheme}://")));
        }
        let fine = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        if !authority.chars().all(fine) || authority.len() > 255 || authority.starts_with('.') {
            return Err(refuse(
                "the bucket's name may hold letters, digits, '-', '.' and '_' only",
            ));
        }
        let root = path.trim_end_matches('/');
        if !root.is_empty() {
            check_parts(root).map_err(|why| refuse(&format!("the part after the bucket {why}")))?;
        }
        Ok(Self {
            kind,
            bucket: authority.to_owned(),
            root: root.to_owned(),
        })
    }

    fn folder(authority: &str, path: &str, absolute: bool) -> Result<Self> {
        let refuse = |why: &str| {
            Error::configuration(format!(
                "this is not the URL of a local folder: {why}; write file:///folder"
            ))
        };
        if !(authority.is_empty() || authority == "localhost") || !absolute {
            return Err(refuse("after file:// comes an absolute path"));
        }
        let decoded = percent_decode_str(path)
            .decode_utf8()
            .map_err(|_| refuse("the path is not UTF-8"))?;
        let root = decoded.trim_end_matches('/');
        if root.is_empty() {
            return Err(refuse("it names the root of the file system"));
        }
        check_parts(root).map_err(|why| refuse(&format!("the path {why}")))?;
        Ok(Self {
            kind: Kind::Local,
            bucket: String::new(),
            root: format!("/{root}"),
        })
    }

    /// The URL without any secret. Buckets' URLs are plain text, as their own tools print them; a file URL is encoded.
    pub fn url(&self) -> String {
        let scheme = match self.kind {
            Kind::Local => return format!("file://{}", utf8_percent_encode(&self.root, FILE_URL)),
            Kind::S3 => "s3",
            Kind::GoogleCloud => "gs",
            Kind::Azure => "az",
            Kind::Memory => "memory",
        };
        if self.root.is_empty() {
            format!("{scheme}://{}", self.bucket)
        } else {
            format!("{scheme}://{}/{}", self.bucket, self.root)
        }
    }

    pub fn url_of(&self, key: &str) -> String {
        match self.kind {
            Kind::Local => format!("{}/{}", self.url(), utf8_percent_encode(key, FILE_URL)),
            _ => format!("{}/{key}", self.url()),
        }
    }

    /// The whole key in the bucket. A key comes from a slug, so it is checked again here.
    pub fn full_key(&self, key: &str) -> Result<String> {
        check_parts(key).map_err(|why| {
            let shown: String = key.chars().take(80).collect();
            Error::invalid(format!("the object key {shown:?} {why}"))
        })?;
        let full = if self.root.is_empty() || self.kind == Kind::Local {
            key.to_owned()
        } else {
            format!("{}/{key}", self.root)
        };
        if full.len() > LONGEST_KEY {
            return Err(Error::invalid(format!(
                "an object key of {} bytes is too long; stores take {LONGEST_KEY}",
                full.len()
            )));
        }
        Ok(full)
    }

    /// The folder of a local store.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(&self.root)
    }
}

/// Refuses what could leave the location, or what stores do not keep as it was written.
fn check_parts(path: &str) -> Result<(), &'static str> {
    if path.chars().any(char::is_control) {
        return Err("holds a control character");
    }
    if path.contains('\\') {
        return Err("holds a backslash");
    }
    for part in path.split('/') {
        match part {
            "" => return Err("has an empty part (a slash at the begin or the end, or two in a row)"),
            "." | ".." => return Err("has a part '.' or '..'"),
            _ => {}
        }
    }
    Ok(())
}
