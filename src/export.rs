//! One day from a source to the store: read, sort, write, publish, and only then the copies.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::copies::{Copies, CopyFile, CopyPlan};
use crate::error::{Error, Result};
use crate::keys::{Day, Prefix, Scope};
use crate::publish::{interrupted_publish, publish};
use crate::runtime::{Cancel, block_on};
use crate::schema::{self, meta};
use crate::sort::{SortOptions, Sorter};
use crate::source::{Source, Summary};
use crate::spool::Spool;
use crate::store::{Got, IfVersion, Part, Store, Write};
use crate::writer::{DayWriter, FileFacts, ROW_GROUP_ROWS, Written};

/// Copies on their way to the store at the same time.
const CONCURRENT_COPIES: usize = 16;

#[derive(Debug, Clone)]
pub struct ExportOptions {
    pub prefix: Prefix,
    pub copies: CopyPlan,
    /// Write a day anew that is stored already.
    pub replace: bool,
    /// Let `replace` drop stored rows that the source no longer has.
    pub discard_stored: bool,
    /// Write a file for a day without rows.
    pub allow_empty: bool,
    /// Export a day that is not over yet.
    pub allow_open_day: bool,
    pub sort: SortOptions,
    pub row_group_rows: usize,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self {
            prefix: Prefix::default(),
            copies: CopyPlan::default(),
            replace: false,
            discard_stored: false,
            allow_empty: false,
            allow_open_day: false,
            sort: SortOptions::default(),
            row_group_rows: ROW_GROUP_ROWS,
        }
    }
}

/// How far an export is; read by whoever shows it, while it runs.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    /// The total plus one; zero while it is unknown.
    total: AtomicU64,
    wants_total: bool,
}

impl Progress {
    /// Progress towards a total, for which the source counts its rows first, where it can.
    pub fn with_total() -> Self {
        Self {
            wants_total: true,
            ..Self::default()
        }
    }

    /// Rows read, and rows that there are, where known.
    pub fn rows(&self) -> (u64, Option<u64>) {
        (
            self.done.load(Ordering::Relaxed),
            self.total.load(Ordering::Relaxed).checked_sub(1),
        )
    }
}

/// What an export did.
#[derive(Debug, Clone)]
pub struct Exported {
    pub day: Day,
    pub key: String,
    pub run_id: String,
    pub etag: String,
    pub file: Written,
    pub source: String,
    pub snapshot_time: DateTime<Utc>,
    pub project_copies: u64,
    pub organization_copies: u64,
}

/// What an export would do.
#[derive(Debug, Clone)]
pub struct Planned {
    pub day: Day,
    pub key: String,
    /// `None` when the source cannot count without reading.
    pub rows: Option<u64>,
}

/// Looks without writing anything: the key, and the rows as the source counts them.
pub fn plan(source: &mut dyn Source, day: Day, options: &ExportOptions, cancel: &Cancel) -> Result<Planned> {
    check_over(day, options)?;
    let rows = source.count(day, cancel).map_err(|error| error.on_day(day))?;
    Ok(Planned {
        day,
        key: options.prefix.key(&Scope::Day, day),
        rows,
    })
}

/// Exports one day.
pub fn export(
    source: &mut dyn Source,
    store: &Store,
    day: Day,
    options: &ExportOptions,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<Exported> {
    Export {
        source,
        store,
        day,
        options,
        progress,
        cancel,
    }
    .run()
    .map_err(|error| error.on_day(day))
}

fn check_over(day: Day, options: &ExportOptions) -> Result<()> {
    let today = Day::today();
    if day > today {
        return Err(Error::invalid(format!(
            "this day lies in the future; the last finished one is {}",
            today.minus_days(1)
        )));
    }
    if day == today && !options.allow_open_day {
        return Err(Error::invalid(
            "this day (UTC) is not over yet; export it tomorrow, or pass allow_open_day=True for the rows so far",
        ));
    }
    Ok(())
}

struct Export<'a> {
    source: &'a mut dyn Source,
    store: &'a Store,
    day: Day,
    options: &'a ExportOptions,
    progress: &'a Progress,
    cancel: &'a Cancel,
}

