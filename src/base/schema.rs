//! The one place that says what a row of page views is: columns, types, nullability and sort order.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use crate::base::error::{Error, Result};

/// Version of the file layout, written as [`meta::FORMAT`]; a reader refuses a newer one.
pub const FORMAT: u32 = 1;

/// Bytes of the longest text. A batch of 8192 rows then stays below 2 GiB, which is what the offsets of an Arrow
/// string array can tell apart.
pub const MAX_TEXT_BYTES: usize = (1 << 18) - 1;
/// Bytes of the longest slug. Slugs are stored once and stand in many rows.
pub const MAX_SLUG_BYTES: usize = (1 << 12) - 1;

pub const ID: &str = "id";
pub const PROJECT_ID: &str = "project_id";
pub const PROJECT_SLUG: &str = "project_slug";
pub const VERSION_ID: &str = "version_id";
pub const VERSION_SLUG: &str = "version_slug";
pub const PATH: &str = "path";
pub const FULL_PATH: &str = "full_path";
pub const VIEW_COUNT: &str = "view_count";
pub const DATE: &str = "date";
pub const STATUS: &str = "status";

/// Rows of a day's file are in byte order of these columns, nulls first.
pub const SORT_ORDER: [&str; 5] = [PROJECT_SLUG, STATUS, PATH, VERSION_SLUG, ID];

/// The ten columns of every file and of every answer that returns rows.
pub fn pageviews() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        Arc::new(Schema::new(vec![
            Field::new(ID, DataType::Int64, false),
            Field::new(PROJECT_ID, DataType::Int32, false),
            Field::new(PROJECT_SLUG, DataType::Utf8, false),
            Field::new(VERSION_ID, DataType::Int32, true),
            Field::new(VERSION_SLUG, DataType::Utf8, true),
            Field::new(PATH, DataType::Utf8, false),
            Field::new(FULL_PATH, DataType::Utf8, true),
            Field::new(VIEW_COUNT, DataType::Int32, false),
            Field::new(DATE, DataType::Date32, false),
            Field::new(STATUS, DataType::Int16, false),
        ]))
    });
    Arc::clone(&SCHEMA)
}

/// Where a column of [`pageviews`] stands.
pub fn column(name: &str) -> Result<usize> {
    pageviews()
        .index_of(name)
        .map_err(|error| Error::internal(error.to_string()))
}

/// The columns that PostgreSQL is asked for: [`pageviews`] without the slugs, which are fetched apart,
/// and without the date, which the query fixes.
pub fn facts() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        let without = [PROJECT_SLUG, VERSION_SLUG, DATE];
        let fields: Vec<_> = pageviews()
            .fields()
            .iter()
            .filter(|f| !without.contains(&f.name().as_str()))
            .cloned()
            .collect();
        Arc::new(Schema::new(fields))
    });
    Arc::clone(&SCHEMA)
}

/// Keys of the file metadata, and of the object metadata where a store keeps any.
pub mod meta {
    pub const FORMAT: &str = "parquet_analytics.format";
    pub const VERSION: &str = "parquet_analytics.version";
    pub const DAY: &str = "parquet_analytics.day";
    pub const SOURCE: &str = "parquet_analytics.source";
    pub const RUN_ID: &str = "parquet_analytics.run_id";
    pub const ROWS: &str = "parquet_analytics.rows";
    pub const VIEWS: &str = "parquet_analytics.views";
    pub const SHA256: &str = "parquet_analytics.sha256";
    pub const SNAPSHOT_TIME: &str = "parquet_analytics.snapshot_time";
    /// Where in the database's history the snapshot was taken: [`crate::file::position::Position`].
    pub const POSITION: &str = "parquet_analytics.position";
    /// Which rows the database still has, once rows were deleted: [`crate::file::remaining::Remaining`].
    pub const REMAINING: &str = "parquet_analytics.remaining";
    /// ETags of earlier versions whose rows these are, between blanks: only what is said of them was written anew.
    pub const SAME_ROWS_AS: &str = "parquet_analytics.same_rows_as";
    /// The smallest and the greatest id.
    pub const IDS: &str = "parquet_analytics.ids";
    /// Rows by HTTP status: `200:17 404:3`.
    pub const STATUSES: &str = "parquet_analytics.statuses";
    /// The version of the form of a series file, and its first and last day.
    pub const SERIES: &str = "parquet_analytics.series";
    pub const FIRST_DAY: &str = "parquet_analytics.first_day";
    pub const LAST_DAY: &str = "parquet_analytics.last_day";
}
