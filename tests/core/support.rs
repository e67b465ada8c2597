//! Rows as plain values, and the way between them and record batches.

use std::sync::Arc;

use arrow::array::{Array, AsArray, Date32Array, Int16Array, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{Date32Type, Int16Type, Int32Type, Int64Type};
use parquet_analytics::base::keys::Day;
use parquet_analytics::base::schema;
use rand::Rng;
use rand::seq::IndexedRandom;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    pub project_slug: String,
    pub status: i16,
    pub path: String,
    pub version_slug: Option<String>,
    pub id: i64,
    pub project_id: i32,
    pub version_id: Option<i32>,
    pub full_path: Option<String>,
    pub view_count: i32,
    pub date: i32,
}

pub fn day() -> Day {
    "2026-07-01".parse().unwrap()
}

/// Random rows with few projects and many shared path beginnings; the derived order is the file's order.
pub fn random_rows(rng: &mut impl Rng, count: usize) -> Vec<Row> {
    let projects = ["docs", "docs-zh", "a", "Zeta", "日本", "it's", "emoji😀", "ä"];
    let starts = ["/", "/en/latest/reference/", "/api/reference/module/", "/é/"];
    (0..count as i64)
        .map(|id| {
            let project = rng.random_range(0..projects.len());
            let version = rng.random_bool(0.8).then(|| rng.random_range(0..5));
            let tail: String = (0..rng.random_range(0..6))
                .map(|_| *['a', 'b', '\u{0}', 'é', '😀'].choose(rng).unwrap())
                .collect();
            let path = format!("{}{tail}", starts.choose(rng).unwrap());
            Row {
                project_slug: projects[project].to_owned(),
                status: *[200_i16, 404, 0, 301, i16::MAX].choose(rng).unwrap(),
                path: path.clone(),
                // Two version ids share each slug, as "latest" does between projects.
                version_slug: version.map(|number: i32| format!("v{}", number / 2)),
                id,
                project_id: project as i32 + 10,
                version_id: version,
                full_path: rng.random_bool(0.9).then_some(path),
                view_count: *[0, 1, 7, i32::MAX].choose(rng).unwrap(),
                date: day().to_date32(),
            }
        })
        .collect()
}

pub fn batch_of(rows: &[Row]) -> RecordBatch {
    RecordBatch::try_new(
        schema::pageviews(),
        vec![
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.id))),
            Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.project_id))),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.project_slug))),
            Arc::new(Int32Array::from_iter(rows.iter().map(|row| row.version_id))),
            Arc::new(StringArray::from_iter(
                rows.iter().map(|row| row.version_slug.as_deref()),
            )),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.path))),
            Arc::new(StringArray::from_iter(rows.iter().map(|row| row.full_path.as_deref()))),
            Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.view_count))),
            Arc::new(Date32Array::from_iter_values(rows.iter().map(|row| row.date))),
            Arc::new(Int16Array::from_iter_values(rows.iter().map(|row| row.status))),
        ],
    )
    .unwrap()
}

pub fn rows_of(batch: &RecordBatch) -> Vec<Row> {
    let column = |name: &str| batch.column_by_name(name).unwrap();
    let text = |name: &str| column(name).as_string::<i32>();
    let int = |name: &str| column(name).as_primitive::<Int32Type>();
    let optional = |array: &StringArray, row: usize| array.is_valid(row).then(|| array.value(row).to_owned());
    (0..batch.num_rows())
        .map(|row| Row {
            project_slug: text("project_slug").value(row).to_owned(),
            status: column("status").as_primitive::<Int16Type>().value(row),
            path: text("path").value(row).to_owned(),
            version_slug: optional(text("version_slug"), row),
            id: column("id").as_primitive::<Int64Type>().value(row),
            project_id: int("project_id").value(row),
            version_id: int("version_id").is_valid(row).then(|| int("version_id").value(row)),
            full_path: optional(text("full_path"), row),
            view_count: int("view_count").value(row),
            date: column("date").as_primitive::<Date32Type>().value(row),
        })
        .collect()
}
