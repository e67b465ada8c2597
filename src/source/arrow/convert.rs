//! One column of a stream turned into one column of ours, with every value that would not survive named
//! by its row's id. Knows types and ranges, not which columns there are.

use arrow::array::{Array, ArrayRef, AsArray, Date32Array, Int64Array, PrimitiveArray, StringArray};
use arrow::buffer::{Buffer, OffsetBuffer};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{ArrowPrimitiveType, DataType, Date32Type, Int64Type, TimeUnit};
use arrow::util::display::{ArrayFormatter, FormatOptions};

use crate::base::error::{Error, Result};
use crate::base::schema;

/// The rows of a batch, to name one in an error.
pub struct Rows {
    /// `None` while the ids themselves are read.
    pub ids: Option<Int64Array>,
    pub rows_before: u64,
}

impl Rows {
    pub fn bad(&self, row: usize, column: &'static str, why: impl std::fmt::Display) -> Error {
        let row_id = self.ids.as_ref().map(|ids| ids.value(row));
        let place = match row_id {
            Some(id) => format!("the row with id {id}"),
            None => format!("row {} of the stream", self.rows_before + row as u64 + 1),
        };
        Error::BadRow {
            row_id,
            column,
            message: format!("{place} cannot be exported, column {column}: {why}"),
        }
    }
}

/// Whether values of type `from` can become `to` without loss, those in range at least.
pub fn is_decodable(from: &DataType, to: &DataType) -> bool {
    let from = plain(from);
    match to {
        DataType::Utf8 => from.is_null() || matches!(from, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View),
        DataType::Date32 => from.is_null() || *from == DataType::Date32 || ticks_per_day(from).is_some(),
        _ => {
            let whole_decimal = matches!(
                from,
                DataType::Decimal32(_, 0)
                    | DataType::Decimal64(_, 0)
                    | DataType::Decimal128(_, 0)
                    | DataType::Decimal256(_, 0)
            );
            from.is_null() || from.is_integer() || whole_decimal
        }
    }
}

/// The type of the values inside a dictionary or run-end encoding.
fn plain(data_type: &DataType) -> &DataType {
    match data_type {
        DataType::Dictionary(_, values) => plain(values),
        DataType::RunEndEncoded(_, values) => plain(values.data_type()),
        other => other,
    }
}

fn ticks_per_day(data_type: &DataType) -> Option<i64> {
    const SECONDS: i64 = 86_400;
    match data_type {
        DataType::Date64 | DataType::Timestamp(TimeUnit::Millisecond, _) => Some(SECONDS * 1_000),
        DataType::Timestamp(TimeUnit::Second, _) => Some(SECONDS),
        DataType::Timestamp(TimeUnit::Microsecond, _) => Some(SECONDS * 1_000_000),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => Some(SECONDS * 1_000_000_000),
        _ => None,
    }
}

pub struct Column<'a> {
    name: &'static str,
    /// Plain values: no dictionary and no run-end encoding.
    values: ArrayRef,
    rows: &'a Rows,
}

impl<'a> Column<'a> {
    pub fn new(name: &'static str, values: &ArrayRef, rows: &'a Rows) -> Result<Self> {
        let values = cast_values(name, values, plain(values.data_type()))?;
        Ok(Self { name, values, rows })
    }

    /// Refuses NULL.
    pub fn required(self) -> Result<Self> {
        let nulls = self.values.logical_nulls();
        match nulls.and_then(|nulls| (0..nulls.len()).find(|&row| nulls.is_null(row))) {
            Some(row) => Err(self.rows.bad(row, self.name, "it is NULL, and a value is required")),
            None => Ok(self),
        }
    }

    pub fn int64(&self) -> Result<Int64Array> {
        let cast = cast_values(self.name, &self.values, &DataType::Int64)?;
        // The cast turns what does not fit into NULL.
        if cast.null_count() != self.values.logical_null_count() {
            let row = (0..cast.len())
                .find(|&row| cast.is_null(row) && !self.values.is_null(row))
                .unwrap_or(0);
            return Err(self.out_of_range(row, i64::MIN, i64::MAX));
        }
        Ok(cast.as_primitive::<Int64Type>().clone())
    }

    /// Whole numbers from `min` to `max`, both included.
    pub fn narrow<T>(&self, (min, max): (i64, i64)) -> Result<PrimitiveArray<T>>
    where
        T: ArrowPrimitiveType,
        T::Native: TryFrom<i64>,
    {
        let wide = self.int64()?;
        let outside = |row: usize| !(min..=max).contains(&wide.value(row)) && wide.is_valid(row);
        if let Some(row) = (0..wide.len()).find(|&row| outside(row)) {
            return Err(self.out_of_range(row, min, max));
        }
        // A NULL's slot may hold any number.
        Ok(wide.unary(|value| T::Native::try_from(value).unwrap_or_default()))
    }

