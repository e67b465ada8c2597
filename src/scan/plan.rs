//! Which rows and bytes of a file can matter to a question: row groups by their statistics, pages by the
//! page index, and the byte ranges to fetch. Pure arithmetic over footers; whoever reads the rows still
//! filters them exactly, because a page holds neighbours too.

use std::ops::Range;

use parquet::data_type::AsBytes;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use parquet::file::page_index::column_index::ColumnIndexMetaData;
use parquet::file::page_index::offset_index::PageLocation;
use parquet::file::statistics::Statistics;

use crate::base::schema;
use crate::file::footer::{Footer, GroupPlan, rows};

/// Which rows of a file a question is about; a row has to pass every part that is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Filter {
    /// Slugs, compared byte by byte; an empty list selects nothing.
    pub projects: Option<Vec<String>>,
    pub project_id: Option<i32>,
    /// Ids of projects of which any passes.
    pub any_project: Option<Vec<i32>>,
    pub statuses: Option<Vec<i16>>,
    /// Versions by id; `None` among them is rows outside of versions.
    pub versions: Option<Vec<Option<i32>>>,
    /// Projects whose rows do not pass, by id.
    pub hidden: Vec<i32>,
}

impl Filter {
    /// Indexes into [`schema::pageviews`] of the columns that decide about a row.
    pub fn columns(&self) -> Vec<usize> {
        let parts = [
            (
                schema::PROJECT_ID,
                self.project_id.is_some() || self.any_project.is_some() || !self.hidden.is_empty(),
            ),
            (schema::PROJECT_SLUG, self.projects.is_some()),
            (schema::STATUS, self.statuses.is_some()),
            (schema::VERSION_ID, self.versions.is_some()),
        ];
        let schema = schema::pageviews();
        parts
            .iter()
            .filter(|(_, given)| *given)
            .filter_map(|(name, _)| schema.index_of(name).ok())
            .collect()
    }

    /// The same filter with every list in order, so that it can be searched.
    #[must_use]
    pub(crate) fn sorted(mut self) -> Self {
        if let Some(projects) = &mut self.projects {
            projects.sort_unstable();
        }
        if let Some(statuses) = &mut self.statuses {
            statuses.sort_unstable();
        }
        if let Some(ids) = &mut self.any_project {
            ids.sort_unstable();
        }
        if let Some(versions) = &mut self.versions {
            versions.sort_unstable();
        }
        self.hidden.sort_unstable();
        self
    }

    /// Whether rows are chosen by the project's id alone, of which the statistics of files in order of slugs say little.
    pub(crate) fn by_id_alone(&self) -> bool {
        self.project_id.is_some() && self.projects.is_none()
    }

    fn conditions(&self) -> Vec<Condition> {
        let schema = schema::pageviews();
        let index = |name| schema.index_of(name).unwrap_or(usize::MAX);
        let mut conditions = Vec::new();
        if let Some(slugs) = &self.projects {
            let mut slugs: Vec<Vec<u8>> = slugs.iter().map(|slug| slug.as_bytes().to_vec()).collect();
            slugs.sort_unstable();
            conditions.push(Condition {
                column: index(schema::PROJECT_SLUG),
                any_of: AnyOf::Text(slugs),
            });
        }
        if let Some(id) = self.project_id {
            conditions.push(Condition {
                column: index(schema::PROJECT_ID),
                any_of: AnyOf::Number(vec![id]),
            });
        }
        if let Some(ids) = &self.any_project {
            let mut ids = ids.clone();
            ids.sort_unstable();
            conditions.push(Condition {
                column: index(schema::PROJECT_ID),
                any_of: AnyOf::Number(ids),
            });
        }
        if let Some(statuses) = &self.statuses {
            let mut statuses: Vec<i32> = statuses.iter().copied().map(i32::from).collect();
            statuses.sort_unstable();
            conditions.push(Condition {
                column: index(schema::STATUS),
                any_of: AnyOf::Number(statuses),
            });
        }
        conditions
    }
}

/// A column and the sorted values that pass.
struct Condition {
    column: usize,
    any_of: AnyOf,
}

enum AnyOf {
    Text(Vec<Vec<u8>>),
    Number(Vec<i32>),
}

