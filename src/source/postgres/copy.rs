//! Decodes PostgreSQL's binary COPY format straight into columns. Pure: bytes in, record batches out; any
//! bytes at all give rows or an error.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{Int16Builder, Int32Builder, Int64Builder, RecordBatch, StringBuilder};

use crate::base::error::{Error, Result};
use crate::base::schema;
use crate::source::{BadRows, LeftRow, leave};

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";

/// Flags that change the meaning of what follows (bits 16 to 31).
const CRITICAL_FLAGS: u32 = 0xffff_0000;

/// Rows in a batch, and bytes of text after which one ends early.
const BATCH_ROWS: usize = 65_536;
const BATCH_TEXT_BYTES: usize = 32 << 20;

/// A field longer than this is damage, not a path.
const MAX_FIELD_BYTES: usize = 64 << 20;

/// Which of the optional columns the rows have. The columns come in the order of [`schema::facts`].
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    pub version_id: bool,
    pub full_path: bool,
    pub status: bool,
}

impl Layout {
    fn fields(self) -> usize {
        4 + usize::from(self.version_id) + usize::from(self.full_path) + usize::from(self.status)
    }
}

enum State {
    Header,
    Rows,
    Done,
}

pub struct Decoder {
    layout: Layout,
    bad_rows: BadRows,
    left: Vec<LeftRow>,
    state: State,
    /// A row that is not whole yet.
    partial: Vec<u8>,
    columns: Columns,
    rows: u64,
    projects: Seen,
    versions: Seen,
}

#[derive(Default)]
struct Columns {
    id: Int64Builder,
    project_id: Int32Builder,
    version_id: Int32Builder,
    path: StringBuilder,
    full_path: StringBuilder,
    view_count: Int32Builder,
    status: Int16Builder,
    rows: usize,
    text_bytes: usize,
}

/// The distinct ids of a column.
#[derive(Default)]
struct Seen {
    ids: HashSet<i32>,
    last: Option<i32>,
}

impl Seen {
    fn add(&mut self, id: i32) {
        if self.last != Some(id) {
            self.last = Some(id);
            self.ids.insert(id);
        }
    }
}

fn malformed(what: &str) -> Error {
    Error::Database {
        message: format!("the database's COPY data is damaged: {what}; try again"),
        sqlstate: None,
        retryable: true,
    }
}

impl Decoder {
    pub fn new(layout: Layout, bad_rows: BadRows) -> Self {
        Self {
            layout,
            bad_rows,
            left: Vec::new(),
            state: State::Header,
            partial: Vec::new(),
            columns: Columns::default(),
            rows: 0,
            projects: Seen::default(),
            versions: Seen::default(),
        }
    }

    /// Takes more of the data, cut anywhere, and hands over the batches that became full.
    pub fn push(&mut self, bytes: &[u8], sink: &mut dyn FnMut(RecordBatch) -> Result<()>) -> Result<()> {
        if self.partial.is_empty() {
            let taken = self.decode(bytes, sink)?;
            self.partial.extend_from_slice(&bytes[taken..]);
        } else {
            let mut whole = std::mem::take(&mut self.partial);
            whole.extend_from_slice(bytes);
            let taken = self.decode(&whole, sink)?;
            // In place: a large row in small pieces would otherwise be copied once for each of them.
            whole.drain(..taken);
            if !whole.is_empty() {
                self.partial = whole;
            }
        }
        Ok(())
    }

    /// Hands over the rest; an error when the data did not end properly.
    pub fn finish(&mut self, sink: &mut dyn FnMut(RecordBatch) -> Result<()>) -> Result<()> {
        if !matches!(self.state, State::Done) {
            return Err(malformed("it ends in the middle"));
        }
        if self.columns.rows > 0 {
            sink(self.columns.take()?)?;
        }
        Ok(())
    }

    /// Rows handed over.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Rows left out, because a value does not fit.
    pub fn left(&self) -> &[LeftRow] {
        &self.left
    }

    pub fn project_ids(&self) -> &HashSet<i32> {
        &self.projects.ids
    }

    pub fn version_ids(&self) -> &HashSet<i32> {
        &self.versions.ids
    }

