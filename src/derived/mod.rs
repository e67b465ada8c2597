//! What is derived from the days' files, so that a question about months reads few objects. It can be deleted and made
//! anew at any time.

pub mod answers;
pub mod compact;
pub mod group;
pub mod index;
pub mod merge;
pub mod reader;
pub mod series;