    pub fn text(&self, empty_allowed: bool) -> Result<StringArray> {
        let cast = cast_values(self.name, &self.values, &DataType::Utf8)?;
        let text = cast.as_string::<i32>().clone();
        self.check_utf8(&text)?;
        if !empty_allowed && let Some(row) = text.offsets().lengths().position(|length| length == 0) {
            return Err(self.rows.bad(row, self.name, "it is empty"));
        }
        let most = match self.name {
            schema::PROJECT_SLUG | schema::VERSION_SLUG => schema::MAX_SLUG_BYTES,
            _ => schema::MAX_TEXT_BYTES,
        };
        let long = text.offsets().lengths().enumerate().find(|(_, length)| *length > most);
        if let Some((row, length)) = long {
            let why = format!("it is {length} bytes long, and at most {most} are possible");
            return Err(self.rows.bad(row, self.name, why));
        }
        self.compact(text)
    }

    /// The same text without the rest of the producer's buffer that a cut batch holds on to, so that memory
    /// counted by batch is memory in use.
    fn compact(&self, text: StringArray) -> Result<StringArray> {
        let (first, last) = (text.value_offsets()[0], text.value_offsets()[text.len()]);
        let used = &text.value_data()[first as usize..last as usize];
        if used.len() == text.value_data().len() {
            return Ok(text);
        }
        let offsets = OffsetBuffer::from_lengths(text.offsets().lengths());
        StringArray::try_new(offsets, Buffer::from(used), text.nulls().cloned())
            .map_err(|error| Error::internal(format!("column {} could not be cut: {error}", self.name)))
    }

    /// Arrow's C interface takes over text as the producer made it, without looking whether it is UTF-8.
    fn check_utf8(&self, text: &StringArray) -> Result<()> {
        let offsets = text.value_offsets();
        let bounds = |row: usize| offsets[row] as usize..offsets[row + 1] as usize;
        let all = &text.value_data()[offsets[0] as usize..offsets[text.len()] as usize];
        if all.is_ascii() {
            return Ok(());
        }
        match (0..text.len()).find(|&row| std::str::from_utf8(&text.value_data()[bounds(row)]).is_err()) {
            Some(row) => Err(self.rows.bad(row, self.name, "it is not valid UTF-8")),
            None => Ok(()),
        }
    }

    pub fn date32(&self) -> Result<Date32Array> {
        let Some(ticks) = ticks_per_day(self.values.data_type()) else {
            let cast = cast_values(self.name, &self.values, &DataType::Date32)?;
            return Ok(cast.as_primitive::<Date32Type>().clone());
        };
        let instants = self.int64()?;
        let day = |instant: i64| {
            (instant.rem_euclid(ticks) == 0)
                .then(|| i32::try_from(instant.div_euclid(ticks)).ok())
                .flatten()
        };
        match (0..instants.len()).find(|&row| instants.is_valid(row) && day(instants.value(row)).is_none()) {
            Some(row) => {
                let shown = self.shown(row);
                Err(self.rows.bad(
                    row,
                    self.name,
                    format!("{shown} is not a midnight in UTC, so it is not a day"),
                ))
            }
            None => Ok(instants.unary(|instant| day(instant).unwrap_or_default())),
        }
    }

    fn out_of_range(&self, row: usize, min: i64, max: i64) -> Error {
        self.rows
            .bad(row, self.name, format!("{} is outside {min} to {max}", self.shown(row)))
    }

    fn shown(&self, row: usize) -> String {
        let format = FormatOptions::default();
        match ArrayFormatter::try_new(self.values.as_ref(), &format) {
            Ok(formatter) => formatter.value(row).to_string(),
            Err(_) => "the value".to_owned(),
        }
    }
}

fn cast_values(name: &str, values: &ArrayRef, to: &DataType) -> Result<ArrayRef> {
    if values.data_type() == to {
        return Ok(values.clone());
    }
    let options = CastOptions {
        safe: true,
        format_options: FormatOptions::default(),
    };
    cast_with_options(values, to, &options).map_err(|error| Error::SourceSchema {
        column: Some(name.to_owned()),
        message: format!("column {name:?} of the stream could not be turned into {to}: {error}"),
    })
}
