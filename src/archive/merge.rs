//! What becomes of the rows that are stored already when a day is exported again: the source's row wins, and
//! rows that the source no longer has are kept.

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::buffer::BooleanBuffer;
use arrow::compute::filter_record_batch;
use arrow::datatypes::Int32Type;

use crate::archive::stored::StoredDay;
use crate::base::error::{Error, Result};
use crate::base::runtime::Cancel;
use crate::base::schema;
use crate::file::position::{Identity, Position, Stale};
use crate::file::remaining::Remaining;
use crate::file::rows::{Match, RowIndex, id_column};
use crate::file::tally::Tally;
use crate::source::{Elsewhere, LeftRow};

/// How the source's rows relate to the stored ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Merged {
    /// Rows of the source that are not stored.
    pub added: u64,
    /// Rows of both, of which a copied column differs.
    pub changed: u64,
    /// What the stored rows add up to that the source does not have.
    pub kept: Tally,
    /// Stored rows that live on another date in the source, and so in the file no more.
    pub moved: u64,
    /// Rows of the source whose id means another row in the store, ascending.
    pub conflicts: Vec<Conflict>,
    /// Whether a kept row may live on another date, or have been deleted by a deletion that was broken off.
    pub undecided: bool,
    /// Which of the stored rows the database still has, once rows were deleted.
    pub remaining: Option<Remaining>,
}

/// A row of the source that cannot be merged, because the stored row with its id may be another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conflict {
    pub id: i64,
    pub why: Why,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The same id, another project or path.
    OtherPage,
    /// The stored row was deleted from the database: this is another one with its id.
    GivenOutAgain,
    /// A deletion was broken off, so that it is not known whether the stored row was deleted.
    Undecided,
}

impl Conflict {
    /// As a row that was left in the source.
    pub fn left(&self) -> LeftRow {
        LeftRow {
            id: self.id,
            column: schema::ID,
            reason: match self.why {
                Why::OtherPage => "the stored row with this id has another project or path",
                Why::GivenOutAgain => "the row with this id was exported, and deleted from the database",
                Why::Undecided => "a deletion was broken off, and may have deleted the stored row with this id",
            }
            .to_owned(),
        }
    }
}

/// What is known about the rows that are compared.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// Projects whose rows are not stored any more, ascending.
    pub erased: &'a [i32],
    /// Rows with stored ids that live on another date in the source, in order of ids.
    pub elsewhere: &'a [Elsewhere],
    /// Which stored rows are still in the database, if any were deleted.
    pub remaining: Option<&'a Remaining>,
    /// The database's word counts: a row that it still has may have got another project or path, and one that a broken-off
    /// deletion may have deleted is the one with its id that lives on another date.
    pub corrections: bool,
}

impl Evidence<'_> {
    /// Whether the stored row with this id has left the database; `None` when that is not known.
    fn is_gone(&self, id: i64) -> Option<bool> {
        self.remaining.map_or(Some(false), |remaining| remaining.is_gone(id))
    }

    /// Whether a stored row lives on another date; `None` when that is not known. A row with the id of one that was deleted
    /// is another row; where that is not known, one of another page may be.
    fn has_moved(&self, id: i64, batch: &RecordBatch, row: usize) -> Option<bool> {
        let found = self.elsewhere.binary_search_by_key(&id, |found| found.id);
        let found = found.ok().map(|at| &self.elsewhere[at]).filter(|found| !found.adrift);
        let Some(found) = found else {
            return Some(false);
        };
        match self.is_gone(id) {
            None => (self.corrections || found.is_page_of(batch, row)).then_some(true),
            Some(gone) => Some(!gone),
        }
    }

    /// Why a row of the source does not take the place of the stored row with its id, if so.
    fn conflict(&self, id: i64, found: Match) -> Option<Why> {
        match (found, self.is_gone(id)) {
            (Match::Absent | Match::Same(_), _) => None,
            (_, None) => Some(Why::Undecided),
            (_, Some(true)) => Some(Why::GivenOutAgain),
            (Match::Changed(_), Some(false)) => None,
            (Match::Conflict(_), Some(false)) => (!self.corrections).then_some(Why::OtherPage),
        }
    }
}

