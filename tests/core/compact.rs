//! What is derived from days: questions among writers, those that died, compactions and erasures, all answered as by a plain
//! computation over the rows that are stored.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Date32Type, Int64Type};
use async_trait::async_trait;
use bytes::Bytes;
use chrono::{TimeDelta, Utc};
use parquet::file::metadata::KeyValue;
use parquet_analytics::archive::manifest::{self, Manifest, Mark, Rows, Wrote};
use parquet_analytics::base::error::Error;
use parquet_analytics::base::keys::{Day, Prefix};
use parquet_analytics::base::runtime::{Cancel, block_on};
use parquet_analytics::base::schema::meta;
use parquet_analytics::derived::compact::{CompactOptions, Compacted, Outcome, Progress, compact};
use parquet_analytics::engine::Limits;
use parquet_analytics::query::{Pages, Querier, Span, Table};
use parquet_analytics::scan::Options;
use parquet_analytics::scan::plan::Filter;
use parquet_analytics::store::{Environment, Gate, Operation, Part, Precondition, Response, Store, Write};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::files::{date, key, put, write};
use crate::scan::{sample, small_pages};
use crate::support::{Row, batch_of};

static PREFIX: LazyLock<Prefix> = LazyLock::new(Prefix::default);

pub fn open(url: &str) -> Store {
    Store::open_with(url, &BTreeMap::new(), None, &Environment::new()).unwrap()
}

/// One folder as two processes see it, which know nothing of one another.
struct Site {
    _folder: tempfile::TempDir,
    writer: Store,
    reader: Store,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (real, alias) = (folder.path().join("real"), folder.path().join("alias"));
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &alias).unwrap();
        Self {
            writer: open(&format!("file://{}", real.display())),
            reader: open(&format!("file://{}", alias.display())),
            _folder: folder,
        }
    }
}

pub fn etag_of(store: &Store, day: Day) -> Option<String> {
    let found = block_on(&Cancel::new(), store.get(&key(day), Part::Tail(1), Precondition::None)).unwrap();
    match found {
        Response::Found(found) => Some(found.etag),
        _ => None,
    }
}

/// The file of some rows, in order, that says of which versions its rows are.
pub fn file(rows: &[Row], same_rows_as: &[String]) -> Bytes {
    let mut builder = small_pages().properties().into_builder();
    let format = KeyValue::new(meta::FORMAT.to_owned(), "1".to_owned());
    let run = KeyValue::new(meta::RUN_ID.to_owned(), uuid::Uuid::new_v4().to_string());
    let same = KeyValue::new(meta::SAME_ROWS_AS.to_owned(), same_rows_as.join(" "));
    builder = builder.set_key_value_metadata(Some(vec![format, run, same]));
    write([batch_of(rows)], builder.build())
}

fn compacted(store: &Store) -> Vec<Compacted> {
    let progress = Progress::default();
    compact(store, &CompactOptions::default(), None, None, &progress, &Cancel::new()).unwrap()
}

/// A writer that has marked its day and has not written yet.
struct Writer {
    mark: Mark,
    day: Day,
    over: Option<String>,
    rows: Vec<Row>,
    same: bool,
}

