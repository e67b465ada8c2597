//! Answers that were given before: a question that is asked again is answered without data, once the store has said that
//! nothing of what the answer was made of has changed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use arrow::array::RecordBatch;

use super::reader::Basis;
use crate::base::keys::{Day, Prefix};
use crate::base::process::PerProcess;
use crate::scan::Coverage;
use crate::scan::plan::Filter;

/// Bytes that are kept in memory, and of one answer.
const CAPACITY: usize = 32 << 20;
const LARGEST: usize = 1 << 20;

/// What tells a question apart from every other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Question {
    pub store: String,
    pub prefix: Prefix,
    /// Whether what is derived may answer it.
    pub derived: bool,
    /// The report, with its own parameters.
    pub report: String,
    pub days: (Day, Day),
    /// The days of these whose files are read, when not all.
    pub archived: Option<Vec<Day>>,
    pub filter: Filter,
}

impl Question {
    fn size(&self) -> usize {
        let Filter {
            projects,
            any_project,
            versions,
            hidden,
            ..
        } = &self.filter;
        let slugs: usize = projects.iter().flatten().map(|slug| 24 + slug.len()).sum();
        let ids = any_project.iter().flatten().count() + versions.iter().flatten().count() * 2 + hidden.len();
        self.store.len() + self.report.len() + slugs + 4 * ids + 4 * self.archived.iter().flatten().count() + 200
    }
}

/// An answer, and what it was made of.
#[derive(Clone)]
pub struct Answer {
    pub question: Question,
    pub batch: RecordBatch,
    pub coverage: Option<Coverage>,
    pub basis: Arc<Basis>,
    /// When the store was asked last for what it is made of.
    pub confirmed: Instant,
    /// What this process had written until then: [`cache::writes`](crate::scan::cache::writes).
    pub writes: u64,
}

impl Answer {
    fn size(&self) -> usize {
        let days = self.coverage.as_ref().map_or(0, Vec::len);
        self.batch.get_array_memory_size()
            + self.basis.memory_size()
            + days * size_of::<(Day, Option<u64>)>()
            + 2 * self.question.size()
    }
}

struct Entry {
    answer: Answer,
    used: u64,
    size: usize,
}

#[derive(Default)]
struct Memory {
    answers: HashMap<Question, Entry>,
    size: usize,
    clock: u64,
}

static MEMORY: PerProcess<Mutex<Memory>> = PerProcess::new();

/// What was answered to a question.
pub fn find(question: &Question) -> Option<Answer> {
    let mut memory = MEMORY.lock();
    memory.clock += 1;
    let clock = memory.clock;
    let entry = memory.answers.get_mut(question)?;
    entry.used = clock;
    Some(entry.answer.clone())
}

/// Notes that an answer held at some moment since `asked`.
pub fn confirm(answer: &Answer, asked: Instant, writes: u64) {
    if let Some(entry) = MEMORY.lock().answers.get_mut(&answer.question)
        && Arc::ptr_eq(&entry.answer.basis, &answer.basis)
        && entry.answer.confirmed < asked
    {
        (entry.answer.confirmed, entry.answer.writes) = (asked, writes);
    }
}

/// Keeps an answer in the place of an older one.
pub fn keep(answer: Answer) {
    let size = answer.size();
    let mut memory = MEMORY.lock();
    memory.forget(&answer.question);
    if size > LARGEST {
        return;
    }
    memory.clock += 1;
    memory.size += size;
    let (question, used) = (answer.question.clone(), memory.clock);
    memory.answers.insert(question, Entry { answer, used, size });
    while memory.size > CAPACITY {
        let oldest = memory.answers.iter().min_by_key(|(_, entry)| entry.used);
        let Some(question) = oldest.map(|(question, _)| question.clone()) else {
            return;
        };
        memory.forget(&question);
    }
}

impl Memory {
    fn forget(&mut self, question: &Question) {
        if let Some(entry) = self.answers.remove(question) {
            self.size -= entry.size;
        }
    }
}