/// Compares the stored rows with the source's, and hands over those that only the store has, but for those of erased
/// projects and those that have moved to another date.
pub fn merge(
    stored: &StoredDay,
    source: &RowIndex,
    evidence: &Evidence<'_>,
    mut keep: impl FnMut(&RecordBatch) -> Result<()>,
    cancel: &Cancel,
) -> Result<Merged> {
    let mut merged = Merged::default();
    let mut matched = 0;
    for batch in stored.batches() {
        cancel.check()?;
        let batch = without(batch?, evidence.erased)?;
        let matches = source.matches(&batch)?;
        let ids = id_column(&batch)?;
        let mut absent = Vec::with_capacity(ids.len());
        for (row, (id, found)) in ids.into_iter().zip(matches).enumerate() {
            let moved = match found {
                Match::Absent => evidence.has_moved(id, &batch, row),
                _ => Some(false),
            };
            merged.moved += u64::from(moved == Some(true));
            merged.undecided |= moved.is_none();
            absent.push(Some(found == Match::Absent && moved != Some(true)));
            matched += u64::from(found != Match::Absent);
            merged.changed += u64::from(matches!(found, Match::Changed(_) | Match::Conflict(_)));
            let conflict = evidence.conflict(id, found).map(|why| Conflict { id, why });
            merged.conflicts.extend(conflict);
        }
        let absent = BooleanArray::from(absent);
        if absent.true_count() > 0 {
            let kept = filter_record_batch(&batch, &absent).map_err(|error| Error::internal(error.to_string()))?;
            merged.kept.add(&kept)?;
            keep(&kept)?;
        }
    }
    merged.added = source.len() as u64 - matched;
    merged.conflicts.sort_unstable_by_key(|conflict| conflict.id);
    Ok(merged)
}

/// The rows that are of none of these projects (ids in order).
pub fn without(batch: RecordBatch, projects: &[i32]) -> Result<RecordBatch> {
    if projects.is_empty() {
        return Ok(batch);
    }
    let ids = batch
        .column_by_name(schema::PROJECT_ID)
        .and_then(|column| column.as_primitive_opt::<Int32Type>())
        .ok_or_else(|| Error::internal("a batch has no project ids"))?;
    let stay = BooleanBuffer::collect_bool(ids.len(), |row| projects.binary_search(&ids.value(row)).is_err());
    if stay.count_set_bits() == batch.num_rows() {
        return Ok(batch);
    }
    filter_record_batch(&batch, &BooleanArray::new(stay, None)).map_err(|error| Error::internal(error.to_string()))
}

/// Nothing is written, because of these rows.
pub fn conflict(key: &str, conflicts: &[Conflict]) -> Error {
    let (id, why) = conflicts
        .first()
        .map_or((0, Why::OtherPage), |first| (first.id, first.why));
    let others = match conflicts.len() {
        0 | 1 => String::new(),
        number => format!(" (and {} others)", number - 1),
    };
    let (what, advice) = match why {
        Why::OtherPage => (
            "has another project or path in the source than in",
            "Find out which is right: on_id_conflict=\"database\" takes the database's rows for corrections of the stored ones, \
             discard_stored=True drops all stored rows",
        ),
        Why::GivenOutAgain => (
            "has the id of a row that was deleted after its export to",
            "Was the sequence reset? Give such rows other ids",
        ),
        Why::Undecided => (
            "may be another one than the stored one, since a deletion was broken off, in",
            "Run the deletion of this day again first",
        ),
    };
    Error::IdConflict {
        row_id: id,
        message: format!(
            "the row with id {id}{others} {what} {key}, so ids do not mean the same in both (was the database restored or its \
             sequence reset?); nothing was written. {advice}; on_id_conflict=\"leave\" leaves them in the database, and exports the others"
        ),
    }
}

