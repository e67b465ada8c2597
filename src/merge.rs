//! What becomes of the rows that are stored already when a day is exported again: the source's row wins, and
//! rows that the source no longer has are kept.

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::buffer::BooleanBuffer;
use arrow::compute::filter_record_batch;
use arrow::datatypes::Int32Type;

use crate::error::{Error, Result};
use crate::position::{Identity, Position, Stale};
use crate::rows::{Match, RowIndex};
use crate::runtime::Cancel;
use crate::schema;
use crate::stored::{StoredDay, id_column};
use crate::tally::Tally;

/// How the source's rows relate to the stored ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Merged {
    /// Rows of the source that are not stored.
    pub added: u64,
    /// Rows of both, of which a copied column differs.
    pub changed: u64,
    /// What the stored rows add up to that the source does not have.
    pub kept: Tally,
}

/// Compares the stored rows with the source's, and hands over those that only the store has, but for those of erased
/// projects.
///
/// # Errors
/// [`Error::IdConflict`] when an id means another page view in the source than in the store.
pub fn merge(
    stored: &StoredDay,
    source: &RowIndex,
    erased: &[i32],
    mut keep: impl FnMut(&RecordBatch) -> Result<()>,
    cancel: &Cancel,
) -> Result<Merged> {
    let mut merged = Merged::default();
    let mut matched = 0;
    for batch in stored.batches() {
        cancel.check()?;
        let batch = without(batch?, erased)?;
        let matches = source.matches(&batch)?;
        for (row, found) in matches.iter().enumerate() {
            match found {
                Match::Absent => {}
                Match::Same(_) => matched += 1,
                Match::Changed(_) => {
                    matched += 1;
                    merged.changed += 1;
                }
                Match::Conflict(_) => {
                    return Err(conflict(
                        stored,
                        id_column(&batch)?.get(row).copied().unwrap_or_default(),
                    ));
                }
            }
        }
        let absent: BooleanArray = matches.iter().map(|found| Some(*found == Match::Absent)).collect();
        if absent.true_count() > 0 {
            let kept = filter_record_batch(&batch, &absent).map_err(|error| Error::internal(error.to_string()))?;
            merged.kept.add(&kept)?;
            keep(&kept)?;
        }
    }
    merged.added = source.len() as u64 - matched;
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

fn conflict(stored: &StoredDay, id: i64) -> Error {
    Error::IdConflict {
        row_id: id,
        message: format!(
            "the row with id {id} has another project or path in the source than in {}, so ids do not mean the same in both \
             (was the database restored or its sequence reset?); nothing was written. Find out which of the two is right: \
             discard_stored=True drops the stored rows",
            stored.key
        ),
    }
}

/// Refuses a snapshot that shows an older state than the one that is stored, and one of another table, unless the move from
/// there was accepted. An older snapshot of the same history is never accepted.
///
/// # Errors
/// [`Error::Stale`].
pub fn check_newer(stored: &StoredDay, source: &str, position: Option<&Position>, accept_moved: bool) -> Result<()> {
    let Some(known) = &stored.position else {
        return Ok(());
    };
    let stale = match position {
        Some(position) => position.covers(known),
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
    let known = stored.position.as_ref().map(|position| &position.identity);
    let shown = |identity: Option<&Identity>| identity.map_or_else(|| "none".to_owned(), ToString::to_string);
    let what = match how {
        Stale::OtherTimeline => {
            "has another history (it was promoted, is a clone, or was restored to an earlier moment) than"
        }
        Stale::OtherTable => "is another table than",
        Stale::OtherDatabase | Stale::Older => "is not the database that",
    };
    let verb = if matches!(how, Stale::OtherDatabase | Stale::Older) {
        ""
    } else {
        "the one that "
    };
    format!(
        "{what} {verb}{} was exported from ({from}: {}; this is {})",
        stored.key,
        shown(known),
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
