//! A folder as a store. `object_store`'s own has no conditional replace and no flush to the disk, so this
//! one publishes by a temporary file in the same folder, fsync and rename, under a lock. Symbolic links in the
//! folder are the operator's business; keys were checked before they come here.

use std::collections::BTreeMap;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::{Fetched, Part, Precondition, Response, Write, span};
use crate::base::error::{Error, Result};

/// Stands in a folder whose file system cannot lock folders (NFS).
const LOCK_FILE: &str = ".parquet-analytics.lock";

/// No write takes that long.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Debug, Clone)]
pub(super) struct Folder {
    root: PathBuf,
}

impl Folder {
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub fn get(&self, key: &str, part: &Part, version: &Precondition) -> Result<Response> {
        let path = self.root.join(key);
        let fail = |error| self.error("reading", key, &path, error);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Response::NotFound),
            Err(error) => return Err(fail(error)),
        };
        let meta = file.metadata().map_err(fail)?;
        if !meta.is_file() {
            return Err(Error::Io {
                message: format!("{} is not a file", path.display()),
            });
        }
        let etag = etag(&meta);
        if let Some(other) = version.other_than_asked(&etag) {
            return Ok(other);
        }
        let size = meta.len();
        let range = span(key, part, size)?;
        let mut bytes = vec![
            0;
            usize::try_from(range.end - range.start)
                .map_err(|_| Error::internal("a read larger than memory"))?
        ];
        file.read_exact_at(&mut bytes, range.start).map_err(fail)?;
        Ok(Response::Found(Fetched {
            bytes: Bytes::from(bytes),
            offset: range.start,
            size,
            etag,
            metadata: metadata_of(&file),
        }))
    }

    pub fn put(&self, key: &str, bytes: &[u8], write: &Write, metadata: &[(&str, String)]) -> Result<String> {
        let path = self.root.join(key);
        let fail = |error| self.error("writing", key, &path, error);
        let folder = path.parent().unwrap_or(&self.root);
        create_folders(folder).map_err(fail)?;
        let mut draft = Draft::new(folder, &path).map_err(fail)?;
        draft.file.write_all(bytes).map_err(fail)?;
        set_metadata(&draft.file, metadata);

        let _lock = lock(folder).map_err(fail)?;
        sweep(folder);
        let old = match std::fs::metadata(&path) {
            Ok(meta) => Some(meta),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(fail(error)),
        };
        super::error::check_condition(key, write, old.as_ref().map(etag).as_deref())?;
        // The time of change is part of the ETag and has to grow, whatever the clock and the file system's resolution do.
        let now = SystemTime::now();
        let after = old
            .and_then(|meta| meta.modified().ok())
            .map_or(now, |time| now.max(time + Duration::from_micros(1)));
        draft.file.set_modified(after).map_err(fail)?;
        draft.file.sync_all().map_err(fail)?;
        std::fs::rename(&draft.path, &path).map_err(fail)?;
        draft.published = true;
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail)?;
        let meta = draft.file.metadata().map_err(fail)?;
        Ok(etag(&meta))
    }

    pub fn delete(&self, key: &str) -> Result<()> {
        let path = self.root.join(key);
        let fail = |error| self.error("deleting", key, &path, error);
        let folder = path.parent().unwrap_or(&self.root);
        let lock = match lock(folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            lock => lock.map_err(fail)?,
        };
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(fail(error)),
            _ => {}
        }
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail)?;
        drop(lock);
        Ok(())
    }

    fn error(&self, doing: &str, key: &str, path: &Path, error: io::Error) -> Error {
        let (root, path) = (self.root.display(), path.display());
        match error.kind() {
            ErrorKind::PermissionDenied => Error::Permission {
                key: key.to_owned(),
                message: format!("{doing} {path}: this user has no permission; allow it on the folder {root}"),
            },
            ErrorKind::ReadOnlyFilesystem => Error::Permission {
                key: key.to_owned(),
                message: format!("{doing} {path}: the file system is read-only"),
            },
            ErrorKind::NotADirectory | ErrorKind::AlreadyExists => Error::configuration(format!(
                "{doing} {path}: a part of this path is not a folder; the store's folder is {root}"
            )),
            ErrorKind::InvalidFilename => {
                Error::invalid(format!("{doing} {path}: the file system does not take this name"))
            }
            _ => Error::io(format!("{doing} {path}"), error),
        }
    }
}