pub fn list_erased(store: &Store, erased: &BTreeSet<i32>) {
    let projects: Vec<String> = erased.iter().map(|id| format!(r#"{{"project_id":{id}}}"#)).collect();
    let list = format!(r#"{{"format":1,"projects":[{}]}}"#, projects.join(","));
    put(store, &PREFIX.erased_key(), &Bytes::from(list));
}

const SLUGS: [&str; 5] = ["docs", "a", "日本", "nobody", "Zeta"];

fn random_filter(random: &mut ChaCha8Rng) -> Filter {
    Filter {
        projects: random
            .random_bool(0.7)
            .then(|| vec![SLUGS[random.random_range(0..5)].to_owned()]),
        project_id: random.random_bool(0.3).then(|| random.random_range(9..19)),
        statuses: random.random_bool(0.5).then(|| vec![200]),
        versions: random.random_bool(0.2).then(|| vec![None, Some(1), Some(2), Some(3)]),
        hidden: if random.random_bool(0.1) {
            vec![10, 12]
        } else {
            Vec::new()
        },
        ..Filter::default()
    }
}

pub fn passes(filter: &Filter, erased: &BTreeSet<i32>, row: &Row) -> bool {
    filter
        .projects
        .as_ref()
        .is_none_or(|slugs| slugs.contains(&row.project_slug))
        && filter.project_id.is_none_or(|id| id == row.project_id)
        && filter
            .statuses
            .as_ref()
            .is_none_or(|statuses| statuses.contains(&row.status))
        && filter
            .versions
            .as_ref()
            .is_none_or(|versions| versions.contains(&row.version_id))
        && !filter.hidden.contains(&row.project_id)
        && !erased.contains(&row.project_id)
}

type Page = (Option<String>, Option<String>);

fn answer_of_pages(table: &Table, pages: Pages) -> Vec<(Page, i64)> {
    let batch = &table.batches[0];
    let text = |column: usize, row: usize| {
        let column = batch.column(column).as_string::<i32>();
        column.is_valid(row).then(|| column.value(row).to_owned())
    };
    let counts = batch.column(1).as_primitive::<Int64Type>();
    (0..batch.num_rows())
        .map(|row| {
            let version = (pages == Pages::PathAndVersion).then(|| text(2, row)).flatten();
            ((text(0, row), version), counts.value(row))
        })
        .collect()
}

fn pages_of<'a>(rows: impl Iterator<Item = &'a Row>, pages: Pages) -> Vec<(Page, i64)> {
    let mut sums: BTreeMap<Page, i64> = BTreeMap::new();
    for row in rows {
        let page = match pages {
            Pages::Path => (Some(row.path.clone()), None),
            Pages::PathAndVersion => (Some(row.path.clone()), row.version_slug.clone()),
            Pages::FullPath => (row.full_path.clone(), None),
        };
        *sums.entry(page).or_default() += i64::from(row.view_count);
    }
    let mut sums: Vec<(Page, i64)> = sums.into_iter().collect();
    sums.sort_by(|(page, count), (other, less)| less.cmp(count).then_with(|| page.cmp(other)));
    sums
}

fn answer_of_days(batch: &RecordBatch) -> Vec<(i32, i64)> {
    let dates = batch.column(0).as_primitive::<Date32Type>();
    let counts = batch.column(1).as_primitive::<Int64Type>();
    dates
        .values()
        .iter()
        .copied()
        .zip(counts.values().iter().copied())
        .collect()
}

struct World {
    site: Site,
    days: Vec<Day>,
    stored: BTreeMap<Day, Vec<Row>>,
    erased: BTreeSet<i32>,
    writers: Vec<Writer>,
    random: ChaCha8Rng,
    /// Days that were answered by derived files, and answers that were given again.
    derived: u64,
    again: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            site: Site::new(),
            days: Day::range(date("2026-06-28"), date("2026-07-03")).collect(),
            stored: BTreeMap::new(),
            erased: BTreeSet::new(),
            writers: Vec::new(),
            random: ChaCha8Rng::seed_from_u64(seed),
            derived: 0,
            again: 0,
        }
    }

    /// Somebody reads a day, and marks it.
    fn begin_write(&mut self) {
        let day = self.days[self.random.random_range(0..self.days.len())];
        let over = etag_of(&self.site.writer, day);
        let same = over.is_some() && self.random.random_bool(0.3);
        let rows = if same {
            self.stored[&day].clone()
        } else {
            let count = self.random.random_range(0..120);
            sample(self.random.random(), count, day)
        };
        let name = uuid::Uuid::new_v4().to_string();
        let mark = manifest::mark(&self.site.writer, &PREFIX, day, &name);
        let mark = block_on(&Cancel::new(), mark).unwrap();
        self.writers.push(Writer {
            mark,
            day,
            over,
            rows,
            same,
        });
    }

    /// He writes it, or dies before or after.
    fn end_write(&mut self) {
        if self.writers.is_empty() {
            return;
        }
        let place = self.random.random_range(0..self.writers.len());
        let writer = self.writers.swap_remove(place);
        if self.random.random_bool(0.15) {
            return;
        }
        let before: Vec<String> = writer.over.iter().filter(|_| writer.same).cloned().collect();
        let condition = writer.over.clone().map_or(Write::Create, Write::Replace);
        let bytes = file(&writer.rows, &before);
        let written = block_on(
            &Cancel::new(),
            self.site.writer.put(&key(writer.day), bytes, condition, &[]),
        );
        let wrote = match written {
            Ok(_) => {
                self.stored.insert(writer.day, writer.rows);
                Wrote::Day(if writer.same { Rows::Same } else { Rows::Others })
            }
            Err(Error::Conflict { .. }) => Wrote::Nothing,
            Err(error) => panic!("{error}"),
        };
        if self.random.random_bool(0.85) {
            let settled = manifest::settle(&self.site.writer, &PREFIX, &writer.mark, wrote);
            block_on(&Cancel::new(), settled).unwrap();
        }
    }

    /// Whoever died is forgotten after a day, when those who are about to write are gone too.
    fn a_day_passes(&mut self) {
        self.writers.clear();
        let aged = manifest::change(&self.site.writer, &PREFIX, |manifest| {
            for change in manifest.changed.values_mut() {
                change
                    .writers
                    .values_mut()
                    .for_each(|since| *since = Utc::now() - TimeDelta::hours(25));
            }
            Some(())
        });
        block_on(&Cancel::new(), aged).unwrap();
    }

    fn erase(&mut self) {
        let id = self.random.random_range(9..19);
        if !self.erased.remove(&id) {
            self.erased.insert(id);
        }
        list_erased(&self.site.writer, &self.erased);
    }

    fn ask(&mut self, step: usize) {
        // Some are asked again and again.
        let often = self.random.random_bool(0.4);
        let filter = if often {
            Filter {
                projects: Some(vec!["docs".to_owned()]),
                ..Filter::default()
            }
        } else {
            random_filter(&mut self.random)
        };
        let options = Options {
            max_age: Duration::ZERO,
            lookup_max_age: Duration::ZERO,
            derived: often || self.random.random_bool(0.9),
            request_bytes: if self.random.random() { 700 } else { 1 << 20 },
            ahead_bytes: if self.random.random() { 1000 } else { 1 << 20 },
            gap: if self.random.random() { 0 } else { 1 << 20 },
            batch_rows: 50,
            ..Options::default()
        };
        // The writers' process remembers other things than one of readers.
        let store = if self.random.random_bool(0.8) {
            &self.site.reader
        } else {
            &self.site.writer
        };
        let querier = Querier::new(store.clone(), Prefix::default(), Limits::default(), options);
        let first = if often {
            0
        } else {
            self.random.random_range(0..self.days.len())
        };
        let last = if often {
            self.days.len() - 1
        } else {
            self.random.random_range(first..self.days.len())
        };
        let (since, until) = (self.days[first], self.days[last]);
        let span = Span::new(since, until).unwrap();
        let rows = || {
            let of_days = self.stored.range(since..=until).flat_map(|(_, rows)| rows);
            of_days.filter(|row| passes(&filter, &self.erased, row))
        };
        let about = format!("step {step}: {since} to {until}, {filter:?}");
        let table = if self.random.random_bool(0.6) {
            let pages = [Pages::Path, Pages::PathAndVersion, Pages::FullPath][self.random.random_range(0..3)];
            let some = !often && self.random.random();
            let (limit, offset) = match some {
                true => (self.random.random_range(0..6), self.random.random_range(0..6)),
                false => (usize::MAX, 0),
            };
            let table = querier
                .top_pages(filter.clone(), span, (limit, offset), pages, &Cancel::new())
                .unwrap();
            let expected: Vec<_> = pages_of(rows(), pages).into_iter().skip(offset).take(limit).collect();
            assert_eq!(
                answer_of_pages(&table, pages),
                expected,
                "{about}, {limit} from {offset}"
            );
            table
        } else {
            let table = querier
                .daily_totals(filter.clone(), span, false, &Cancel::new())
                .unwrap();
            let mut sums: BTreeMap<i32, i64> = BTreeMap::new();
            for row in rows() {
                *sums.entry(row.date).or_default() += i64::from(row.view_count);
            }
            assert_eq!(
                answer_of_days(&table.batches[0]),
                sums.into_iter().collect::<Vec<_>>(),
                "{about}"
            );
            table
        };
        let covered: Vec<(Day, Option<u64>)> = Day::range(since, until)
            .rev()
            .map(|day| (day, self.stored.get(&day).map(|rows| rows.len() as u64)))
            .collect();
        assert_eq!(table.coverage, Some(covered), "{about}");
        self.derived += table.stats.days_derived;
        self.again += table.stats.answers_remembered;
    }
}

