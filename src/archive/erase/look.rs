//! Finds what is stored of erased projects, and whose the stored days are. It goes by what is stored, and so lists: names
//! of today do not say where rows of yesterday are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::{Date32Type, Int32Type};
use futures::stream::{self, StreamExt, TryStreamExt};

use crate::archive::claim::Claim;
use crate::archive::copies::stale::{Copy, has_rows_of, position_of, rows_possible};
use crate::base::error::{Error, Result};
use crate::base::keys::{Day, ORGANIZATIONS, PROJECTS, Prefix, Scope, Slug};
use crate::base::runtime::{Cancel, block_on};
use crate::base::schema;
use crate::file::position::Identity;
use crate::scan::cache::{self, Lookup};
use crate::scan::erased::{self, Ids};
use crate::scan::plan::Filter;
use crate::scan::{Options, Scan};
use crate::store::Store;

/// Footers on their way at once.
const AT_ONCE: usize = 64;
/// Days whose rows are looked through together.
const DAYS_AT_ONCE: usize = 64;

/// Which copies are looked at.
#[derive(Debug, Clone, Default)]
pub struct Which {
    /// The slugs that projects have now: when there are more than `most` copies for projects, those below these are left
    /// out. `None` leaves out nothing.
    pub living: Option<BTreeSet<String>>,
    /// Slugs that are looked at all the same.
    pub slugs: BTreeSet<String>,
    pub most: usize,
}

/// A file that has rows of erased projects.
#[derive(Debug, Clone)]
pub struct Found {
    pub scope: Scope,
    pub day: Day,
    pub key: String,
    /// The projects, with the slugs that the rows have. Nothing of a copy, which is dropped whole.
    pub projects: BTreeMap<i32, BTreeSet<String>>,
}

#[derive(Debug, Default)]
pub struct Look {
    pub found: Vec<Found>,
    /// Files that cannot be read: nobody can say what they hold.
    pub unreadable: Vec<(String, Error)>,
    /// Whether no copy was left out.
    pub every_copy: bool,
}

/// The days that have a file, in order.
pub async fn stored_days(store: &Store, prefix: &Prefix) -> Result<Vec<Day>> {
    let years = store.folders(&prefix.folder("")).await?;
    let mut days = BTreeSet::new();
    for year in years.into_iter().filter(|name| name.parse::<u16>().is_ok()) {
        for key in listed(store, &prefix.folder(&year)).await? {
            if let Some((Scope::Day, day)) = prefix.parse_key(&key) {
                days.insert(day);
            }
        }
    }
    Ok(days.into_iter().collect())
}

async fn listed(store: &Store, folder: &str) -> Result<Vec<String>> {
    Ok(store.list(folder, usize::MAX).await?.unwrap_or_default())
}

