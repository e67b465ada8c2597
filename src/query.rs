//! Questions: what a dashboard asks, in terms of projects and days. Which bytes that takes is decided in
//! [`crate::scan::plan`]; named reports are added up in [`crate::report`], SQL runs in [`crate::engine`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use crate::archive::deleted;
use crate::base::error::{Error, Result};
use crate::base::keys::{Day, Prefix};
use crate::base::runtime::{self, Cancel};
use crate::base::schema;
use crate::derived::answers;
use crate::derived::reader::Reader;
use crate::engine::{self, Answer, Batches, Limits, Params};
use crate::report;
pub use crate::report::Pages;
use crate::scan::cache;
use crate::scan::erased;
use crate::scan::plan::Filter;
use crate::scan::{Coverage, DayPlan, Options, Scan, Stats};
use crate::store::Store;

/// First and last day of a question, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    since: Day,
    until: Day,
}

/// Days in one question, a hundred years of them: more than any archive has. Each that is not remembered is a request,
/// so a typing error in a year should not become a million.
const MAX_DAYS: i32 = 36_600;

impl Span {
    pub fn new(since: Day, until: Day) -> Result<Self> {
        let days = until.to_date32() - since.to_date32() + 1;
        if days < 1 {
            return Err(Error::invalid(format!("since ({since}) lies after until ({until})")));
        }
        if days > MAX_DAYS {
            return Err(Error::invalid(format!(
                "{since} to {until} are {days} days, and each may take a request to the store; is the year right? A \
                 question may span {MAX_DAYS} days"
            )));
        }
        Ok(Self { since, until })
    }
}

/// How long an answer is given again without asking whether it still holds.
const ANSWER_AGE: Duration = Duration::from_secs(1);

/// What a question reads: the files of some days, and rows that come from elsewhere.
#[derive(Debug, Clone)]
pub struct Extent {
    span: Span,
    /// The days whose files are read; `None` is all of the span.
    archived: Option<Vec<Day>>,
    /// Rows of other days, which pass the filter already.
    live: Vec<RecordBatch>,
}

impl From<Span> for Extent {
    fn from(span: Span) -> Self {
        Self {
            span,
            archived: None,
            live: Vec::new(),
        }
    }
}

impl Extent {
    /// # Errors
    /// [`Error::InvalidInput`] for a day outside the span, and rows with another schema than [`schema::pageviews`].
    pub fn new(span: Span, archived: Option<Vec<Day>>, live: Vec<RecordBatch>) -> Result<Self> {
        let outside = |day: &&Day| **day < span.since || **day > span.until;
        if let Some(day) = archived.iter().flatten().find(outside) {
            return Err(Error::invalid(format!(
                "{day} is not among the days that are asked about"
            )));
        }
        let fields = schema::pageviews();
        let alike = |batch: &RecordBatch| {
            let given = batch.schema();
            given.fields().len() == fields.fields().len()
                && given
                    .fields()
                    .iter()
                    .zip(fields.fields())
                    .all(|(given, ours)| given.name() == ours.name() && given.data_type() == ours.data_type())
        };
        if !live.iter().all(alike) {
            return Err(Error::invalid(
                "live rows have to have the columns of page views, with their types",
            ));
        }
        Ok(Self { span, archived, live })
    }

    fn days(&self) -> Vec<Day> {
        let Span { since, until } = self.span;
        self.archived
            .clone()
            .unwrap_or_else(|| Day::range(since, until).collect())
    }

    /// The rows of its days' files with those from elsewhere.
    fn with(&self, files: Arc<dyn engine::Relation>) -> Arc<dyn engine::Relation> {
        if self.live.is_empty() {
            return files;
        }
        let live = self.live.clone();
        Arc::new(Both { files, live })
    }
}

/// The rows of files, and those from elsewhere.
struct Both {
    files: Arc<dyn engine::Relation>,
    live: Vec<RecordBatch>,
}

impl Both {
    fn live_units(&self, projection: &[usize]) -> Result<Vec<engine::Unit>> {
        let unit = |batch: &RecordBatch| -> Result<engine::Unit> {
            let projected = batch
                .project(projection)
                .map_err(|error| Error::internal(error.to_string()))?;
            Ok(Box::new(
                move || Ok(Box::new(std::iter::once(Ok(projected))) as Batches),
            ))
        };
        self.live.iter().map(unit).collect()
    }
}

