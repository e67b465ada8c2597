//! The file of a day: rows put in order, written, and its footer read.

pub mod footer;
pub mod position;
pub mod remaining;
pub mod rows;
pub mod sort;
pub mod spool;
pub mod tally;
pub mod writer;
