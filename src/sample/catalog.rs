//! The projects, versions and organizations that the traffic is about.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, RecordBatch, StringArray};
use arrow::datatypes::{Field, Schema};

use super::random::{Shuffle, hash};
use crate::base::error::{Error, Result};

/// A project, of `projects_project`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    pub id: i32,
    pub slug: String,
    pub name: String,
    pub language: &'static str,
    /// The project that this one is a translation of.
    pub main_language_project_id: Option<i32>,
}

/// A version of a project, of `builds_version`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    pub id: i32,
    pub project_id: i32,
    pub slug: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Organization {
    pub id: i32,
    pub slug: String,
    pub name: String,
    pub project_ids: Vec<i32>,
}

/// Projects that stand for an edge case, present in every sample.
#[derive(Debug, Clone, Copy)]
pub struct Special<'a> {
    /// More rows than any other project.
    pub largest: &'a Project,
    /// Every view answered 404.
    pub only_not_found: &'a Project,
    /// Every row has a NULL version.
    pub without_versions: &'a Project,
    /// One row a day.
    pub tiny: &'a Project,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ordinary,
    OnlyNotFound,
    WithoutVersions,
    Tiny,
}

/// What stands at the end of the projects; all others are ordinary, the most popular first.
const SPECIAL: [(Kind, &str, &str); 3] = [
    (Kind::OnlyNotFound, "moved-away", "Moved Away"),
    (Kind::WithoutVersions, "single-handbook", "Single Handbook"),
    (Kind::Tiny, "tiny-notes", "Tiny Notes"),
];

#[rustfmt::skip]
const FIRST: [&str; 64] = [
    "amber", "arctic", "atlas", "aurora", "birch", "bright", "calm", "cedar", "cobalt", "copper", "coral",
    "crisp", "delta", "dusty", "ember", "fable", "falcon", "fern", "flint", "frosty", "gentle", "golden",
    "granite", "harbor", "hazel", "hidden", "hollow", "indigo", "iron", "ivory", "jade", "juniper", "karst",
    "lively", "lunar", "maple", "marble", "meadow", "mellow", "misty", "nimble", "noble", "north", "ocean",
    "olive", "opal", "patient", "pebble", "pine", "plain", "quiet", "rapid", "river", "rustic", "sable",
    "silver", "solar", "steady", "stone", "summit", "swift", "tidal", "velvet", "willow",
];

#[rustfmt::skip]
const SECOND: [&str; 64] = [
    "api", "arrow", "auth", "bench", "board", "bridge", "build", "cache", "chart", "cli", "client", "cloud",
    "codec", "config", "core", "dash", "data", "db", "docs", "engine", "flow", "form", "forge", "frame",
    "graph", "grid", "hub", "index", "js", "kit", "lab", "lang", "lint", "link", "log", "mail", "map", "mesh",
    "mock", "net", "nlp", "orm", "parser", "pipe", "plot", "proxy", "py", "queue", "rest", "rpc", "rs",
    "schema", "sdk", "search", "shell", "sql", "stack", "store", "sync", "task", "test", "tools", "vault",
    "web",
];

const LANGUAGES: [&str; 8] = ["de", "es", "fr", "ja", "pt-br", "zh-cn", "ru", "ko"];

#[derive(Debug)]
pub(crate) struct Catalog {
    pub projects: Vec<Project>,
    pub versions: Vec<Version>,
    pub organizations: Vec<Organization>,
    /// Where a project's versions begin in `versions`; one more entry than projects.
    version_starts: Vec<u32>,
}

impl Catalog {
    pub fn new(count: u32, seed: u64) -> Self {
        let projects = projects(count, seed);
        let mut versions = Vec::new();
        let mut version_starts = vec![0];
        for (rank, project) in projects.iter().enumerate() {
            for slug in version_slugs(kind(rank, projects.len()), rank, hash([seed, 2, rank as u64])) {
                versions.push(Version {
                    id: 50_001 + versions.len() as i32,
                    project_id: project.id,
                    slug,
                });
            }
            version_starts.push(versions.len() as u32);
        }
        let organizations = organizations(&projects, seed);
        Self {
            projects,
            versions,
            organizations,
            version_starts,
        }
    }