/// The different databases that stored days name, each with the key of a day. A file that nobody can read names none.
pub async fn stored_owners(store: &Store, prefix: &Prefix) -> Result<Vec<(String, Identity)>> {
    let days = stored_days(store, prefix).await?;
    let tail = cache::tail_guess(store, days.len());
    let named: Vec<Option<(String, Identity)>> = stream::iter(days)
        .map(|day| async move {
            let key = prefix.key(&Scope::Day, day);
            let known = match cache::load(store, &key, Duration::ZERO, tail).await {
                Ok(loaded) => loaded.lookup,
                Err(Error::CorruptFile { .. }) => Lookup::Absent,
                Err(error) => return Err(error.on_day(day)),
            };
            let Lookup::Present(footer) = known else {
                return Ok(None);
            };
            Ok(position_of(&key, &footer)
                .map_err(|error| error.on_day(day))?
                .map(|position| (key, position.identity)))
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    let mut owners: Vec<(String, Identity)> = Vec::new();
    for (key, identity) in named.into_iter().flatten() {
        if !owners.iter().any(|(_, known)| *known == identity) {
            owners.push((key, identity));
        }
    }
    Ok(owners)
}

/// Looks through all days, and the copies, for rows of erased projects.
///
/// # Errors
/// [`Error::ErasureRefused`] for a copy with such rows that is another database's, otherwise what the store says. A damaged
/// file is no error here.
pub fn look(store: &Store, prefix: &Prefix, which: &Which, claim: &Claim, cancel: &Cancel) -> Result<Look> {
    let (erased, _) = block_on(cancel, erased::load(store, prefix, Duration::ZERO))?;
    let mut look = Look {
        every_copy: true,
        ..Look::default()
    };
    if erased.ids.is_empty() {
        return Ok(look);
    }
    let days = block_on(cancel, stored_days(store, prefix))?;
    let possible = block_on(cancel, days_possible(store, prefix, &days, &erased.ids, &mut look))?;
    for some in possible.chunks(DAYS_AT_ONCE) {
        look_through(store, prefix, some, &erased.ids, &mut look, cancel)?;
    }
    let owners = claim.owners(store, &prefix.erased_key(), &erased.owners)?;
    block_on(cancel, async {
        let copies = copies(store, prefix, which, &mut look).await?;
        let (ids, owners) = (&erased.ids, &owners);
        let mut stale = stream::iter(copies)
            .map(|(scope, day)| async move {
                let key = prefix.key(&scope, day);
                let stale = has_rows_of(store, &key, day, ids, claim, owners).await;
                (scope, day, key, stale)
            })
            .buffer_unordered(AT_ONCE);
        while let Some((scope, day, key, stale)) = stale.next().await {
            match stale {
                Ok(Copy::Without) => {}
                Ok(Copy::With(projects)) => look.found.push(Found {
                    scope,
                    day,
                    key,
                    projects,
                }),
                Err(error) => look.cannot(key, error, day)?,
            }
        }
        Ok(())
    })?;
    look.found.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(look)
}

impl Look {
    /// Notes that a file is damaged; anything else is the end.
    fn cannot(&mut self, key: String, error: Error, day: Day) -> Result<()> {
        match error.inner() {
            Error::CorruptFile { .. } | Error::Mismatch { .. } => {
                self.unreadable.push((key, error.on_day(day)));
                Ok(())
            }
            _ => Err(error.on_day(day)),
        }
    }
}

/// Those of the days that can have rows of these projects, by the statistics of their row groups.
async fn days_possible(store: &Store, prefix: &Prefix, days: &[Day], ids: &Ids, look: &mut Look) -> Result<Vec<Day>> {
    let tail = cache::tail_guess(store, days.len());
    let mut loads = stream::iter(days.to_vec())
        .map(|day| async move {
            let key = prefix.key(&Scope::Day, day);
            let known = cache::load(store, &key, Duration::ZERO, tail).await;
            (day, key, known)
        })
        .buffered(AT_ONCE);
    let mut possible = Vec::new();
    while let Some((day, key, known)) = loads.next().await {
        match known.map(|loaded| loaded.lookup) {
            Ok(Lookup::Present(footer)) if rows_possible(&footer, ids) => possible.push(day),
            Ok(_) => {}
            Err(error) => look.cannot(key, error, day)?,
        }
    }
    Ok(possible)
}

/// Reads ids and slugs of the rows of these projects, day by day where one of the files is damaged.
fn look_through(
    store: &Store,
    prefix: &Prefix,
    days: &[Day],
    ids: &Ids,
    look: &mut Look,
    cancel: &Cancel,
) -> Result<()> {
    match projects_of(store, prefix, days, ids, cancel) {
        Ok(found) => {
            look.found.extend(found.into_iter().map(|(day, projects)| Found {
                scope: Scope::Day,
                day,
                key: prefix.key(&Scope::Day, day),
                projects,
            }));
            Ok(())
        }
        Err(error) => match (error.inner(), days) {
            (Error::CorruptFile { .. } | Error::Mismatch { .. }, [day]) => {
                look.cannot(prefix.key(&Scope::Day, *day), error, *day)
            }
            (Error::CorruptFile { .. } | Error::Mismatch { .. }, _) => days
                .iter()
                .try_for_each(|day| look_through(store, prefix, std::slice::from_ref(day), ids, look, cancel)),
            _ => Err(error),
        },
    }
}

type Projects = BTreeMap<i32, BTreeSet<String>>;

fn projects_of(
    store: &Store,
    prefix: &Prefix,
    days: &[Day],
    ids: &Ids,
    cancel: &Cancel,
) -> Result<BTreeMap<Day, Projects>> {
    let filter = Filter {
        any_project: Some(ids.to_vec()),
        ..Filter::default()
    };
    let options = Options {
        with_erased: true,
        ..Options::default()
    };
    let scan = Scan::new(
        store.clone(),
        prefix,
        days.iter().copied(),
        filter,
        options,
        cancel.clone(),
    );
    let columns = [
        schema::column(schema::PROJECT_ID)?,
        schema::column(schema::PROJECT_SLUG)?,
        schema::column(schema::DATE)?,
    ];
    let mut found: BTreeMap<Day, Projects> = BTreeMap::new();
    for batch in scan.batches(&columns)? {
        cancel.check()?;
        let batch = batch?;
        let wrong = || Error::internal("a batch has other columns than were asked for");
        let projects = batch.column(0).as_primitive_opt::<Int32Type>().ok_or_else(wrong)?;
        let slugs = batch.column(1).as_string_opt::<i32>().ok_or_else(wrong)?;
        let dates = batch.column(2).as_primitive_opt::<Date32Type>().ok_or_else(wrong)?;
        for row in 0..batch.num_rows() {
            let day = Day::from_date32(dates.value(row)).ok_or_else(wrong)?;
            let slugs_of = found.entry(day).or_default().entry(projects.value(row)).or_default();
            if !slugs_of.contains(slugs.value(row)) {
                slugs_of.insert(slugs.value(row).to_owned());
            }
        }
    }
    Ok(found)
}

/// The copies to look at.
async fn copies(store: &Store, prefix: &Prefix, which: &Which, look: &mut Look) -> Result<Vec<(Scope, Day)>> {
    let most = which.living.as_ref().map_or(usize::MAX, |_| which.most);
    let mut keys = listed(store, &prefix.folder(ORGANIZATIONS)).await?;
    match store.list(&prefix.folder(PROJECTS), most).await? {
        Some(all) => keys.extend(all),
        None => {
            look.every_copy = false;
            let living = |slug: &String| which.living.as_ref().is_some_and(|living| living.contains(slug));
            let slugs = store.folders(&prefix.folder(PROJECTS)).await?;
            let slugs: Vec<String> = slugs
                .into_iter()
                .filter(|slug| slug.parse::<Slug>().is_ok() && (which.slugs.contains(slug) || !living(slug)))
                .collect();
            let found: Vec<Vec<String>> = stream::iter(slugs)
                .map(|slug| async move { listed(store, &prefix.folder(&format!("{PROJECTS}/{slug}"))).await })
                .buffer_unordered(AT_ONCE)
                .try_collect()
                .await?;
            keys.extend(found.into_iter().flatten());
        }
    }
    Ok(keys
        .iter()
        .filter_map(|key| prefix.parse_key(key))
        .filter(|(scope, _)| *scope != Scope::Day)
        .collect())
}
