//! Rows by id: which of two sets of page views have the same ids, and of those which are unchanged. Judged
//! by the columns that are copied from the database, never by slugs, which people edit.
//!
//! Takes 24 bytes a row: of each row only its id and two keyed hashes are kept, whose keys nobody outside
//! this process knows.

use std::hash::{BuildHasher, Hash, Hasher, RandomState};

use arrow::array::{Array, AsArray, Int16Array, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{Int16Type, Int32Type, Int64Type};

use crate::base::error::{Error, Result};
use crate::base::schema;

/// How a row relates to the row with the same id in an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// The index has no such id.
    Absent,
    /// All copied columns are equal. With the row's number in the index, in order of ids.
    Same(usize),
    /// Project and path are equal, another column is not.
    Changed(usize),
    /// The same id, but another project or path: not the same page view at all.
    Conflict(usize),
}

#[derive(Clone, Copy)]
struct Entry {
    id: i64,
    /// Of project and path.
    identity: u64,
    /// Of all other copied columns.
    content: u64,
}

/// Rows by id.
pub struct RowIndex {
    entries: Vec<Entry>,
    identity: RandomState,
    content: RandomState,
}

/// An index that still takes rows.
pub struct RowIndexBuilder(RowIndex);

impl Default for RowIndexBuilder {
    fn default() -> Self {
        Self(RowIndex {
            entries: Vec::new(),
            identity: RandomState::new(),
            content: RandomState::new(),
        })
    }
}

impl RowIndexBuilder {
    /// Takes a batch with the columns of [`schema::facts`].
    pub fn push(&mut self, batch: &RecordBatch) -> Result<()> {
        let columns = Columns::of(batch)?;
        self.0.entries.try_reserve(batch.num_rows()).map_err(|_| Error::Io {
            message: format!("no memory to compare {} rows", self.0.entries.len()),
        })?;
        for row in 0..batch.num_rows() {
            let entry = self.0.entry(&columns, row);
            self.0.entries.push(entry);
        }
        Ok(())
    }

    /// # Errors
    /// [`Error::BadRow`] when an id repeats.
    pub fn finish(mut self) -> Result<RowIndex> {
        let entries = &mut self.0.entries;
        entries.sort_unstable_by_key(|entry| entry.id);
        check_distinct(entries.windows(2).map(|pair| (pair[0].id, pair[1].id)))?;
        Ok(self.0)
    }
}

/// The ids of a batch.
pub fn id_column(batch: &RecordBatch) -> Result<Vec<i64>> {
    batch
        .column_by_name(schema::ID)
        .and_then(|column| column.as_primitive_opt::<Int64Type>())
        .map(|ids| ids.values().to_vec())
        .ok_or_else(|| Error::internal("a batch without id"))
}

/// Sorts the ids.
///
/// # Errors
/// [`Error::BadRow`] when one repeats.
pub fn check_ids(ids: &mut [i64]) -> Result<()> {
    ids.sort_unstable();
    check_distinct(ids.windows(2).map(|pair| (pair[0], pair[1])))
}

fn check_distinct(mut neighbours: impl Iterator<Item = (i64, i64)>) -> Result<()> {
    match neighbours.find(|(one, next)| one == next) {
        None => Ok(()),
        Some((id, _)) => Err(repeated_id(id)),
    }
}

/// Rows could not be told apart.
pub fn repeated_id(id: i64) -> Error {
    Error::BadRow {
        row_id: Some(id),
        column: schema::ID,
        message: format!("more than one row has the id {id}; rows are told apart by id, so it has to be unique"),
    }
}

impl RowIndex {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The id of a row by its number.
    pub fn id(&self, number: usize) -> i64 {
        self.entries[number].id
    }

    pub fn has(&self, id: i64) -> bool {
        self.entries.binary_search_by_key(&id, |entry| entry.id).is_ok()
    }

    /// Whether there is an id from `first` to `last`.
    pub fn has_between(&self, first: i64, last: i64) -> bool {
        let at = self.entries.partition_point(|entry| entry.id < first);
        self.entries.get(at).is_some_and(|entry| entry.id <= last)
    }

    /// All ids, ascending.
    pub fn ids(&self) -> impl ExactSizeIterator<Item = i64> + '_ {
        self.entries.iter().map(|entry| entry.id)
    }

    /// What each row of a batch is to this index.
    pub fn matches(&self, batch: &RecordBatch) -> Result<Vec<Match>> {
        let columns = Columns::of(batch)?;
        let matched = |row| {
            let given = self.entry(&columns, row);
            match self.entries.binary_search_by_key(&given.id, |entry| entry.id) {
                Err(_) => Match::Absent,
                Ok(number) => {
                    let known = &self.entries[number];
                    match (known.identity == given.identity, known.content == given.content) {
                        (true, true) => Match::Same(number),
                        (true, false) => Match::Changed(number),
                        (false, _) => Match::Conflict(number),
                    }
                }
            }
        };
        Ok((0..batch.num_rows()).map(matched).collect())
    }

    fn entry(&self, columns: &Columns<'_>, row: usize) -> Entry {
        let Columns {
            id, project_id, path, ..
        } = columns;
        let mut identity = self.identity.build_hasher();
        project_id.value(row).hash(&mut identity);
        path.value(row).hash(&mut identity);
        let mut content = self.content.build_hasher();
        let version = columns.version_id;
        version.is_valid(row).then(|| version.value(row)).hash(&mut content);
        let full_path = columns.full_path;
        full_path.is_valid(row).then(|| full_path.value(row)).hash(&mut content);
        columns.view_count.value(row).hash(&mut content);
        columns.status.value(row).hash(&mut content);
        Entry {
            id: id.value(row),
            identity: identity.finish(),
            content: content.finish(),
        }
    }
}

/// The copied columns of a batch.
struct Columns<'a> {
    id: &'a Int64Array,
    project_id: &'a Int32Array,
    version_id: &'a Int32Array,
    path: &'a StringArray,
    full_path: &'a StringArray,
    view_count: &'a Int32Array,
    status: &'a Int16Array,
}

impl<'a> Columns<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Self> {
        let column = |name: &str| {
            batch
                .column_by_name(name)
                .ok_or_else(|| Error::internal(format!("a batch without {name}")))
        };
        let other = |name: &str| Error::internal(format!("column {name} has another type than the schema says"));
        let int = |name: &str| column(name)?.as_primitive_opt::<Int32Type>().ok_or_else(|| other(name));
        let text = |name: &str| column(name)?.as_string_opt::<i32>().ok_or_else(|| other(name));
        Ok(Self {
            id: column(schema::ID)?
                .as_primitive_opt::<Int64Type>()
                .ok_or_else(|| other(schema::ID))?,
            project_id: int(schema::PROJECT_ID)?,
            version_id: int(schema::VERSION_ID)?,
            path: text(schema::PATH)?,
            full_path: text(schema::FULL_PATH)?,
            view_count: int(schema::VIEW_COUNT)?,
            status: column(schema::STATUS)?
                .as_primitive_opt::<Int16Type>()
                .ok_or_else(|| other(schema::STATUS))?,
        })
    }
}
