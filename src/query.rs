//! Questions: what a dashboard asks, in terms of projects and days. Which bytes that takes is decided in
//! [`crate::plan`], the SQL over them runs in [`crate::engine`].

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use crate::engine::{self, Answer, Batches, Limits, Param, Params};
use crate::error::{Error, Result};
use crate::keys::{Day, Prefix};
use crate::plan::Filter;
use crate::runtime::Cancel;
use crate::scan::{DayPlan, Options, Scan, Stats};
use crate::schema;
use crate::store::Store;

/// First and last day of a question, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    since: Day,
    until: Day,
}

/// Days in one question: each without a footer at hand is a request, so a typing error in a year should not become
/// a million.
const MAX_DAYS: i32 = 3660;

impl Span {
    pub fn new(since: Day, until: Day) -> Result<Self> {
        let days = until.to_date32() - since.to_date32() + 1;
        if days < 1 {
            return Err(Error::invalid(format!("since ({since}) lies after until ({until})")));
        }
        if days > MAX_DAYS {
            return Err(Error::invalid(format!(
                "{since} to {until} are {days} days; a question may span {MAX_DAYS}, ask year by year"
            )));
        }
        Ok(Self { since, until })
    }
}

/// Answers questions from the day files of one store and prefix. Constructing does no I/O; footers,
/// connections and DuckDB belong to the process, so that one can be made for every question.
#[derive(Clone)]
pub struct Querier {
    store: Store,
    prefix: Prefix,
    limits: Limits,
    options: Options,
}

/// An answer whole, and what it took.
pub struct Table {
    pub schema: SchemaRef,
    pub batches: Vec<RecordBatch>,
    pub stats: Stats,
}

/// An answer piece by piece, in order.
pub struct Stream {
    pub schema: SchemaRef,
    pub batches: Batches,
    scan: Arc<Scan>,
}

impl Stream {
    /// What it took so far.
    pub fn stats(&self) -> Stats {
        self.scan.stats()
    }
}

const TOP_PAGES: &str = "SELECT path, sum(view_count)::BIGINT AS count FROM pageviews
    GROUP BY path ORDER BY count DESC, path LIMIT $1 OFFSET $2";

const TOP_PAGES_PER_VERSION: &str = "SELECT path, sum(view_count)::BIGINT AS count, version_slug FROM pageviews
    GROUP BY path, version_slug ORDER BY count DESC, path, version_slug NULLS FIRST LIMIT $1 OFFSET $2";

const DAILY_TOTALS: &str = "SELECT date, sum(view_count)::BIGINT AS count FROM pageviews GROUP BY date ORDER BY date";

const DAILY_TOTALS_FILLED: &str = "SELECT day::DATE AS date, coalesce(count, 0)::BIGINT AS count
    FROM generate_series($1::DATE, $2::DATE, INTERVAL 1 DAY) AS days(day)
    LEFT JOIN (SELECT date, sum(view_count) AS count FROM pageviews GROUP BY date) AS totals
    ON totals.date = day::DATE ORDER BY date";

impl Querier {
    pub fn new(store: Store, prefix: Prefix, limits: Limits, options: Options) -> Self {
        Self {
            store,
            prefix,
            limits,
            options,
        }
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    pub fn prefix(&self) -> &Prefix {
        &self.prefix
    }

    /// Paths by views, the most viewed first and ties by path: columns path (utf8), count (int64) and, when
    /// asked for per version, version_slug.
    pub fn top_pages(
        &self,
        filter: Filter,
        span: Span,
        (limit, offset): (i64, i64),
        per_version: bool,
        cancel: &Cancel,
    ) -> Result<Table> {
        let sql = if per_version { TOP_PAGES_PER_VERSION } else { TOP_PAGES };
        self.ask(
            filter,
            span,
            sql,
            vec![Param::Int(limit), Param::Int(offset)].into(),
            cancel,
        )
    }

    /// Views by day, the oldest first: columns date (date32) and count (int64). Days without views are left
    /// out unless `fill`.
    pub fn daily_totals(&self, filter: Filter, span: Span, fill: bool, cancel: &Cancel) -> Result<Table> {
        if fill {
            let days = vec![Param::Date(span.since.to_date32()), Param::Date(span.until.to_date32())];
            self.ask(filter, span, DAILY_TOTALS_FILLED, days.into(), cancel)
        } else {
            self.ask(filter, span, DAILY_TOTALS, Params::none(), cancel)
        }
    }

    /// Rows of one project as they are stored: the newest day first, then by status, path, version_slug and id.
    /// (A question by project id alone can meet several slugs in a day; their rows come slug by slug.)
    pub fn pageviews(&self, filter: Filter, span: Span, columns: Option<&[String]>, cancel: &Cancel) -> Result<Stream> {
        let all = schema::pageviews();
        let projection = match columns {
            None => (0..all.fields().len()).collect(),
            Some(names) => names
                .iter()
                .map(|name| column_index(name))
                .collect::<Result<Vec<_>>>()?,
        };
        let scan = self.scan(filter, span, cancel);
        let batches = scan.batches(&projection)?;
        let schema = all
            .project(&projection)
            .map_err(|error| Error::internal(error.to_string()))?;
        Ok(Stream {
            schema: Arc::new(schema),
            batches,
            scan,
        })
    }

    /// One reading statement over the relation `pageviews`, which holds the rows that pass the filter.
    pub fn sql(&self, filter: Filter, span: Span, sql: &str, params: Params, cancel: &Cancel) -> Result<Table> {
        self.ask(filter, span, sql, params, cancel)
    }

    /// What reading these columns would fetch, day by day, the newest first. Reads footers, but no data.
    pub fn explain(&self, filter: Filter, span: Span, columns: &[String], cancel: &Cancel) -> Result<Vec<DayPlan>> {
        let projection = columns
            .iter()
            .map(|name| column_index(name))
            .collect::<Result<Vec<_>>>()?;
        self.scan(filter, span, cancel).explain(&projection)
    }

    fn scan(&self, filter: Filter, span: Span, cancel: &Cancel) -> Arc<Scan> {
        let days = Day::range(span.since, span.until);
        let options = self.options.clone();
        Arc::new(Scan::new(
            self.store.clone(),
            &self.prefix,
            days,
            filter,
            options,
            cancel.clone(),
        ))
    }

    fn ask(&self, filter: Filter, span: Span, sql: &str, params: Params, cancel: &Cancel) -> Result<Table> {
        let scan = self.scan(filter, span, cancel);
        let relation: Arc<dyn engine::Relation> = scan.clone();
        let Answer { schema, batches } = engine::query(relation, sql, &params, &self.limits, cancel)?;
        let batches = batches.collect::<Result<Vec<_>>>()?;
        Ok(Table {
            schema,
            batches,
            stats: scan.stats(),
        })
    }
}

fn column_index(name: &str) -> Result<usize> {
    let all = schema::pageviews();
    all.index_of(name).map_err(|_| {
        let shown: String = name.chars().take(60).collect();
        let known: Vec<&str> = all.fields().iter().map(|field| field.name().as_str()).collect();
        Error::invalid(format!(
            "there is no column {shown:?}; choose from {}",
            known.join(", ")
        ))
    })
}
