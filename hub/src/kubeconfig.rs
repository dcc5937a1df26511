//! `DIR/admin.kubeconfig`: how the operator at the hub's machine gets in.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flotilla_sync::identity::CredentialsMaterial;
use serde_json::json;

/// Writes the file anew, mode 0600, whole or not at all.
pub(crate) fn write(
    path: &Path,
    server: SocketAddr,
    authority_pem: &str,
    credentials: &CredentialsMaterial,
) -> std::io::Result<()> {
    let encoded = |text: &str| STANDARD.encode(text);
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "preferences": {}, "current-context": "flotilla",
        "clusters": [{"name": "flotilla", "cluster": {
            "server": format!("https://{server}"), "certificate-authority-data": encoded(authority_pem)}}],
        "users": [{"name": "admin", "user": {
            "client-certificate-data": encoded(&credentials.chain_pem), "client-key-data": encoded(&credentials.key_pem)}}],
        "contexts": [{"name": "flotilla", "context": {"cluster": "flotilla", "user": "admin", "namespace": "default"}}],
    });
    let draft = path.with_extension("kubeconfig.new");
    // One left behind by a crash may have another mode.
    if let Err(error) = std::fs::remove_file(&draft)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    // JSON is YAML.
    file.write_all(serde_json::to_string_pretty(&config).map_err(std::io::Error::other)?.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&draft, path)
}