    /// A project's versions, the most popular first.
    pub fn versions_of(&self, rank: usize) -> &[Version] {
        &self.versions[self.version_starts[rank] as usize..self.version_starts[rank + 1] as usize]
    }

    pub fn kind(&self, rank: usize) -> Kind {
        kind(rank, self.projects.len())
    }

    pub fn special(&self) -> Special<'_> {
        let last = self.projects.len() - 1;
        Special {
            largest: &self.projects[0],
            only_not_found: &self.projects[last - 2],
            without_versions: &self.projects[last - 1],
            tiny: &self.projects[last],
        }
    }
}

pub(crate) fn kind(rank: usize, count: usize) -> Kind {
    let ordinary = count - SPECIAL.len();
    rank.checked_sub(ordinary)
        .map_or(Kind::Ordinary, |special| SPECIAL[special].0)
}

fn projects(count: u32, seed: u64) -> Vec<Project> {
    let names = Shuffle::new(64 * 64, hash([seed, 1]));
    let ids = Shuffle::new(u64::from(count), hash([seed, 3]));
    let ordinary = count as usize - SPECIAL.len();
    let mut projects: Vec<Project> = Vec::with_capacity(count as usize);
    for rank in 0..count as usize {
        let id = 1_001 + ids.place(rank as u64) as i32;
        let english = |slug: String, name: String| Project {
            id,
            slug,
            name,
            language: "en",
            main_language_project_id: None,
        };
        let project = if let Some(special) = rank.checked_sub(ordinary) {
            let (_, slug, name) = SPECIAL[special];
            english(slug.to_owned(), name.to_owned())
        } else if rank % 10 == 7 {
            // A translation is a project of its own, served below the main project's name.
            let main = &projects[rank - 7];
            let language = LANGUAGES[rank / 10 % 8];
            let (slug, name) = (
                format!("{}-{language}", main.slug),
                format!("{} ({language})", main.name),
            );
            Project {
                id,
                slug,
                name,
                language,
                main_language_project_id: Some(main.id),
            }
        } else {
            let pair = names.place(rank as u64 % 4096) as usize;
            let (first, second) = (FIRST[pair / 64], SECOND[pair % 64]);
            let again = if rank < 4096 {
                String::new()
            } else {
                format!("-{}", rank / 4096 + 1)
            };
            english(
                format!("{first}-{second}{again}"),
                format!("{} {}{again}", title(first), title(second)),
            )
        };
        projects.push(project);
    }
    projects
}

