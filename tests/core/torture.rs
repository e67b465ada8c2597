//! Exporters, a compactor, an eraser and readers at once on one store whose requests are delayed, refused and lost: each
//! answer is made of rows that were stored at some moment of the question.
//!
//! Which version of a day an answer is made of can be read from it: a path names day, version and project.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use async_trait::async_trait;
use parquet_analytics::archive::manifest::{self, Rows};
use parquet_analytics::base::error::{Error, Result};
use parquet_analytics::base::keys::{Day, Prefix};
use parquet_analytics::base::runtime::{Cancel, block_on};
use parquet_analytics::derived::compact::{CompactOptions, Progress, compact};
use parquet_analytics::engine::Limits;
use parquet_analytics::query::{Pages, Querier, Span};
use parquet_analytics::scan::Options;
use parquet_analytics::scan::plan::Filter;
use parquet_analytics::store::{Gate, Operation, Store, Write};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::compact::{etag_of, file, list_erased, open};
use crate::files::date;
use crate::scan::sample;
use crate::support::Row;

/// Delays requests, refuses some before they have an effect, and loses some answers.
struct Weather {
    random: Mutex<ChaCha8Rng>,
    calm: AtomicBool,
}

impl Weather {
    fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            random: Mutex::new(ChaCha8Rng::seed_from_u64(seed)),
            calm: AtomicBool::new(false),
        })
    }

    async fn strike(&self, key: &str, what: &str) -> Result<()> {
        if self.calm.load(Ordering::Relaxed) {
            return Ok(());
        }
        let (wait, fails) = {
            let mut random = self.random.lock().unwrap();
            (random.random_range(0..4), random.random_bool(0.004))
        };
        match wait {
            0 => tokio::task::yield_now().await,
            1 => std::thread::sleep(Duration::from_micros(50)),
            _ => {}
        }
        if fails {
            return Err(Error::Store {
                key: Some(key.to_owned()),
                message: format!("{key}: {what}"),
                retryable: true,
            });
        }
        Ok(())
    }
}

#[async_trait]
impl Gate for Weather {
    async fn before(&self, _: Operation, key: &str) -> Result<()> {
        self.strike(key, "refused").await
    }

    async fn after(&self, _: Operation, key: &str) -> Result<()> {
        self.strike(key, "the answer was lost").await
    }
}

const PROJECTS: [i32; 3] = [11, 12, 13];

/// Versions that a day, or the list of erased projects, has had, each from a moment on until another; moments are numbers
/// that count up. A write takes effect between its two moments.
#[derive(Default)]
struct History<T> {
    versions: Vec<(T, u64, u64)>,
}

impl<T: Clone + PartialEq> History<T> {
    /// Those that may have been there between two moments.
    fn between(&self, since: u64, until: u64) -> Vec<T> {
        let there = self
            .versions
            .iter()
            .filter(|(_, from, to)| *from <= until && *to >= since);
        there.map(|(version, _, _)| version.clone()).collect()
    }
}

#[derive(Default)]
struct Truth {
    clock: u64,
    /// Version numbers by day; 0 is no file.
    days: BTreeMap<Day, History<u64>>,
    erased: History<BTreeSet<i32>>,
    next: u64,
}

