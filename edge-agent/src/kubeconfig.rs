//! The file with which kubectl reaches a device's own API.

use base64::Engine as _;
use serde_json::json;

/// A kubeconfig with one cluster, user and context, as JSON (which is YAML).
pub fn kubeconfig(name: &str, server: &str, authority_pem: &str, chain_pem: &str, key_pem: &str) -> String {
    let encoded = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": name,
        "clusters": [{"name": name, "cluster": {"server": server, "certificate-authority-data": encoded(authority_pem)}}],
        "users": [{"name": name, "user": {
            "client-certificate-data": encoded(chain_pem), "client-key-data": encoded(key_pem),
        }}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": "default"}}],
    });
    format!("{config:#}\n")
}
