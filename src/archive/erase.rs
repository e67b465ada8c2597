//! Takes the rows of erased projects out of a stored day: an export from nothing, which keeps what is stored, but for them.

pub(crate) mod look;
pub mod record;

use std::time::Duration;

use crate::archive::claim::Claim;
use crate::archive::copies::stale::{TAIL, position_of};
use crate::archive::export::{ExportOptions, Exported, Progress, export};
use crate::archive::stored::StoredDay;
use crate::archive::verify::not_stored;
use crate::base::error::Result;
use crate::base::keys::{Day, Prefix, Scope};
use crate::base::runtime::{Cancel, block_on};
use crate::file::position::Identity;
use crate::scan::cache::{self, Lookup};
use crate::source::{BadRows, Sink, Source, Summary};
use crate::store::Store;

pub use look::{Found, Look, Which, look, stored_days, stored_owners};

/// Writes the day again without the rows of erased projects, if it has any.
///
/// # Errors
/// [`NotStored`](crate::base::error::Error::NotStored) when there is no file, [`ErasureRefused`](crate::base::error::Error::ErasureRefused) when the file or the list is
/// another database's than the claim's, otherwise as an export.
pub fn erase(store: &Store, day: Day, options: &ExportOptions, claim: &Claim, cancel: &Cancel) -> Result<Exported> {
    let key = options.prefix.key(&Scope::Day, day);
    let mut nothing = Nothing {
        store,
        key,
        claim,
        owners: block_on(cancel, claim.present_owners(store, &options.prefix))?,
    };
    export(&mut nothing, store, day, options, &Progress::default(), cancel)
}

/// Refuses a day that is another database's than the claim's, before anything of it changes.
///
/// # Errors
/// [`ErasureRefused`](crate::base::error::Error::ErasureRefused).
pub async fn check_day(store: &Store, prefix: &Prefix, day: Day, claim: &Claim) -> Result<()> {
    let owners = claim.present_owners(store, prefix).await?;
    let key = prefix.key(&Scope::Day, day);
    let Lookup::Present(footer) = cache::load(store, &key, Duration::ZERO, TAIL).await?.lookup else {
        return Ok(());
    };
    let position = position_of(&key, &footer)?;
    claim.check_file(
        store,
        &key,
        &owners,
        position.as_ref().map(|position| &position.identity),
    )
}

/// A source without rows that says of itself what the stored file says of its source.
struct Nothing<'a> {
    store: &'a Store,
    key: String,
    claim: &'a Claim,
    owners: Vec<Identity>,
}

impl Source for Nothing<'_> {
    /// Of the version that is written over: the condition of the write sees to that.
    fn read(&mut self, day: Day, _: BadRows, _: &mut Sink<'_>, cancel: &Cancel) -> Result<Summary> {
        let stored = block_on(cancel, StoredDay::read(self.store, &self.key, day))?;
        let stored = stored.ok_or_else(|| not_stored(self.store, &self.key))?;
        let of_file = stored.position.as_ref().map(|position| &position.identity);
        self.claim.check_file(self.store, &self.key, &self.owners, of_file)?;
        Ok(Summary {
            source: stored.source.unwrap_or_default(),
            snapshot_time: stored.snapshot_time.unwrap_or_default(),
            position: stored.position,
            counted: None,
            earlier_rows: Some(true),
            left: Vec::new(),
            elsewhere: Vec::new(),
            slugs: None,
        })
    }

    fn count(&mut self, _day: Day, _cancel: &Cancel) -> Result<Option<u64>> {
        Ok(Some(0))
    }
}
