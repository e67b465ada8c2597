//! The footer of one version of a file: parsed, and proven to describe a page-view file of this format, of the day
//! that its key says, whose row groups and pages lie where they can lie. Bytes come from outside and may be anything;
//! whatever is wrong with them is an [`Error::CorruptFile`] that names the key.

pub(crate) mod shape;

use std::collections::HashMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use parquet::DecodeResult;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::errors::ParquetError;
use parquet::file::metadata::{
    ColumnChunkMetaData, FileMetaData, FooterTail, PageIndexPolicy, ParquetMetaData, ParquetMetaDataBuilder,
    ParquetMetaDataPushDecoder, ParquetMetaDataReader, RowGroupMetaData,
};
use parquet::file::page_index::column_index::ColumnIndexMetaData;
use parquet::file::statistics::Statistics;

use crate::base::error::{Error, Result};
use crate::base::keys::{Day, day_of};
use crate::base::schema;

/// Magic and length at the end of every Parquet file.
const TAIL: usize = 8;
/// More than the footer and page index of any file that is sensible to read.
const MAX_FOOTER: u64 = 64 << 20;
/// Projects of which it is remembered where in a file their rows are.
const MAX_PROJECTS: usize = 256;
/// Eight times as many rows as a row group is written with. Memory is reserved for as many values as a damaged
/// page claims to hold, up to this.
pub const MAX_GROUP_ROWS: i64 = 1 << 20;

/// What is known about one version of a file: where its row groups and pages are and what they hold.
#[derive(Debug, Clone)]
pub struct Footer {
    pub etag: String,
    /// Size of the object in bytes.
    pub size: u64,
    /// Bytes from the beginning of the page index to the end of the object.
    pub tail: u64,
    /// Rows and row groups of the file.
    rows: u64,
    row_groups: usize,
    metadata: Arc<ParquetMetaData>,
    /// Where rows of some projects are, by id.
    projects: Arc<Mutex<HashMap<i32, Arc<[GroupPlan]>>>>,
}

/// The outcome of reading a footer from the last bytes of an object.
#[derive(Debug)]
pub(crate) enum Parsed {
    Footer(Footer),
    /// More is needed: all bytes from here on.
    Needs(u64),
}

impl Footer {
    /// Reads the footer out of the last bytes of an object, which begin at `offset`.
    pub(crate) fn parse(key: &str, etag: &str, size: u64, offset: u64, bytes: &Bytes) -> Result<Parsed> {
        let read = || read(day_of(key), etag, size, offset, bytes);
        // The parquet crate has assertions that only damaged files violate.
        let read = catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err("its footer is damaged".into()));
        read.map_err(|error| Error::corrupt(key, error))
    }

    pub fn metadata(&self) -> &Arc<ParquetMetaData> {
        &self.metadata
    }

    /// Bytes of memory that it takes.
    pub fn memory_size(&self) -> usize {
        size_of::<Self>() + self.etag.len() + self.metadata().memory_size()
    }

    pub fn rows(&self) -> u64 {
        self.rows
    }

    pub fn row_groups(&self) -> usize {
        self.row_groups
    }

    /// Where the rows of a project are, if that was found out.
    pub(crate) fn rows_of(&self, project_id: i32) -> Option<Arc<[GroupPlan]>> {
        self.projects().get(&project_id).cloned()
    }

    pub(crate) fn remember_rows_of(&self, project_id: i32, groups: Vec<GroupPlan>) {
        let mut projects = self.projects();
        if projects.len() >= MAX_PROJECTS {
            projects.clear();
        }
        projects.insert(project_id, groups.into());
    }

    fn projects(&self) -> MutexGuard<'_, HashMap<i32, Arc<[GroupPlan]>>> {
        self.projects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What reading these row groups takes, which are numbered anew in this order. Of a file of many row groups that
    /// is little.
    #[must_use]
    pub(crate) fn reduced(&self, numbers: &[usize]) -> Self {
        let whole = self.metadata.file_metadata();
        let about = FileMetaData::new(
            whole.version(),
            whole.num_rows(),
            None,
            None,
            whole.schema_descr_ptr(),
            whole.column_orders().cloned(),
        );
        let groups = self.metadata.row_groups();
        let groups = numbers.iter().filter_map(|number| groups.get(*number)).cloned();
        let offsets = self.metadata.offset_index().map(|index| {
            let chosen = numbers.iter().filter_map(|number| index.get(*number));
            chosen.cloned().collect()
        });
        let metadata = ParquetMetaDataBuilder::new(about)
            .set_row_groups(groups.collect())
            .set_offset_index(offsets)
            .build();
        Self {
            metadata: Arc::new(metadata),
            ..self.clone()
        }
    }
}

