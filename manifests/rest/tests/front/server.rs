//! A front over [`Memory`] on loopback TLS, with certificates made for it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use flotilla_manifests::time::Timestamp;
use flotilla_rest::authorize::SystemMasters;
use flotilla_rest::{Front, Limits, server};
use rcgen::{BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::memory::Memory;

pub(crate) struct Server {
    pub(crate) backend: Arc<Memory>,
    pub(crate) front: Arc<Front<Memory>>,
    pub(crate) files: tempfile::TempDir,
    shutdown: watch::Sender<bool>,
    serving: JoinHandle<std::io::Result<()>>,
    runtime: Runtime,
}

#[allow(clippy::disallowed_methods, reason = "the test's one clock")]
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    Timestamp(u64::try_from(since.as_millis()).unwrap())
}

impl Server {
    /// Writes `admin.kubeconfig` (group `system:masters`), `other.kubeconfig` (another group) and `nobody.kubeconfig` (no
    /// certificate, a token that means nothing) and `forged.kubeconfig` (`system:masters` by another root) into `files`.
    pub(crate) fn started() -> Self {
        let files = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (ca, issuer) = root();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = vec![SanType::IpAddress("127.0.0.1".parse().unwrap())];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let tls = server::tls_config(&[ca.der().clone()], vec![certificate.der().clone()], key).unwrap();

        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        std::fs::write(files.path().join("ca.pem"), ca.pem()).unwrap();
        for (name, group) in [("admin", "system:masters"), ("other", "visitors")] {
            client(files.path(), name, group, &issuer);
            kubeconfig(files.path(), name, address, true);
        }
        client(files.path(), "forged", "system:masters", &root().1);
        kubeconfig(files.path(), "forged", address, true);
        kubeconfig(files.path(), "nobody", address, false);

        let backend = Arc::new(Memory::started(now));
        let front = Front::over(Arc::clone(&backend), Arc::new(now), Limits::DEVICE).authorized_by(SystemMasters);
        let front = Arc::new(front);
        let (shutdown, ends) = watch::channel(false);
        let serving = runtime.spawn(server::serve_tls(listener, tls, Arc::clone(&front), ends));
        Self { backend, front, files, shutdown, serving, runtime }
    }

    pub(crate) fn create_config_map(&self, name: &str) {
        self.backend.create(flotilla_manifests::object::Object::empty(
            &flotilla_manifests::kind::CONFIG_MAP,
            "default",
            name,
        ));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    pub(crate) fn shutdown_signal(&self) -> watch::Receiver<bool> {
        self.shutdown.subscribe()
    }

    /// Returns once every connection has ended.
    pub(crate) fn stop(self) {
        self.end_and(|| ());
    }

    /// Begins to shut down, does something beside, and returns once every connection has ended.
    pub(crate) fn end_and(self, beside: impl FnOnce()) {
        self.shutdown.send(true).unwrap();
        beside();
        self.runtime.block_on(self.serving).unwrap().unwrap();
    }
}

fn root() -> (Certificate, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "test root");
    let certificate = params.self_signed(&key).unwrap();
    (certificate, Issuer::new(params, key))
}

fn client(folder: &Path, name: &str, group: &str, issuer: &Issuer<'_, KeyPair>) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.distinguished_name.push(DnType::OrganizationName, group);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    std::fs::write(folder.join(format!("{name}.pem")), certificate.pem()).unwrap();
    std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
}

fn kubeconfig(folder: &Path, name: &str, address: SocketAddr, certificate: bool) {
    let folder_text = folder.display();
    let user = if certificate {
        format!("{{client-certificate: {folder_text}/{name}.pem, client-key: {folder_text}/{name}.key}}")
    } else {
        "{token: no-such-token}".to_owned()
    };
    let text = format!(
        "apiVersion: v1
kind: Config
current-context: test
clusters: [{{name: test, cluster: {{server: 'https://{address}', certificate-authority: {folder_text}/ca.pem}}}}]
users: [{{name: test, user: {user}}}]
contexts: [{{name: test, context: {{cluster: test, user: test}}}}]
"
    );
    std::fs::write(folder.join(format!("{name}.kubeconfig")), text).unwrap();
}
