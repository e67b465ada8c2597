//! Copies of a day for single projects and organizations, cut from the sorted rows as they pass by.
//! Copies are a convenience: no answer depends on them, and they are published after the day itself.

pub mod stale;

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::ops::Range;
use std::path::PathBuf;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::take_record_batch;

use crate::base::error::{Error, Result};
use crate::base::keys::{Scope, Slug};
use crate::base::schema;
use crate::file::spool::Spool;
use crate::file::writer::{DayWriter, FileFacts};

/// Bytes of organizations' rows held in memory; above it the largest goes to a temporary file.
const HELD_BYTES: usize = 128 << 20;

/// Which copies to make.
#[derive(Debug, Clone, Default)]
pub struct CopyPlan {
    pub per_project: bool,
    /// The projects of each organization, by slug.
    pub organizations: Option<BTreeMap<String, Vec<String>>>,
}

impl CopyPlan {
    pub fn is_empty(&self) -> bool {
        !self.per_project && self.organizations.is_none()
    }
}

/// A finished copy in the spool.
#[derive(Debug, Clone)]
pub struct CopyFile {
    pub scope: Scope,
    pub rows: u64,
    pub place: Range<usize>,
}

/// Takes the sorted rows and writes all copies one after the other into one spool.
pub struct Copies {
    per_project: bool,
    organizations_of: HashMap<String, Vec<Slug>>,
    facts: FileFacts,
    row_group_rows: usize,
    temp_dir: Option<PathBuf>,
    spool: Spool,
    spooled: usize,
    files: Vec<CopyFile>,
    project: Option<(String, DayWriter<Vec<u8>>)>,
    organizations: BTreeMap<Slug, Held>,
    held_bytes: usize,
}

/// An organization's rows so far: in memory, or, when they are many, already in a file.
enum Held {
    Rows(Vec<RecordBatch>, usize),
    File(Box<DayWriter<Spool>>),
}

impl Copies {
    /// Checks every slug that would become part of a key.
    pub fn new<'a>(
        plan: &CopyPlan,
        projects: impl Iterator<Item = &'a str>,
        facts: FileFacts,
        row_group_rows: usize,
        temp_dir: Option<PathBuf>,
    ) -> Result<Self> {
        let mut organizations_of: HashMap<String, Vec<Slug>> = HashMap::new();
        for (organization, members) in plan.organizations.iter().flatten() {
            let slug: Slug = organization.parse()?;
            for project in members {
                let entry = organizations_of.entry(project.clone()).or_default();
                if !entry.contains(&slug) {
                    entry.push(slug.clone());
                }
            }
        }
        if plan.per_project {
            for project in projects {
                project.parse::<Slug>()?;
            }
        }
        let spool = Spool::create(temp_dir.as_deref())?;
        Ok(Self {
            per_project: plan.per_project,
            organizations_of,
            facts,
            row_group_rows,
            temp_dir,
            spool,
            spooled: 0,
            files: Vec::new(),
            project: None,
            organizations: BTreeMap::new(),
            held_bytes: 0,
        })
    }

    /// Takes a batch of sorted rows: each project's rows are contiguous.
    pub fn push(&mut self, batch: &RecordBatch) -> Result<()> {
        let slugs = batch
            .column_by_name(schema::PROJECT_SLUG)
            .and_then(|column| column.as_string_opt::<i32>())
            .ok_or_else(|| Error::internal("a batch without project_slug reached the copies"))?;
        let mut start = 0;
        while start < batch.num_rows() {
            let slug = slugs.value(start);
            let end = start
                + (start..batch.num_rows())
                    .take_while(|row| slugs.value(*row) == slug)
                    .count();
            self.push_project(slug, &batch.slice(start, end - start))?;
            start = end;
        }
        Ok(())
    }

    fn push_project(&mut self, slug: &str, rows: &RecordBatch) -> Result<()> {
        if self.per_project {
            if self.project.as_ref().is_some_and(|(open, _)| open != slug) {
                self.close_project()?;
            }
            let (_, writer) = match &mut self.project {
                Some(open) => open,
                None => {
                    let writer = DayWriter::new(Vec::new(), &self.facts, self.row_group_rows)?;
                    self.project.insert((slug.to_owned(), writer))
                }
            };
            writer.write(rows)?;
        }
        let Some(organizations) = self.organizations_of.get(slug) else {
            return Ok(());
        };
        for organization in organizations {
            let held = self
                .organizations
                .entry(organization.clone())
                .or_insert_with(|| Held::Rows(Vec::new(), 0));
            match held {
                Held::File(writer) => writer.write(rows)?,
                Held::Rows(batches, bytes) => {
                    let compact = compacted(rows)?;
                    let size = compact.get_array_memory_size();
                    *bytes += size;
                    self.held_bytes += size;
                    batches.push(compact);
                }
            }
        }
        while self.held_bytes > HELD_BYTES {
            self.release_largest()?;
        }
        Ok(())
    }

    fn close_project(&mut self) -> Result<()> {
        let Some((slug, writer)) = self.project.take() else {
            return Ok(());
        };
        let rows = writer.rows();
        let (bytes, _) = writer.finish()?;
        self.spool(Scope::Project(slug.parse()?), rows, &bytes)
    }

    /// Moves the organization with the most rows in memory to a file of its own.
    fn release_largest(&mut self) -> Result<()> {
        let size = |held: &Held| match held {
            Held::Rows(_, bytes) => *bytes,
            Held::File(_) => 0,
        };
        let Some((_, held)) = self.organizations.iter_mut().max_by_key(|(_, held)| size(held)) else {
            return Ok(());
        };
        let mut writer = Box::new(DayWriter::new(
            Spool::create(self.temp_dir.as_deref())?,
            &self.facts,
            self.row_group_rows,
        )?);
        if let Held::Rows(batches, bytes) = held {
            for batch in batches.drain(..) {
                writer.write(&batch)?;
            }
            self.held_bytes -= *bytes;
        }
        *held = Held::File(writer);
        Ok(())
    }

    /// All copies and the bytes that hold them.
    pub fn finish(mut self) -> Result<(Vec<CopyFile>, bytes::Bytes)> {
        self.close_project()?;
        for (slug, held) in std::mem::take(&mut self.organizations) {
            let scope = Scope::Organization(slug);
            match held {
                Held::File(writer) => {
                    let rows = writer.rows();
                    let bytes = writer.finish()?.0.into_bytes()?;
                    self.spool(scope, rows, &bytes)?;
                }
                Held::Rows(batches, _) => {
                    let mut writer = DayWriter::new(Vec::new(), &self.facts, self.row_group_rows)?;
                    for batch in &batches {
                        writer.write(batch)?;
                    }
                    let rows = writer.rows();
                    let (bytes, _) = writer.finish()?;
                    self.spool(scope, rows, &bytes)?;
                }
            }
        }
        Ok((self.files, self.spool.into_bytes()?))
    }

    fn spool(&mut self, scope: Scope, rows: u64, bytes: &[u8]) -> Result<()> {
        self.spool
            .write_all(bytes)
            .map_err(|error| Error::io("a copy could not be spooled", error))?;
        let place = self.spooled..self.spooled + bytes.len();
        self.spooled = place.end;
        self.files.push(CopyFile { scope, rows, place });
        Ok(())
    }
}

/// The rows on their own: a slice would keep the whole batch that it was cut from.
fn compacted(rows: &RecordBatch) -> Result<RecordBatch> {
    let all = arrow::array::UInt32Array::from_iter_values(0..rows.num_rows() as u32);
    take_record_batch(rows, &all).map_err(|error| Error::internal(error.to_string()))
}