impl Truth {
    /// No day has a file, and no project is erased.
    fn new() -> Self {
        let mut truth = Self::default();
        for day in days() {
            truth.days.entry(day).or_default().versions.push((0, 0, NEVER));
        }
        truth.erased.versions.push((BTreeSet::new(), 0, NEVER));
        truth
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

const NEVER: u64 = u64::MAX;

fn days() -> Vec<Day> {
    Day::range(date("2026-06-29"), date("2026-07-02")).collect()
}

/// The rows of a version of a day: of each project one path that names it.
fn rows(day: Day, version: u64) -> Vec<Row> {
    let one = sample(1, 1, day).remove(0);
    let row = |(number, project): (usize, &i32)| Row {
        id: number as i64,
        project_id: *project,
        project_slug: format!("p{project}"),
        path: format!("/{day}/{version}/{project}"),
        version_slug: None,
        view_count: 3,
        status: 200,
        ..one.clone()
    };
    PROJECTS.iter().enumerate().map(row).collect()
}

struct Torture {
    stores: Vec<Store>,
    truth: Mutex<Truth>,
    over: AtomicBool,
}

fn retryable(error: &Error) -> bool {
    match error.inner() {
        Error::Store { retryable, .. } => *retryable,
        Error::Conflict { .. } | Error::CommitStateUnknown { .. } => true,
        _ => false,
    }
}

impl Torture {
    fn export(&self, store: &Store, random: &mut ChaCha8Rng, prefix: &Prefix) {
        let days = days();
        let day = days[random.random_range(0..days.len())];
        let over = etag_of(&self.stores[0], day);
        let mut truth = self.truth.lock().unwrap();
        let begun = truth.tick();
        let known = truth.days[&day].versions.last().map_or(0, |(version, _, _)| *version);
        let same = over.is_some() && random.random_bool(0.3);
        truth.next += 1;
        let version = if same { known } else { truth.next };
        drop(truth);
        let before: Vec<String> = over.iter().filter(|_| same).cloned().collect();
        let write = over.map_or(Write::Create, Write::Replace);
        let rows_written = if same { Rows::Same } else { Rows::Others };
        let bytes = file(&rows(day, version), &before);
        let run_id = format!("{version}-{}", random.random::<u64>());
        let put = manifest::publish_day(store, prefix, day, (bytes, write), &run_id, &[], rows_written);
        // From here on it may be there.
        {
            let mut truth = self.truth.lock().unwrap();
            truth
                .days
                .entry(day)
                .or_default()
                .versions
                .push((version, begun, NEVER));
        }
        let written = block_on(&Cancel::new(), put);
        let mut truth = self.truth.lock().unwrap();
        let ended = truth.tick();
        let versions = &mut truth.days.get_mut(&day).unwrap().versions;
        match written {
            Ok(_) => {
                let last = versions.len() - 1;
                for (_, _, to) in versions[..last].iter_mut().filter(|(_, _, to)| *to == NEVER) {
                    *to = ended;
                }
            }
            // One writer writes days, so that nobody gets in his way.
            Err(error) => {
                assert!(retryable(&error), "{error:?}");
                // Whether it took effect is found out by what is there.
                versions.pop();
                let holds = self.version_of(day);
                if versions.last().map_or(0, |(version, _, _)| *version) != holds {
                    for (_, _, to) in versions.iter_mut().filter(|(_, _, to)| *to == NEVER) {
                        *to = ended;
                    }
                    versions.push((holds, begun, NEVER));
                }
            }
        }
    }

    /// The version that is stored, read without any gate.
    fn version_of(&self, day: Day) -> u64 {
        let scan = crate::scan::scan(
            &self.stores[0],
            &[day],
            Filter::default(),
            Options {
                max_age: Duration::ZERO,
                with_erased: true,
                ..Options::default()
            },
        );
        let rows = crate::scan::rows(&scan);
        rows.first()
            .map_or(0, |row| row.path.split('/').nth(2).unwrap().parse().unwrap())
    }

    fn erase(&self, random: &mut ChaCha8Rng) {
        let project = PROJECTS[random.random_range(0..PROJECTS.len())];
        let mut truth = self.truth.lock().unwrap();
        let begun = truth.tick();
        let mut ids = truth.erased.versions.last().unwrap().0.clone();
        if !ids.remove(&project) {
            ids.insert(project);
        }
        truth.erased.versions.push((ids.clone(), begun, NEVER));
        drop(truth);
        list_erased(&self.stores[0], &ids);
        let mut truth = self.truth.lock().unwrap();
        let ended = truth.tick();
        let last = truth.erased.versions.len() - 1;
        for (_, _, to) in truth.erased.versions[..last]
            .iter_mut()
            .filter(|(_, _, to)| *to == NEVER)
        {
            *to = ended;
        }
    }

    /// Whether an answer was given, and how many of its days were derived.
    fn ask(&self, store: &Store, random: &mut ChaCha8Rng, prefix: &Prefix) -> Option<u64> {
        let options = Options {
            max_age: Duration::ZERO,
            lookup_max_age: Duration::ZERO,
            derived: random.random_bool(0.95),
            ..Options::default()
        };
        let querier = Querier::new(store.clone(), prefix.clone(), Limits::default(), options);
        let days = days();
        // Some are asked again and again.
        let often = random.random_bool(0.5);
        let first = if often { 0 } else { random.random_range(0..days.len()) };
        let last = if often {
            days.len() - 1
        } else {
            random.random_range(first..days.len())
        };
        let some = !often && random.random_bool(0.5);
        let project = some.then(|| PROJECTS[random.random_range(0..PROJECTS.len())]);
        let filter = Filter {
            projects: project.map(|project| vec![format!("p{project}")]),
            ..Filter::default()
        };
        let begun = self.truth.lock().unwrap().tick();
        let span = Span::new(days[first], days[last]).unwrap();
        let answer = querier.top_pages(filter, span, (1000, 0), Pages::Path, &Cancel::new());
        let mut truth = self.truth.lock().unwrap();
        let ended = truth.tick();
        let table = match answer {
            Ok(table) => table,
            Err(error) => {
                assert!(retryable(&error), "{error:?}");
                return None;
            }
        };
        let batch = &table.batches[0];
        let mut found: BTreeMap<Day, BTreeMap<i32, u64>> = BTreeMap::new();
        for row in 0..batch.num_rows() {
            let path = batch.column(0).as_string::<i32>().value(row);
            assert_eq!(batch.column(1).as_primitive::<Int64Type>().value(row), 3, "{path}");
            let parts: Vec<&str> = path.split('/').collect();
            let of_day = found.entry(date(parts[1])).or_default();
            let before = of_day.insert(parts[3].parse().unwrap(), parts[2].parse().unwrap());
            assert_eq!(before, None, "{path}: two versions of a day are in one answer");
        }
        let asked: BTreeSet<i32> = project.map_or_else(|| PROJECTS.into_iter().collect(), |project| [project].into());
        let erased = truth.erased.between(begun, ended);
        // One list holds for all days.
        let fits = erased.iter().any(|erased| {
            let shown: BTreeSet<i32> = asked.difference(erased).copied().collect();
            days[first..=last].iter().all(|day| {
                let versions = truth.days[day].between(begun, ended);
                versions.iter().any(|version| {
                    let expected: BTreeMap<i32, u64> = if *version == 0 {
                        BTreeMap::new()
                    } else {
                        shown.iter().map(|project| (*project, *version)).collect()
                    };
                    found.get(day).cloned().unwrap_or_default() == expected
                })
            })
        });
        let histories: Vec<_> = days[first..=last]
            .iter()
            .map(|day| (day, &truth.days[day].versions))
            .collect();
        assert!(
            fits,
            "asked from {begun} to {ended} about {asked:?}: found {found:?}\ndays {histories:?}\nerased {:?}\nderived {} of {}",
            truth.erased.versions, table.stats.days_derived, table.stats.objects
        );
        Some(table.stats.days_derived)
    }
}

/// Runs one seed, and gives the questions that were answered and the days of them that were derived.
fn run(seed: u64) -> (u64, u64) {
    let folder = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    let real = folder.path().join("real");
    std::fs::create_dir(&real).unwrap();
    let weather = Weather::new(seed);
    let mut stores = vec![open(&format!("file://{}", real.display()))];
    for number in 0..4 {
        let alias = folder.path().join(format!("process-{number}"));
        std::os::unix::fs::symlink(&real, &alias).unwrap();
        stores.push(open(&format!("file://{}", alias.display())).behind(weather.clone()));
    }
    let prefix = Prefix::default();
    let torture = Torture {
        stores,
        truth: Mutex::new(Truth::new()),
        over: AtomicBool::new(false),
    };
    let random = |number: u64| ChaCha8Rng::seed_from_u64(seed * 10 + number);
    let mut answered = (0, 0);
    std::thread::scope(|scope| {
        let (torture, prefix) = (&torture, &prefix);
        let exporter = scope.spawn(move || {
            let mut random = random(1);
            for _ in 0..10 {
                torture.export(&torture.stores[1], &mut random, prefix);
                std::thread::sleep(Duration::from_micros(random.random_range(0..25_000)));
            }
        });
        let compactor = scope.spawn(move || {
            let options = CompactOptions {
                prefix: prefix.clone(),
                ..CompactOptions::default()
            };
            let progress = Progress::default();
            while !torture.over.load(Ordering::Relaxed) {
                if let Err(error) = compact(&torture.stores[2], &options, None, None, &progress, &Cancel::new()) {
                    assert!(retryable(&error), "{error:?}");
                }
            }
        });
        scope.spawn(move || {
            let mut random = random(2);
            for _ in 0..3 {
                std::thread::sleep(Duration::from_micros(random.random_range(0..5000)));
                torture.erase(&mut random);
            }
        });
        let readers: Vec<_> = (3..5)
            .map(|number| {
                scope.spawn(move || {
                    let mut random = random(number);
                    let mut answered = (0, 0);
                    while !torture.over.load(Ordering::Relaxed) {
                        if let Some(derived) = torture.ask(&torture.stores[number as usize], &mut random, prefix) {
                            answered = (answered.0 + 1, answered.1 + derived);
                        }
                    }
                    answered
                })
            })
            .collect();
        let exported = exporter.join();
        torture.over.store(true, Ordering::Relaxed);
        for reader in readers {
            let (answers, derived) = reader.join().unwrap();
            answered = (answered.0 + answers, answered.1 + derived);
        }
        compactor.join().unwrap();
        exported.unwrap();
    });
    // Once all is quiet, what is derived is the days.
    weather.calm.store(true, Ordering::Relaxed);
    let mut random = random(9);
    for _ in 0..3 {
        torture.ask(&torture.stores[4], &mut random, &prefix).unwrap();
    }
    answered
}

/// Runs seeds; much of one is waiting, so that several run at once.
fn seeds(first: u64, count: u64, at_once: usize) {
    let next = AtomicU64::new(first);
    let (answers, derived) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    let (answered, days) = std::panic::catch_unwind(|| run(seed)).unwrap_or_else(|panic| {
                        println!("seed {seed}");
                        std::panic::resume_unwind(panic)
                    });
                    answers.fetch_add(answered, Ordering::Relaxed);
                    derived.fetch_add(days, Ordering::Relaxed);
                }
            });
        }
    });
    let (answers, derived) = (answers.into_inner(), derived.into_inner());
    println!("{count} seeds: {answers} answers, {derived} days of them derived");
    assert!(
        answers > count * 10 && derived > count * 5,
        "{answers} answers, {derived} days derived"
    );
}

#[test]
fn answers_are_of_what_was_stored_while_they_were_made() {
    seeds(0, 20, 2);
}

/// `make torture` asks for more.
#[test]
#[ignore = "takes minutes"]
fn answers_are_of_what_was_stored_whatever_the_seed() {
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |value| value.parse().unwrap());
    seeds(number("TORTURE_FIRST", 1_000), number("TORTURE_SEEDS", 1_000), 4);
}
