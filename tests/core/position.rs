//! Snapshots of one database, older and newer, on primaries and standbys, checked against a simulated history.

use std::collections::{BTreeMap, BTreeSet};

use parquet_analytics::file::position::{Identity, Position, Relation, Stale, at_page_end, parse_lsn};
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn identity(database: &str, timeline: Option<u32>, relation: Option<(u32, &str)>) -> Identity {
    Identity {
        database: database.to_owned(),
        timeline,
        relation: relation.map(|(oid, name)| Relation {
            oid,
            name: name.to_owned(),
        }),
    }
}

fn of_old() -> Identity {
    identity("7/5", None, None)
}

fn primary(snapshot: &str) -> Position {
    Position::new(of_old(), false, snapshot, 0, 0x100).unwrap()
}

#[test]
fn a_position_survives_the_way_through_a_files_metadata() {
    for position in [
        primary("700:705:700,703"),
        primary("3:3:"),
        Position::new(
            identity("name:prod-1/16384", Some(3), Some((16_999, "public.a b=%:é"))),
            true,
            "9:9:",
            0x0016_B374_D848,
            u64::MAX - 7,
        )
        .unwrap(),
    ] {
        assert_eq!(
            position.to_string().parse::<Position>().unwrap(),
            position,
            "{position}"
        );
    }
    for nonsense in [
        "",
        "x",
        "database=7 server=primary snapshot=1:2 lsn=0/0-0/0",
        "database=7 server=primary snapshot=1:2: lsn=0-0",
    ] {
        assert!(nonsense.parse::<Position>().is_err(), "{nonsense:?}");
    }
    assert_eq!(parse_lsn("16/B374D848"), Some(0x16_B374_D848));
    assert_eq!(
        (parse_lsn("16"), parse_lsn("1FFFFFFFF/0"), parse_lsn("-1/0")),
        (None, None, None)
    );
}

#[test]
fn a_snapshot_that_misses_what_the_stored_one_saw_is_older() {
    let stored = primary("700:705:700,703");
    for (snapshot, covers) in [
        ("700:705:700,703", true),
        ("703:705:703", true), // 700 has ended since
        ("705:705:", true),
        ("700:710:700,703,707", true),
        ("701:705:701,703", false), // 701 was seen
        ("700:704:700,703", false),
        ("600:600:", false),
        ("706:706:", true),
    ] {
        assert_eq!(primary(snapshot).covers(&stored).is_ok(), covers, "{snapshot}");
    }
    let mut other = primary("900:900:");
    other.identity.database = "8/5".to_owned();
    assert_eq!(other.covers(&stored), Err(Stale::OtherDatabase));
}

/// What may be forgiven (another timeline, another table) and what never is (an older snapshot of one history).
#[test]
fn what_cannot_be_compared_is_told_apart_from_what_is_older() {
    let at = |standby, timeline, oid, snapshot| {
        let identity = identity("7/5", Some(timeline), Some((oid, "public.views")));
        Position::new(identity, standby, snapshot, 0x100, 0x100).unwrap()
    };
    let stored = at(false, 2, 16_999, "700:705:");
    for (now, expected) in [
        (at(false, 2, 16_999, "706:706:"), Ok(())),
        (at(false, 2, 16_999, "600:600:"), Err(Stale::Older)),
        // A standby that has not followed a promotion yet.
        (at(true, 1, 16_999, "706:706:"), Err(Stale::Older)),
        (at(true, 2, 16_999, "706:706:"), Ok(())),
        (at(true, 3, 16_999, "706:706:"), Err(Stale::OtherTimeline)),
        (at(false, 1, 16_999, "706:706:"), Err(Stale::OtherTimeline)),
        (at(false, 3, 16_999, "706:706:"), Err(Stale::OtherTimeline)),
        (at(false, 2, 17_000, "706:706:"), Err(Stale::OtherTable)),
        (at(false, 2, 17_000, "600:600:"), Err(Stale::Older)),
    ] {
        assert_eq!(now.covers(&stored), expected, "{now}");
    }
}

/// A standby goes by the log or by the transactions, whichever shows it.
#[test]
fn a_standby_covers_what_it_has_replayed_or_whose_transactions_have_ended() {
    let stored = Position::new(of_old(), false, "700:705:", 0x1000, 0x1000).unwrap();
    for (snapshot, replayed, covers) in [
        ("600:600:", 0x1000, true),
        ("705:705:", 0x0100, true),
        ("704:709:", 0x0fff, false),
    ] {
        let standby = Position::new(of_old(), true, snapshot, replayed, replayed).unwrap();
        assert_eq!(standby.covers(&stored).is_ok(), covers, "{standby}");
    }
}