/// Number of rows; [`check_groups`] has seen that it is not negative.
pub(crate) fn rows(group: &RowGroupMetaData) -> u64 {
    group.num_rows().unsigned_abs()
}

/// What is wrong with a file, as the end of a sentence.
struct Fault(String);

impl From<&str> for Fault {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<String> for Fault {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<ParquetError> for Fault {
    fn from(error: ParquetError) -> Self {
        Self(format!("its footer is damaged ({error})"))
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

fn read(day: Option<Day>, etag: &str, size: u64, offset: u64, bytes: &Bytes) -> Result<Parsed, Fault> {
    let Some((rest, tail)) = bytes.len().checked_sub(TAIL).map(|at| bytes.split_at(at)) else {
        return Err(format!("it has {size} bytes, fewer than any Parquet file").into());
    };
    let tail = FooterTail::try_from(tail).map_err(|_| "it does not end as a Parquet file does (is it truncated?)")?;
    if tail.is_encrypted_footer() {
        return Err("it is encrypted".into());
    }
    let length = tail.metadata_length();
    let end = size - TAIL as u64;
    if length as u64 > end.min(MAX_FOOTER) {
        return Err(format!("it claims a footer of {length} bytes in an object of {size}").into());
    }
    let Some(at) = rest.len().checked_sub(length) else {
        // The page index lies before the footer and is about as large.
        return Ok(Parsed::Needs(end.saturating_sub(length as u64 * 5 / 2)));
    };
    if !shape::is_file_metadata(&rest[at..]) {
        return Err("its footer is damaged".into());
    }
    let metadata = ParquetMetaDataReader::decode_metadata(&rest[at..])?;
    check_format(&metadata)?;
    check_groups(&metadata, size)?;
    let mut index: Option<Range<u64>> = None;
    let mut total = 0;
    for range in metadata
        .row_groups()
        .iter()
        .flat_map(|group| group.columns())
        .flat_map(index_ranges)
        .flatten()
    {
        let range = range?;
        total += range.end - range.start;
        if range.end > end || total > MAX_FOOTER {
            return Err("its page index lies outside of it".into());
        }
        index = Some(index.map_or(range.clone(), |all| all.start.min(range.start)..all.end.max(range.end)));
    }
    let start = end - length as u64;
    let tail = size - index.as_ref().map_or(start, |index| index.start.min(start));
    let metadata = match index {
        Some(index) if index.end - index.start > MAX_FOOTER => return Err("its page index is scattered".into()),
        Some(index) if index.start < offset => return Ok(Parsed::Needs(index.start)),
        Some(index) => with_page_index(metadata, size, offset, bytes, index)?,
        None => metadata,
    };
    check_pages(&metadata)?;
    // The types follow from the Parquet schema alone; a hint in the metadata could say anything.
    let reader = ArrowReaderMetadata::try_new(
        Arc::new(metadata),
        ArrowReaderOptions::new().with_skip_arrow_metadata(true),
    )?;
    check_columns(&reader)?;
    if let Some(day) = day {
        check_day(reader.metadata(), day)?;
    }
    let metadata = Arc::clone(reader.metadata());
    Ok(Parsed::Footer(Footer {
        etag: etag.to_owned(),
        size,
        tail,
        rows: metadata.row_groups().iter().map(rows).sum(),
        row_groups: metadata.num_row_groups(),
        metadata,
        projects: Arc::default(),
    }))
}

/// Where a column chunk's column index and offset index are.
fn index_ranges(chunk: &ColumnChunkMetaData) -> [Option<Result<Range<u64>, Fault>>; 2] {
    let range = |offset: Option<i64>, length: Option<i32>| {
        let (offset, length) = (offset?, length?);
        let range = u64::try_from(offset)
            .ok()
            .zip(u64::try_from(length).ok())
            .map(|(offset, length)| offset..offset + length);
        Some(range.ok_or_else(|| "its page index lies outside of it".into()))
    };
    [
        range(chunk.column_index_offset(), chunk.column_index_length()),
        range(chunk.offset_index_offset(), chunk.offset_index_length()),
    ]
}

fn with_page_index(
    metadata: ParquetMetaData,
    size: u64,
    offset: u64,
    bytes: &Bytes,
    index: Range<u64>,
) -> Result<ParquetMetaData, Fault> {
    let slice = |range: &Range<u64>| bytes.slice((range.start - offset) as usize..(range.end - offset) as usize);
    for chunk in metadata.row_groups().iter().flat_map(|group| group.columns()) {
        let [columns, offsets] = index_ranges(chunk);
        let columns = columns
            .transpose()?
            .is_none_or(|range| shape::is_column_index(&slice(&range)));
        let offsets = offsets
            .transpose()?
            .is_none_or(|range| shape::is_offset_index(&slice(&range)));
        if !columns || !offsets {
            return Err("its page index is damaged".into());
        }
    }
    let mut decoder = ParquetMetaDataPushDecoder::try_new_with_metadata(size, metadata)?
        .with_page_index_policy(PageIndexPolicy::Optional);
    let data = slice(&index);
    decoder.push_range(index, data)?;
    match decoder.try_decode()? {
        DecodeResult::Data(metadata) => Ok(metadata),
        _ => Err("its page index is damaged".into()),
    }
}

fn check_format(metadata: &ParquetMetaData) -> Result<(), Fault> {
    let pairs = metadata.file_metadata().key_value_metadata();
    let format = pairs
        .into_iter()
        .flatten()
        .find(|pair| pair.key == schema::meta::FORMAT)
        .and_then(|pair| pair.value.as_deref());
    match format.map(str::parse::<u32>) {
        Some(Ok(1..=schema::FORMAT)) => Ok(()),
        Some(Ok(newer @ 1..)) => Err(format!(
            "it has format {newer} and this version reads formats up to {}; upgrade parquet-analytics to one that reads format {newer}",
            schema::FORMAT
        )
        .into()),
        Some(_) => Err(format!("its metadata {} is not a format number", schema::meta::FORMAT).into()),
        None => Err(format!("its metadata lacks {}, so another program wrote it", schema::meta::FORMAT).into()),
    }
}

/// An object that was copied to another day's key would count as that day: neither may the file say another day of
/// itself, nor the statistics of its rows.
fn check_day(metadata: &ParquetMetaData, day: Day) -> Result<(), Fault> {
    let of_another = |what: &str, other: &str| {
        let other: String = other.chars().take(20).collect();
        Err(format!("{what} of {other}, and its key is that of {day} (was it copied or renamed?)").into())
    };
    let pairs = metadata.file_metadata().key_value_metadata();
    let said = pairs
        .into_iter()
        .flatten()
        .find(|pair| pair.key == schema::meta::DAY)
        .and_then(|pair| pair.value.as_deref());
    if let Some(other) = said.filter(|said| *said != day.to_string()) {
        return of_another("it says that it is", other);
    }
    let column = schema::pageviews().index_of(schema::DATE).unwrap_or(usize::MAX);
    for group in metadata.row_groups() {
        let Some(Statistics::Int32(dates)) = group.columns().get(column).and_then(ColumnChunkMetaData::statistics)
        else {
            continue;
        };
        let bounds = [dates.min_opt(), dates.max_opt()].into_iter().flatten();
        if let Some(other) = bounds.copied().find(|date| *date != day.to_date32()) {
            let other = Day::from_date32(other).map_or_else(|| "no day".to_owned(), |other| other.to_string());
            return of_another("it holds rows", &other);
        }
    }
    Ok(())
}

/// Exactly the ten columns, with the right types, in order.
fn check_columns(reader: &ArrowReaderMetadata) -> Result<(), Fault> {
    let wanted = schema::pageviews();
    let found = reader.schema().fields();
    for field in wanted.fields() {
        let name = field.name();
        let Some((_, column)) = found.find(name) else {
            return Err(format!("the column {name} is missing").into());
        };
        if column.data_type() != field.data_type() {
            let (is, should) = (column.data_type(), field.data_type());
            return Err(format!("the column {name} has the type {is} instead of {should}").into());
        }
        if column.is_nullable() && !field.is_nullable() {
            return Err(format!("the column {name} may hold NULLs").into());
        }
    }
    match found
        .iter()
        .zip(wanted.fields())
        .find(|(found, wanted)| found.name() != wanted.name())
    {
        Some((column, _)) => Err(format!("the column {} is not where it should be", column.name()).into()),
        None if found.len() > wanted.fields().len() => Err("it has more columns than it should".into()),
        None => Ok(()),
    }
}

/// Column chunks lie inside the file, and numbers of rows are possible and agree with each other.
fn check_groups(metadata: &ParquetMetaData, size: u64) -> Result<(), Fault> {
    let mut rows = 0_i64;
    for (number, group) in metadata.row_groups().iter().enumerate() {
        let inside = group.columns().iter().all(|chunk| {
            let start = u64::try_from(chunk.dictionary_page_offset().unwrap_or(chunk.data_page_offset()));
            let length = u64::try_from(chunk.compressed_size());
            start
                .ok()
                .zip(length.ok())
                .and_then(|(start, length)| start.checked_add(length))
                .is_some_and(|end| end <= size)
        });
        if !inside {
            return Err(format!("its row group {number} lies outside of it").into());
        }
        // The columns are flat: a value a row, NULL or not.
        let agree = group
            .columns()
            .iter()
            .all(|chunk| chunk.num_values() == group.num_rows());
        if !agree || !(0..=MAX_GROUP_ROWS).contains(&group.num_rows()) {
            return Err(format!("its row group {number} has an impossible number of rows").into());
        }
        rows += group.num_rows();
    }
    if rows != metadata.file_metadata().num_rows() {
        return Err("the row groups have other numbers of rows than the whole".into());
    }
    Ok(())
}

/// The pages of every column chunk are in order, inside the chunk, and begin at rows that exist; the
/// column index has an entry for each.
fn check_pages(metadata: &ParquetMetaData) -> Result<(), Fault> {
    let Some(offsets) = metadata.offset_index() else {
        return Ok(());
    };
    for (number, group) in metadata.row_groups().iter().enumerate() {
        for (column, chunk) in group.columns().iter().enumerate() {
            let fault = || {
                Fault(format!(
                    "the page index of its row group {number} contradicts the footer"
                ))
            };
            let pages = offsets
                .get(number)
                .and_then(|g| g.get(column))
                .ok_or_else(fault)?
                .page_locations();
            let (start, length) = chunk.byte_range();
            let (mut byte, mut row) = (start, None);
            for page in pages {
                let page_start = u64::try_from(page.offset).map_err(|_| fault())?;
                let page_end = page_start + u64::try_from(page.compressed_page_size).map_err(|_| fault())?;
                let fits = page_start >= byte && page_end <= start + length;
                let first = row.map_or(page.first_row_index == 0, |row| page.first_row_index > row);
                if !fits || !first || page.first_row_index >= group.num_rows() {
                    return Err(fault());
                }
                (byte, row) = (page_end, Some(page.first_row_index));
            }
            if pages.is_empty() && group.num_rows() > 0 {
                return Err(fault());
            }
            let index = metadata
                .column_index()
                .and_then(|index| index.get(number))
                .and_then(|group| group.get(column));
            if let Some(index) = index
                && !matches!(index, ColumnIndexMetaData::NONE)
                && index.num_pages() != pages.len() as u64
            {
                return Err(fault());
            }
        }
    }
    Ok(())
}

/// The rows of a row group that can matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupPlan {
    /// Number of the row group in its file.
    pub group: usize,
    /// Ranges of rows, in order, apart and not empty.
    pub rows: Vec<Range<u64>>,
}

impl GroupPlan {
    pub fn selected(&self) -> u64 {
        self.rows.iter().map(|range| range.end - range.start).sum()
    }
}