impl engine::Relation for Both {
    fn schema(&self) -> SchemaRef {
        self.files.schema()
    }

    fn open(&self, projection: &[usize]) -> Result<Vec<engine::Unit>> {
        let mut units = self.files.open(projection)?;
        units.extend(self.live_units(projection)?);
        Ok(units)
    }

    fn open_in_order(&self, projection: &[usize]) -> Result<engine::Opened> {
        let mut opened = self.files.open_in_order(projection)?;
        opened.rest.extend(self.live_units(projection)?);
        Ok(opened)
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
    /// Nothing when the statement read no page views.
    pub coverage: Option<Coverage>,
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

    pub fn coverage(&self) -> Result<Option<Coverage>> {
        self.scan.coverage()
    }
}

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

    /// Paths by views, the most viewed first and ties by path: columns path or full_path (utf8), count (int64) and,
    /// when asked for per version, version_slug.
    pub fn top_pages(
        &self,
        filter: Filter,
        extent: impl Into<Extent>,
        limit_and_offset: (usize, usize),
        pages: Pages,
        cancel: &Cancel,
    ) -> Result<Table> {
        let what = format!("{pages:?} {limit_and_offset:?}");
        self.report(what, filter, &extent.into(), cancel, |relation, cancel| {
            report::top_pages(relation, pages, limit_and_offset, &self.limits, cancel)
        })
    }

    /// Views by day, the oldest first: columns date (date32) and count (int64). Days without views are left
    /// out unless `fill`.
    pub fn daily_totals(
        &self,
        filter: Filter,
        extent: impl Into<Extent>,
        fill: bool,
        cancel: &Cancel,
    ) -> Result<Table> {
        let extent = extent.into();
        let Span { since, until } = extent.span;
        let what = format!("days {fill}");
        self.report(what, filter, &extent, cancel, |relation, cancel| {
            report::daily_totals(relation, (since, until), fill, &self.limits, cancel)
        })
    }