#[test]
fn a_place_after_a_pages_header_is_the_end_of_the_page_before() {
    for (lsn, end) in [
        (24, 0),
        (8192 + 24, 8192),
        (8192 + 25, 8192 + 25),
        (8192, 8192),
        (16, 16),
    ] {
        assert_eq!(at_page_end(lsn), end);
    }
    let position = Position::new(of_old(), true, "9:9:", 8192 + 24, 8192 + 24).unwrap();
    assert_eq!((position.lsn_before, position.lsn_after), (8192 + 24, 8192));
}

/// A primary's history: transactions begin, and commit with a record in the log that standbys may replay
/// before the primary shows it (it waits for them), never the other way round.
#[derive(Default)]
struct History {
    next: u64,
    log: u64,
    /// Where in the log a transaction's commit ends.
    committed_at: BTreeMap<u64, u64>,
    /// In progress, as the primary's snapshots say.
    open: BTreeSet<u64>,
}

impl History {
    fn step(&mut self, rng: &mut ChaCha8Rng) {
        match rng.random_range(0..4) {
            0 => {
                self.open.insert(self.next);
                self.next += 1;
            }
            1 => {
                // In the log, and not yet shown.
                if let Some(one) = self
                    .open
                    .iter()
                    .filter(|id| !self.committed_at.contains_key(id))
                    .choose(rng)
                {
                    self.log += 40;
                    self.committed_at.insert(*one, self.log);
                }
            }
            2 => {
                let ready = self.open.iter().filter(|id| self.committed_at.contains_key(id));
                if let Some(one) = ready.choose(rng).copied() {
                    self.open.remove(&one);
                }
            }
            _ => self.log += rng.random_range(0..100),
        }
    }

    /// A snapshot on the primary, and the transactions it sees.
    fn primary(&self) -> (Position, BTreeSet<u64>) {
        let xmin = self.open.first().copied().unwrap_or(self.next);
        let open: Vec<String> = self.open.iter().map(u64::to_string).collect();
        let text = format!("{xmin}:{}:{}", self.next, open.join(","));
        let seen = (3..self.next).filter(|id| !self.open.contains(id)).collect();
        (Position::new(of_old(), false, &text, 0, self.log).unwrap(), seen)
    }

    /// A snapshot on a standby that has replayed the log up to `replayed`.
    fn standby(&self, replayed: u64) -> (Position, BTreeSet<u64>) {
        let seen: BTreeSet<u64> = self
            .committed_at
            .iter()
            .filter(|(_, at)| **at <= replayed)
            .map(|(id, _)| *id)
            .collect();
        let xmax = seen.last().map_or(3, |id| id + 1);
        let xmin = (3..xmax).find(|id| !seen.contains(id)).unwrap_or(xmax);
        (
            Position::new(of_old(), true, &format!("{xmin}:{xmax}:"), replayed, replayed).unwrap(),
            seen,
        )
    }
}

#[test]
fn whoever_covers_a_snapshot_sees_all_that_it_saw_on_any_server() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let (mut covered, mut refused) = (0, 0);
    for _ in 0..300 {
        let mut history = History {
            next: 3,
            ..History::default()
        };
        let mut snapshots = Vec::new();
        for _ in 0..40 {
            for _ in 0..rng.random_range(0..6) {
                history.step(&mut rng);
            }
            snapshots.push(if rng.random_bool(0.5) {
                history.primary()
            } else {
                history.standby(rng.random_range(0..=history.log))
            });
        }
        for (number, (position, seen)) in snapshots.iter().enumerate() {
            for (stored, stored_seen) in &snapshots[..=number] {
                match position.covers(stored) {
                    Ok(()) => {
                        covered += 1;
                        assert!(stored_seen.is_subset(seen), "{position}\n{stored}");
                    }
                    Err(_) => refused += 1,
                }
            }
            // A primary never refuses what it gave before.
            for (stored, _) in snapshots[..number]
                .iter()
                .filter(|(stored, _)| !stored.standby && !position.standby)
            {
                assert!(position.covers(stored).is_ok(), "{position}\n{stored}");
            }
        }
    }
    assert!(covered > 50_000 && refused > 10_000, "{covered} {refused}");
}
