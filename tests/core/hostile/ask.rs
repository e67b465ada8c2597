//! Everything that bytes from outside are asked for: a COPY stream decoded whole and in pieces, a stored file
//! read in all the ways that questions read it.

use std::time::Duration;

use arrow::array::RecordBatch;
use bytes::Bytes;
use parquet_analytics::archive::stored::StoredDay;
use parquet_analytics::base::error::{Error, Result};
use parquet_analytics::base::keys::Prefix;
use parquet_analytics::base::runtime::{Cancel, block_on};
use parquet_analytics::scan::cache;
use parquet_analytics::scan::plan::Filter;
use parquet_analytics::scan::{Options, Scan};
use parquet_analytics::source::postgres::copy::{Decoder, Layout};
use parquet_analytics::source::{BadRows, LeftRow};
use parquet_analytics::store::Store;

use crate::files::{date, key, put};

pub const DAY: &str = "2026-07-01";

/// Decodes a stream that arrives in these pieces: the rows, and those that were left.
pub fn decode<'a>(
    layout: Layout,
    bad_rows: BadRows,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Result<(Vec<RecordBatch>, Vec<LeftRow>)> {
    let mut batches = Vec::new();
    let mut sink = |batch| {
        batches.push(batch);
        Ok(())
    };
    let mut decoder = Decoder::new(layout, bad_rows);
    for piece in pieces {
        decoder.push(piece, &mut sink)?;
    }
    decoder.finish(&mut sink)?;
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    assert_eq!(decoder.rows(), rows as u64);
    let left = decoder.left().to_vec();
    assert!(bad_rows == BadRows::Leave || left.is_empty());
    Ok((batches, left))
}

/// A stored file that is read again and again with other bytes.
pub struct Stored {
    pub store: Store,
}

impl Stored {
    pub fn put(&self, bytes: &Bytes) {
        let key = key(date(DAY));
        put(&self.store, &key, bytes);
        cache::forget(&self.store, &key);
    }

    pub fn scan(&self, filter: Filter) -> Scan {
        let (store, prefix) = (self.store.clone(), Prefix::default());
        // A small gap, so that data is read apart from the footer in most cases.
        let options = Options {
            gap: 64,
            narrow_rows: 0,
            whole_footers: 0,
            ..Options::default()
        };
        Scan::new(store, &prefix, [date(DAY)], filter, options, Cancel::new())
    }

    /// The rows that a scan hands out, counted; they are dropped at once, as a streaming reader does.
    pub fn read(&self, filter: Filter, columns: &[usize]) -> Result<u64> {
        let mut rows = 0;
        for batch in self.scan(filter).batches(columns)? {
            rows += batch?.num_rows() as u64;
        }
        Ok(rows)
    }

    /// Reads a file with these bytes in all the ways there are. The answers of a file that is believed have to
    /// agree; those of one that is not have to say so by its name.
    pub fn ask(&self, bytes: &Bytes) -> Result<u64> {
        self.put(bytes);
        let result = self.questions();
        if let Err(error) = &result {
            let key = key(date(DAY));
            // Repeated ids and another sum are found when the file is read back whole.
            let known = matches!(error.inner(), Error::CorruptFile { .. } | Error::Mismatch { .. });
            assert!(known, "{error:?}");
            assert!(
                error.key() == Some(&key) && error.to_string().contains(&key),
                "{error:?}"
            );
        }
        result
    }

    fn questions(&self) -> Result<u64> {
        // A tail of a few bytes first, so that the footer is put together from several reads.
        let key = key(date(DAY));
        block_on(
            &Cancel::new(),
            cache::load(&self.store, &key, Duration::from_secs(3600), 100),
        )?;
        self.scan(Filter::default()).explain(&[0, 5])?;
        let counted = self.read(Filter::default(), &[])?;
        let few = Filter {
            projects: Some(vec!["docs".to_owned(), "zzz".to_owned()]),
            project_id: Some(10),
            statuses: Some(vec![200, 404]),
            versions: Some(vec![None, Some(1)]),
            any_project: Some(vec![10, 11]),
            hidden: vec![11],
        };
        self.read(few, &[5, 7])?;
        let by_id = Filter {
            project_id: Some(10),
            ..Filter::default()
        };
        self.read(by_id, &[5, 7])?;
        let all: Vec<usize> = (0..10).collect();
        let rows = self.read(Filter::default(), &all)?;
        assert_eq!(
            rows, counted,
            "rows that were handed out, and rows that the footer counts"
        );
        let stored = block_on(&Cancel::new(), StoredDay::read(&self.store, &key, date(DAY)))?;
        let stored = stored.ok_or_else(|| Error::internal("the file is gone"))?;
        let (whole, _) = stored.decode(&Cancel::new())?;
        assert_eq!(
            rows, whole.rows,
            "rows that were handed out, and rows that are read back whole"
        );
        Ok(rows)
    }
}