fn title(word: &str) -> String {
    let mut letters = word.chars();
    letters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// Most projects have `latest` and `stable`, popular ones many numbered versions and now and then a hidden one.
fn version_slugs(kind: Kind, rank: usize, random: u64) -> Vec<String> {
    if kind == Kind::WithoutVersions {
        return Vec::new();
    }
    let most = (40 / (1 + rank / 8)).clamp(1, 24) as u64;
    let numbered = if rank == 0 { 20 } else { random % (most + 1) };
    let mut slugs = vec!["latest".to_owned()];
    if numbered > 0 || random & 64 == 0 {
        slugs.push("stable".to_owned());
    }
    let newest = numbered + 2 + random / 128 % 5;
    for step in 0..numbered {
        let (major, minor) = ((newest - step) / 4, (newest - step) % 4);
        slugs.push(match random / 1024 % 3 {
            0 => format!("v{major}.{minor}.0"),
            1 => format!("{major}.{minor}"),
            _ => format!("{major}.{minor}.x"),
        });
    }
    match random / 4096 % 6 {
        0 => slugs.push("en-US".to_owned()),
        1 => slugs.push("feature-new-theme".to_owned()),
        2 => slugs.push("release_candidate".to_owned()),
        _ => {}
    }
    slugs
}

/// Half of the ordinary projects belong to organizations of very different size.
fn organizations(projects: &[Project], seed: u64) -> Vec<Organization> {
    let count = (projects.len() / 15).clamp(2, 500);
    let mut organizations: Vec<Organization> = (0..count)
        .map(|index| {
            let place = (hash([seed, 5]) as usize + index) % 64;
            let again = if index < 64 {
                String::new()
            } else {
                format!("-{}", index / 64 + 1)
            };
            let first = FIRST[place];
            Organization {
                id: 301 + index as i32,
                slug: format!("{first}-foundation{again}"),
                name: format!("{} Foundation{again}", title(first)),
                project_ids: Vec::new(),
            }
        })
        .collect();
    for (rank, project) in projects.iter().enumerate() {
        let random = hash([seed, 6, rank as u64]);
        if rank < 2 || random % 2 == 0 {
            // The square of an even draw: the first organizations own most projects.
            let draw = (random >> 8) as usize % count;
            let index = if rank < 2 { rank } else { draw * draw / count };
            organizations[index].project_ids.push(project.id);
        }
    }
    organizations
}

pub(crate) fn projects_batch(projects: &[Project]) -> Result<RecordBatch> {
    let main = projects.iter().map(|project| project.main_language_project_id);
    batch(vec![
        ("id", false, integers(projects.iter().map(|project| project.id))),
        (
            "slug",
            false,
            texts(projects.iter().map(|project| project.slug.as_str())),
        ),
        (
            "name",
            false,
            texts(projects.iter().map(|project| project.name.as_str())),
        ),
        (
            "language",
            false,
            texts(projects.iter().map(|project| project.language)),
        ),
        ("main_language_project_id", true, Arc::new(main.collect::<Int32Array>())),
    ])
}

pub(crate) fn versions_batch(versions: &[Version]) -> Result<RecordBatch> {
    batch(vec![
        ("id", false, integers(versions.iter().map(|version| version.id))),
        (
            "project_id",
            false,
            integers(versions.iter().map(|version| version.project_id)),
        ),
        (
            "slug",
            false,
            texts(versions.iter().map(|version| version.slug.as_str())),
        ),
    ])
}

pub(crate) fn organizations_batch(organizations: &[Organization], projects: &[Project]) -> Result<RecordBatch> {
    let slugs: HashMap<i32, &str> = projects
        .iter()
        .map(|project| (project.id, project.slug.as_str()))
        .collect();
    let member = |organization| move |&project: &i32| (organization, project);
    let members: Vec<(&Organization, i32)> = organizations
        .iter()
        .flat_map(|organization| organization.project_ids.iter().map(member(organization)))
        .collect();
    let organization = || members.iter().map(|(organization, _)| *organization);
    let project = || members.iter().map(|(_, project)| *project);
    batch(vec![
        (
            "organization_id",
            false,
            integers(organization().map(|organization| organization.id)),
        ),
        (
            "organization_slug",
            false,
            texts(organization().map(|organization| organization.slug.as_str())),
        ),
        (
            "organization_name",
            false,
            texts(organization().map(|organization| organization.name.as_str())),
        ),
        ("project_id", false, integers(project())),
        (
            "project_slug",
            false,
            texts(project().map(|project| slugs.get(&project).copied().unwrap_or_default())),
        ),
    ])
}

fn integers(values: impl Iterator<Item = i32>) -> ArrayRef {
    Arc::new(Int32Array::from_iter_values(values))
}

fn texts<'a>(values: impl Iterator<Item = &'a str>) -> ArrayRef {
    Arc::new(values.map(Some).collect::<StringArray>())
}

fn batch(columns: Vec<(&str, bool, ArrayRef)>) -> Result<RecordBatch> {
    let field =
        |(name, nullable, values): &(&str, bool, ArrayRef)| Field::new(*name, values.data_type().clone(), *nullable);
    let schema = Schema::new(columns.iter().map(field).collect::<Vec<_>>());
    let values = columns.into_iter().map(|(_, _, values)| values).collect();
    RecordBatch::try_new(Arc::new(schema), values)
        .map_err(|error| Error::internal(format!("a sample's table does not form a batch: {error}")))
}
