//! Puts a day's rows in file order within a bound of memory: rows are held as they come, go to a temporary
//! folder above the bound, and are given back sorted, with the slugs in place. Where rows come from and
//! what becomes of them is not its business.

mod merge;
mod order;
mod slugs;
mod spill;

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use arrow::array::{Array, ArrayRef, Date32Array, RecordBatch, StringArray, UInt32Array};
use arrow::compute::interleave_record_batch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use crate::base::error::{Error, Result};
use crate::base::keys::Day;
use crate::base::runtime::Cancel;
use crate::base::schema;

use merge::Merge;
pub use slugs::Slugs;
use slugs::{Codes, Ranks};
use spill::{Run, Unsorted};

/// Rows in one batch of the sorted result, unless some are very long.
pub const BATCH_ROWS: usize = 8192;

/// Bytes of text in one batch of the sorted result, if it has more than one row.
const BATCH_TEXT_BYTES: usize = 64 << 20;

#[derive(Debug, Clone)]
pub struct SortOptions {
    /// Bytes of rows held in memory before they go to disk. Sorting them takes about a fifth more.
    pub memory_bytes: usize,
    /// Where rows go above that bound; the system's temporary folder by default.
    pub temp_dir: Option<PathBuf>,
}

impl Default for SortOptions {
    fn default() -> Self {
        Self {
            memory_bytes: 512 << 20,
            temp_dir: None,
        }
    }
}

/// Takes batches of [`schema::pageviews`] and of [`schema::facts`], whose slugs come at the end.
pub struct Sorter {
    day: Day,
    options: SortOptions,
    held: Vec<RecordBatch>,
    held_bytes: usize,
    unsorted: Option<Unsorted>,
    projects: Codes,
    versions: Codes,
    rows: u64,
    /// Bytes of the longest paths.
    longest: usize,
}

/// What is held and spilled: the facts, with a small number in the place of each slug. Before sorting the
/// number is a code in order of appearance, afterwards the rank of the slug in byte order (0: no version).
fn held_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        let mut fields = schema::facts().fields().to_vec();
        fields.push(Arc::new(Field::new(schema::PROJECT_SLUG, DataType::UInt32, false)));
        fields.push(Arc::new(Field::new(schema::VERSION_SLUG, DataType::UInt32, false)));
        Arc::new(Schema::new(fields))
    });
    Arc::clone(&SCHEMA)
}

impl Sorter {
    pub fn new(day: Day, options: SortOptions) -> Self {
        Self {
            day,
            options,
            held: Vec::new(),
            held_bytes: 0,
            unsorted: None,
            projects: Codes::default(),
            versions: Codes::default(),
            rows: 0,
            longest: 0,
        }
    }

    pub fn rows(&self) -> u64 {
        self.rows
    }

    pub fn push(&mut self, batch: &RecordBatch) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let facts = schema::facts();
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(facts.fields().len() + 2);
        for field in facts.fields() {
            columns.push(Arc::clone(column(batch, field.name())?));
        }
        let with_slugs = batch.column_by_name(schema::PROJECT_SLUG).is_some();
        let (project, version) = if with_slugs {
            (schema::PROJECT_SLUG, schema::VERSION_SLUG)
        } else {
            (schema::PROJECT_ID, schema::VERSION_ID)
        };
        columns.push(Arc::new(self.projects.encode(column(batch, project)?)?));
        columns.push(Arc::new(self.versions.encode(column(batch, version)?)?));
        let held = RecordBatch::try_new(held_schema(), columns)
            .map_err(|error| Error::internal(format!("a source handed over a batch of another shape: {error}")))?;
        let longest = |name| -> Result<usize> {
            let text: &StringArray = typed(&held, name)?;
            Ok(text.offsets().lengths().max().unwrap_or(0))
        };
        self.longest = self.longest.max(longest(schema::PATH)? + longest(schema::FULL_PATH)?);
        self.rows += held.num_rows() as u64;
        self.held_bytes += held.get_array_memory_size();
        self.held.push(held);
        if self.held_bytes > self.options.memory_bytes {
            self.spill()?;
        }
        Ok(())
    }

    fn spill(&mut self) -> Result<()> {
        if self.unsorted.is_none() {
            self.unsorted = Some(Unsorted::create(self.options.temp_dir.as_deref())?);
        }
        if let Some(unsorted) = &mut self.unsorted {
            for batch in self.held.drain(..) {
                unsorted.push(&batch)?;
            }
        }
        self.held_bytes = 0;
        Ok(())
    }

    /// Rows of one batch, so that a batch of the longest ones still has a bounded size.
    fn batch_rows(&self) -> usize {
        (BATCH_TEXT_BYTES / self.longest.max(1)).clamp(1, BATCH_ROWS)
    }

    /// The rows in file order. `slugs` is needed when the batches came without them.
    pub fn finish(mut self, slugs: Option<&Slugs>, cancel: &Cancel) -> Result<Sorted> {
        let projects = self.projects.ranks("project", slugs.map(|slugs| &slugs.projects))?;
        let versions = self.versions.ranks("version", slugs.map(|slugs| &slugs.versions))?;
        let inner = match self.unsorted.take() {
            None => {
                let held = rank(std::mem::take(&mut self.held), &projects, &versions)?;
                Inner::Memory {
                    order: order::sorted(&held, cancel)?,
                    held,
                    next: 0,
                    batch_rows: self.batch_rows(),
                }
            }
            Some(mut unsorted) => {
                for batch in self.held.drain(..) {
                    unsorted.push(&batch)?;
                }
                Inner::Merge(Box::new(self.merge_runs(unsorted, &projects, &versions, cancel)?))
            }
        };
        Ok(Sorted {
            day: self.day,
            rows: self.rows,
            projects,
            versions,
            inner,
            cancel: cancel.clone(),
        })
    }

    /// Sorts what was spilled a memory's worth at a time, and merges the parts.
    fn merge_runs(&self, unsorted: Unsorted, projects: &Ranks, versions: &Ranks, cancel: &Cancel) -> Result<Merge> {
        let mut runs = Vec::new();
        let mut part = Vec::new();
        let mut bytes = 0;
        let mut sort_part = |part: &mut Vec<RecordBatch>| -> Result<()> {
            let held = rank(std::mem::take(part), projects, versions)?;
            let order = order::sorted(&held, cancel)?;
            let mut run = Unsorted::create(self.options.temp_dir.as_deref())?;
            for rows in order.chunks(self.batch_rows()) {
                cancel.check()?;
                run.push(&gather(&held, rows)?)?;
            }
            runs.push(run.read()?);
            Ok(())
        };
        for batch in unsorted.read()? {
            let batch = batch?;
            bytes += batch.get_array_memory_size();
            part.push(batch);
            if bytes > self.options.memory_bytes {
                bytes = 0;
                sort_part(&mut part)?;
            }
        }
        if !part.is_empty() {
            sort_part(&mut part)?;
        }
        Merge::new(runs, self.batch_rows())
    }
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
    batch
        .column_by_name(name)
        .ok_or_else(|| Error::internal(format!("a source handed over a batch without {name}")))
}

