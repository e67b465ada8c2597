// A list of one range is meant here.
#![allow(clippy::single_range_in_vec_init)]

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use parquet::file::properties::EnabledStatistics;
use parquet_analytics::base::runtime::{Cancel, block_on};
use parquet_analytics::base::schema;
use parquet_analytics::file::footer::Footer;
use parquet_analytics::file::footer::GroupPlan;
use parquet_analytics::scan::cache::{self, Lookup};
use parquet_analytics::scan::plan::{Filter, coalesce, ranges, select};
use proptest::prelude::*;

use crate::files::{Layout, put, store};
use crate::support::{Row, day};

fn footer(layout: &Layout, rows: &[Row]) -> Arc<Footer> {
    let store = store();
    put(&store, "a.parquet", &layout.file(rows));
    let loaded = block_on(
        &Cancel::new(),
        cache::load(&store, "a.parquet", Duration::ZERO, 1 << 20),
    )
    .unwrap();
    match loaded.lookup {
        Lookup::Present(footer) => footer,
        Lookup::Absent => panic!("absent"),
    }
}

fn row(slug: &str, project_id: i32, status: i16, id: i64) -> Row {
    Row {
        project_slug: slug.to_owned(),
        status,
        path: format!("/{id}"),
        version_slug: None,
        id,
        project_id,
        version_id: None,
        full_path: None,
        view_count: 1,
        date: day().to_date32(),
    }
}

/// 40 projects of 100 rows, in row groups of 1,000 rows and pages of 50.
fn projects() -> Vec<Row> {
    (0..4000)
        .map(|n| {
            row(
                &format!("p{:02}", n / 100),
                n / 100,
                if n % 10 == 0 { 404 } else { 200 },
                n.into(),
            )
        })
        .collect()
}

fn pages() -> Layout {
    Layout {
        group_rows: 1000,
        page_rows: 50,
        ..Layout::default()
    }
}

fn of(slug: &str) -> Filter {
    Filter {
        projects: Some(vec![slug.to_owned()]),
        ..Filter::default()
    }
}

fn total(plans: &[GroupPlan]) -> u64 {
    plans.iter().map(GroupPlan::selected).sum()
}

#[test]
fn only_the_pages_of_the_project_are_selected() {
    let footer = footer(&pages(), &projects());
    let plans = select(&footer, &of("p17"));
    assert_eq!(
        plans,
        [GroupPlan {
            group: 1,
            rows: vec![700..800]
        }]
    );
    assert_eq!(select(&footer, &of("p17x")), []);
    assert_eq!(select(&footer, &of("zz")), []);
    assert_eq!(total(&select(&footer, &Filter::default())), 4000);
}

#[test]
fn status_and_project_id_leave_out_pages_too() {
    let footer = footer(&pages(), &projects());
    let missing = Filter {
        statuses: Some(vec![404]),
        ..of("p17")
    };
    assert_eq!(
        select(&footer, &missing),
        [GroupPlan {
            group: 1,
            rows: vec![750..800]
        }]
    );
    let by_id = Filter {
        project_id: Some(17),
        ..Filter::default()
    };
    assert_eq!(
        select(&footer, &by_id),
        [GroupPlan {
            group: 1,
            rows: vec![700..800]
        }]
    );
    let of_another = Filter {
        project_id: Some(3),
        ..of("p17")
    };
    assert_eq!(select(&footer, &of_another), []);
    for nothing in [
        Filter {
            statuses: Some(vec![]),
            ..Filter::default()
        },
        Filter {
            projects: Some(vec![]),
            ..Filter::default()
        },
    ] {
        assert_eq!(select(&footer, &nothing), []);
    }
}

#[test]
fn slugs_that_differ_only_beyond_the_statistics_are_all_kept() {
    let slugs: Vec<String> = (0..30).map(|n| format!("{}{n:02}", "é".repeat(50))).collect();
    let rows: Vec<Row> = slugs
        .iter()
        .enumerate()
        .map(|(n, slug)| row(slug, n as i32, 200, n as i64))
        .collect();
    let layout = Layout {
        group_rows: 10,
        page_rows: 2,
        ..Layout::default()
    };
    let footer = footer(&layout, &rows);
    for (n, slug) in slugs.iter().enumerate() {
        let plans = select(&footer, &of(slug));
        let has =
            |plan: &GroupPlan| plan.group == n / 10 && plan.rows.iter().any(|rows| rows.contains(&(n as u64 % 10)));
        assert!(plans.iter().any(has), "{n}: {plans:?}");
    }
    assert_eq!(select(&footer, &of("f")), []);
}

