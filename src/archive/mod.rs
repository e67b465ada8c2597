//! What is done to the archive, a day at a time: export, merge, publish, verify, delete, restore, erase.

pub mod claim;
pub mod copies;
pub mod delete;
pub mod deleted;
pub mod erase;
pub mod export;
pub mod manifest;
pub mod merge;
pub mod publish;
pub mod restore;
pub mod stamp;
pub mod stored;
pub mod verify;
