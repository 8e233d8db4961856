//! Where a resource comes from that another one names: Envoy's `ConfigSource`.

use std::mem::take;
use std::time::Duration;

use super::Context;
use super::context::inert;
use crate::pb;
use pb::core::config_source::ConfigSourceSpecifier;

/// A resource that another one names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Its type.
    pub type_url: &'static str,
    /// Its name.
    pub name: String,
    /// What the model calls it: its name, and before it the file that has it.
    pub key: String,
    /// Who has it; `None`: the bootstrap itself.
    pub from: Option<ConfigSource>,
}

/// Who has a resource, and how long is waited for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigSource {
    /// Who.
    pub source: Source,
    /// How long whatever needs the resource waits for its first answer; `None`: for ever.
    pub wait_max: Option<Duration>,
}

/// Who has a resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The aggregated discovery service.
    Ads,
    /// Whoever has the resource that names it.
    Same,
    /// A file.
    File(FileSource),
}

/// A file that holds a `DiscoveryResponse`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileSource {
    /// The file.
    pub path: String,
    /// It is read again when something is moved into this folder; `None`: when it is itself replaced
    /// by a file that is moved to its place.
    pub watched_directory: Option<String>,
}

impl Reference {
    pub(super) fn new(type_url: &'static str, name: &str, from: Option<ConfigSource>) -> Self {
        let key = match from.as_ref().map(|from| &from.source) {
            Some(Source::File(file)) => file.key(name),
            _ => name.to_owned(),
        };
        Self { type_url, name: name.to_owned(), key, from }
    }
}

impl ConfigSource {
    /// Whether the resource comes by a discovery service.
    #[must_use]
    pub fn is_discovery(&self) -> bool {
        !matches!(self.source, Source::File(_))
    }
}

impl FileSource {
    /// What the model calls a resource of this file: two files may have one of the same name.
    fn key(&self, name: &str) -> String {
        format!("{}#{name}", self.path)
    }
}

/// Envoy's default.
const WAIT_MAX: Duration = Duration::from_secs(15);

pub(crate) fn source(cx: &mut Context, mut m: pb::core::ConfigSource) -> ConfigSource {
    inert!(m, resource_api_version = pb::core::ApiVersion::V3 as i32);
    let wait_max = cx.limit("initial_fetch_timeout", m.initial_fetch_timeout.take(), Some(WAIT_MAX));
    let source = match m.config_source_specifier.take() {
        Some(ConfigSourceSpecifier::Ads(_)) => Source::Ads,
        Some(ConfigSourceSpecifier::Self_(_)) => Source::Same,
        Some(ConfigSourceSpecifier::Path(path)) => file(cx, path, None),
        Some(ConfigSourceSpecifier::PathConfigSource(mut file_source)) => cx.at("path_config_source", |cx| {
            let directory = file_source.watched_directory.take().map(|directory| directory.path);
            let path = take(&mut file_source.path);
            cx.rest(&file_source);
            file(cx, path, directory)
        }),
        Some(ConfigSourceSpecifier::ApiConfigSource(_)) => {
            cx.refuse_at("api_config_source", format!("is not supported; supported: {SUPPORTED}"));
            Source::Ads
        }
        None => {
            cx.refuse(format!("says nothing; want one of {SUPPORTED}"));
            Source::Ads
        }
    };
    cx.rest(&m);
    ConfigSource { source, wait_max }
}

const SUPPORTED: &str = "ads, self, path_config_source";

fn file(cx: &mut Context, path: String, watched_directory: Option<String>) -> Source {
    if path.is_empty() {
        cx.missing("path");
    }
    Source::File(FileSource { path, watched_directory })
}
