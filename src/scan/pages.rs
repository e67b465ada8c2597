//! The pages of a row group on their way to the decoder. The parquet crate reserves memory for as many bytes as a
//! page's header claims and for as many values as the head of an encoding claims, so that a few damaged bytes
//! could end the process: each claim is compared here with what can be, before the crate acts on it. Texts that
//! share their beginnings, or stand in a dictionary, can be many times longer than their page; so many rows are
//! decoded at once as the footer says that there is room for, and a page with more text than that is refused.

use std::sync::Arc;

use bytes::Bytes;
use parquet::arrow::arrow_reader::RowGroups;
use parquet::basic::{Encoding, Type};
use parquet::column::page::{Page, PageIterator, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData};
use parquet::file::page_index::offset_index::PageLocation;
use parquet::file::reader::ChunkReader;
use parquet::file::serialized_reader::SerializedPageReader;

use super::decode::Sparse;
use super::delta;
use crate::base::schema;
use crate::file::footer::{GroupPlan, rows, shape};

/// Ten times what the writer puts into a page.
const MAX_PAGE_BYTES: u64 = 64 << 20;
/// No codec makes a byte out of fewer than this part of one; zstd's runs come close.
const MAX_RATIO: u64 = 40_000;

/// Text of a batch, as far as the footer tells.
const BATCH_TEXT_BYTES: u64 = 32 << 20;

/// How many rows to decode at once, `most` unless their texts are long.
pub(super) fn batch_rows(metadata: &ParquetMetaData, plan: &GroupPlan, columns: &[usize], most: usize) -> usize {
    let Some(group) = metadata.row_groups().get(plan.group) else {
        return most;
    };
    let widest = |column: &usize| {
        let chunk = group.columns().get(*column)?;
        let all = (0, rows(group), chunk.unencoded_byte_array_data_bytes()?.unsigned_abs());
        let pages = match Texts::of(metadata, plan.group, *column) {
            Some(texts) => (0..texts.pages.len())
                .filter_map(|page| texts.page(page, rows(group)))
                .collect(),
            None => vec![all],
        };
        pages
            .into_iter()
            .map(|(start, end, text)| text / (end - start).max(1))
            .max()
    };
    let width = columns.iter().filter_map(widest).fold(1, u64::saturating_add);
    most.clamp(1, (BATCH_TEXT_BYTES / width).max(1) as usize)
}

/// What the page index says about the texts of a column chunk.
struct Texts<'a> {
    pages: &'a [PageLocation],
    bytes: &'a [i64],
}

impl<'a> Texts<'a> {
    fn of(metadata: &'a ParquetMetaData, group: usize, column: usize) -> Option<Self> {
        let index = metadata.offset_index()?.get(group)?.get(column)?;
        let (pages, bytes) = (index.page_locations(), index.unencoded_byte_array_data_bytes()?);
        (pages.len() == bytes.len()).then_some(Self { pages, bytes })
    }

    /// First row of a page, the row after its last, bytes of its texts.
    fn page(&self, page: usize, rows: u64) -> Option<(u64, u64, u64)> {
        let start = |page: usize| self.pages.get(page).map(|page| page.first_row_index.unsigned_abs());
        Some((
            start(page)?,
            start(page + 1).unwrap_or(rows),
            self.bytes.get(page)?.unsigned_abs(),
        ))
    }
}

/// One row group of a file whose bytes are in memory as far as they were planned.
pub(super) struct Group<'a> {
    pub bytes: Sparse,
    pub metadata: &'a Arc<ParquetMetaData>,
    pub number: usize,
}

impl Group<'_> {
    fn group(&self) -> Result<&RowGroupMetaData> {
        let group = self.metadata.row_groups().get(self.number);
        group.ok_or_else(|| fault("it has no such row group"))
    }

    fn pages(&self, column: usize) -> Result<Box<dyn PageReader>> {
        let group = self.group()?;
        let chunk = group
            .columns()
            .get(column)
            .ok_or_else(|| fault("a column is missing"))?;
        let locations = self
            .metadata
            .offset_index()
            .and_then(|index| Some(index.get(self.number)?.get(column)?.page_locations().clone()));
        check_headers(&self.bytes, chunk, locations.as_deref())?;
        let (rows, bytes) = (rows(group), Arc::new(self.bytes.clone()));
        let texts = match Texts::of(self.metadata, self.number, column) {
            Some(texts) => texts.bytes.iter().map(|bytes| bytes.unsigned_abs()).collect(),
            None => Vec::new(),
        };
        Ok(Box::new(Checked {
            reader: SerializedPageReader::new(bytes, chunk, rows as usize, locations)?,
            rows,
            levels: chunk.column_descr().max_def_level() > 0,
            text: chunk.column_type() == Type::BYTE_ARRAY,
            texts,
            chunk_text: chunk.unencoded_byte_array_data_bytes().map(i64::unsigned_abs),
            page: 0,
        }))
    }
}

impl RowGroups for Group<'_> {
    fn num_rows(&self) -> usize {
        self.group().map_or(0, rows) as usize
    }

    fn column_chunks(&self, column: usize) -> Result<Box<dyn PageIterator>> {
        Ok(Box::new(Chunk(Some(self.pages(column)))))
    }

    fn row_groups(&self) -> Box<dyn Iterator<Item = &RowGroupMetaData> + '_> {
        Box::new(self.group().into_iter())
    }

    fn metadata(&self) -> &ParquetMetaData {
        self.metadata
    }
}

