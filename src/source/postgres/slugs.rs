//! The slugs of projects and versions.

use std::collections::{HashMap, HashSet};

use super::config::SlugTable;
use super::connect::{Snapshot, text};
use super::{IDS_AT_ONCE, list};
use crate::base::error::{Error, Result};
use crate::base::schema;

/// The slugs of these ids, and no others.
pub async fn slugs(
    snapshot: &mut Snapshot<'_>,
    what: &str,
    table: &SlugTable,
    ids: &HashSet<i32>,
) -> Result<HashMap<i32, String>> {
    let mut ids: Vec<i32> = ids.iter().copied().collect();
    ids.sort_unstable();
    let mut found = HashMap::with_capacity(ids.len());
    for some in ids.chunks(IDS_AT_ONCE) {
        let sql = format!(
            "SELECT {0}::text, {1}::text FROM {2} WHERE {0} = ANY('{{{3}}}'::bigint[])",
            table.id,
            table.slug,
            table.table,
            list(some)
        );
        for row in snapshot.query("reading the slugs", &sql).await? {
            let Some(Ok(id)) = text(&row, 0)?.map(|id| id.parse::<i32>()) else {
                continue;
            };
            // Only a database without encoding can hold such a slug.
            let slug = text(&row, 1).map_err(|_| Error::SourceSchema {
                column: Some(table.slug.as_str().to_owned()),
                message: format!(
                    "the slug of {what} {id} in {} is not valid UTF-8; correct it in the database",
                    table.table.shown()
                ),
            })?;
            if let Some(slug) = &slug
                && slug.len() > schema::MAX_SLUG_BYTES
            {
                return Err(Error::SourceSchema {
                    column: Some(table.slug.as_str().to_owned()),
                    message: format!(
                        "the slug of {what} {id} in {} is {} bytes long, and at most {} are possible",
                        table.table.shown(),
                        slug.len(),
                        schema::MAX_SLUG_BYTES
                    ),
                });
            }
            if let Some(slug) = slug {
                found.insert(id, slug);
            }
        }
    }
    match ids.iter().find(|id| !found.contains_key(*id)) {
        None => Ok(found),
        Some(id) => Err(Error::SourceSchema {
            column: None,
            message: format!(
                "page views name {what} {id}, but {} has no slug for it",
                table.table.shown()
            ),
        }),
    }
}