/// The rows that do not have one of these ids (ascending).
pub fn without_ids(batch: RecordBatch, ids: &[i64]) -> Result<RecordBatch> {
    if ids.is_empty() {
        return Ok(batch);
    }
    let stay: BooleanArray = id_column(&batch)?
        .into_iter()
        .map(|id| Some(ids.binary_search(&id).is_err()))
        .collect();
    filter_record_batch(&batch, &stay).map_err(|error| Error::internal(error.to_string()))
}

/// Refuses a snapshot that shows an older state than the one that is stored, and one of another table, unless the move from
/// there was accepted. An older snapshot of the same history is never accepted.
///
/// # Errors
/// [`Error::Stale`].
pub fn check_newer(stored: &StoredDay, source: &str, position: Option<&Position>, accept_moved: bool) -> Result<()> {
    let Some(before) = &stored.position else {
        return Ok(());
    };
    let stale = match position {
        Some(position) => position.covers(before),
        None => Err(Stale::OtherDatabase),
    };
    let from = stored.source.as_deref().unwrap_or("another source");
    match stale {
        Ok(()) => Ok(()),
        Err(Stale::Older) => Err(Error::Stale {
            message: format!(
                "{source} shows an older state than the one that {} was exported from ({from}), so its counts may be old; \
                 nothing was written. Is this a replica that lags? Try again later",
                stored.key
            ),
        }),
        Err(_) if accept_moved => Ok(()),
        Err(other) => Err(Error::Stale {
            message: format!(
                "{source} {}, so it cannot be told which is newer; nothing was written. {}",
                differs(other, position.map(|position| &position.identity), stored, from),
                ACCEPT_MOVED
            ),
        }),
    }
}

const ACCEPT_MOVED: &str = "Was this the wrong database? If it was moved, upgraded, promoted or restored on purpose, pass accept_moved_database=True";

/// How a table is not the one that a stored day belongs to, in words that follow its name.
pub fn differs(how: Stale, found: Option<&Identity>, stored: &StoredDay, from: &str) -> String {
    let before = stored.position.as_ref().map(|position| &position.identity);
    let shown = |identity: Option<&Identity>| identity.map_or_else(|| "none".to_owned(), ToString::to_string);
    let what = match how {
        Stale::OtherTimeline => {
            "has another history (it was promoted, is a clone, or was restored to an earlier moment) than the one that"
        }
        Stale::OtherTable => "is another table than the one that",
        Stale::OtherDatabase | Stale::Older => "is another database: it is not the database that",
    };
    format!(
        "{what} {} was exported from ({from}: {}; this is {})",
        stored.key,
        shown(before),
        shown(found)
    )
}

/// Whether two sequences of batches hold the same rows in the same order; the second is looked at only as far as needed.
pub struct SameRows<I> {
    other: I,
    rest: Option<RecordBatch>,
    same: bool,
}

impl<I: Iterator<Item = Result<RecordBatch>>> SameRows<I> {
    pub fn new(other: I) -> Self {
        Self {
            other,
            rest: None,
            same: true,
        }
    }

    /// Takes the next rows of the first sequence.
    pub fn push(&mut self, batch: &RecordBatch) -> Result<()> {
        let mut at = 0;
        while self.same && at < batch.num_rows() {
            let Some(other) = self
                .rest
                .take()
                .map_or_else(|| self.other.next(), |rest| Some(Ok(rest)))
            else {
                self.same = false;
                break;
            };
            let other = other?;
            let length = other.num_rows().min(batch.num_rows() - at);
            let (ours, theirs) = (batch.slice(at, length), other.slice(0, length));
            self.same = ours.columns() == theirs.columns();
            at += length;
            if length < other.num_rows() {
                self.rest = Some(other.slice(length, other.num_rows() - length));
            }
        }
        Ok(())
    }

    /// Whether both have ended and all rows were equal.
    pub fn finish(mut self) -> Result<bool> {
        if !self.same || self.rest.is_some() {
            return Ok(false);
        }
        for batch in self.other.by_ref() {
            if batch?.num_rows() > 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