/// Whether one of the sorted values lies between the bounds, both included; an unknown bound is open.
fn between<T, B: PartialOrd + ?Sized>(values: &[T], min: Option<&B>, max: Option<&B>, view: impl Fn(&T) -> &B) -> bool {
    let first = min.map_or(0, |min| values.partition_point(|value| view(value) < min));
    values
        .get(first)
        .is_some_and(|value| max.is_none_or(|max| view(value) <= max))
}

impl Condition {
    fn text(&self, min: Option<&[u8]>, max: Option<&[u8]>) -> bool {
        match &self.any_of {
            // A bound may be cut short: a minimum is then smaller than any value, a maximum larger.
            AnyOf::Text(values) => between(values, min, max, Vec::as_slice),
            AnyOf::Number(_) => true,
        }
    }

    fn number(&self, min: Option<&i32>, max: Option<&i32>) -> bool {
        match &self.any_of {
            AnyOf::Number(values) => between(values, min, max, |value| value),
            AnyOf::Text(_) => true,
        }
    }

    fn never(&self) -> bool {
        match &self.any_of {
            AnyOf::Text(values) => values.is_empty(),
            AnyOf::Number(values) => values.is_empty(),
        }
    }

    /// Whether a column chunk can hold a value that passes; yes when nothing is known.
    fn chunk(&self, chunk: &ColumnChunkMetaData) -> bool {
        match chunk.statistics() {
            // The deprecated fields of old writers compare text as signed bytes.
            Some(statistics) if statistics.is_min_max_deprecated() => true,
            Some(Statistics::ByteArray(of)) => {
                self.text(of.min_opt().map(AsBytes::as_bytes), of.max_opt().map(AsBytes::as_bytes))
            }
            Some(Statistics::Int32(of)) => self.number(of.min_opt(), of.max_opt()),
            _ => true,
        }
    }

    /// The same for a page.
    fn page(&self, index: &ColumnIndexMetaData, page: usize) -> bool {
        match index {
            ColumnIndexMetaData::BYTE_ARRAY(index) => self.text(index.min_value(page), index.max_value(page)),
            ColumnIndexMetaData::INT32(index) => self.number(index.min_value(page), index.max_value(page)),
            _ => true,
        }
    }
}

/// The row groups of a file, and the rows in them, that can pass a filter.
pub fn select(footer: &Footer, filter: &Filter) -> Vec<GroupPlan> {
    let conditions = filter.conditions();
    let metadata = footer.metadata();
    if conditions.iter().any(Condition::never) {
        return Vec::new();
    }
    let groups = metadata.row_groups().iter().enumerate();
    groups
        .filter(|(_, group)| rows(group) > 0)
        .filter(|(_, group)| {
            conditions
                .iter()
                .all(|c| group.columns().get(c.column).is_none_or(|chunk| c.chunk(chunk)))
        })
        .filter_map(|(number, group)| {
            let all = 0..rows(group);
            let mut selected = Vec::from([all]);
            for condition in &conditions {
                if let Some(pages) = page_rows(metadata, number, condition) {
                    selected = intersect(&selected, &pages);
                }
            }
            (!selected.is_empty()).then_some(GroupPlan {
                group: number,
                rows: selected,
            })
        })
        .collect()
}

/// The rows of the pages that can pass, when there is a page index.
fn page_rows(metadata: &ParquetMetaData, group: usize, condition: &Condition) -> Option<Vec<Range<u64>>> {
    let index = metadata.column_index()?.get(group)?.get(condition.column)?;
    let pages = pages(metadata, group, condition.column)?;
    let end = rows(metadata.row_group(group));
    let mut selected: Vec<Range<u64>> = Vec::new();
    for page in (0..pages.len()).filter(|page| condition.page(index, *page)) {
        let rows = page_range(pages, page, end);
        match selected.last_mut() {
            Some(last) if last.end == rows.start => last.end = rows.end,
            _ => selected.push(rows),
        }
    }
    Some(selected)
}

fn pages(metadata: &ParquetMetaData, group: usize, column: usize) -> Option<&[PageLocation]> {
    Some(metadata.offset_index()?.get(group)?.get(column)?.page_locations())
}

