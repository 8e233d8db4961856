//! The asked request.

use pillion_model::matcher::RequestView;
use pillion_model::path::{Normalization, Normalized, normalize};

use super::Question;
use crate::resolve::ServiceModel;

/// The asked request as matchers see it.
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    query: Option<String>,
    authority: String,
    headers: Vec<(String, String)>,
}

impl Request {
    /// `Err`: the path, which has no normal form.
    pub(super) fn of(service: &ServiceModel, question: &Question) -> Result<Self, String> {
        let target = question.path.as_deref().unwrap_or("/");
        let target = target.split('#').next().unwrap_or_default();
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (target, None),
        };
        let rules = Normalization { dots: true, merge_slashes: true, ..Normalization::default() };
        let Normalized::Path(path) = normalize(path, rules) else { return Err(path.to_owned()) };
        let headers = question.headers.iter();
        Ok(Self {
            method: question.method.clone().unwrap_or_else(|| "GET".to_owned()),
            path: path.into_owned(),
            query,
            authority: service.service.names.first().cloned().unwrap_or_default(),
            headers: headers.map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect(),
        })
    }
}

impl RequestView for Request {
    fn method(&self) -> &str {
        &self.method
    }

    fn path(&self) -> &str {
        &self.path
    }

    fn query(&self) -> Option<&str> {
        self.query.as_deref()
    }

    fn authority(&self) -> &str {
        let host = self.headers.iter().find(|(name, _)| name == "host");
        host.map_or(&self.authority, |(_, value)| value)
    }

    fn scheme(&self) -> &str {
        "http"
    }

    fn header(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        for (_, value) in self.headers.iter().filter(|(have, _)| have == name) {
            each(value.as_bytes());
        }
    }
}
