//! Errors as RFC 9457 problem documents that name the field.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use pillion_config::Diagnostics;
use schemars::JsonSchema;
use serde::Serialize;

use crate::catalog::{FieldProblem, RegisterError, ReportError};
use crate::resources::ApplyError;
use crate::store::StoreError;
use crate::watch::TooMany;

/// A problem document: `application/problem+json`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Problem {
    /// A URN for the kind of problem; `about:blank` where the status says it all.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// What kind of thing went wrong.
    pub title: String,
    /// What went wrong here, and what would be right.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(default)]
    pub detail: String,
    /// The fields that are wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub errors: Vec<ProblemField>,
}

/// One field that is wrong.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ProblemField {
    /// Its path, such as `ports.http.port`, or the name of a query parameter.
    pub field: String,
    /// What was found and what would be right.
    pub detail: String,
    /// The resource the field belongs to, where the body holds several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// Line in the body, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// Column in the body, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<usize>,
}

impl Problem {
    /// A problem told by its status and one sentence.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            kind: "about:blank",
            status: status.as_u16(),
            title: status.canonical_reason().unwrap_or("error").to_owned(),
            detail: detail.into(),
            errors: Vec::new(),
        }
    }

    /// Fields that are wrong.
    pub fn fields(status: StatusCode, errors: Vec<ProblemField>) -> Self {
        let detail = match &errors[..] {
            [one] if one.field.is_empty() => one.detail.clone(),
            [one] => format!("{}: {}", one.field, one.detail),
            many => format!("{} fields are wrong", many.len()),
        };
        Self { errors, kind: "urn:pillion:problem:invalid", ..Self::new(status, detail) }
    }

    /// One field that is wrong.
    pub fn field(field: &str, detail: impl Into<String>) -> Self {
        Self::fields(StatusCode::UNPROCESSABLE_ENTITY, vec![ProblemField::new(field, detail)])
    }

    /// One query parameter that is wrong.
    pub fn parameter(name: &str, detail: impl Into<String>) -> Self {
        Self::fields(StatusCode::BAD_REQUEST, vec![ProblemField::new(name, detail)])
    }

    /// Something that is not there.
    pub fn not_found(what: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("there is no {what}"))
    }
}

impl ProblemField {
    /// A field without a place.
    pub fn new(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { field: field.into(), detail: detail.into(), resource: None, line: None, column: None }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(self)).into_response();
        let kind = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}

impl From<Vec<FieldProblem>> for Problem {
    fn from(problems: Vec<FieldProblem>) -> Self {
        let fields = problems.into_iter().map(|problem| ProblemField::new(problem.field, problem.detail));
        Self::fields(StatusCode::UNPROCESSABLE_ENTITY, fields.collect())
    }
}

impl From<Diagnostics> for Problem {
    fn from(diagnostics: Diagnostics) -> Self {
        let fields = diagnostics.0.iter().map(|diagnostic| ProblemField {
            line: diagnostic.position().map(|position| position.line),
            column: diagnostic.position().map(|position| position.column),
            ..ProblemField::new(diagnostic.path.clone(), diagnostic.message.clone())
        });
        Self::fields(StatusCode::UNPROCESSABLE_ENTITY, fields.collect())
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let status = match error {
            StoreError::Conflict { .. } => StatusCode::CONFLICT,
            StoreError::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

impl From<RegisterError> for Problem {
    fn from(error: RegisterError) -> Self {
        let detail = error.to_string();
        let conflict = |field: String, detail| {
            Self::fields(StatusCode::CONFLICT, vec![ProblemField::new(field, detail)])
        };
        match error {
            RegisterError::Older { .. } => conflict("generation".to_owned(), detail),
            RegisterError::Protocol { port, .. } => conflict(format!("ports.{port}.protocol"), detail),
            RegisterError::Full(_) => Self::new(StatusCode::INSUFFICIENT_STORAGE, detail),
            RegisterError::Store(error) => error.into(),
        }
    }
}

impl From<ReportError> for Problem {
    fn from(error: ReportError) -> Self {
        let detail = error.to_string();
        match error {
            ReportError::Unknown(..) => Self::new(StatusCode::NOT_FOUND, detail),
            ReportError::Older { .. } => {
                Self::fields(StatusCode::CONFLICT, vec![ProblemField::new("generation", detail)])
            }
            ReportError::Store(error) => error.into(),
        }
    }
}

impl From<ApplyError> for Problem {
    fn from(error: ApplyError) -> Self {
        let detail = error.to_string();
        match error {
            ApplyError::Invalid(problems) => {
                let fields = problems.into_iter().map(|problem| ProblemField {
                    resource: Some(problem.key.to_string()),
                    ..ProblemField::new(problem.path, problem.message)
                });
                Self::fields(StatusCode::UNPROCESSABLE_ENTITY, fields.collect())
            }
            ApplyError::Unknown(key) => Self::not_found(key),
            ApplyError::Condition { .. } => Self::new(StatusCode::PRECONDITION_FAILED, detail),
            ApplyError::Full(_) => Self::new(StatusCode::INSUFFICIENT_STORAGE, detail),
            ApplyError::Store(error) => error.into(),
        }
    }
}

impl From<TooMany> for Problem {
    fn from(error: TooMany) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}
