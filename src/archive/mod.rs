//! What is done to the archive, a day at a time: export, merge, publish, verify, delete, restore, erase; and the lists of
//! deleted days and erased projects.

pub mod copies;
pub mod delete;
pub mod deleted;
pub mod erase;
pub mod erased;
pub mod export;
pub mod merge;
pub mod publish;
pub mod restore;
pub mod stamp;
pub mod stored;
pub mod verify;
