//! Answers that were given before: a question that is asked again is answered without data, once the store has said that
//! nothing of what the answer was made of has changed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use arrow::array::RecordBatch;

use super::reader::Basis;
use crate::base::keys::Day;
use crate::base::process::PerProcess;
use crate::scan::Coverage;

/// Bytes that are kept in memory, and of one answer.
const CAPACITY: usize = 32 << 20;
const LARGEST: usize = 1 << 20;

/// An answer, and what it was made of.
#[derive(Clone)]
pub struct Answer {
    /// What tells it apart from every other.
    pub question: String,
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
            + 2 * self.question.len()
    }
}

struct Entry {
    answer: Answer,
    used: u64,
    size: usize,
}

#[derive(Default)]
struct Memory {
    answers: HashMap<String, Entry>,
    size: usize,
    clock: u64,
}

static MEMORY: PerProcess<Mutex<Memory>> = PerProcess::new();

/// What was answered to a question.
pub fn find(question: &str) -> Option<Answer> {
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
    fn forget(&mut self, question: &str) {
        if let Some(entry) = self.answers.remove(question) {
            self.size -= entry.size;
        }
    }
}