#[test]
fn questions_among_writers_compactions_and_erasures_are_answered_by_what_is_stored() {
    let (mut derived, mut again) = (0, 0);
    for seed in 0..25 {
        let mut world = World::new(seed);
        for step in 0..120 {
            match world.random.random_range(0..20) {
                0..=3 => world.begin_write(),
                4..=7 => world.end_write(),
                8 => world.erase(),
                9 => world.a_day_passes(),
                10 | 11 => _ = compacted(&world.site.writer),
                _ => world.ask(step),
            }
        }
        derived += world.derived;
        again += world.again;
    }
    assert!(derived > 500, "{derived} days were answered by derived files");
    assert!(again > 50, "{again} answers were given again");
}

fn stored(store: &Store, day: Day, rows: &[Row]) {
    let run_id = uuid::Uuid::new_v4().to_string();
    let published = manifest::publish_day(
        store,
        &PREFIX,
        day,
        (file(rows, &[]), Write::Overwrite),
        &run_id,
        &[],
        Rows::Others,
    );
    block_on(&Cancel::new(), published).unwrap();
}

#[test]
fn a_month_is_made_once_and_then_of_what_has_changed() {
    let site = Site::new();
    let store = &site.writer;
    let days: Vec<Day> = Day::range(date("2026-07-01"), date("2026-07-05")).collect();
    for day in &days {
        stored(store, *day, &sample(1, 50, *day));
    }
    let outcome = || {
        let done = compacted(store);
        assert_eq!(done.len(), 1);
        assert_eq!(done[0].name, "2026-07");
        (done[0].outcome, done[0].days, done[0].days_read)
    };
    assert_eq!(outcome(), (Outcome::Created, 5, 5));
    assert_eq!(outcome(), (Outcome::Unchanged, 5, 0));
    stored(store, date("2026-07-06"), &sample(2, 50, date("2026-07-06")));
    stored(store, date("2026-07-02"), &sample(3, 50, date("2026-07-02")));
    assert_eq!(outcome(), (Outcome::Updated, 6, 2));
    assert_eq!(outcome(), (Outcome::Unchanged, 6, 0));
    // Somebody who knows nothing of manifests.
    put(store, &key(days[0]), &file(&sample(4, 10, days[0]), &[]));
    assert_eq!(outcome(), (Outcome::Updated, 6, 1));
    block_on(&Cancel::new(), store.delete(&key(days[2]))).unwrap();
    assert_eq!(outcome(), (Outcome::Updated, 5, 0));
    let before = etag_of(store, days[3]).unwrap();
    put(store, &key(days[3]), &file(&sample(1, 50, days[3]), &[before]));
    assert_eq!(outcome(), (Outcome::Unchanged, 5, 0));
    for day in Day::range(date("2026-07-01"), date("2026-07-06")) {
        block_on(&Cancel::new(), store.delete(&key(day))).unwrap();
    }
    assert_eq!(outcome(), (Outcome::Removed, 0, 0));
    assert_eq!(compacted(store), []);
}

