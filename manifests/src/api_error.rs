//! What goes wrong with a request, as a Kubernetes `Status` (api-conventions, "Response Status Kind").

use serde_json::{Value, json};

use crate::object::ObjectKey;

/// Kubernetes' machine-readable reasons, each with one HTTP code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    AlreadyExists,
    Conflict,
    Gone,
    Expired,
    Invalid,
    MethodNotAllowed,
    NotAcceptable,
    RequestEntityTooLarge,
    UnsupportedMediaType,
    TooManyRequests,
    Timeout,
    ServiceUnavailable,
    InternalError,
}

impl Reason {
    pub fn code(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::NotAcceptable => 406,
            Self::AlreadyExists | Self::Conflict => 409,
            Self::Gone | Self::Expired => 410,
            Self::RequestEntityTooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::Invalid => 422,
            Self::TooManyRequests => 429,
            Self::InternalError => 500,
            Self::ServiceUnavailable => 503,
            Self::Timeout => 504,
        }
    }
}

/// One fault of a manifest: `spec.containers[0].image: Required value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// `FieldValueRequired`, `FieldValueInvalid`, `FieldValueNotSupported`, `FieldValueForbidden`, `FieldValueDuplicate`, ...
    pub reason: &'static str,
    /// `spec.template.spec.containers[0].image`
    pub field: String,
    /// `Required value`, `Invalid value: "x": must be ...`
    pub message: String,
}

/// A refused or failed request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub reason: Reason,
    pub message: String,
    pub key: Option<Box<ObjectKey>>,
    pub causes: Vec<Violation>,
    pub retry_after_seconds: Option<u32>,
    /// With which an expired list may be gone on with.
    pub continue_token: Option<String>,
}

impl ApiError {
    pub fn of(reason: Reason, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { reason, message, key: None, causes: Vec::new(), retry_after_seconds: None, continue_token: None }
    }

    pub fn about(mut self, key: &ObjectKey) -> Self {
        self.key = Some(Box::new(key.clone()));
        self
    }

    /// `pods "web" not found`
    pub fn not_found(key: &ObjectKey) -> Self {
        Self::of(Reason::NotFound, format!("{} {:?} not found", qualified(key), key.name)).about(key)
    }

    pub fn already_exists(key: &ObjectKey) -> Self {
        Self::of(Reason::AlreadyExists, format!("{} {:?} already exists", qualified(key), key.name)).about(key)
    }

    /// Scripts look for "the object has been modified".
    pub fn conflict(key: &ObjectKey, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {:?}: {why}", qualified(key), key.name);
        Self::of(Reason::Conflict, message).about(key)
    }

    pub fn modified(key: &ObjectKey) -> Self {
        Self::conflict(
            key,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 422 with every fault; the message reads as kube-apiserver's.
    pub fn invalid(key: &ObjectKey, causes: Vec<Violation>) -> Self {
        let name = if key.kind.group.is_empty() {
            key.kind.name.to_owned()
        } else {
            format!("{}.{}", key.kind.name, key.kind.group)
        };
        let mut lines: Vec<String> = causes.iter().map(|fault| format!("{}: {}", fault.field, fault.message)).collect();
        let list = if lines.len() == 1 { lines.remove(0) } else { format!("[{}]", lines.join(", ")) };
        let mut error = Self::of(Reason::Invalid, format!("{name} {:?} is invalid: {list}", key.name)).about(key);
        error.causes = causes;
        error
    }

    /// The `Status` body.
    pub fn to_status(&self) -> Value {
        let mut details = serde_json::Map::new();
        if let Some(key) = &self.key {
            details.insert("name".into(), key.name.clone().into());
            if !key.kind.group.is_empty() {
                details.insert("group".into(), key.kind.group.into());
            }
            let kind = if self.reason == Reason::Invalid { key.kind.name } else { key.kind.plural };
            details.insert("kind".into(), kind.into());
        }
        if !self.causes.is_empty() {
            let causes = self
                .causes
                .iter()
                .map(|fault| json!({"reason": fault.reason, "field": fault.field, "message": fault.message}));
            details.insert("causes".into(), causes.collect());
        }
        if let Some(seconds) = self.retry_after_seconds {
            details.insert("retryAfterSeconds".into(), seconds.into());
        }
        let metadata = self.continue_token.as_ref().map_or_else(|| json!({}), |token| json!({"continue": token}));
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": metadata, "status": "Failure",
            "message": self.message, "reason": format!("{:?}", self.reason), "details": details, "code": self.reason.code(),
        })
    }
}

/// `daemonsets.apps`
fn qualified(key: &ObjectKey) -> String {
    if key.kind.group.is_empty() {
        key.kind.plural.to_owned()
    } else {
        format!("{}.{}", key.kind.plural, key.kind.group)
    }
}
