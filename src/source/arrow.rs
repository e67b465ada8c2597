//! Any Arrow stream as a source: columns are matched by name, converted when nothing is lost, and every
//! value is checked. Where the stream comes from (Python's `__arrow_c_stream__`, the sample generator) and
//! whether ids repeat is not this module's business.

mod convert;

use std::sync::Arc;

use ::arrow::array::{ArrayRef, Date32Array, Int16Array, RecordBatch, RecordBatchReader};
use ::arrow::datatypes::{DataType, Int16Type, Int32Type, SchemaRef};
use ::arrow::error::ArrowError;
use chrono::Utc;

use self::convert::{Column, Rows, is_decodable};
use super::{BadRows, LeftRow, Sink, Source, Summary, leave};
use crate::base::error::{Error, Result};
use crate::base::keys::Day;
use crate::base::runtime::Cancel;
use crate::base::schema;

/// Rows handed over at a time; a larger batch of the stream is cut.
pub const MAX_BATCH_ROWS: usize = 65_536;

/// What a stream without a `status` column is taken to hold: pages that were found.
const DEFAULT_STATUS: i16 = 200;

/// A stream of record batches, whoever produces it.
pub type Stream = Box<dyn RecordBatchReader + Send>;

/// Says whether there are rows of an earlier day; `None` when that is not known.
pub type AskEarlier = Box<dyn FnMut(Day) -> Result<Option<bool>> + Send>;

/// Opens the stream of one day's rows.
pub type OpenStream = Box<dyn FnMut(Day) -> Result<Stream> + Send>;

/// Reads page views from Arrow streams. `version_id`, `version_slug`, `full_path` and `status` may be missing
/// (NULL, and 200 for the status), other columns of [`schema::pageviews`] may not; more columns are ignored.
pub struct ArrowSource {
    name: String,
    streams: Streams,
    earlier: Option<AskEarlier>,
}

enum Streams {
    Once(Option<Stream>),
    PerDay(OpenStream),
}

impl ArrowSource {
    /// A single stream, which can be read once.
    pub fn once(stream: Stream) -> Self {
        Self {
            name: "arrow stream".to_owned(),
            streams: Streams::Once(Some(stream)),
            earlier: None,
        }
    }

    /// A stream opened for each day that is read.
    pub fn per_day(open: impl FnMut(Day) -> Result<Stream> + Send + 'static) -> Self {
        Self {
            name: "arrow stream per day".to_owned(),
            streams: Streams::PerDay(Box::new(open)),
            earlier: None,
        }
    }

    /// Who is asked about earlier days when a day has no rows.
    #[must_use]
    pub fn asking_earlier(mut self, ask: impl FnMut(Day) -> Result<Option<bool>> + Send + 'static) -> Self {
        self.earlier = Some(Box::new(ask));
        self
    }

    /// Names the source in [`Summary::source`] and so in the file's metadata. Give it no secret.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    fn open(&mut self, day: Day) -> Result<Stream> {
        match &mut self.streams {
            Streams::PerDay(open) => open(day),
            Streams::Once(stream) => stream.take().ok_or_else(|| Error::InvalidInput {
                message: "this Arrow stream was read already and can be read only once; \
                          give a function that takes the day and returns a new stream"
                    .to_owned(),
            }),
        }
    }
}

impl Source for ArrowSource {
    fn read(&mut self, day: Day, bad_rows: BadRows, sink: &mut Sink<'_>, cancel: &Cancel) -> Result<Summary> {
        cancel.check()?;
        let snapshot_time = Utc::now();
        let stream = self.open(day)?;
        let mut left = Vec::new();
        let mut reading = Reading {
            day,
            plan: Plan::new(&stream.schema())?,
            rows_before: 0,
        };
        for batch in stream {
            cancel.check()?;
            let batch = batch.map_err(|error| producer_failed(&error, reading.rows_before))?;
            reading.plan.check(&batch)?;
            for offset in (0..batch.num_rows()).step_by(MAX_BATCH_ROWS) {
                cancel.check()?;
                let length = MAX_BATCH_ROWS.min(batch.num_rows() - offset);
                reading.hand_over(&batch.slice(offset, length), bad_rows, &mut left, sink)?;
            }
        }
        let handed_over = reading.rows_before - left.len() as u64;
        let earlier_rows = match &mut self.earlier {
            Some(ask) if handed_over == 0 => ask(day)?,
            _ => None,
        };
        Ok(Summary {
            source: self.name.clone(),
            snapshot_time,
            position: None,
            counted: None,
            earlier_rows,
            left,
            elsewhere: Vec::new(),
            slugs: None,
        })
    }