/// The rows of a page; the footer's checks have seen that they are in order.
fn page_range(pages: &[PageLocation], page: usize, end: u64) -> Range<u64> {
    let start = |page: usize| pages.get(page).map(|page| page.first_row_index.unsigned_abs());
    start(page).unwrap_or(end)..start(page + 1).unwrap_or(end)
}

/// The rows that are in both plans, which are in order of row groups.
pub(crate) fn intersection(left: &[GroupPlan], right: &[GroupPlan]) -> Vec<GroupPlan> {
    let both = left.iter().filter_map(|group| {
        let at = right.binary_search_by_key(&group.group, |other| other.group).ok()?;
        let rows = intersect(&group.rows, &right.get(at)?.rows);
        (!rows.is_empty()).then_some(GroupPlan {
            group: group.group,
            rows,
        })
    });
    both.collect()
}

fn intersect(left: &[Range<u64>], right: &[Range<u64>]) -> Vec<Range<u64>> {
    let (mut left, mut right) = (left.iter().peekable(), right.iter().peekable());
    let mut both = Vec::new();
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        let (start, end) = (a.start.max(b.start), a.end.min(b.end));
        if start < end {
            both.push(start..end);
        }
        if a.end < b.end {
            left.next()
        } else {
            right.next()
        };
    }
    both
}

/// The byte ranges of the pages (with dictionaries) that hold the planned rows of the columns, which are
/// indexes into [`schema::pageviews`].
pub fn ranges(footer: &Footer, plan: &GroupPlan, columns: &[usize]) -> Vec<Range<u64>> {
    let metadata = footer.metadata();
    let Some(group) = metadata.row_groups().get(plan.group) else {
        return Vec::new();
    };
    let mut ranges = Vec::new();
    for (column, chunk) in columns
        .iter()
        .filter_map(|column| Some((*column, group.columns().get(*column)?)))
    {
        let (start, length) = chunk.byte_range();
        let Some(pages) = pages(metadata, plan.group, column) else {
            ranges.push(start..start + length);
            continue;
        };
        let bytes = |page: &PageLocation| {
            let start = page.offset.unsigned_abs();
            start..start + u64::from(page.compressed_page_size.unsigned_abs())
        };
        // What lies before the first page is the dictionary.
        if let Some(first) = pages.first().map(bytes).filter(|first| first.start > start) {
            ranges.push(start..first.start);
        }
        let mut wanted = plan.rows.iter().peekable();
        for (number, page) in pages.iter().enumerate() {
            let rows = page_range(pages, number, self::rows(group));
            while wanted.next_if(|range| range.end <= rows.start).is_some() {}
            if wanted.peek().is_some_and(|range| range.start < rows.end) {
                ranges.push(bytes(page));
            }
        }
    }
    ranges
}

/// Joins ranges into requests: first those that lie closest, over gaps of at most `gap` bytes each and, all
/// together, of that or a quarter of what is wanted. Within those bounds one request more takes longer
/// than reading a little too much. No request exceeds `most` bytes unless a single range does.
pub fn coalesce(mut ranges: Vec<Range<u64>>, gap: u64, most: u64) -> Vec<Range<u64>> {
    ranges.retain(|range| range.start < range.end);
    ranges.sort_unstable_by_key(|range| (range.start, range.end));
    let wanted: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    let mut allowance = gap.max(wanted / 4);
    let before = |at: usize| ranges[at].start.saturating_sub(ranges[at - 1].end);
    let mut closest: Vec<usize> = (1..ranges.len()).filter(|at| before(*at) <= gap).collect();
    closest.sort_by_key(|at| before(*at));
    let mut joined = vec![false; ranges.len()];
    for at in closest {
        match allowance.checked_sub(before(at)) {
            Some(rest) => (allowance, joined[at]) = (rest, true),
            None => break,
        }
    }
    let mut requests: Vec<Range<u64>> = Vec::new();
    for (range, joined) in ranges.into_iter().zip(joined) {
        match requests.last_mut() {
            Some(last) if range.end <= last.end => {}
            Some(last) if joined && range.end - last.start <= most => last.end = range.end,
            _ => requests.push(range),
        }
    }
    requests
}
