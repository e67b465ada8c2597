//! What is stored below a folder. For acts that have to find everything; no question lists anything.

use std::path::Path as LocalPath;
use std::sync::Arc;

use futures::TryStreamExt;
use object_store::path::Path;

use super::clients::Target;
use super::error::Meaning;
use super::http::{Answer, Trace};
use super::{Kind, Operation, Store, blocking};
use crate::base::error::{Error, Result};

/// No key of ours lies deeper below a folder; a loop of symbolic links does.
const DEEPEST: usize = 8;

impl Store {
    /// The keys below a folder (all for an empty one), however deep and in no order; `None` when there are more than
    /// `most`.
    ///
    /// # Errors
    /// [`Error::Permission`] that names the right to list, otherwise as [`Store::get`].
    pub async fn list(&self, folder: &str, most: usize) -> Result<Option<Vec<String>>> {
        self.passed(Operation::List, folder, self.list_now(folder, most), |lost| lost)
            .await
    }

    async fn list_now(&self, folder: &str, most: usize) -> Result<Option<Vec<String>>> {
        if self.folder.is_some() {
            let (root, folder) = (self.target.location.path(), folder.to_owned());
            let keys = blocking(move || {
                let mut keys = Vec::new();
                walk(&root, &folder, DEEPEST, &mut |key, is_folder| {
                    if !is_folder {
                        keys.push(key);
                    }
                    keys.len() <= most
                })?;
                Ok((keys.len() <= most).then_some(keys))
            })
            .await?;
            self.count(0, 0);
            return Ok(keys);
        }
        let root = self.target.root_of(folder)?;
        let client = self.target.client()?;
        let trace = Arc::new(Trace::default());
        let listed = trace.follow(async {
            let mut keys = Vec::new();
            let mut found = client.list(root.as_ref());
            while let Some(object) = found.try_next().await? {
                keys.push(self.target.below_location(object.location.as_ref()));
                if keys.len() > most {
                    return Ok(None);
                }
            }
            Ok(Some(keys))
        });
        let listed = listed.await;
        self.counted(&trace);
        listed.map_err(|error| self.target.not_listed(folder, &error, &trace.answer()))
    }

    /// The names of the folders right below a folder, in no order.
    ///
    /// # Errors
    /// As [`Store::list`].
    pub async fn folders(&self, folder: &str) -> Result<Vec<String>> {
        let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        if self.folder.is_some() {
            let (root, folder) = (self.target.location.path(), folder.to_owned());
            let names = blocking(move || {
                let mut names = Vec::new();
                walk(&root, &folder, 1, &mut |key, is_folder| {
                    if is_folder {
                        names.push(name(&key));
                    }
                    true
                })?;
                Ok(names)
            })
            .await?;
            self.count(0, 0);
            return Ok(names);
        }
        let root = self.target.root_of(folder)?;
        let client = self.target.client()?;
        let trace = Arc::new(Trace::default());
        let listed = trace.follow(client.list_with_delimiter(root.as_ref())).await;
        self.counted(&trace);
        let listed = listed.map_err(|error| self.target.not_listed(folder, &error, &trace.answer()))?;
        Ok(listed.common_prefixes.iter().map(|path| name(path.as_ref())).collect())
    }

    fn counted(&self, trace: &Trace) {
        if let Some(counters) = &self.counters {
            let requests = if self.kind() == Kind::Memory {
                1
            } else {
                trace.requests()
            };
            counters.add(requests, 0, 0);
        }
    }
}

impl Target {
    /// The folder in the bucket; `None` is all of it.
    fn root_of(&self, folder: &str) -> Result<Option<Path>> {
        let full = if folder.is_empty() {
            self.location.root.clone()
        } else {
            self.location.full_key(folder)?
        };
        if full.is_empty() {
            return Ok(None);
        }
        Path::parse(&full)
            .map(Some)
            .map_err(|error| Error::invalid(error.to_string()))
    }

    fn below_location(&self, full_key: &str) -> String {
        let root = &self.location.root;
        let below = full_key.strip_prefix(root.as_str()).unwrap_or(full_key);
        below.strip_prefix('/').unwrap_or(below).to_owned()
    }

    fn not_listed(&self, folder: &str, error: &object_store::Error, answer: &Answer) -> Error {
        let bucket = &self.location.bucket;
        if answer.meaning() != Meaning::Denied {
            return self.explain_reading(folder, error, answer);
        }
        let right = match self.location.kind {
            Kind::S3 => format!("s3:ListBucket on arn:aws:s3:::{bucket}"),
            Kind::GoogleCloud => format!("storage.objects.list on the bucket {bucket}"),
            _ => format!("the role Storage Blob Data Reader on the container {bucket}"),
        };
        Error::Permission {
            key: folder.to_owned(),
            message: format!(
                "listing {}: access denied; the credentials need {right}",
                self.location.url_of(folder)
            ),
        }
    }
}

/// Tells of all files and folders below one, until told that it is enough.
fn walk(root: &LocalPath, folder: &str, depth: usize, found: &mut dyn FnMut(String, bool) -> bool) -> Result<bool> {
    let path = root.join(folder);
    let entries = match std::fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(Error::io(format!("listing {}", path.display()), error)),
    };
    for entry in entries {
        let entry = entry.map_err(|error| Error::io(format!("listing {}", path.display()), error))?;
        // What is no text is no key of ours.
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let key = if folder.is_empty() {
            name
        } else {
            format!("{folder}/{name}")
        };
        let is_folder = entry.path().is_dir();
        if !found(key.clone(), is_folder) || (is_folder && depth > 1 && !walk(root, &key, depth - 1, found)?) {
            return Ok(false);
        }
    }
    Ok(true)
}
