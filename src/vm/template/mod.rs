//! Templates: a guest that was booted once and saved, of which every VM after it is a copy-on-write clone.
//!
//! A template is a folder named after its [`Key`]. It appears by one rename, so there is never half of one, and is compared
//! byte by byte with its manifest when a manager first uses it and when a file has changed.

mod files;
mod key;
mod make;
mod registry;
mod save;
pub mod shelf;

pub(super) use files::TemplateFiles;
pub(super) use registry::Templates;
pub(super) use save::restore;