impl Export<'_> {
    fn run(mut self) -> Result<Exported> {
        check_over(self.day, self.options)?;
        let key = self.options.prefix.key(&Scope::Day, self.day);
        let stored = self.stored(&key)?;
        let mut ids = stored.as_ref().map(|_| HashSet::new());

        let (sorter, summary) = self.read(ids.as_mut())?;
        self.check_read(&sorter, &summary)?;
        let write = match (&stored, ids) {
            (Some(stored), Some(ids)) => {
                self.check_replace(&key, stored, &ids)?;
                Write::Replace(stored.etag.clone())
            }
            _ => Write::Create,
        };
        let run_id = uuid::Uuid::new_v4().to_string();
        let Finished { day, file, copies } = self.write(sorter, &summary, &run_id)?;

        let about = [(meta::ROWS, file.rows.to_string()), (meta::SHA256, file.sha256.clone())];
        let published = block_on(self.cancel, publish(self.store, &key, day, write, &run_id, &about));
        let etag = published.map_err(|error| interrupted_publish(self.store, &key, &run_id, error))?;
        let url = self.store.url_of(&key);
        log::info!("{}: {} rows, {} bytes in {url}", self.day, file.rows, file.bytes);
        let (project_copies, organization_copies) = match copies {
            Some((files, bytes)) => self.publish_copies(&files, &bytes, &run_id)?,
            None => (0, 0),
        };
        Ok(Exported {
            day: self.day,
            key,
            run_id,
            etag,
            file,
            source: summary.source,
            snapshot_time: summary.snapshot_time,
            project_copies,
            organization_copies,
        })
    }

    /// What was read has to be what the source counts, and something.
    fn check_read(&self, sorter: &Sorter, summary: &Summary) -> Result<()> {
        let rows = sorter.rows();
        if let Some(counted) = summary.counted
            && counted.rows != rows
        {
            return Err(Error::internal(format!(
                "{} counts {} rows in the same snapshot in which {rows} were copied",
                summary.source, counted.rows
            )));
        }
        if rows == 0 && !self.options.allow_empty {
            return Err(Error::NoRows {
                message: format!(
                    "{} has no rows for this day, so nothing was written; pass allow_empty=True to record it as empty",
                    summary.source
                ),
            });
        }
        Ok(())
    }

    /// Sorts and writes the day and its copies to local files; nothing of them is in the store yet.
    fn write(&self, sorter: Sorter, summary: &Summary, run_id: &str) -> Result<Finished> {
        let facts = FileFacts {
            day: self.day,
            source: summary.source.clone(),
            run_id: run_id.to_owned(),
            snapshot_time: summary.snapshot_time,
        };
        let read = sorter.rows();
        let temp_dir = self.options.sort.temp_dir.as_deref();
        let sorted = sorter.finish(summary.slugs.as_ref(), self.cancel)?;
        let mut copies = if self.options.copies.is_empty() {
            None
        } else {
            Some(Copies::new(
                &self.options.copies,
                sorted.project_slugs(),
                facts.clone(),
                self.options.row_group_rows,
                temp_dir.map(Path::to_path_buf),
            )?)
        };
        let mut writer = DayWriter::new(Spool::create(temp_dir)?, &facts, self.options.row_group_rows)?;
        for batch in sorted {
            let batch = batch?;
            writer.write(&batch)?;
            if let Some(copies) = &mut copies {
                copies.push(&batch)?;
            }
        }
        let (spool, file) = writer.finish()?;
        if file.rows != read {
            return Err(Error::internal(format!(
                "{read} rows were read but {} written",
                file.rows
            )));
        }
        if let Some(counted) = summary.counted
            && counted.views != file.views
        {
            return Err(Error::internal(format!(
                "{} counts {} views in the same snapshot, the file {}",
                summary.source, counted.views, file.views
            )));
        }
        Ok(Finished {
            day: spool.into_bytes()?,
            file,
            copies: copies.map(Copies::finish).transpose()?,
        })
    }

    /// The day's stored file, when there is one and it is to be replaced.
    fn stored(&self, key: &str) -> Result<Option<Stored>> {
        let part = if self.options.replace { Part::All } else { Part::Tail(8) };
        match block_on(self.cancel, self.store.get(key, part, IfVersion::Any))? {
            Got::Found(object) if self.options.replace => Ok(Some(Stored {
                bytes: object.bytes,
                etag: object.etag,
            })),
            Got::Found(_) => Err(Error::invalid(format!(
                "{} is already stored; nothing was read or written. Pass replace=True to write it anew",
                self.store.url_of(key)
            ))),
            _ => Ok(None),
        }
    }

    fn read(&mut self, mut ids: Option<&mut HashSet<i64>>) -> Result<(Sorter, Summary)> {
        if self.progress.wants_total
            && let Some(total) = self.source.count(self.day, self.cancel)?
        {
            self.progress.total.store(total + 1, Ordering::Relaxed);
        }
        let mut sorter = Sorter::new(self.day, self.options.sort.clone());
        let progress = self.progress;
        let mut sink = |batch: RecordBatch| {
            if let Some(ids) = ids.as_deref_mut() {
                ids.extend(id_column(&batch)?);
            }
            sorter.push(&batch)?;
            progress.done.store(sorter.rows(), Ordering::Relaxed);
            Ok(())
        };
        let summary = self.source.read(self.day, &mut sink, self.cancel)?;
        Ok((sorter, summary))
    }

    /// A replacement may not lose rows that only the store has.
    fn check_replace(&self, key: &str, stored: &Stored, ids: &HashSet<i64>) -> Result<()> {
        if self.options.discard_stored {
            return Ok(());
        }
        let corrupt = |error: String| Error::corrupt(key, error);
        let builder =
            ParquetRecordBatchReaderBuilder::try_new(stored.bytes.clone()).map_err(|e| corrupt(e.to_string()))?;
        let only_id = ProjectionMask::columns(builder.parquet_schema(), [schema::ID]);
        let mut lacking = 0_u64;
        for batch in builder
            .with_projection(only_id)
            .build()
            .map_err(|e| corrupt(e.to_string()))?
        {
            self.cancel.check()?;
            let batch = batch.map_err(|e| corrupt(e.to_string()))?;
            lacking += id_column(&batch)?.into_iter().filter(|id| !ids.contains(id)).count() as u64;
        }
        if lacking == 0 {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "{} holds {lacking} rows that the source no longer has, so it was not replaced; pass discard_stored=True to drop them",
            self.store.url_of(key)
        )))
    }

    /// Writes the copies over whatever copies there were; the day's file is already in place.
    fn publish_copies(&self, files: &[CopyFile], bytes: &Bytes, run_id: &str) -> Result<(u64, u64)> {
        block_on(self.cancel, async {
            futures::stream::iter(files)
                .map(|file| async move {
                    let key = self.options.prefix.key(&file.scope, self.day);
                    let metadata = [(meta::RUN_ID, run_id.to_owned()), (meta::ROWS, file.rows.to_string())];
                    self.store
                        .put(&key, bytes.slice(file.place.clone()), Write::Overwrite, &metadata)
                        .await
                })
                .buffer_unordered(CONCURRENT_COPIES)
                .try_for_each(|_| async { Ok(()) })
                .await
        })?;
        let projects = files
            .iter()
            .filter(|file| matches!(file.scope, Scope::Project(_)))
            .count() as u64;
        Ok((projects, files.len() as u64 - projects))
    }
}

/// Local files that wait for publication.
struct Finished {
    day: Bytes,
    file: Written,
    copies: Option<(Vec<CopyFile>, Bytes)>,
}

struct Stored {
    bytes: Bytes,
    etag: String,
}

fn id_column(batch: &RecordBatch) -> Result<Vec<i64>> {
    batch
        .column_by_name(schema::ID)
        .and_then(|column| column.as_primitive_opt::<Int64Type>())
        .map(|ids| ids.values().to_vec())
        .ok_or_else(|| Error::internal("a batch without id"))
}