    /// Decodes what is whole and says how many bytes that was.
    fn decode(&mut self, bytes: &[u8], sink: &mut dyn FnMut(RecordBatch) -> Result<()>) -> Result<usize> {
        let mut at = 0;
        if matches!(self.state, State::Header) {
            match header(bytes)? {
                None => return Ok(0),
                Some(length) => at = length,
            }
            self.state = State::Rows;
        }
        while at < bytes.len() {
            if matches!(self.state, State::Done) {
                return Err(malformed("there is something after its end"));
            }
            let Some(fields) = read::<2>(bytes, at).map(i16::from_be_bytes) else {
                break;
            };
            if fields == -1 {
                self.state = State::Done;
                at += 2;
                continue;
            }
            if usize::try_from(fields) != Ok(self.layout.fields()) {
                return Err(malformed(&format!(
                    "a row has {fields} fields instead of {}",
                    self.layout.fields()
                )));
            }
            let Some(end) = row_end(bytes, at + 2, self.layout.fields())? else {
                break;
            };
            if let Err(error) = self.row(&bytes[at + 2..end]) {
                leave(self.bad_rows, &mut self.left, error)?;
            }
            at = end;
            if self.columns.rows >= BATCH_ROWS || self.columns.text_bytes >= BATCH_TEXT_BYTES {
                sink(self.columns.take()?)?;
            }
        }
        Ok(at)
    }

    fn row(&mut self, row: &[u8]) -> Result<()> {
        let mut fields = Fields { row, at: 0 };
        let id = integer(fields.next()?, schema::ID, None)?;
        let id: i64 = required(id, schema::ID, None)?;
        let at = Some(id);
        let project: i32 = required(
            fit(integer(fields.next()?, schema::PROJECT_ID, at)?, schema::PROJECT_ID, at)?,
            schema::PROJECT_ID,
            at,
        )?;
        let version: Option<i32> = if self.layout.version_id {
            fit(integer(fields.next()?, schema::VERSION_ID, at)?, schema::VERSION_ID, at)?
        } else {
            None
        };
        let path = required(text(fields.next()?, schema::PATH, at)?, schema::PATH, at)?;
        let full_path = if self.layout.full_path {
            text(fields.next()?, schema::FULL_PATH, at)?
        } else {
            None
        };
        let views: i32 = required(count(fields.next()?, schema::VIEW_COUNT, at)?, schema::VIEW_COUNT, at)?;
        let status: i16 = if self.layout.status {
            required(count(fields.next()?, schema::STATUS, at)?, schema::STATUS, at)?
        } else {
            200
        };

        self.projects.add(project);
        if let Some(version) = version {
            self.versions.add(version);
        }
        let columns = &mut self.columns;
        columns.id.append_value(id);
        columns.project_id.append_value(project);
        columns.version_id.append_option(version);
        columns.path.append_value(path);
        columns.full_path.append_option(full_path);
        columns.view_count.append_value(views);
        columns.status.append_value(status);
        columns.rows += 1;
        columns.text_bytes += row.len();
        self.rows += 1;
        Ok(())
    }
}

impl Columns {
    fn take(&mut self) -> Result<RecordBatch> {
        (self.rows, self.text_bytes) = (0, 0);
        RecordBatch::try_new(
            schema::facts(),
            vec![
                Arc::new(self.id.finish()),
                Arc::new(self.project_id.finish()),
                Arc::new(self.version_id.finish()),
                Arc::new(self.path.finish()),
                Arc::new(self.full_path.finish()),
                Arc::new(self.view_count.finish()),
                Arc::new(self.status.finish()),
            ],
        )
        .map_err(|error| Error::internal(error.to_string()))
    }
}

fn read<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// The length of the header, or `None` when it is not whole yet.
fn header(bytes: &[u8]) -> Result<Option<usize>> {
    let given = &bytes[..bytes.len().min(SIGNATURE.len())];
    if given != &SIGNATURE[..given.len()] {
        return Err(malformed("it does not begin with the signature of the binary format"));
    }
    let after = SIGNATURE.len();
    let (Some(flags), Some(extension)) = (read::<4>(bytes, after), read::<4>(bytes, after + 4)) else {
        return Ok(None);
    };
    if u32::from_be_bytes(flags) & CRITICAL_FLAGS != 0 {
        return Err(malformed("its header has unknown flags"));
    }
    let extension = u32::from_be_bytes(extension) as usize;
    if extension > MAX_FIELD_BYTES {
        return Err(malformed("its header is absurdly long"));
    }
    let end = after + 8 + extension;
    Ok((bytes.len() >= end).then_some(end))
}