    /// Rows of one project as they are stored: the newest day first, then by status, path, version_slug and id.
    /// (A question by project id alone can meet several slugs in a day; their rows come slug by slug.)
    /// Only files are read; live rows are the caller's to put in their place.
    pub fn pageviews(
        &self,
        filter: Filter,
        extent: impl Into<Extent>,
        columns: Option<&[String]>,
        cancel: &Cancel,
    ) -> Result<Stream> {
        let all = schema::pageviews();
        let projection = match columns {
            None => (0..all.fields().len()).collect(),
            Some(names) => names
                .iter()
                .map(|name| column_index(name))
                .collect::<Result<Vec<_>>>()?,
        };
        let scan = self.scan(filter, &extent.into(), &self.options, cancel);
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
    pub fn sql(
        &self,
        filter: Filter,
        extent: impl Into<Extent>,
        sql: &str,
        params: Params,
        cancel: &Cancel,
    ) -> Result<Table> {
        self.run(filter, &extent.into(), sql, &params, cancel)
    }

    /// The ids of the erased projects.
    pub fn erased(&self, cancel: &Cancel) -> Result<Vec<i32>> {
        let asked = erased::ids(&self.store, &self.prefix, self.options.lookup_max_age);
        Ok(runtime::block_on(cancel, asked)?.0.to_vec())
    }

    /// Days of which rows were deleted from the database, asked anew with `fresh`.
    pub fn days_with_deleted_rows(&self, fresh: bool, cancel: &Cancel) -> Result<Vec<Day>> {
        let max_age = self.lookup_max_age(fresh);
        runtime::block_on(cancel, deleted::days(&self.store, &self.prefix, max_age))
    }

    /// Those of the days that have a file, asked anew with `fresh` instead of remembered.
    pub fn present(&self, days: Vec<Day>, fresh: bool, cancel: &Cancel) -> Result<Vec<Day>> {
        let (Some(since), Some(until)) = (days.iter().min().copied(), days.iter().max().copied()) else {
            return Ok(Vec::new());
        };
        let extent = Extent::new(Span::new(since, until)?, Some(days), Vec::new())?;
        let options = Options {
            max_age: self.lookup_max_age(fresh),
            ..self.options.clone()
        };
        self.scan(Filter::default(), &extent, &options, cancel).covered()
    }

    fn lookup_max_age(&self, fresh: bool) -> Duration {
        if fresh {
            Duration::ZERO
        } else {
            self.options.lookup_max_age
        }
    }

    /// What reading these columns would fetch, day by day, the newest first. Reads footers, but no data.
    pub fn explain(&self, filter: Filter, span: Span, columns: &[String], cancel: &Cancel) -> Result<Vec<DayPlan>> {
        let projection = columns
            .iter()
            .map(|name| column_index(name))
            .collect::<Result<Vec<_>>>()?;
        self.scan(filter, &span.into(), &self.options, cancel)
            .explain(&projection)
    }

    fn scan(&self, filter: Filter, extent: &Extent, options: &Options, cancel: &Cancel) -> Arc<Scan> {
        Arc::new(Scan::new(
            self.store.clone(),
            &self.prefix,
            extent.days(),
            filter,
            options.clone(),
            cancel.clone(),
        ))
    }

    /// A question that is answered without SQL; `what` tells it apart from others about the same rows.
    fn report(
        &self,
        what: String,
        filter: Filter,
        extent: &Extent,
        cancel: &Cancel,
        report: impl Fn(&dyn engine::Relation, &Cancel) -> Result<RecordBatch>,
    ) -> Result<Table> {
        // What rows from elsewhere add up to is not remembered.
        let question = extent.live.is_empty().then(|| answers::Question {
            store: self.store.id().to_owned(),
            prefix: self.prefix.clone(),
            derived: self.options.derived,
            report: what,
            days: (extent.span.since, extent.span.until),
            archived: extent.archived.clone(),
            filter: filter.clone(),
        });
        report::within(self.limits.timeout, cancel, |cancel| {
            let reader = Arc::new(Reader::new(
                self.store.clone(),
                &self.prefix,
                extent.days(),
                filter,
                self.options.clone(),
                cancel.clone(),
            ));
            let table = |batch: RecordBatch, coverage: Option<Coverage>| Table {
                schema: batch.schema(),
                batches: vec![batch],
                coverage,
                stats: reader.stats(),
            };
            let (asked, writes) = (Instant::now(), cache::writes());
            if let Some(known) = question.as_ref().and_then(answers::find) {
                let believed = self.options.max_age.min(ANSWER_AGE);
                if known.confirmed.elapsed() < believed && known.writes == writes {
                    reader.note_remembered(&known.basis);
                    return Ok(table(known.batch, known.coverage));
                }
                if reader.holds(&known.basis)? {
                    answers::confirm(&known, asked, writes);
                    return Ok(table(known.batch, known.coverage));
                }
            }
            let mut answered = report(&*extent.with(reader.clone()), cancel);
            // What is derived makes no question fail.
            if let Err(error) = &answered
                && reader.is_of_derived(error)
            {
                log::warn!("{error}; the days' own files are read instead");
                reader.read_days();
                answered = report(&*extent.with(reader.clone()), cancel);
            }
            let batch = answered?;
            let coverage = reader.coverage()?;
            if let Some(question) = question {
                answers::keep(answers::Answer {
                    question,
                    batch: batch.clone(),
                    coverage: coverage.clone(),
                    basis: Arc::new(reader.basis()?),
                    confirmed: asked,
                    writes,
                });
            }
            Ok(table(batch, coverage))
        })
    }

    fn run(&self, filter: Filter, extent: &Extent, sql: &str, params: &Params, cancel: &Cancel) -> Result<Table> {
        let (scan, relation) = self.relation(filter, extent, cancel);
        let Answer { schema, batches } = engine::query(relation, sql, params, &self.limits, cancel)?;
        Table::new(schema, batches.collect::<Result<Vec<_>>>()?, &scan)
    }

    fn relation(&self, filter: Filter, extent: &Extent, cancel: &Cancel) -> (Arc<Scan>, Arc<dyn engine::Relation>) {
        let scan = self.scan(filter, extent, &self.options, cancel);
        let relation = extent.with(scan.clone());
        (scan, relation)
    }
}

impl Table {
    fn new(schema: SchemaRef, batches: Vec<RecordBatch>, scan: &Scan) -> Result<Self> {
        let coverage = scan.coverage()?;
        Ok(Self {
            schema,
            batches,
            stats: scan.stats(),
            coverage,
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