fn changed(store: &Store, day: Day) -> Option<bool> {
    let manifest = block_on(&Cancel::new(), manifest::current(store, &PREFIX))
        .unwrap()
        .manifest;
    manifest.changed.get(&day).map(|change| change.stale)
}

/// Somebody wrote other rows and died before he could say so; a deletion then writes a new footer for these.
#[test]
fn a_new_footer_does_not_hide_what_somebody_wrote_who_died() {
    let site = Site::new();
    let store = &site.writer;
    let day = date("2026-07-02");
    stored(store, day, &sample(1, 50, day));
    compacted(store);
    assert_eq!(changed(store, day), None);
    let mark = |name: &str| block_on(&Cancel::new(), manifest::mark(store, &PREFIX, day, name)).unwrap();
    let settle = |mark: &Mark, rows: Rows| {
        block_on(&Cancel::new(), manifest::settle(store, &PREFIX, mark, Wrote::Day(rows))).unwrap();
    };
    let again = mark("a deletion");
    settle(&again, Rows::Same);
    assert_eq!(changed(store, day), None);
    // Somebody deletes the manifest, and it is made anew while a day is written.
    let late = mark("late");
    block_on(&Cancel::new(), store.delete(&PREFIX.manifest_key())).unwrap();
    compacted(store);
    put(store, &key(day), &file(&sample(3, 50, day), &[]));
    settle(&late, Rows::Others);
    assert_eq!(changed(store, day), Some(true));
    compacted(store);
    assert_eq!(changed(store, day), None);
    let _dead = mark("dead");
    put(store, &key(day), &file(&sample(2, 50, day), &[]));
    let again = mark("another deletion");
    assert_eq!(changed(store, day), Some(false));
    settle(&again, Rows::Same);
    assert_eq!(changed(store, day), Some(true));
    compacted(store);
    assert_eq!(changed(store, day), None);
}

