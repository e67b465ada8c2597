//! What is remembered of a store's objects on this host's disk, so that a new process knows what others have read: footers,
//! indexes and lists, by key and with their ETags. Nothing here is believed without asking the store; each entry can be
//! lost, or deleted by anybody, at any time, and many processes may use one folder at once.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustix::fs::OFlags;
use serde_json::json;
use sha2::{Digest, Sha256};

/// What begins an entry, with the version of its form.
const MAGIC: &[u8; 8] = b"pa-disk1";
/// An entry above this is none of ours.
const LARGEST: u64 = 64 << 20;
/// So many writes of a process pass until it looks whether the folder has grown too large.
const WRITES: u32 = 64;
/// An entry that was not used for so long is marked as used.
const TOUCH: Duration = Duration::from_secs(3600);
const SUFFIX: &str = "parquet-analytics";
/// How the names of drafts begin.
const DRAFT: &str = ".parquet-analytics-";

/// A folder of entries, bounded in bytes.
#[derive(Debug)]
pub struct Disk {
    folder: PathBuf,
    capacity: u64,
    writes: AtomicU32,
}

/// A version of an object, or of its end, as it was read.
#[derive(Debug, Clone)]
pub struct Entry {
    pub etag: String,
    /// Of the object; the bytes are its last.
    pub size: u64,
    pub bytes: Bytes,
}

impl Disk {
    /// Does no I/O.
    pub fn new(folder: &Path, capacity: u64) -> Self {
        Self {
            folder: folder.to_owned(),
            capacity,
            writes: AtomicU32::new(0),
        }
    }

    fn path(&self, url: &str) -> PathBuf {
        let name = format!("{:x}", Sha256::digest(url));
        self.folder.join(&name[..40]).with_extension(SUFFIX)
    }

    /// What is remembered of the object with this URL, unless it is damaged or somebody else has written it.
    pub fn read(&self, url: &str) -> Option<Entry> {
        // Not what somebody has put there instead of a file.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
        let opened = File::options()
            .read(true)
            .custom_flags(flags.cast_signed())
            .open(self.path(url));
        let mut file = opened.ok()?;
        let about = file.metadata().ok()?;
        if about.uid() != rustix::process::geteuid().as_raw() || !about.is_file() || about.len() > LARGEST {
            return None;
        }
        let mut whole = Vec::with_capacity(usize::try_from(about.len()).ok()?);
        file.read_to_end(&mut whole).ok()?;
        let entry = parse(url, &Bytes::from(whole))?;
        if about.modified().ok()?.elapsed().is_ok_and(|age| age > TOUCH) {
            let _ = file.set_modified(SystemTime::now());
        }
        Some(entry)
    }

    /// Remembers an object, in the place of what was remembered of it before. That it cannot be is nobody's trouble.
    pub fn write(&self, url: &str, entry: &Entry) {
        let written = self.try_write(url, entry);
        if let Err(error) = written {
            log::debug!("{}: {error}", self.folder.display());
        }
        if self.writes.fetch_add(1, Ordering::Relaxed).is_multiple_of(WRITES) {
            self.shrink();
        }
    }

    fn try_write(&self, url: &str, entry: &Entry) -> std::io::Result<()> {
        let head = json!({"url": url, "etag": entry.etag, "size": entry.size}).to_string();
        let length = u32::try_from(head.len()).map_err(std::io::Error::other)?.to_le_bytes();
        let rest = [length.as_slice(), head.as_bytes(), &entry.bytes].concat();
        let mut drafts = tempfile::Builder::new();
        let draft = drafts.prefix(DRAFT).tempfile_in(&self.folder);
        let mut draft = match draft {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                create_private(&self.folder)?;
                drafts.tempfile_in(&self.folder)?
            }
            draft => draft?,
        };
        draft.write_all(MAGIC)?;
        draft.write_all(&crc32fast::hash(&rest).to_le_bytes())?;
        draft.write_all(&rest)?;
        draft.persist(self.path(url)).map_err(|error| error.error)?;
        Ok(())
    }

    /// Deletes what was used longest ago when there is too much, and drafts that a process left behind.
    fn shrink(&self) {
        let Ok(listed) = fs::read_dir(&self.folder) else { return };
        let mut entries = Vec::new();
        for file in listed.filter_map(Result::ok) {
            let Ok(about) = file.metadata() else { continue };
            let used = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let ours = file.path().extension().is_some_and(|extension| extension == SUFFIX);
            let draft = file.file_name().to_string_lossy().starts_with(DRAFT);
            if ours {
                entries.push((used, about.len(), file.path()));
            } else if draft && used.elapsed().is_ok_and(|age| age > TOUCH) {
                let _ = fs::remove_file(file.path());
            }
        }
        let mut total: u64 = entries.iter().map(|(_, size, _)| size).sum();
        if total <= self.capacity {
            return;
        }
        entries.sort_unstable();
        for (_, size, path) in entries {
            if total <= self.capacity / 10 * 9 {
                return;
            }
            let _ = fs::remove_file(path);
            total -= size;
        }
    }
}

/// Only this user may look into it.
fn create_private(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn parse(url: &str, whole: &Bytes) -> Option<Entry> {
    let rest = whole.strip_prefix(MAGIC.as_slice())?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    if crc32fast::hash(rest) != u32::from_le_bytes(*sum) {
        return None;
    }
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (head, bytes) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    let head: serde_json::Value = serde_json::from_slice(head).ok()?;
    if head.get("url")?.as_str()? != url {
        return None;
    }
    Some(Entry {
        etag: head.get("etag")?.as_str()?.to_owned(),
        size: head.get("size")?.as_u64()?,
        bytes: whole.slice_ref(bytes),
    })
}
