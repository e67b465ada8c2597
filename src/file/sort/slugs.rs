//! Small numbers in the place of slugs: codes in order of appearance while rows come in, ranks in byte
//! order once all slugs are known.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringArray, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::{DataType, Int32Type};

use crate::base::error::{Error, Result};

use super::codes;

/// The code of "no slug".
const NONE: u32 = 0;

/// Gives each distinct id or slug the next code, from 1. An id and a slug that mean the same have two codes and one rank.
#[derive(Default)]
pub struct Codes {
    by_id: HashMap<i32, u32>,
    by_slug: HashMap<String, u32>,
}

impl Codes {
    /// Codes of a column of ids or of slugs; nulls are code 0.
    pub fn encode(&mut self, array: &ArrayRef) -> Result<UInt32Array> {
        match array.data_type() {
            DataType::Int32 => {
                let others = self.by_slug.len() as u32;
                let known = &mut self.by_id;
                let mut last = None;
                Ok(array
                    .as_primitive::<Int32Type>()
                    .iter()
                    .map(|id| match (id, last) {
                        (None, _) => NONE,
                        (Some(id), Some((same, code))) if id == same => code,
                        (Some(id), _) => {
                            let next = others + known.len() as u32 + 1;
                            let code = *known.entry(id).or_insert(next);
                            last = Some((id, code));
                            code
                        }
                    })
                    .collect::<Vec<u32>>()
                    .into())
            }
            DataType::Utf8 => {
                let others = self.by_id.len() as u32;
                let known = &mut self.by_slug;
                Ok(array
                    .as_string::<i32>()
                    .iter()
                    .map(|slug| match slug {
                        None => NONE,
                        Some(slug) => match known.get(slug) {
                            Some(code) => *code,
                            None => {
                                let next = others + known.len() as u32 + 1;
                                known.insert(slug.to_owned(), next);
                                next
                            }
                        },
                    })
                    .collect::<Vec<u32>>()
                    .into())
            }
            DataType::Null => Ok(UInt32Array::from(vec![NONE; array.len()])),
            other => Err(Error::internal(format!(
                "slugs or ids of type {other} reached the sort"
            ))),
        }
    }

    /// Ranks of all slugs seen; `names` gives the slug of each id when ids were encoded.
    pub fn ranks(&self, what: &str, names: Option<&HashMap<i32, String>>) -> Result<Ranks> {
        let mut coded: Vec<(&str, u32)> = Vec::with_capacity(self.by_id.len() + self.by_slug.len());
        coded.extend(self.by_slug.iter().map(|(slug, code)| (slug.as_str(), *code)));
        for (id, code) in &self.by_id {
            let slug = names
                .and_then(|names| names.get(id))
                .ok_or_else(|| Error::internal(format!("the source gave no slug for {what} {id}")))?;
            coded.push((slug, *code));
        }
        coded.sort_unstable();
        let mut of_code = vec![NONE; coded.len() + 1];
        let mut slugs: Vec<Option<&str>> = vec![None];
        for (slug, code) in coded {
            if slugs.last() != Some(&Some(slug)) {
                slugs.push(Some(slug));
            }
            of_code[code as usize] = slugs.len() as u32 - 1;
        }
        Ok(Ranks {
            of_code,
            slugs: Arc::new(StringArray::from(slugs)),
        })
    }
}

/// Slugs by the ids that they belong to.
#[derive(Debug, Clone, Default)]
pub struct Slugs {
    pub projects: HashMap<i32, String>,
    pub versions: HashMap<i32, String>,
}

/// Slugs in byte order; rank 0 is null.
pub struct Ranks {
    of_code: Vec<u32>,
    slugs: ArrayRef,
}

impl Ranks {
    pub fn of_codes(&self, array: &ArrayRef) -> Result<UInt32Array> {
        Ok(codes(array)?
            .values()
            .iter()
            .map(|code| self.of_code[*code as usize])
            .collect::<Vec<u32>>()
            .into())
    }

    /// The slugs of a column of ranks.
    pub fn of_ranks(&self, array: &ArrayRef) -> Result<ArrayRef> {
        take(&self.slugs, codes(array)?, None).map_err(|error| Error::internal(error.to_string()))
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.slugs.as_string::<i32>().iter().flatten()
    }
}
