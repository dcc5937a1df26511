//! The file with which kubectl reaches one server.
//!
//! Owns its form and how it is put on the disk: whole or not at all, for its owner's eyes alone.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

/// One server and one user of it.
#[derive(Debug, Clone, Copy)]
pub struct Kubeconfig<'a> {
    /// Name of the cluster and of the context.
    pub cluster: &'a str,
    pub user: &'a str,
    /// `https://host:port`
    pub server: &'a str,
    pub authority_pem: &'a str,
    pub chain_pem: &'a str,
    /// Secret.
    pub key_pem: &'a str,
}

impl Kubeconfig<'_> {
    /// Writes the file anew with mode 0600.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        let draft = path.with_extension("kubeconfig.new");
        // One left behind by a crash may have another mode.
        if let Err(error) = std::fs::remove_file(&draft)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        file.write_all(self.text().as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&draft, path)
    }

    /// As JSON, which is YAML.
    fn text(&self) -> String {
        let Self { cluster, user, server, .. } = self;
        let (chain, key) = (STANDARD.encode(self.chain_pem), STANDARD.encode(self.key_pem));
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "preferences": {}, "current-context": cluster,
            "clusters": [{"name": cluster, "cluster": {
                "server": server, "certificate-authority-data": STANDARD.encode(self.authority_pem)}}],
            "users": [{"name": user, "user": {"client-certificate-data": chain, "client-key-data": key}}],
            "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": user, "namespace": "default"}}],
        });
        format!("{config:#}\n")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_left_open_to_all_is_replaced_by_one_for_its_owner() {
        let folder = std::env::temp_dir().join(format!("kubeconfig-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("admin.kubeconfig");
        std::fs::write(path.with_extension("kubeconfig.new"), "left behind").unwrap();
        let file = Kubeconfig {
            cluster: "c",
            user: "u",
            server: "https://h:1",
            authority_pem: "a",
            chain_pem: "b",
            key_pem: "k",
        };
        file.write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::remove_dir_all(&folder).unwrap();
        let config: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(config["clusters"][0]["cluster"]["server"], "https://h:1");
        assert_eq!(config["users"][0]["user"]["client-key-data"], "aw==");
    }
}