    fn count(&mut self, _day: Day, _cancel: &Cancel) -> Result<Option<u64>> {
        Ok(None)
    }
}

/// Which column of the stream becomes which column of ours; `None` where a default fills in.
struct Plan {
    stream: SchemaRef,
    columns: Vec<Option<usize>>,
}

impl Plan {
    fn new(stream: &SchemaRef) -> Result<Self> {
        let target = schema::pageviews();
        let find = |name: &str| {
            let mut found = stream
                .fields()
                .iter()
                .enumerate()
                .filter(|(_, field)| field.name() == name);
            match (found.next(), found.next()) {
                (Some(_), Some(_)) => Err(refuse(name, format!("the stream has more than one column {name:?}"))),
                (first, _) => Ok(first.map(|(index, _)| index)),
            }
        };
        let columns = target
            .fields()
            .iter()
            .map(|field| find(field.name()))
            .collect::<Result<Vec<_>>>()?;

        let missing: Vec<&str> = (target.fields().iter().zip(&columns))
            .filter(|(field, column)| column.is_none() && !field.is_nullable() && field.name() != schema::STATUS)
            .map(|(field, _)| field.name().as_str())
            .collect();
        if let Some(first) = missing.first() {
            let has: Vec<&str> = stream.fields().iter().map(|field| field.name().as_str()).collect();
            let message = format!(
                "the stream has no column {}; it has: {}",
                missing.join(", "),
                has.join(", ")
            );
            return Err(refuse(first, message));
        }

        for (field, column) in target.fields().iter().zip(&columns) {
            if let Some(index) = column {
                let found = stream.field(*index).data_type();
                if !is_decodable(found, field.data_type()) {
                    let name = field.name();
                    let message = format!(
                        "column {name:?} of the stream has type {found}; {}",
                        wanted(found, field.data_type())
                    );
                    return Err(refuse(name, message));
                }
            }
        }
        Ok(Self {
            stream: Arc::clone(stream),
            columns,
        })
    }

    /// A producer that changes its columns halfway is refused before its values are looked at.
    fn check(&self, batch: &RecordBatch) -> Result<()> {
        let schema = batch.schema_ref();
        let fine = schema.fields().len() == self.stream.fields().len()
            && (self.stream.fields().iter().zip(schema.fields()))
                .all(|(a, b)| a.name() == b.name() && a.data_type() == b.data_type());
        if fine {
            return Ok(());
        }
        Err(Error::SourceSchema {
            column: None,
            message: "a batch of the stream has other columns than it announced".into(),
        })
    }
}

struct Reading {
    day: Day,
    plan: Plan,
    rows_before: u64,
}

impl Reading {
    /// Hands over the rows that fit. A batch with a bad row is halved until that row is alone.
    fn hand_over(
        &mut self,
        batch: &RecordBatch,
        bad_rows: BadRows,
        left: &mut Vec<LeftRow>,
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        let rows = batch.num_rows();
        match self.convert(batch) {
            Ok(converted) => {
                self.rows_before += rows as u64;
                sink(converted)
            }
            Err(Error::BadRow { .. }) if bad_rows == BadRows::Leave && rows > 1 => {
                let half = rows / 2;
                self.hand_over(&batch.slice(0, half), bad_rows, left, sink)?;
                self.hand_over(&batch.slice(half, rows - half), bad_rows, left, sink)
            }
            Err(error) => {
                leave(bad_rows, left, error)?;
                self.rows_before += rows as u64;
                Ok(())
            }
        }
    }

