//! Pieces of series files: which rows and columns of them a report needs, and what these add up to.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Date32Array, Int64Array, Int64Builder, RecordBatch, UInt32Array,
};
use arrow::compute::{filter_record_batch, take_record_batch};
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type, Schema, SchemaRef, UInt16Type};
use futures::future::try_join_all;

use super::{Counters, add};
use crate::base::error::{Error, Result};
use crate::base::keys::Day;
use crate::base::process::lock;
use crate::base::runtime::{self, Cancel};
use crate::base::schema;
use crate::derived::group;
use crate::derived::index::Index;
use crate::derived::series::{self, COUNTS, DAYS, Run, VIEWS};
use crate::engine::{Batches, refused};
use crate::scan::plan::{self, Filter};
use crate::scan::{Options, Sparse};
use crate::store::{Part, Precondition, Response, Store};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passing {
    All,
    /// Of several ids that the project's slug has had.
    Some,
}

/// Whether rows of a run can pass.
pub(super) fn passing(filter: &Filter, run: &Run) -> Option<Passing> {
    let slug = |slugs: &Vec<String>| slugs.binary_search(&run.project_slug).is_ok();
    if !filter.projects.as_ref().is_none_or(slug) {
        return None;
    }
    let status = |statuses: &Vec<i16>| statuses.binary_search(&run.status).is_ok();
    if !filter.statuses.as_ref().is_none_or(status) {
        return None;
    }
    match run.project_ids.iter().filter(|id| passes(filter, **id)).count() {
        0 => None,
        ids if ids == run.project_ids.len() => Some(Passing::All),
        _ => Some(Passing::Some),
    }
}

fn passes(filter: &Filter, id: i32) -> bool {
    filter.project_id.is_none_or(|asked| asked == id)
        && filter
            .any_project
            .as_ref()
            .is_none_or(|ids| ids.binary_search(&id).is_ok())
        && filter.hidden.binary_search(&id).is_err()
}

/// Which days of a file count; `None` when all do that have rows.
pub(super) fn allowed(index: &Index, days: &[Day]) -> Option<Arc<[bool]>> {
    let asked: BTreeSet<i32> = days.iter().map(|day| day.to_date32()).collect();
    let first = index.first.to_date32();
    let counts: Vec<bool> = (first..)
        .take(index.days.len())
        .map(|day| asked.contains(&day))
        .collect();
    let all = counts
        .iter()
        .zip(&index.days)
        .all(|(counts, file)| *counts || file.is_none());
    (!all).then(|| counts.into())
}

/// The columns that a report needs.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// Texts, by name, in the order asked for; then the views.
    texts: Vec<String>,
    by_day: bool,
    schema: SchemaRef,
}

impl Wanted {
    pub fn new(projection: &[usize]) -> Result<Self> {
        let all = schema::pageviews();
        let names = projection
            .iter()
            .map(|column| all.fields().get(*column).map(|field| field.name().as_str()));
        let mut names: Vec<&str> = names.flatten().collect();
        if names.pop() != Some(schema::VIEW_COUNT) {
            return Err(Error::internal("sums of page views have the views last"));
        }
        let by_day = names == [schema::DATE];
        let mut fields: Vec<Field> = Vec::new();
        if by_day {
            fields.push(Field::new(schema::DATE, DataType::Date32, false));
            names.clear();
        }
        for name in &names {
            if ![schema::PATH, schema::VERSION_SLUG, schema::FULL_PATH].contains(name) {
                return Err(Error::internal(format!("views are not summed by {name}")));
            }
            fields.push(Field::new(*name, DataType::Utf8, *name != schema::PATH));
        }
        fields.push(Field::new(schema::VIEW_COUNT, DataType::Int64, false));
        Ok(Self {
            texts: names.into_iter().map(str::to_owned).collect(),
            by_day,
            schema: Arc::new(Schema::new(fields)),
        })
    }

    /// Indexes into [`series::columns`], in order.
    pub fn columns(&self, some_days: bool, by_id: bool, by_version: bool) -> Result<Vec<usize>> {
        let mut names: Vec<&str> = self.texts.iter().map(String::as_str).collect();
        if self.by_day || some_days {
            names.extend([DAYS, COUNTS]);
        } else {
            names.push(VIEWS);
        }
        names.extend(by_id.then_some(schema::PROJECT_ID));
        names.extend(by_version.then_some(schema::VERSION_ID));
        let all = series::columns();
        let mut columns = names
            .into_iter()
            .map(|name| all.index_of(name).map_err(|error| Error::internal(error.to_string())))
            .collect::<Result<Vec<_>>>()?;
        columns.sort_unstable();
        Ok(columns)
    }
}

