//! On whose behalf projects are erased: only the database whose ids the list and the files hold may.

use std::time::Duration;

use crate::base::error::{Error, Result};
use crate::base::keys::Prefix;
use crate::file::position::Identity;
use crate::scan::erased;
use crate::store::Store;

/// On whose behalf something is erased.
#[derive(Debug, Clone, Default)]
pub struct Claim {
    /// `None` when no database says who it is.
    pub owner: Option<Identity>,
    /// The databases that the list and the stored days name held the same data before a move, a promotion or a
    /// restoration.
    pub accept_moved: bool,
}

impl Claim {
    /// The owners of the list as it is now, after an act on this claim.
    ///
    /// # Errors
    /// As [`Self::owners`].
    pub async fn present_owners(&self, store: &Store, prefix: &Prefix) -> Result<Vec<Identity>> {
        let (erased, _) = erased::load(store, prefix, Duration::ZERO).await?;
        self.owners(store, &prefix.erased_key(), &erased.owners)
    }

    /// The list's owners after an act on this claim.
    ///
    /// # Errors
    /// [`Error::ErasureRefused`] when it is not the present owner's.
    pub fn owners(&self, store: &Store, key: &str, owners: &[Identity]) -> Result<Vec<Identity>> {
        let mut after = owners.to_vec();
        match (owners.last(), &self.owner) {
            (None, None) => {}
            (None, Some(asking)) => after.push(asking.clone()),
            (Some(present), Some(asking)) if asking.check(present).is_ok() => {}
            (Some(_), Some(asking)) if self.accept_moved => {
                after.retain(|owner| owner != asking);
                after.push(asking.clone());
            }
            (Some(_), None) if self.accept_moved => {}
            (Some(present), _) => return Err(self.refused(store, key, present)),
        }
        Ok(after)
    }

    /// The same with the owners of stored days, each with the key of one.
    pub fn with_days(&self, store: &Store, owners: &[Identity], days: &[(String, Identity)]) -> Result<Vec<Identity>> {
        let mut after = owners.to_vec();
        for (key, of_day) in days {
            if after.iter().any(|owner| of_day.check(owner).is_ok()) {
                continue;
            }
            if !self.accept_moved {
                return Err(self.refused(store, key, of_day));
            }
            after.insert(after.len().saturating_sub(1), of_day.clone());
        }
        Ok(after)
    }

    /// Whether a stored file may lose rows: it belongs to one of the owners, or says nothing.
    ///
    /// # Errors
    /// [`Error::ErasureRefused`].
    pub fn check_file(&self, store: &Store, key: &str, owners: &[Identity], of_file: Option<&Identity>) -> Result<()> {
        match of_file {
            Some(of_file) if !self.accept_moved && !owners.iter().any(|owner| of_file.check(owner).is_ok()) => {
                Err(self.refused(store, key, of_file))
            }
            _ => Ok(()),
        }
    }

    fn refused(&self, store: &Store, key: &str, owner: &Identity) -> Error {
        let asking = match &self.owner {
            Some(asking) => format!("this is {asking}"),
            None => "no database says that it is the one that asks (name it with owner=)".to_owned(),
        };
        Error::ErasureRefused {
            key: key.to_owned(),
            message: format!(
                "{} belongs to {owner}, and {asking}, so its projects may be others; nothing was erased. Is this the right \
                 bucket and prefix? If the database was moved, upgraded, promoted or restored on purpose, erase once with \
                 accept_moved_database=True (manage.py parquet_analytics erase --accept-moved-database)",
                store.url_of(key)
            ),
        }
    }
}