/// The only column chunk of a column.
struct Chunk(Option<Result<Box<dyn PageReader>>>);

impl Iterator for Chunk {
    type Item = Result<Box<dyn PageReader>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.take()
    }
}

impl PageIterator for Chunk {}

/// Hands out pages whose claims are possible.
struct Checked {
    reader: SerializedPageReader<Sparse>,
    rows: u64,
    /// Values may be NULL, so that pages begin with levels.
    levels: bool,
    /// The column holds texts.
    text: bool,
    /// Their bytes in each page, or in all, as far as the footer tells.
    texts: Vec<u64>,
    chunk_text: Option<u64>,
    /// Number of the next page with data.
    page: usize,
}

impl Iterator for Checked {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Checked {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.reader.get_next_page()?;
        if let Some(page) = &page {
            self.check(page)?;
            self.page += usize::from(page.is_data_page());
        }
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.reader.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        if self.reader.peek_next_page()?.is_some_and(|page| !page.is_dict) {
            self.page += 1;
        }
        self.reader.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.reader.at_record_boundary()
    }
}

impl Checked {
    fn check(&self, page: &Page) -> Result<()> {
        let count = u64::from(page.num_values());
        if count > self.rows {
            return Err(fault("a page claims more values than there are rows"));
        }
        let (encoding, values) = match page {
            Page::DictionaryPage { buf, .. } => return if self.text { check_dictionary(buf) } else { Ok(()) },
            Page::DataPage {
                buf,
                encoding,
                def_level_encoding,
                ..
            } => {
                let skip = match (self.levels, def_level_encoding) {
                    (false, _) => 0,
                    (true, Encoding::RLE) => {
                        let length = buf.first_chunk().ok_or_else(|| fault("a page ends in its levels"))?;
                        4 + u32::from_le_bytes(*length) as usize
                    }
                    (true, _) => return Err(fault("a page has levels in an encoding that is not written")),
                };
                (encoding, buf.get(skip..))
            }
            Page::DataPageV2 {
                buf,
                encoding,
                def_levels_byte_len,
                rep_levels_byte_len,
                ..
            } => {
                let skip = *def_levels_byte_len as usize + *rep_levels_byte_len as usize;
                (encoding, buf.get(skip..))
            }
        };
        let values = values.ok_or_else(|| fault("a page ends in its levels"))?;
        let damaged = || fault("the numbers of a page are damaged");
        match encoding {
            Encoding::PLAIN | Encoding::PLAIN_DICTIONARY | Encoding::RLE_DICTIONARY => Ok(()),
            Encoding::DELTA_BINARY_PACKED | Encoding::DELTA_LENGTH_BYTE_ARRAY => {
                delta::run(values, count, false).map(drop).ok_or_else(damaged)
            }
            Encoding::DELTA_BYTE_ARRAY => {
                let (shared, rest) = delta::run(values, count, true).ok_or_else(damaged)?;
                let (own, _) = delta::run(rest, count, true).ok_or_else(damaged)?;
                let told = self.texts.get(self.page).copied().or(self.chunk_text);
                if shared + own > told.unwrap_or(MAX_PAGE_BYTES) {
                    return Err(fault("a page has longer texts than the footer says"));
                }
                Ok(())
            }
            other => Err(fault(&format!("a page has the encoding {other}, which is not written"))),
        }
    }
}

/// Every value of a dictionary can stand in every row.
fn check_dictionary(mut values: &[u8]) -> Result<()> {
    while let Some((length, rest)) = values.split_first_chunk() {
        let length = u32::from_le_bytes(*length) as usize;
        if length > schema::MAX_SLUG_BYTES {
            return Err(fault("a dictionary holds a text that is longer than any slug"));
        }
        values = rest.get(length..).unwrap_or_default();
    }
    Ok(())
}

fn fault(what: &str) -> ParquetError {
    ParquetError::General(what.to_owned())
}

/// The headers of all pages of a chunk that are in memory, before any is decompressed.
fn check_headers(bytes: &Sparse, chunk: &ColumnChunkMetaData, pages: Option<&[PageLocation]>) -> Result<()> {
    let (start, length) = chunk.byte_range();
    let end = start + length;
    let Some(pages) = pages else {
        let mut at = start;
        while at < end {
            let rest = bytes.get_bytes(at, (end - at) as usize)?;
            at += check_header(&rest, false)?;
        }
        return Ok(());
    };
    let first = pages.first().map_or(end, |page| page.offset.unsigned_abs());
    let pages = pages
        .iter()
        .map(|page| (page.offset.unsigned_abs(), page.compressed_page_size));
    let dictionary = (start < first).then_some((start, (first - start) as i32));
    for (offset, length) in dictionary.into_iter().chain(pages) {
        // What was not fetched is not read either.
        if let Ok(page) = bytes.get_bytes(offset, usize::try_from(length).unwrap_or(usize::MAX)) {
            check_header(&page, true)?;
        }
    }
    Ok(())
}

/// The length of a page with its header; `all` says that the bytes are just the page.
fn check_header(bytes: &Bytes, all: bool) -> Result<u64> {
    let sizes = shape::page_sizes(bytes).ok_or_else(|| fault("the header of a page is damaged"))?;
    let there = bytes.len() as u64 - sizes.header;
    let compressed = if all { there } else { sizes.compressed };
    if compressed > there || sizes.uncompressed > MAX_PAGE_BYTES.min(compressed.saturating_mul(MAX_RATIO)) {
        return Err(fault("the header of a page claims an impossible size"));
    }
    Ok(sizes.header + compressed)
}