    fn convert(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let rows = self.rows(batch)?;
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.plan.columns.len());
        for (field, source) in schema::pageviews().fields().iter().zip(&self.plan.columns) {
            columns.push(match source {
                Some(index) => self.column(&rows, field.name(), batch.column(*index))?,
                None if field.name() == schema::STATUS => {
                    Arc::new(Int16Array::from_value(DEFAULT_STATUS, batch.num_rows()))
                }
                None => ::arrow::array::new_null_array(field.data_type(), batch.num_rows()),
            });
        }
        RecordBatch::try_new(schema::pageviews(), columns)
            .map_err(|error| Error::internal(format!("converted columns do not form a batch: {error}")))
    }

    fn rows(&self, batch: &RecordBatch) -> Result<Rows> {
        let unnamed = Rows {
            ids: None,
            rows_before: self.rows_before,
        };
        let index = self.plan.columns.first().copied().flatten();
        let index = index.ok_or_else(|| Error::internal("the plan has no id column"))?;
        let ids = Column::new(schema::ID, batch.column(index), &unnamed)?
            .required()?
            .int64()?;
        Ok(Rows {
            ids: Some(ids),
            rows_before: self.rows_before,
        })
    }

    fn column(&self, rows: &Rows, name: &str, source: &ArrayRef) -> Result<ArrayRef> {
        const ID_RANGE: (i64, i64) = (i32::MIN as i64, i32::MAX as i64);
        const COUNT_RANGE: (i64, i64) = (0, i32::MAX as i64);
        const STATUS_RANGE: (i64, i64) = (0, i16::MAX as i64);

        let column = |name: &'static str| Column::new(name, source, rows);
        let required = |name: &'static str| column(name)?.required();
        Ok(match name {
            schema::ID => Arc::new(required(schema::ID)?.int64()?),
            schema::PROJECT_ID => Arc::new(required(schema::PROJECT_ID)?.narrow::<Int32Type>(ID_RANGE)?),
            schema::PROJECT_SLUG => Arc::new(required(schema::PROJECT_SLUG)?.text(false)?),
            schema::VERSION_ID => Arc::new(column(schema::VERSION_ID)?.narrow::<Int32Type>(ID_RANGE)?),
            schema::VERSION_SLUG => Arc::new(column(schema::VERSION_SLUG)?.text(true)?),
            schema::PATH => Arc::new(required(schema::PATH)?.text(true)?),
            schema::FULL_PATH => Arc::new(column(schema::FULL_PATH)?.text(true)?),
            schema::VIEW_COUNT => Arc::new(required(schema::VIEW_COUNT)?.narrow::<Int32Type>(COUNT_RANGE)?),
            schema::DATE => Arc::new(self.check_day(rows, &required(schema::DATE)?.date32()?)?),
            schema::STATUS => Arc::new(required(schema::STATUS)?.narrow::<Int16Type>(STATUS_RANGE)?),
            other => return Err(Error::internal(format!("no rule converts the column {other}"))),
        })
    }

    fn check_day(&self, rows: &Rows, dates: &Date32Array) -> Result<Date32Array> {
        let wanted = self.day.to_date32();
        let others = dates.values().iter().filter(|&&date| date != wanted).count();
        let Some(first) = dates.values().iter().position(|&date| date != wanted) else {
            return Ok(Date32Array::from_value(wanted, dates.len()));
        };
        let found = dates.value(first);
        let found = Day::from_date32(found).map_or_else(|| format!("day number {found}"), |day| day.to_string());
        let seen = self.rows_before + dates.len() as u64;
        Err(rows.bad(
            first,
            schema::DATE,
            format!(
                "it is of {found}, not of {}: rows of another day, {others} of the first {seen} rows read; \
                 give only the rows of the day that is exported",
                self.day
            ),
        ))
    }
}

fn refuse(column: &str, message: String) -> Error {
    Error::SourceSchema {
        column: Some(column.to_owned()),
        message,
    }
}

/// What would have been accepted, and how to get there from what was found.
fn wanted(found: &DataType, target: &DataType) -> String {
    match target {
        DataType::Utf8 => "text is needed, and other types are not turned into text".to_owned(),
        DataType::Date32 => "a date is needed (date32, date64, or a timestamp at midnight UTC)".to_owned(),
        _ if found.is_floating() => "whole numbers are needed, and floating point may have lost some; \
             cast it first (in pandas: .astype(\"Int64\"), which keeps missing values)"
            .to_owned(),
        _ => "whole numbers are needed (any integer type, or a decimal without fraction digits)".to_owned(),
    }
}

/// The producer's own words, without the layers of wrapping around them.
fn producer_failed(error: &ArrowError, rows_before: u64) -> Error {
    let cause = match error {
        ArrowError::CDataInterface(text) => text.clone(),
        ArrowError::ExternalError(error) => error.to_string(),
        other => other.to_string(),
    };
    Error::Source {
        message: format!("the stream failed after {rows_before} rows: {}", cause.trim()),
        retryable: false,
    }
}