/// The batches with ranks in the place of codes.
fn rank(batches: Vec<RecordBatch>, projects: &Ranks, versions: &Ranks) -> Result<Vec<RecordBatch>> {
    let facts = schema::facts().fields().len();
    batches
        .into_iter()
        .map(|batch| {
            let mut columns = batch.columns().to_vec();
            columns[facts] = Arc::new(projects.of_codes(&columns[facts])?);
            columns[facts + 1] = Arc::new(versions.of_codes(&columns[facts + 1])?);
            RecordBatch::try_new(batch.schema(), columns).map_err(|error| Error::internal(error.to_string()))
        })
        .collect()
}

fn gather(batches: &[RecordBatch], rows: &[order::Row]) -> Result<RecordBatch> {
    let batches: Vec<&RecordBatch> = batches.iter().collect();
    let indices: Vec<(usize, usize)> = rows.iter().map(|row| row.place()).collect();
    interleave_record_batch(&batches, &indices).map_err(|error| Error::internal(error.to_string()))
}

/// A day's rows in file order, as batches of [`schema::pageviews`].
pub struct Sorted {
    day: Day,
    rows: u64,
    projects: Ranks,
    versions: Ranks,
    inner: Inner,
    cancel: Cancel,
}

enum Inner {
    Memory {
        held: Vec<RecordBatch>,
        order: Vec<order::Row>,
        next: usize,
        batch_rows: usize,
    },
    Merge(Box<Merge>),
}

impl Sorted {
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The slugs of all projects that have rows, in byte order.
    pub fn project_slugs(&self) -> impl Iterator<Item = &str> {
        self.projects.names()
    }

    fn next_held(&mut self) -> Result<Option<RecordBatch>> {
        self.cancel.check()?;
        match &mut self.inner {
            Inner::Merge(merge) => merge.next_batch(),
            Inner::Memory {
                held,
                order,
                next,
                batch_rows,
            } => {
                let rows = &order[*next..order.len().min(*next + *batch_rows)];
                if rows.is_empty() {
                    return Ok(None);
                }
                *next += rows.len();
                gather(held, rows).map(Some)
            }
        }
    }

    fn complete(&self, held: &RecordBatch) -> Result<RecordBatch> {
        let slug = |name: &str, ranks: &Ranks| -> Result<ArrayRef> { ranks.of_ranks(column(held, name)?) };
        let columns = schema::pageviews()
            .fields()
            .iter()
            .map(|field| match field.name().as_str() {
                schema::PROJECT_SLUG => slug(schema::PROJECT_SLUG, &self.projects),
                schema::VERSION_SLUG => slug(schema::VERSION_SLUG, &self.versions),
                schema::DATE => {
                    Ok(Arc::new(Date32Array::from_value(self.day.to_date32(), held.num_rows())) as ArrayRef)
                }
                name => column(held, name).cloned(),
            })
            .collect::<Result<Vec<_>>>()?;
        RecordBatch::try_new(schema::pageviews(), columns).map_err(|error| Error::internal(error.to_string()))
    }
}

impl Iterator for Sorted {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_held()
            .and_then(|held| held.map(|held| self.complete(&held)).transpose())
            .transpose()
    }
}

/// Downcasts a column whose type the held schema fixes.
fn typed<'a, T: 'static>(batch: &'a RecordBatch, name: &str) -> Result<&'a T> {
    column(batch, name)?
        .as_any()
        .downcast_ref::<T>()
        .ok_or_else(|| Error::internal(format!("column {name} has another type than the schema says")))
}

fn codes(array: &ArrayRef) -> Result<&UInt32Array> {
    array
        .as_any()
        .downcast_ref()
        .ok_or_else(|| Error::internal("slug codes are not uint32"))
}
