//! Batches in unnamed temporary files: nothing is left behind however the process ends.

use std::fs::File;
use std::io::{BufReader, BufWriter, Seek, SeekFrom};
use std::path::Path;

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use arrow::ipc::CompressionType;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};

use crate::base::error::{Error, Result};
use crate::file::spool::unnamed_file;

use super::held_schema;

fn failed(error: ArrowError) -> Error {
    Error::Io {
        message: format!(
            "the temporary file of the sort failed: {error}; give it room, another temporary folder, or more memory"
        ),
    }
}

/// A file that batches are written to.
pub struct Unsorted(StreamWriter<BufWriter<File>>);

impl Unsorted {
    pub fn create(folder: Option<&Path>) -> Result<Self> {
        let options = IpcWriteOptions::default()
            .try_with_compression(Some(CompressionType::LZ4_FRAME))
            .map_err(failed)?;
        let file = BufWriter::with_capacity(1 << 20, unnamed_file(folder)?);
        StreamWriter::try_new_with_options(file, &held_schema(), options)
            .map(Self)
            .map_err(failed)
    }

    pub fn push(&mut self, batch: &RecordBatch) -> Result<()> {
        self.0.write(batch).map_err(failed)
    }

    /// Reads everything back, in the order in which it was pushed.
    pub fn read(mut self) -> Result<Run> {
        self.0.finish().map_err(failed)?;
        let mut file = self
            .0
            .into_inner()
            .map_err(failed)?
            .into_inner()
            .map_err(|error| failed(error.into_error().into()))?;
        file.seek(SeekFrom::Start(0)).map_err(|error| failed(error.into()))?;
        StreamReader::try_new(BufReader::with_capacity(1 << 18, file), None)
            .map(Run)
            .map_err(failed)
    }
}

/// The batches of a file, one at a time.
pub struct Run(StreamReader<BufReader<File>>);

impl Iterator for Run {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|batch| batch.map_err(failed))
    }
}
