//! Of what an answer was made, and whether it would be made of that again.

use std::time::Duration;

use futures::stream::{self, StreamExt, TryStreamExt};

use super::{Reader, add};
use crate::archive::manifest::Object;
use crate::base::error::Result;
use crate::base::keys::{Day, Scope};
use crate::base::process::lock;
use crate::base::runtime;
use crate::scan::DayVersion;
use crate::scan::cache::{self, Lookup};

/// Of what an answer was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Basis {
    /// Series files, with the days that they answer for.
    derived: Vec<(Object, Vec<Day>)>,
    /// The versions of the other days' files.
    days: Vec<(Day, Option<String>)>,
    /// Projects that were not shown, in order.
    hidden: Vec<i32>,
}

impl Basis {
    pub fn memory_size(&self) -> usize {
        let derived = self
            .derived
            .iter()
            .map(|(object, days)| object.key.len() + object.etag.len() + 8 * days.len() + 100);
        derived.sum::<usize>() + self.days.len() * 100 + self.hidden.len() * 4
    }
}

impl Reader {
    /// Of what the answer was made, once it was.
    pub fn basis(&self) -> Result<Basis> {
        let (scan, derived, hidden) = {
            let used = lock(&self.used);
            (used.scan.clone(), used.files.clone(), used.hidden.clone())
        };
        let versions = scan
            .as_ref()
            .map(|scan| scan.versions())
            .transpose()?
            .unwrap_or_default();
        let version = |(day, version): DayVersion| (day, version.map(|(etag, _)| etag));
        let hidden = hidden.or(scan.map(|scan| scan.hidden()));
        Ok(Basis {
            derived,
            days: versions.into_iter().map(version).collect(),
            hidden: self.hidden(&hidden.unwrap_or_default()),
        })
    }

    /// Asks the store, in one wave and without data, whether an answer that was made of this would be made of it again.
    ///
    /// # Errors
    /// When it is stopped. What the store refuses is told by whoever reads anew.
    pub fn holds(&self, basis: &Basis) -> Result<bool> {
        add(&self.counters.waves, 1);
        let manifest = async {
            if basis.derived.is_empty() {
                return None;
            }
            self.ask_manifest().await.map(|known| known.manifest)
        };
        let guess = cache::tail_guess(&self.store, basis.days.len());
        let days = stream::iter(basis.days.clone())
            .map(|(day, etag)| self.is_still(day, etag, guess))
            .buffered(self.options.concurrency.max(1))
            .try_fold(true, |all, same| async move { Ok(all && same) });
        let asked = async { Ok(futures::join!(manifest, self.ask_erased(), days)) };
        let (manifest, erased, days) = runtime::block_on(&self.cancel, asked)?;
        let answers = |(object, days): &(Object, Vec<Day>)| {
            let manifest = manifest.as_ref();
            manifest.is_some_and(|manifest| days.iter().all(|day| manifest.series_of(*day) == Some(object)))
        };
        let holds = matches!(days, Ok(true))
            && erased.is_ok_and(|erased| self.hidden(&erased) == basis.hidden)
            && basis.derived.iter().all(answers);
        if holds {
            self.note_remembered(basis);
        }
        Ok(holds)
    }

    /// Counts an answer that is given again.
    pub fn note_remembered(&self, basis: &Basis) {
        add(&self.counters.answers_remembered, 1);
        let derived = basis.derived.iter().map(|(_, days)| days.len()).sum::<usize>();
        add(&self.counters.days_derived, derived as u64);
    }

    async fn is_still(&self, day: Day, etag: Option<String>, guess: u64) -> Result<bool> {
        let key = self.prefix.key(&Scope::Day, day);
        let loaded = cache::load(&self.store, &key, Duration::ZERO, guess).await?;
        add(&self.counters.footer_requests, loaded.requests.into());
        add(&self.counters.bytes, loaded.bytes);
        Ok(match (&loaded.lookup, etag) {
            (Lookup::Present(footer), Some(etag)) => footer.etag == etag,
            (Lookup::Absent, None) => true,
            _ => false,
        })
    }
}
