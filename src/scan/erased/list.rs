//! The form of the list of erased projects. Whatever is not as it was written is damage: a list that is read
//! as a shorter one shows erased projects again.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde_json::{Map, Value, json};

use crate::base::error::{Error, Result};
use crate::base::json::{self, wrong};
use crate::file::position::{Identity, Relation};

/// The version of the object's form; a newer one is refused.
const FORMAT: u64 = 1;
/// An object above this is no list of ours. It holds some 800,000 projects.
pub const LARGEST: usize = 16 << 20;
/// The latest of so many have slug and time beside the id, some 100 bytes; earlier ones the id alone.
const DETAILED: usize = 10_000;

const PROJECTS: &str = "projects";
const PROJECT_ID: &str = "project_id";
const SLUG: &str = "slug";
const ERASED_AT: &str = "erased_at";
const OWNERS: &str = "owners";

/// What the object says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct List {
    /// What is recorded of each project, by id.
    pub projects: BTreeMap<i32, Map<String, Value>>,
    /// Whose ids these are: the last is the present database, and those before were said to hold the same data.
    pub owners: Vec<Identity>,
    /// What later versions may have added.
    rest: Map<String, Value>,
}

impl List {
    /// Whether the project was not there before.
    pub fn add(&mut self, project: i32, slug: Option<&str>, now: &str) -> bool {
        let Entry::Vacant(place) = self.projects.entry(project) else {
            return false;
        };
        let about = [
            (PROJECT_ID, json!(project)),
            (SLUG, json!(slug)),
            (ERASED_AT, json!(now)),
        ];
        place.insert(about.map(|(key, value)| (key.to_owned(), value)).into_iter().collect());
        true
    }

    /// Takes slug and time from all but the latest projects.
    pub fn shorten(&mut self) {
        if self.projects.len() <= DETAILED {
            return;
        }
        let time = |about: &Map<String, Value>| about.get(ERASED_AT).and_then(Value::as_str).map(str::to_owned);
        let mut detailed: Vec<(String, i32)> = self
            .projects
            .iter()
            .filter_map(|(project, about)| Some((time(about)?, *project)))
            .collect();
        detailed.sort_unstable();
        let enough = detailed.len().saturating_sub(DETAILED);
        for (_, project) in detailed.into_iter().take(enough) {
            let id = (PROJECT_ID.to_owned(), json!(project));
            self.projects.insert(project, Map::from_iter([id]));
        }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut whole = self.rest.clone();
        whole.insert(json::FORMAT.to_owned(), json!(FORMAT));
        whole.insert(
            PROJECTS.to_owned(),
            self.projects.values().cloned().map(Value::Object).collect(),
        );
        if !self.owners.is_empty() {
            whole.insert(OWNERS.to_owned(), self.owners.iter().map(described).collect());
        }
        Value::Object(whole).to_string().into_bytes()
    }

    /// # Errors
    /// [`Error::CorruptFile`] that names what is wrong in it.
    pub fn parse(key: &str, bytes: &[u8]) -> Result<Self> {
        Self::read(bytes).map_err(|why| {
            Error::corrupt(
                key,
                format_args!("{why}; without it erased projects would be shown again"),
            )
        })
    }

    fn read(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > LARGEST {
            return Err("it is larger than any list of erased projects".to_owned());
        }
        let mut whole = json::object(bytes, FORMAT)?;
        let projects = match whole.remove(PROJECTS) {
            Some(Value::Array(projects)) => projects,
            Some(other) => return Err(wrong(PROJECTS, "a list", &other)),
            None => return Err("it has no list of projects".to_owned()),
        };
        let mut list = Self::default();
        for project in projects {
            let (id, about) = read_project(project)?;
            if list.projects.insert(id, about).is_some() {
                return Err(format!("the {PROJECT_ID} {id} stands twice in it"));
            }
        }
        match whole.remove(OWNERS) {
            None => {}
            Some(Value::Array(owners)) => list.owners = owners.iter().map(read_owner).collect::<Result<_, _>>()?,
            Some(other) => return Err(wrong(OWNERS, "a list", &other)),
        }
        list.rest = whole;
        Ok(list)
    }
}

fn read_project(project: Value) -> Result<(i32, Map<String, Value>), String> {
    let Value::Object(about) = project else {
        return Err(wrong(PROJECTS, "a list of objects", &project));
    };
    let id = match about.get(PROJECT_ID) {
        None => return Err(format!("a project has no id (no {PROJECT_ID})")),
        Some(id) => id.as_i64().and_then(|id| i32::try_from(id).ok()).ok_or_else(|| {
            format!(
                "a project has no id: {}",
                wrong(PROJECT_ID, "a 32-bit whole number", id)
            )
        })?,
    };
    for key in [SLUG, ERASED_AT] {
        match about.get(key) {
            None | Some(Value::Null | Value::String(_)) => {}
            Some(other) => return Err(wrong(key, "text", other)),
        }
    }
    Ok((id, about))
}

fn described(owner: &Identity) -> Value {
    json!({
        "database": owner.database,
        "timeline": owner.timeline,
        "relation": owner.relation.as_ref().map(|relation| relation.oid),
        "table": owner.relation.as_ref().map(|relation| relation.name.as_str()),
    })
}

fn read_owner(owner: &Value) -> Result<Identity, String> {
    let Value::Object(about) = owner else {
        return Err(wrong(OWNERS, "a list of objects", owner));
    };
    let text = |key: &str| match about.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(wrong(&format!("{OWNERS}: {key}"), "text", other)),
    };
    let number = |key: &str| match about.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value
            .as_u64()
            .and_then(|number| u32::try_from(number).ok())
            .map(Some)
            .ok_or_else(|| wrong(&format!("{OWNERS}: {key}"), "a 32-bit whole number", value)),
    };
    let relation = match (number("relation")?, text("table")?) {
        (Some(oid), name) => Some(Relation {
            oid,
            name: name.unwrap_or_default(),
        }),
        (None, _) => None,
    };
    Ok(Identity {
        database: text("database")?.ok_or_else(|| format!("one of its {OWNERS} has no database"))?,
        timeline: number("timeline")?,
        relation,
    })
}
