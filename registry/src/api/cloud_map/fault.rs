//! Errors as AWS JSON 1.1 writes them: `__type` and `Message`.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use pillion_model::name::ServiceName;
use serde_json::json;

use crate::catalog::{FieldProblem, RegisterError, ReportError};
use crate::store::StoreError;

/// What a call is refused with.
#[derive(Debug)]
pub(super) struct Fault {
    status: StatusCode,
    /// The shape's name in Cloud Map's model, or one of AWS' common errors.
    code: &'static str,
    message: String,
}

impl Fault {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    /// A value that cannot be accepted.
    pub(super) fn input(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "InvalidInput", message)
    }

    pub(super) fn service_not_found(service: &ServiceName) -> Self {
        let message = format!("there is no service {service}");
        Self::new(StatusCode::NOT_FOUND, "ServiceNotFound", message)
    }

    pub(super) fn namespace_not_found(namespace: &str) -> Self {
        let message = format!("there is no namespace {namespace}");
        Self::new(StatusCode::NOT_FOUND, "NamespaceNotFound", message)
    }

    pub(super) fn instance_not_found(service: &ServiceName, id: &str) -> Self {
        let message = format!("there is no instance {id} of service {service}");
        Self::new(StatusCode::NOT_FOUND, "InstanceNotFound", message)
    }

    pub(super) fn operation_not_found(id: &str) -> Self {
        let message = format!("there is no operation {id}");
        Self::new(StatusCode::NOT_FOUND, "OperationNotFound", message)
    }

    pub(super) fn in_use(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "ResourceInUse", message)
    }

    pub(super) fn denied(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "AccessDeniedException", message)
    }

    pub(super) fn unknown_call(target: &str) -> Self {
        let message = format!("`{target}` is not answered here; what is, stands in docs/cloud-map.md");
        Self::new(StatusCode::BAD_REQUEST, "UnknownOperationException", message)
    }

    pub(super) fn malformed(error: &serde_json::Error) -> Self {
        let message = format!("the body cannot be read: {error}");
        Self::new(StatusCode::BAD_REQUEST, "SerializationException", message)
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let Self { status, code, message } = self;
        (status, json!({"__type": code, "Message": message}).to_string()).into_response()
    }
}

impl From<Vec<FieldProblem>> for Fault {
    fn from(problems: Vec<FieldProblem>) -> Self {
        let told = problems.into_iter().map(|FieldProblem { field, detail }| {
            // By the words of this API.
            let field = match field.split_once('.') {
                Some(("labels" | "metadata", name)) => name,
                _ => match field.as_str() {
                    "address" => "AWS_INSTANCE_IPV4, AWS_INSTANCE_IPV6",
                    "labels" | "metadata" => "custom attributes",
                    field => field,
                },
            };
            format!("Attributes: {field}: {detail}")
        });
        Self::input(told.collect::<Vec<_>>().join("; "))
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", error.to_string())
    }
}

impl From<RegisterError> for Fault {
    fn from(error: RegisterError) -> Self {
        let message = error.to_string();
        match error {
            RegisterError::Older { .. } => Self::in_use(message),
            RegisterError::Protocol { .. } => Self::input(message),
            RegisterError::Full(_) => Self::new(StatusCode::BAD_REQUEST, "ResourceLimitExceeded", message),
            RegisterError::Store(error) => error.into(),
        }
    }
}

impl From<ReportError> for Fault {
    fn from(error: ReportError) -> Self {
        match error {
            ReportError::Unknown(service, id) => Self::instance_not_found(&service, id.as_str()),
            ReportError::Older { .. } => Self::in_use(error.to_string()),
            ReportError::Store(error) => error.into(),
        }
    }
}