/// Row groups of a series file that are fetched together.
pub(super) struct Pieces {
    pub store: Store,
    pub key: String,
    pub etag: String,
    pub index: Arc<Index>,
    pub allowed: Option<Arc<[bool]>>,
    pub columns: Arc<[usize]>,
    pub wanted: Wanted,
    pub filter: Arc<Filter>,
    /// Rows pass by their project's id.
    pub by_id: bool,
    pub options: Options,
    pub cancel: Cancel,
    pub counters: Arc<Counters>,
    /// Row groups with those of their rows that can pass.
    pub groups: Vec<(usize, Vec<Range<u64>>)>,
    pub ranges: Vec<Range<u64>>,
    pub size: u64,
    pub bytes: Mutex<Option<Sparse>>,
}

pub(super) enum Fetched {
    Whole,
    Gone,
}

/// Fetches what is not there yet.
///
/// # Errors
/// [`Error::CorruptFile`] when the bytes are not those that were written.
pub(super) async fn fetch(part: Arc<Pieces>) -> Result<Fetched> {
    if lock(&part.bytes).is_some() {
        return Ok(Fetched::Whole);
    }
    let requests = plan::coalesce(part.ranges.clone(), part.options.gap, part.options.request_bytes);
    let end = requests.iter().map(|range| range.end).max().unwrap_or_default();
    let chunks = requests.into_iter().map(|range| {
        let part = &part;
        async move {
            add(&part.counters.data_requests, 1);
            let condition = Precondition::IfMatch(part.etag.clone());
            match part.store.get(&part.key, Part::Range(range), condition).await? {
                Response::Found(found) => {
                    add(&part.counters.bytes, found.bytes.len() as u64);
                    Ok::<_, Error>(Some((found.offset, found.bytes)))
                }
                Response::NotFound | Response::PreconditionFailed | Response::NotModified => Ok(None),
            }
        }
    });
    let Some(chunks) = try_join_all(chunks).await?.into_iter().collect::<Option<Vec<_>>>() else {
        return Ok(Fetched::Gone);
    };
    let bytes = Sparse::new(end, chunks);
    for (group, _) in &part.groups {
        group::check(&part.index, *group, &part.columns, &bytes)?;
    }
    *lock(&part.bytes) = Some(bytes);
    Ok(Fetched::Whole)
}

/// The sums of one row group.
pub(super) fn unit(part: &Arc<Pieces>, number: usize) -> Result<Batches> {
    if let Fetched::Gone = runtime::block_on(&part.cancel, fetch(Arc::clone(part)))? {
        return Err(Error::Store {
            key: Some(part.key.clone()),
            message: format!("{} was replaced while it was being read; ask again", part.key),
            retryable: true,
        });
    }
    let bytes = lock(&part.bytes).clone().unwrap_or_default();
    let Some((group, rows)) = part.groups.get(number) else {
        return Err(Error::internal("no such piece of a series file"));
    };
    let batches = group::decode(
        &part.index,
        *group,
        &part.columns,
        &bytes,
        rows,
        part.options.batch_rows,
    )?;
    let part = Arc::clone(part);
    if part.wanted.by_day {
        let mut sums: Vec<Option<i64>> = vec![None; part.index.days.len()];
        for batch in batches {
            part.cancel.check()?;
            part.add_by_day(&part.passed(batch?)?, &mut sums)?;
        }
        let first = part.index.first.to_date32();
        let (dates, counts): (Vec<i32>, Vec<i64>) = (first..)
            .zip(sums)
            .filter_map(|(date, count)| Some((date, count?)))
            .unzip();
        let columns: Vec<ArrayRef> = vec![Arc::new(Date32Array::from(dates)), Arc::new(Int64Array::from(counts))];
        let batch = RecordBatch::try_new(Arc::clone(&part.wanted.schema), columns).map_err(internal);
        return Ok(Box::new(std::iter::once(batch)));
    }
    Ok(Box::new(batches.map(move |batch| part.summed(&part.passed(batch?)?))))
}

fn internal(error: impl std::fmt::Display) -> Error {
    Error::internal(error.to_string())
}

impl Pieces {
    fn damaged(&self) -> Error {
        Error::corrupt(self.index.key.as_str(), "its columns are not those of a series file")
    }

