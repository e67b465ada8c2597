//! Page-view files for tests, with row groups and pages of any size, and a store to put them in.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::RecordBatch;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use parquet_analytics::base::keys::{Day, Prefix, Scope};
use parquet_analytics::base::runtime::{Cancel, block_on};
use parquet_analytics::base::schema;
use parquet_analytics::store::{Environment, Store, Write};

use crate::support::{Row, batch_of};

/// A new, empty store.
pub fn store() -> Store {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let url = format!("memory://reading-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    Store::open_with(&url, &BTreeMap::new(), None, &Environment::new()).unwrap()
}

pub fn put(store: &Store, key: &str, bytes: &Bytes) {
    block_on(&Cancel::new(), store.put(key, bytes.clone(), Write::Overwrite, &[])).unwrap();
}

pub fn key(day: Day) -> String {
    Prefix::default().key(&Scope::Day, day)
}

pub fn date(text: &str) -> Day {
    text.parse().unwrap()
}

/// How a file is laid out.
#[derive(Debug, Clone)]
pub struct Layout {
    pub group_rows: usize,
    pub page_rows: usize,
    pub statistics: EnabledStatistics,
    /// Of the columns that are filtered by.
    pub page_statistics: bool,
    pub offset_index: bool,
    pub format: Option<String>,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            group_rows: 122_880,
            page_rows: 8192,
            statistics: EnabledStatistics::Chunk,
            page_statistics: true,
            offset_index: true,
            format: Some(schema::FORMAT.to_string()),
        }
    }
}

impl Layout {
    pub fn properties(&self) -> WriterProperties {
        let format = self
            .format
            .iter()
            .map(|format| KeyValue::new(schema::meta::FORMAT.to_owned(), format.clone()));
        let mut builder = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(3).unwrap()))
            .set_max_row_group_row_count(Some(self.group_rows))
            .set_data_page_row_count_limit(self.page_rows)
            .set_write_batch_size(self.page_rows)
            .set_statistics_enabled(self.statistics)
            .set_offset_index_disabled(!self.offset_index)
            .set_key_value_metadata(Some(format.collect()));
        for column in [schema::PROJECT_SLUG, schema::PROJECT_ID, schema::STATUS] {
            if self.page_statistics {
                builder = builder.set_column_statistics_enabled(ColumnPath::from(column), EnabledStatistics::Page);
            }
        }
        for (column, encoding) in [
            (schema::ID, Encoding::DELTA_BINARY_PACKED),
            (schema::PATH, Encoding::DELTA_BYTE_ARRAY),
            (schema::FULL_PATH, Encoding::DELTA_BYTE_ARRAY),
        ] {
            let column = ColumnPath::from(column);
            builder = builder
                .set_column_dictionary_enabled(column.clone(), false)
                .set_column_encoding(column, encoding);
        }
        builder.build()
    }

    /// A file of these rows, in order.
    pub fn file(&self, rows: &[Row]) -> Bytes {
        let mut rows = rows.to_vec();
        rows.sort();
        write([batch_of(&rows)], self.properties())
    }
}

pub fn write(batches: impl IntoIterator<Item = RecordBatch>, properties: WriterProperties) -> Bytes {
    let mut batches = batches.into_iter().peekable();
    let schema = batches.peek().map_or_else(schema::pageviews, |batch| batch.schema());
    let mut file = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut file, schema, Some(properties)).unwrap();
    for batch in batches {
        writer.write(&batch).unwrap();
    }
    writer.close().unwrap();
    Bytes::from(file)
}

/// Believable traffic of projects with so many rows each, in file order, a batch a project.
pub fn traffic(projects: usize, rows_each: usize, day: Day) -> impl Iterator<Item = RecordBatch> {
    let words = [
        "install",
        "quickstart",
        "api",
        "reference",
        "changelog",
        "tutorial",
        "plugins",
        "faq",
        "themes",
        "cli",
    ];
    (0..projects).map(move |project| {
        // A cheap hash stands in for chance: the same file every time.
        let chance = move |a: usize, b: usize| {
            (a.wrapping_mul(2_654_435_761) ^ b.wrapping_mul(40_503) ^ project.wrapping_mul(97)) % 1_000_003
        };
        let row = |n: usize| {
            let (version, page) = (chance(n, 1) % 3, n / 3);
            let (section, name) = (words[chance(page, 3) % 10], words[chance(page, 4) % 10]);
            let path = format!("/{section}/{name}-{}/{:x}.html", chance(page, 5) % 50, chance(page, 6));
            let slug = ["latest", "stable", "v2.1"][version];
            let found = !n.is_multiple_of(11);
            Row {
                project_slug: format!("project-{project:05}"),
                status: if found { 200 } else { 404 },
                full_path: Some(format!("/en/{slug}{path}")),
                path,
                version_slug: found.then(|| slug.to_owned()),
                id: 7_000_000_000 + chance(n, 7) as i64 * 4000 + project as i64,
                project_id: 1000 + project as i32 * 7,
                version_id: found.then_some((project * 3 + version) as i32),
                view_count: 1 + (1000 / (1 + chance(n, 8) % 1000)) as i32,
                date: day.to_date32(),
            }
        };
        let mut rows: Vec<Row> = (0..rows_each).map(row).collect();
        rows.sort();
        batch_of(&rows)
    })
}

/// Damaged files make assertions of the parquet crate fail, which is caught; their messages would fill
/// the tests' output.
pub fn quiet_parquet_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let file = info.location().map_or("", |location| location.file());
            if !["/parquet-", "/arrow-", "/bytes-", "/library/"]
                .iter()
                .any(|part| file.contains(part))
            {
                usual(info);
            }
        }));
    });
}
