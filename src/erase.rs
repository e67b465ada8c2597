//! Takes the rows of erased projects out of a stored day: an export from nothing, which keeps what is stored, but for them.

use crate::error::Result;
use crate::export::{ExportOptions, Exported, Progress, export};
use crate::keys::{Day, Scope};
use crate::runtime::{Cancel, block_on};
use crate::source::{BadRows, Sink, Source, Summary};
use crate::store::Store;
use crate::stored::StoredDay;
use crate::verify::not_stored;

/// Writes the day again without the rows of erased projects, if it has any.
///
/// # Errors
/// [`crate::error::Error::DayNotStored`] when there is no file, otherwise as an export.
pub fn erase(store: &Store, day: Day, options: &ExportOptions, cancel: &Cancel) -> Result<Exported> {
    let key = options.prefix.key(&Scope::Day, day);
    let mut nothing = Nothing { store, key };
    let options = ExportOptions {
        // The file keeps saying from which database and snapshot it is.
        accept_moved_database: true,
        ..options.clone()
    };
    export(&mut nothing, store, day, &options, &Progress::default(), cancel)
}

/// A source without rows that says of itself what the stored file says of its source.
struct Nothing<'a> {
    store: &'a Store,
    key: String,
}

impl Source for Nothing<'_> {
    fn read(&mut self, day: Day, _: BadRows, _: &mut Sink<'_>, cancel: &Cancel) -> Result<Summary> {
        let stored = block_on(cancel, StoredDay::read(self.store, &self.key, day))?;
        let stored = stored.ok_or_else(|| not_stored(self.store, &self.key))?;
        Ok(Summary {
            source: stored.source.unwrap_or_default(),
            snapshot_time: stored.snapshot_time.unwrap_or_default(),
            position: stored.position,
            counted: None,
            earlier_rows: Some(true),
            left: Vec::new(),
            slugs: None,
        })
    }

    fn count(&mut self, _day: Day, _cancel: &Cancel) -> Result<Option<u64>> {
        Ok(Some(0))
    }
}
