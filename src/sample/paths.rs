//! Paths of documentation pages: every page number has one path, and no two share one. A number is written in
//! the "digits" of word lists, which differ from project to project.

use std::fmt::Write;

use super::random::{hash, mix};

/// The pages that nearly every project has, most popular first.
const FRONT: [&str; 12] = [
    "/",
    "/index.html",
    "/install.html",
    "/quickstart.html",
    "/changelog.html",
    "/search.html",
    "/genindex.html",
    "/configuration.html",
    "/api/index.html",
    "/user-guide/index.html",
    "/faq.html",
    "/py-modindex.html",
];

#[rustfmt::skip]
const TOPICS: [&str; 64] = [
    "admin", "alerts", "archive", "arrays", "async", "auth", "backends", "batch", "cache", "charts", "cli",
    "cloud", "cluster", "codecs", "columns", "commands", "config", "context", "cookies", "cursor", "database",
    "datetime", "debug", "deploy", "drivers", "encoding", "errors", "events", "export", "fields", "filters",
    "forms", "graph", "handlers", "hooks", "images", "indexes", "inputs", "jobs", "layout", "loaders",
    "locale", "logging", "matrix", "metrics", "models", "network", "options", "parsers", "plugins", "queries",
    "queue", "records", "routing", "schema", "search", "security", "session", "signals", "storage", "streams",
    "tables", "testing", "views",
];

#[rustfmt::skip]
const TASKS: [&str; 32] = [
    "adding", "basics", "benchmarks", "building", "caching", "choosing", "combining", "concepts", "custom",
    "debugging", "deploying", "design", "examples", "extending", "handling", "internals", "introduction",
    "loading", "managing", "migrating", "overview", "patterns", "performance", "recipes", "reference",
    "releasing", "running", "scaling", "troubleshooting", "tuning", "using", "writing",
];

const SECTIONS: [&str; 8] = [
    "guide",
    "how-to",
    "tutorials",
    "reference",
    "topics",
    "advanced",
    "contributing",
    "integrations",
];

/// What crawlers and old links ask for.
const BOTS: [&str; 10] = [
    "/wp-login.php",
    "/.env",
    "/robots.txt",
    "/ads.txt",
    "/apple-touch-icon.png",
    "/sitemap.xml.gz",
    "/.well-known/security.txt",
    "/favicon.ico",
    "/xmlrpc.php",
    "/admin/",
];

/// Writes the path of a project's page; `page` 0 is the most popular.
pub fn page(project_seed: u64, page: u64, out: &mut String) {
    out.clear();
    if let Some(front) = usize::try_from(page).ok().and_then(|page| FRONT.get(page)) {
        out.push_str(front);
        return;
    }
    let number = page - FRONT.len() as u64;
    // Sixteen places in turn, shared out to shapes; the rest of the number makes the page unique within its shape.
    let (place, round) = (number % 16, number / 16);
    match place {
        0..=4 => {
            let number = round * 5 + place;
            let section = SECTIONS[(mix(project_seed ^ number) % 8) as usize];
            let _ = write!(out, "/{section}/");
            words(project_seed, number, '-', out);
            out.push_str(".html");
        }
        5..=8 => {
            let number = round * 4 + place - 5;
            out.push_str("/api/reference/");
            words(project_seed, number, '.', out);
            out.push_str(".html");
        }
        9 | 10 => {
            let number = round * 2 + place - 9;
            out.push_str("/_modules/");
            words(project_seed, number, '/', out);
            out.push_str(".html");
        }
        11 | 12 => {
            let number = round * 2 + place - 11;
            out.push_str("/blog/");
            words(project_seed, number, '-', out);
            out.push('/');
        }
        13 => {
            let _ = write!(out, "/releases/{}.{}.{}.html", round / 100, round / 10 % 10, round % 10);
        }
        14 => {
            out.push_str("/notebooks/");
            words(project_seed, round, '_', out);
            out.push_str(".ipynb");
        }
        _ => odd(project_seed, round, out),
    }
}

/// Writes the path of a page that is not there: a page moved away, or what a crawler guesses.
pub fn missing(project_seed: u64, index: u64, out: &mut String) {
    if index % 2 == 1 {
        return page(project_seed, 12 + index * 3, out);
    }
    let number = index / 2;
    out.clear();
    match usize::try_from(number).ok().and_then(|number| BOTS.get(number)) {
        Some(bot) => out.push_str(bot),
        None => {
            let number = number - BOTS.len() as u64;
            let _ = write!(out, "/{}.x/", number % 7);
            words(project_seed, number / 7, '-', out);
            out.push_str(".htm");
        }
    }
}

/// Paths that are rare in life and break careless code.
fn odd(project_seed: u64, number: u64, out: &mut String) {
    match number % 8 {
        0 => {
            let _ = write!(out, "/руководство/установка-{number}.html");
        }
        1 => {
            let _ = write!(out, "/ドキュメント/入門-{number}.html");
        }
        2 => {
            let _ = write!(out, "/faq/what's \"new\" in {number}?.html");
        }
        3 => {
            let _ = write!(out, "/files/100%25_{number}%20report\\final.html");
        }
        4 => {
            let _ = write!(out, "/emoji/🚀-{number}/");
        }
        5 => {
            let _ = write!(out, "//double//slashes//{number}.html");
        }
        6 => {
            let _ = write!(out, "/generated/{number}");
            for part in 0..hash([project_seed, number]) % 60 {
                let _ = write!(out, "/{}", TOPICS[(mix(part ^ number) % 64) as usize]);
            }
            out.push_str("/index.html");
        }
        _ => {
            let _ = write!(out, "/search/{number};drop,table'--.html");
        }
    }
}

/// The number in words: a task, then topics, as many as it needs. The project turns the tasks by an amount of its own,
/// and each task the topics.
fn words(project_seed: u64, number: u64, separator: char, out: &mut String) {
    let task = (number % 32 + project_seed % 32) % 32;
    out.push_str(TASKS[task as usize]);
    let mut rest = number / 32;
    let mut turn = project_seed ^ task;
    loop {
        turn = mix(turn);
        out.push(separator);
        out.push_str(TOPICS[((rest % 64 + turn % 64) % 64) as usize]);
        rest /= 64;
        if rest == 0 {
            return;
        }
    }
}
