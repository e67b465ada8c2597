//! Questions among changes that nobody tells the process of.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use parquet_analytics::base::keys::Day;
use parquet_analytics::base::runtime::{Cancel, block_on};
use parquet_analytics::scan::Options;
use parquet_analytics::scan::plan::Filter;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::compact::{list_erased, passes};
use crate::files::{date, key, put, store};
use crate::scan::{rows, sample, scan, small_pages};
use crate::support::Row;

/// What a process remembers is never the answer: whatever happens to the files between two questions, without a word to
/// this process, each question is answered by what is stored.
#[test]
fn questions_are_answered_by_what_is_stored_whatever_happened_since_the_last() {
    const SLUGS: [&str; 5] = ["docs", "a", "日本", "nobody", "Zeta"];
    let mut random = ChaCha8Rng::seed_from_u64(11);
    let store = store();
    let days: Vec<Day> = Day::range(date("2026-06-28"), date("2026-07-01")).collect();
    let mut stored: BTreeMap<Day, Vec<Row>> = BTreeMap::new();
    let mut erased: BTreeSet<i32> = BTreeSet::new();
    for step in 0..1500 {
        let day = days[random.random_range(0..days.len())];
        match random.random_range(0..8) {
            0 | 1 => {
                let rows = sample(random.random(), random.random_range(0..300), day);
                put(&store, &key(day), &small_pages().file(&rows));
                stored.insert(day, rows);
            }
            2 => {
                block_on(&Cancel::new(), store.delete(&key(day))).unwrap();
                stored.remove(&day);
            }
            3 if random.random_bool(0.3) => {
                let id = random.random_range(9..19);
                if !erased.remove(&id) {
                    erased.insert(id);
                }
                list_erased(&store, &erased);
            }
            _ => {
                let filter = Filter {
                    projects: random
                        .random_bool(0.7)
                        .then(|| vec![SLUGS[random.random_range(0..5)].to_owned()]),
                    project_id: random.random_bool(0.3).then(|| random.random_range(9..19)),
                    statuses: random.random_bool(0.5).then(|| vec![200]),
                    ..Filter::default()
                };
                let passes = |row: &&Row| passes(&filter, &erased, row);
                let options = Options {
                    max_age: Duration::ZERO,
                    // Whether small files are answered from what came with their footers.
                    tail_bytes: if random.random() { 0 } else { 1 << 20 },
                    ..Options::default()
                };
                let reading = scan(&store, &days, filter.clone(), options);
                let expected: Vec<Row> = stored.values().rev().flatten().filter(passes).cloned().collect();
                assert_eq!(rows(&reading), expected, "step {step}");
                let covered: Vec<(Day, Option<u64>)> = days
                    .iter()
                    .rev()
                    .map(|day| (*day, stored.get(day).map(|rows| rows.len() as u64)))
                    .collect();
                assert_eq!(reading.stats().erasure_requests, 1);
                assert_eq!(reading.coverage().unwrap(), Some(covered), "step {step}");
            }
        }
    }
}
