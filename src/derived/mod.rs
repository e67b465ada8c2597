//! What is derived from the days' files, so that a question about months reads few objects. It can be deleted and made
//! anew at any time.

pub mod index;
pub mod merge;
pub mod series;
