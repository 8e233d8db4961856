//! Resources as people write them: file formats, typed kinds, and errors that point at the field.
//!
//! [`parse`] turns files into [`Resource`]s and reports every mistake of every file in one run, each
//! with file, line, column, field path and the nearest known name. [`check`] judges rules that cross
//! resources. [`document`] reads any YAML or JSON document with positions, for files whose meaning
//! another crate knows.
//!
//! Text becomes a positioned tree ([`node`]) by one parser per format; each kind is read from that
//! tree by one module on a shared [`reader`]. JSON from the HTTP API and from the store goes the
//! same way, so there is one set of rules. What a resource *does* is not decided here.

mod check;
mod diagnostic;
pub mod document;
pub mod federation;
mod format;
mod kind;
pub mod mesh;
mod node;
mod path;
pub mod policy;
mod reader;
mod resource;
pub mod route;
mod schema;
pub mod service;
mod set;
mod text;

pub use check::{Problem, check, check_among};
pub use diagnostic::{Diagnostic, Diagnostics, Style};
pub use federation::Federation;
pub use format::{Format, Source};
pub use kind::{Kind, ResourceKey};
pub use mesh::Mesh;
pub use node::Position;
pub use policy::AuthorizationPolicy;
pub use resource::{Positioned, Resource, locate, parse};
pub use route::Route;
pub use schema::{definitions, schema};
pub use service::Service;
pub use set::ResourceSet;
pub use text::DurationText;

/// How deep a document may nest.
const DEPTH_MAX: usize = 64;
/// Largest file, in bytes.
const SOURCE_BYTES_MAX: usize = 16 << 20;
