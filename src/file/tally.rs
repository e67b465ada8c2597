//! What a set of page views adds up to: the numbers by which a file is compared with what the database
//! counted. PostgreSQL computes them in SQL, the verification from the bytes that were read back.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int16Type, Int32Type, Int64Type};

use crate::base::error::{Error, Result};
use crate::base::schema::{self, meta};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    pub rows: u64,
    pub views: i64,
    /// The smallest and the greatest id; `None` without rows.
    pub ids: Option<(i64, i64)>,
    /// Rows of each HTTP status.
    pub statuses: BTreeMap<i16, u64>,
}

impl Tally {
    /// Adds the rows of a batch that has the columns `id`, `view_count` and `status`.
    pub fn add(&mut self, batch: &RecordBatch) -> Result<()> {
        let (Some(ids), Some(views), Some(statuses)) = (
            batch
                .column_by_name(schema::ID)
                .and_then(|ids| ids.as_primitive_opt::<Int64Type>()),
            batch
                .column_by_name(schema::VIEW_COUNT)
                .and_then(|views| views.as_primitive_opt::<Int32Type>()),
            batch
                .column_by_name(schema::STATUS)
                .and_then(|statuses| statuses.as_primitive_opt::<Int16Type>()),
        ) else {
            return Err(Error::internal("a batch without id, view_count or status"));
        };
        let mut part = Self {
            rows: batch.num_rows() as u64,
            ..Self::default()
        };
        for views in views.values() {
            part.views += i64::from(*views);
        }
        for id in ids.values() {
            part.ids = joined(part.ids, Some((*id, *id)));
        }
        // Sorted rows come in runs of one status.
        for run in statuses.values().chunk_by(|one, other| one == other) {
            *part.statuses.entry(run[0]).or_default() += run.len() as u64;
        }
        *self = self.plus(&part)?;
        Ok(())
    }

    /// Both together.
    pub fn plus(&self, other: &Self) -> Result<Self> {
        let mut statuses = self.statuses.clone();
        for (status, rows) in &other.statuses {
            *statuses.entry(*status).or_default() += rows;
        }
        let views = self.views.checked_add(other.views);
        Ok(Self {
            rows: self.rows + other.rows,
            views: views.ok_or_else(|| Error::invalid("the sum of the day's views does not fit 64 bits"))?,
            ids: joined(self.ids, other.ids),
            statuses,
        })
    }

    /// As metadata of a file.
    pub fn to_metadata(&self) -> Vec<(&'static str, String)> {
        let statuses: Vec<String> = self
            .statuses
            .iter()
            .map(|(status, rows)| format!("{status}:{rows}"))
            .collect();
        let mut pairs = vec![
            (meta::ROWS, self.rows.to_string()),
            (meta::VIEWS, self.views.to_string()),
            (meta::STATUSES, statuses.join(" ")),
        ];
        if let Some((smallest, greatest)) = self.ids {
            pairs.push((meta::IDS, format!("{smallest} {greatest}")));
        }
        pairs
    }

    /// From the metadata of a file; `None` when it is not all there.
    pub fn from_metadata(pairs: &HashMap<String, String>) -> Option<Self> {
        let ids = match pairs.get(meta::IDS) {
            None => None,
            Some(text) => {
                let (smallest, greatest) = text.split_once(' ')?;
                Some((smallest.parse().ok()?, greatest.parse().ok()?))
            }
        };
        let mut statuses = BTreeMap::new();
        for pair in pairs.get(meta::STATUSES)?.split_ascii_whitespace() {
            let (status, rows) = pair.split_once(':')?;
            statuses.insert(status.parse().ok()?, rows.parse().ok()?);
        }
        Some(Self {
            rows: pairs.get(meta::ROWS)?.parse().ok()?,
            views: pairs.get(meta::VIEWS)?.parse().ok()?,
            ids,
            statuses,
        })
    }

    /// What differs, in words: "rows: 3 instead of 4".
    pub fn difference(&self, expected: &Self) -> Option<String> {
        if self == expected {
            return None;
        }
        let mut found = Vec::new();
        if self.rows != expected.rows {
            found.push(format!("{} rows instead of {}", self.rows, expected.rows));
        }
        if self.views != expected.views {
            found.push(format!("{} views instead of {}", self.views, expected.views));
        }
        if self.ids != expected.ids {
            found.push(format!("ids {} instead of {}", Ids(self.ids), Ids(expected.ids)));
        }
        if self.statuses != expected.statuses {
            found.push(format!(
                "rows by status {:?} instead of {:?}",
                self.statuses, expected.statuses
            ));
        }
        Some(found.join(", "))
    }
}

fn joined(one: Option<(i64, i64)>, other: Option<(i64, i64)>) -> Option<(i64, i64)> {
    match (one, other) {
        (Some((a, b)), Some((c, d))) => Some((a.min(c), b.max(d))),
        (one, other) => one.or(other),
    }
}

struct Ids(Option<(i64, i64)>);

impl fmt::Display for Ids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some((smallest, greatest)) => write!(f, "{smallest} to {greatest}"),
            None => f.write_str("none"),
        }
    }
}