/// Where a row ends, or `None` when it is not whole yet.
fn row_end(bytes: &[u8], mut at: usize, fields: usize) -> Result<Option<usize>> {
    for _ in 0..fields {
        let Some(length) = read::<4>(bytes, at).map(i32::from_be_bytes) else {
            return Ok(None);
        };
        at += 4;
        match usize::try_from(length) {
            Ok(length) if length <= MAX_FIELD_BYTES => at += length,
            Err(_) if length == -1 => {}
            _ => return Err(malformed(&format!("a field of {length} bytes"))),
        }
    }
    Ok((at <= bytes.len()).then_some(at))
}

/// The fields of a row whose lengths were checked.
struct Fields<'a> {
    row: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    fn next(&mut self) -> Result<Option<&'a [u8]>> {
        let short = || malformed("a row is too short");
        let length = read::<4>(self.row, self.at).map(i32::from_be_bytes).ok_or_else(short)?;
        self.at += 4;
        let Ok(length) = usize::try_from(length) else {
            return Ok(None);
        };
        let field = self.row.get(self.at..self.at + length).ok_or_else(short)?;
        self.at += length;
        Ok(Some(field))
    }
}

fn bad_row(row_id: Option<i64>, column: &'static str, why: &str) -> Error {
    let row = row_id.map_or_else(
        || "a row without an id".to_owned(),
        |id| format!("the row with id {id}"),
    );
    Error::BadRow {
        row_id,
        column,
        message: format!("{row} cannot be exported: {column} {why}; correct it in the database, nothing was written"),
    }
}

fn required<T>(value: Option<T>, column: &'static str, row_id: Option<i64>) -> Result<T> {
    value.ok_or_else(|| bad_row(row_id, column, "is NULL"))
}

/// An integer of 2, 4 or 8 bytes.
fn integer(field: Option<&[u8]>, column: &'static str, row_id: Option<i64>) -> Result<Option<i64>> {
    let Some(field) = field else { return Ok(None) };
    if let Some(value) = read::<8>(field, 0).filter(|_| field.len() == 8) {
        return Ok(Some(i64::from_be_bytes(value)));
    }
    if let Some(value) = read::<4>(field, 0).filter(|_| field.len() == 4) {
        return Ok(Some(i32::from_be_bytes(value).into()));
    }
    match read::<2>(field, 0).filter(|_| field.len() == 2) {
        Some(value) => Ok(Some(i16::from_be_bytes(value).into())),
        None => Err(bad_row(
            row_id,
            column,
            &format!("has {} bytes, which is no integer", field.len()),
        )),
    }
}

/// The value in a narrower type.
fn fit<T: TryFrom<i64>>(value: Option<i64>, column: &'static str, row_id: Option<i64>) -> Result<Option<T>> {
    let bits = 8 * size_of::<T>();
    value
        .map(|value| {
            T::try_from(value)
                .map_err(|_| bad_row(row_id, column, &format!("is {value}, which does not fit {bits} bits")))
        })
        .transpose()
}

/// A number that may not be negative.
fn count<T: TryFrom<i64>>(field: Option<&[u8]>, column: &'static str, row_id: Option<i64>) -> Result<Option<T>> {
    let value = integer(field, column, row_id)?;
    if let Some(negative) = value.filter(|value| *value < 0) {
        return Err(bad_row(row_id, column, &format!("is {negative}, which is negative")));
    }
    fit(value, column, row_id)
}

fn text<'a>(field: Option<&'a [u8]>, column: &'static str, row_id: Option<i64>) -> Result<Option<&'a str>> {
    let Some(field) = field else { return Ok(None) };
    if field.len() > schema::MAX_TEXT_BYTES {
        let (length, most) = (field.len(), schema::MAX_TEXT_BYTES);
        let why = format!("is {length} bytes long, and at most {most} are possible");
        return Err(bad_row(row_id, column, &why));
    }
    match std::str::from_utf8(field) {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(bad_row(row_id, column, "is not valid UTF-8")),
    }
}