/// Names of extended attributes that users may set begin so on Linux.
const USER: &str = "user.";
/// Room for the names and values of ours.
const ATTRIBUTES: usize = 4096;

/// Keeps metadata in extended attributes, which appear and vanish with the file. Not every file system has them,
/// and the file says the most important things itself, so a failure is no error.
fn set_metadata(file: &File, metadata: &[(&str, String)]) {
    for (name, value) in metadata {
        if let Err(error) = rustix::fs::fsetxattr(
            file,
            format!("{USER}{name}"),
            value.as_bytes(),
            rustix::fs::XattrFlags::empty(),
        ) {
            log::debug!("{name} is not kept: {error}");
            return;
        }
    }
}

fn metadata_of(file: &File) -> BTreeMap<String, String> {
    let mut names = vec![0; ATTRIBUTES];
    let Ok(length) = rustix::fs::flistxattr(file, &mut names[..]) else {
        return BTreeMap::new();
    };
    let value = |name: &str| {
        let mut value = vec![0; ATTRIBUTES];
        let length = rustix::fs::fgetxattr(file, name, &mut value[..]).ok()?;
        value.truncate(length);
        String::from_utf8(value).ok()
    };
    names[..length]
        .split(|byte| *byte == 0)
        .filter_map(|name| std::str::from_utf8(name).ok())
        .filter_map(|name| Some((name.strip_prefix(USER)?.to_owned(), value(name)?)))
        .collect()
}

/// Changes with every write: a new file, a later time.
fn etag(meta: &Metadata) -> String {
    let nanos = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
    format!("\"{:x}-{nanos:x}-{:x}\"", meta.ino(), meta.len())
}

/// A file that is not visible under any key and goes away unless it was published.
struct Draft {
    file: File,
    path: PathBuf,
    published: bool,
}

impl Draft {
    fn new(folder: &Path, target: &Path) -> io::Result<Self> {
        // Begins with a dot, so that patterns such as */*/*/pageviews_*.parquet never match it. The target's name
        // may be as long as the file system takes, so it is not repeated here.
        let kind = target.extension().unwrap_or_default().to_string_lossy();
        let path = folder.join(format!(
            ".{}.{}.tmp",
            uuid::Uuid::new_v4().simple(),
            kind.chars().take(16).collect::<String>()
        ));
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        Ok(Self {
            file,
            path,
            published: false,
        })
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Removes drafts that a process which was killed has left, a day after.
fn sweep(folder: &Path) {
    let is_old = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let draft = name.starts_with('.') && name.ends_with(".tmp") && name.len() > 36;
        let age = || path.metadata()?.modified()?.elapsed().map_err(io::Error::other);
        draft && age().is_ok_and(|age| age > ABANDONED)
    };
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if is_old(&entry.path()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Keeps other writers, of this process and others, out of a folder until it is dropped.
fn lock(folder: &Path) -> io::Result<File> {
    let handle = File::open(folder)?;
    if handle.lock().is_ok() {
        return Ok(handle);
    }
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(folder.join(LOCK_FILE))?;
    file.lock()?;
    Ok(file)
}

/// Creates missing folders, and makes each of them survive a power failure.
fn create_folders(folder: &Path) -> io::Result<()> {
    let missing: Vec<_> = folder
        .ancestors()
        .take_while(|path| !path.as_os_str().is_empty() && !path.exists())
        .collect();
    std::fs::create_dir_all(folder)?;
    for parent in missing.iter().filter_map(|path| path.parent()) {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}
