//! From sorted rows to finished local files: the day and its copies, compared with what was counted and with what
//! is stored.

use std::path::Path;

use bytes::Bytes;

use super::Export;
use crate::archive::copies::{Copies, CopyFile};
use crate::archive::merge::{Merged, SameRows};
use crate::archive::stored::StoredDay;
use crate::base::error::{Error, Result};
use crate::file::sort::Sorter;
use crate::file::spool::Spool;
use crate::file::tally::Tally;
use crate::file::writer::{DayWriter, FileFacts, Written};
use crate::source::Summary;

/// Local files that wait for publication.
pub(super) struct Finished<'s> {
    pub bytes: Bytes,
    pub file: Written,
    /// The stored file, when it holds the same rows already.
    pub unchanged: Option<&'s StoredDay>,
    pub copies: Option<(Vec<CopyFile>, Bytes)>,
}

impl Export<'_> {
    /// Sorts and writes the day and its copies to local files; nothing of them is in the store yet.
    pub(super) fn write<'s>(
        &self,
        sorter: Sorter,
        summary: &Summary,
        merged: &Merged,
        run_id: &str,
        only_if_changed: Option<&'s StoredDay>,
        expected: Option<&Tally>,
    ) -> Result<Finished<'s>> {
        let facts = FileFacts {
            day: self.day,
            source: summary.source.clone(),
            run_id: run_id.to_owned(),
            snapshot_time: summary.snapshot_time,
            position: summary.position.clone(),
            remaining: merged.remaining.clone(),
            same_rows_as: Vec::new(),
        };
        let rows = sorter.rows();
        let temp_dir = self.options.sort.temp_dir.as_deref();
        let sorted = sorter.finish(summary.slugs.as_ref(), self.cancel)?;
        let mut copies = if self.options.copies.is_empty() {
            None
        } else {
            Some(Copies::new(
                &self.options.copies,
                sorted.project_slugs(),
                FileFacts {
                    remaining: None,
                    ..facts.clone()
                },
                self.options.row_group_rows,
                temp_dir.map(Path::to_path_buf),
            )?)
        };
        let mut same = only_if_changed.map(|day| SameRows::new(day.batches()));
        let mut writer = DayWriter::new(Spool::create(temp_dir)?, &facts, self.options.row_group_rows)?;
        for batch in sorted {
            let batch = batch?;
            writer.write(&batch)?;
            if let Some(same) = &mut same {
                same.push(&batch)?;
            }
            if let Some(copies) = &mut copies {
                copies.push(&batch)?;
            }
        }
        let (spool, file) = writer.finish()?;
        if file.tally.rows != rows {
            return Err(Error::internal(format!(
                "{rows} rows were read but {} written",
                file.tally.rows
            )));
        }
        if let Some(difference) = expected.and_then(|expected| file.tally.difference(expected)) {
            return Err(Error::internal(format!(
                "the file that was written has {difference}, as {} counts in the same snapshot",
                summary.source
            )));
        }
        let same = same.map(SameRows::finish).transpose()?.unwrap_or(false);
        Ok(Finished {
            bytes: spool.into_bytes()?,
            file,
            unchanged: only_if_changed.filter(|_| same),
            copies: copies.map(Copies::finish).transpose()?,
        })
    }
}
