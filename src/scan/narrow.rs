//! Questions that name a project by its id alone, as when its slug was changed. Files are in order of slugs, so that a
//! page of small projects holds ids from everywhere, and its statistics leave out little. The ids themselves are a
//! hundredth of a file: they are read first, and tell which rows to read. That is remembered with the footer.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::{Array, Int32Array};
use futures::future::try_join_all;

use super::Context;
use super::decode::{self, Sparse};
use super::fetch;
use super::version::Version;
use crate::base::error::{Error, Result};
use crate::base::schema;
use crate::file::footer::Footer;
use crate::file::footer::GroupPlan;
use crate::scan::plan::{self, Filter};

/// Rows that lie so close are read as one range.
const CLOSE: u64 = 1024;

/// The id to look for, and the footer of the file, when ids are to be read before rows.
fn wanted(context: &Context, version: &Version) -> Option<(i32, Arc<Footer>)> {
    let selected: u64 = version.groups.iter().map(GroupPlan::selected).sum();
    if !context.given.by_id_alone() || selected <= context.options.narrow_rows {
        return None;
    }
    Some((context.given.project_id?, version.footer.clone()?))
}

/// Whether nothing has to be read: the plan is narrow enough, or has become so by what is remembered.
pub(super) fn is_settled(context: &Context, version: &mut Version) -> bool {
    let Some((id, footer)) = wanted(context, version) else {
        return true;
    };
    let Some(rows) = footer.rows_of(id) else { return false };
    version.groups = plan::intersection(&version.groups, &rows);
    true
}

/// The version with only the project's rows in its plan; `None` when it has been replaced meanwhile.
pub(super) async fn to_project(context: &Arc<Context>, key: &str, mut version: Version) -> Result<Option<Version>> {
    if is_settled(context, &mut version) {
        return Ok(Some(version));
    }
    let Some((id, footer)) = wanted(context, &version) else {
        return Ok(Some(version));
    };
    let column = schema::column(schema::PROJECT_ID)?;
    // For all statuses, so that the next question has no need to ask.
    let filter = Filter {
        project_id: Some(id),
        ..Filter::default()
    };
    let possible = plan::select(&footer, &filter);
    let ranges = version.ranges(&possible, &[column]);
    let chunks = if version.in_tail(&ranges) {
        version.tail.clone().into_iter().collect()
    } else {
        context.counters.narrow_waves.fetch_max(1, Ordering::Relaxed);
        let requests = plan::coalesce(ranges, context.options.gap, context.options.request_bytes);
        let chunks = requests
            .into_iter()
            .map(|range| fetch::get(context, key, &footer.etag, range));
        match try_join_all(chunks).await?.into_iter().collect() {
            Some(chunks) => chunks,
            None => return Ok(None),
        }
    };
    let bytes = Sparse::new(footer.size, chunks);
    let mut groups = Vec::new();
    for group in &possible {
        context.cancel.check()?;
        let find = || find(&footer, group, column, &bytes, id);
        // The parquet crate has assertions that only damaged files violate.
        let rows = catch_unwind(AssertUnwindSafe(find)).unwrap_or_else(|_| Err("a page cannot be decoded".to_owned()));
        let rows = rows.map_err(|error| Error::corrupt(key, error))?;
        if !rows.is_empty() {
            let group = group.group;
            groups.push(GroupPlan { group, rows });
        }
    }
    version.groups = plan::intersection(&version.groups, &groups);
    footer.remember_rows_of(id, groups);
    Ok(Some(version))
}

/// The rows of a row group that have the id, with what lies close between them.
fn find(footer: &Footer, group: &GroupPlan, column: usize, bytes: &Sparse, id: i32) -> Result<Vec<Range<u64>>, String> {
    const BATCH_ROWS: usize = 8192;
    let reader = decode::open(footer, group, &[column], bytes, BATCH_ROWS).map_err(|error| error.to_string())?;
    let mut numbers = group.rows.iter().cloned().flatten();
    let mut found: Vec<Range<u64>> = Vec::new();
    for batch in reader {
        let batch = batch.map_err(|error| error.to_string())?;
        let ids = batch.column(0).as_any().downcast_ref::<Int32Array>();
        for value in ids.ok_or("project_id has another type")?.values() {
            let row = numbers
                .next()
                .ok_or("its pages have more rows than its footer counts")?;
            if *value != id {
                continue;
            }
            match found.last_mut() {
                Some(last) if row - last.end <= CLOSE => last.end = row + 1,
                _ => found.push(row..row + 1),
            }
        }
    }
    if numbers.next().is_some() {
        return Err("its pages have fewer rows than its footer counts".to_owned());
    }
    Ok(found)
}