/// Lets requests pass until the n-th, which fails: before it has an effect or after, then or from then on.
struct Failing {
    seen: AtomicU64,
    at: u64,
    after: bool,
    for_good: bool,
}

impl Failing {
    fn strike(&self, number: u64, key: &str) -> Result<(), Error> {
        if number < self.at || (number > self.at && !self.for_good) {
            return Ok(());
        }
        Err(Error::Store {
            key: Some(key.to_owned()),
            message: format!("{key}: request {number} fails"),
            retryable: true,
        })
    }
}

#[async_trait]
impl Gate for Failing {
    async fn before(&self, _: Operation, key: &str) -> Result<(), Error> {
        let number = self.seen.fetch_add(1, Ordering::Relaxed);
        if self.after { Ok(()) } else { self.strike(number, key) }
    }

    async fn after(&self, _: Operation, key: &str) -> Result<(), Error> {
        let number = self.seen.load(Ordering::Relaxed) - 1;
        if self.after { self.strike(number, key) } else { Ok(()) }
    }
}

/// Whatever request of a compaction fails, of the first, of one that changes a day, and of one after an erasure: answers
/// are right at once, and the next compaction has nothing to repair but its own work.
#[test]
fn whichever_request_of_a_compaction_fails_answers_stay_right() {
    // Much of it is waiting before a request is sent again.
    let requests = std::thread::scope(|scope| {
        let runs: Vec<_> = [(false, false), (false, true), (true, false), (true, true)]
            .into_iter()
            .map(|(after, for_good)| {
                let fails = move |again: bool| each_request_fails(after, for_good, again);
                scope.spawn(move || fails(false).min(fails(true)))
            })
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).min()
    });
    assert!(requests > Some(15), "{requests:?}");
}

