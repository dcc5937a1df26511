//! Patches: JSON merge (RFC 7386), strategic merge (Kubernetes), JSON patch (RFC 6902).

/// A patch body with its media type known.
#[derive(Debug, Clone, PartialEq)]
pub enum Patch {
    /// `application/merge-patch+json`
    JsonMerge(serde_json::Value),
    /// `application/strategic-merge-patch+json`
    StrategicMerge(serde_json::Value),
    /// `application/json-patch+json`
    Json(serde_json::Value),
}