#[test]
fn without_statistics_everything_is_kept_and_without_page_index_whole_row_groups() {
    let bare = Layout {
        statistics: EnabledStatistics::None,
        page_statistics: false,
        offset_index: false,
        ..pages()
    };
    let without = footer(&bare, &projects());
    assert_eq!(total(&select(&without, &of("p17"))), 4000);
    let chunks = footer(
        &Layout {
            page_statistics: false,
            offset_index: false,
            ..pages()
        },
        &projects(),
    );
    assert_eq!(total(&select(&chunks, &of("p17"))), 1000);
}

#[test]
fn ranges_hold_dictionary_and_selected_pages_and_nothing_else() {
    let footer = footer(&pages(), &projects());
    let plans = select(&footer, &of("p17"));
    let column = |name| schema::pageviews().index_of(name).unwrap();
    let chunk = |name| footer.metadata().row_group(1).column(column(name)).byte_range();
    // Two of twenty pages, and no dictionary.
    let paths = ranges(&footer, &plans[0], &[column(schema::PATH)]);
    assert_eq!(paths.len(), 2);
    let slugs = ranges(&footer, &plans[0], &[column(schema::PROJECT_SLUG)]);
    assert_eq!(slugs.len(), 3);
    assert_eq!(slugs[0].start, chunk(schema::PROJECT_SLUG).0);
    assert_eq!(ranges(&footer, &plans[0], &[]), Vec::<Range<u64>>::new());
    let all: u64 = ranges(&footer, &plans[0], &(0..10).collect::<Vec<_>>())
        .iter()
        .map(|r| r.end - r.start)
        .sum();
    let group = footer.metadata().row_group(1).compressed_size() as u64;
    assert!(all * 2 < group, "{all} of {group}");
}

#[test]
fn neighbours_share_a_request_unless_too_much_lies_between() {
    let three = || vec![0..1000, 1500..2500, 9000..9100];
    assert_eq!(coalesce(three(), 0, u64::MAX), three());
    assert_eq!(coalesce(three(), 500, u64::MAX), [0..2500, 9000..9100]);
    assert_eq!(coalesce(three(), 7000, u64::MAX), [0..9100]);
    assert_eq!(coalesce(three(), 7000, 2000), three());
    // Two gaps of 600 bytes are together more than 1,000 bytes and a quarter of 3,000.
    assert_eq!(
        coalesce(vec![0..1000, 1600..2600, 3200..4200], 1000, u64::MAX),
        [0..2600, 3200..4200]
    );
}

proptest! {
    #[test]
    fn requests_cover_every_range_whole_and_stay_within_their_bounds(
        starts in prop::collection::vec((0u64..5000, 0u64..400), 0..40), gap in 0u64..600, most in 1u64..2000,
    ) {
        let ranges: Vec<Range<u64>> = starts.iter().map(|(start, length)| *start..start + length).collect();
        let requests = coalesce(ranges.clone(), gap, most);
        for range in ranges.iter().filter(|range| !range.is_empty()) {
            prop_assert!(requests.iter().any(|r| r.start <= range.start && range.end <= r.end));
        }
        let wanted: u64 = ranges.iter().map(|r| r.end - r.start).sum();
        let read: u64 = requests.iter().map(|r| r.end - r.start).sum();
        prop_assert!(read <= wanted + gap.max(wanted / 4));
        for request in &requests {
            let longest = ranges.iter().map(|r| r.end - r.start).max().unwrap();
            prop_assert!(request.end - request.start <= most.max(longest));
            // Every byte belongs to a range or to a gap that is small enough.
            let mut inside: Vec<_> = ranges.iter().filter(|r| r.start >= request.start && r.end <= request.end).collect();
            inside.sort_by_key(|r| r.start);
            let mut end = request.start;
            for range in inside {
                prop_assert!(range.start <= end + gap);
                end = end.max(range.end);
            }
            prop_assert_eq!(end, request.end);
        }
    }
}
