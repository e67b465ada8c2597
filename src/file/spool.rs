//! A finished file on its way to the store: unnamed on disk, so that nothing is left behind however the
//! process ends, and mapped rather than read, so that memory does not grow with the day.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use bytes::Bytes;

use crate::base::error::{Error, Result};

/// An unnamed file in `folder`, or in the system's temporary folder.
pub fn unnamed_file(folder: Option<&Path>) -> Result<File> {
    let (made, shown) = match folder {
        Some(folder) => (tempfile::tempfile_in(folder), folder.to_path_buf()),
        None => (tempfile::tempfile(), std::env::temp_dir()),
    };
    made.map_err(|error| Error::io(format!("no temporary file could be made in {}", shown.display()), error))
}

/// An unnamed file that is written once, then read.
pub struct Spool {
    file: BufWriter<File>,
}

impl Spool {
    pub fn create(folder: Option<&Path>) -> Result<Self> {
        Ok(Self {
            file: BufWriter::with_capacity(1 << 18, unnamed_file(folder)?),
        })
    }

    /// Everything written, without reading it into memory.
    pub fn into_bytes(self) -> Result<Bytes> {
        let failed = |error| Error::io("the spooled file could not be read back", error);
        let file = self.file.into_inner().map_err(|error| failed(error.into_error()))?;
        if file.metadata().map_err(failed)?.len() == 0 {
            return Ok(Bytes::new());
        }
        // SAFETY: the file has no name and this is its only handle, so nobody can truncate or change it
        // while it is mapped; the map keeps it alive.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(failed)?;
        Ok(Bytes::from_owner(map))
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}