    /// The rows that pass the parts of the filter that are not known of a run.
    fn passed(&self, batch: RecordBatch) -> Result<RecordBatch> {
        add(&self.counters.rows_decoded, batch.num_rows() as u64);
        let numbers = |name: &str| {
            let column = batch.column_by_name(name);
            let column = column.and_then(|column| column.as_primitive_opt::<Int32Type>());
            column.ok_or_else(|| self.damaged())
        };
        let ids = self.by_id.then(|| numbers(schema::PROJECT_ID)).transpose()?;
        let versions = match &self.filter.versions {
            Some(asked) => Some((numbers(schema::VERSION_ID)?, asked)),
            None => None,
        };
        let batch = if ids.is_none() && versions.is_none() {
            batch
        } else {
            let passes: BooleanArray = (0..batch.num_rows())
                .map(|row| {
                    let id = ids.is_none_or(|ids| passes(&self.filter, ids.value(row)));
                    let version = versions.is_none_or(|(versions, asked)| {
                        let version = versions.is_valid(row).then(|| versions.value(row));
                        asked.binary_search(&version).is_ok()
                    });
                    Some(id && version)
                })
                .collect();
            filter_record_batch(&batch, &passes).map_err(internal)?
        };
        add(&self.counters.rows, batch.num_rows() as u64);
        Ok(batch)
    }

    /// The lists of days and counts of a batch: where each row's begin, and all values.
    fn lists<'a>(&self, batch: &'a RecordBatch) -> Result<(&'a [i32], &'a [u16], &'a [i64])> {
        let list = |name: &str| batch.column_by_name(name)?.as_list_opt::<i32>();
        let (Some(days), Some(counts)) = (list(DAYS), list(COUNTS)) else {
            return Err(self.damaged());
        };
        let offsets = days.value_offsets();
        let (Some(days), Some(numbers)) = (
            days.values().as_primitive_opt::<UInt16Type>(),
            counts.values().as_primitive_opt::<Int64Type>(),
        ) else {
            return Err(self.damaged());
        };
        if offsets != counts.value_offsets() {
            return Err(self.damaged());
        }
        Ok((offsets, days.values(), numbers.values()))
    }

    fn counts(&self, day: u16) -> bool {
        let allowed = |days: &Arc<[bool]>| days.get(usize::from(day)).copied().unwrap_or_default();
        self.allowed.as_ref().is_none_or(allowed)
    }

    fn add_by_day(&self, batch: &RecordBatch, sums: &mut [Option<i64>]) -> Result<()> {
        let (offsets, days, counts) = self.lists(batch)?;
        let range =
            offsets.first().copied().unwrap_or_default() as usize..offsets.last().copied().unwrap_or_default() as usize;
        let (Some(days), Some(counts)) = (days.get(range.clone()), counts.get(range)) else {
            return Err(self.damaged());
        };
        for (day, count) in days.iter().zip(counts) {
            if self.counts(*day) {
                let sum = sums.get_mut(usize::from(*day)).ok_or_else(|| self.damaged())?;
                let total = sum.unwrap_or_default().checked_add(*count);
                *sum = Some(total.ok_or_else(|| refused("a sum of views goes beyond 64 bits"))?);
            }
        }
        Ok(())
    }

    /// The texts of each row with the views of the days that count; rows without any of these are left out.
    fn summed(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let text = |name: &String| batch.column_by_name(name).cloned().ok_or_else(|| self.damaged());
        let mut columns = self.wanted.texts.iter().map(text).collect::<Result<Vec<_>>>()?;
        if self.allowed.is_none() {
            columns.push(batch.column_by_name(VIEWS).cloned().ok_or_else(|| self.damaged())?);
            return RecordBatch::try_new(Arc::clone(&self.wanted.schema), columns).map_err(|_| self.damaged());
        }
        let (offsets, days, counts) = self.lists(batch)?;
        let mut sums = Int64Builder::with_capacity(batch.num_rows());
        let mut rows = Vec::with_capacity(batch.num_rows());
        for (row, two) in offsets.windows(2).enumerate() {
            let range = two[0] as usize..two[1] as usize;
            let (Some(days), Some(counts)) = (days.get(range.clone()), counts.get(range)) else {
                return Err(self.damaged());
            };
            let mut sum: Option<i64> = None;
            for (_, count) in days.iter().zip(counts).filter(|(day, _)| self.counts(**day)) {
                let total = sum.unwrap_or_default().checked_add(*count);
                sum = Some(total.ok_or_else(|| refused("a sum of views goes beyond 64 bits"))?);
            }
            if let Some(sum) = sum {
                rows.push(row as u32);
                sums.append_value(sum);
            }
        }
        let sums: ArrayRef = Arc::new(sums.finish());
        if rows.len() < batch.num_rows() {
            let texts = Schema::new(self.wanted.schema.fields()[..columns.len()].to_vec());
            let texts = RecordBatch::try_new(Arc::new(texts), columns).map_err(|_| self.damaged())?;
            columns = take_record_batch(&texts, &UInt32Array::from(rows))
                .map_err(internal)?
                .columns()
                .to_vec();
        }
        columns.push(sums);
        RecordBatch::try_new(Arc::clone(&self.wanted.schema), columns).map_err(|_| self.damaged())
    }
}