/// Of a first compaction, or `again` of one after a change and an erasure; gives the requests that it takes.
fn each_request_fails(after: bool, for_good: bool, again: bool) -> u64 {
    let days: Vec<Day> = Day::range(date("2026-06-29"), date("2026-07-02")).collect();
    let mut requests = 0;
    for at in 0.. {
        let mut world = World::new(at);
        let store = world.site.writer.clone();
        for day in &days {
            let rows = sample(at + day.to_date32() as u64, 60, *day);
            stored(&store, *day, &rows);
            world.stored.insert(*day, rows);
        }
        if again {
            compacted(&store);
            let rows = sample(99, 60, days[1]);
            stored(&store, days[1], &rows);
            world.stored.insert(days[1], rows);
            world.erased = BTreeSet::from([12]);
            list_erased(&store, &world.erased);
        }
        let gate = Arc::new(Failing {
            seen: AtomicU64::new(0),
            at,
            after,
            for_good,
        });
        let behind = store.behind(gate.clone());
        let (progress, options) = (Progress::default(), CompactOptions::default());
        let ended = compact(&behind, &options, None, None, &progress, &Cancel::new());
        let seen = gate.seen.load(Ordering::Relaxed);
        requests = requests.max(seen);
        // One that only makes first questions faster may fail.
        if let Err(error) = &ended {
            assert!(error.to_string().contains("fails"), "{error}");
        }
        for step in 0..6 {
            world.ask(step);
        }
        let done = compacted(&store);
        assert!(done.iter().all(|month| month.days == 2), "{done:?}");
        for step in 0..4 {
            world.ask(step);
        }
        let manifest = block_on(&Cancel::new(), manifest::current(&store, &PREFIX))
            .unwrap()
            .manifest;
        assert_eq!(manifest.changed, BTreeMap::new());
        if at > seen {
            break;
        }
    }
    requests
}

/// Where ETags are digests of what is stored, a manifest that is again as it was must not look as if nothing had happened.
#[test]
fn no_two_versions_of_a_manifest_are_the_same() {
    let site = Site::new();
    let store = &site.writer;
    let day = date("2026-07-02");
    let read = || match block_on(
        &Cancel::new(),
        store.get(&PREFIX.manifest_key(), Part::All, Precondition::None),
    ) {
        Ok(Response::Found(found)) => found.bytes,
        other => panic!("{other:?}"),
    };
    stored(store, day, &sample(1, 5, day));
    let before = read();
    stored(store, day, &sample(2, 5, day));
    assert_ne!(read(), before);
    let parsed = |bytes: &Bytes| Manifest::parse("manifest", bytes).unwrap();
    assert_eq!(
        (parsed(&read()).slots, parsed(&read()).changed),
        (parsed(&before).slots, parsed(&before).changed)
    );
}

/// Somebody's write took effect without an answer, somebody else wrote a new footer over it, and then the first is told that
/// his was refused.
#[test]
fn a_mark_that_is_taken_back_without_knowing_hides_nothing() {
    let site = Site::new();
    let store = &site.writer;
    let day = date("2026-07-02");
    stored(store, day, &sample(1, 50, day));
    compacted(store);
    let mark = |name: &str| block_on(&Cancel::new(), manifest::mark(store, &PREFIX, day, name)).unwrap();
    let settle = |mark: &Mark, wrote: Wrote| {
        block_on(&Cancel::new(), manifest::settle(store, &PREFIX, mark, wrote)).unwrap();
    };
    let first = mark("first");
    put(store, &key(day), &file(&sample(2, 50, day), &[]));
    let second = mark("second");
    settle(&first, Wrote::Nothing);
    settle(&second, Wrote::Day(Rows::Same));
    assert_eq!(changed(store, day), Some(true));
}
