//! A front over [`Memory`] on loopback TLS, with certificates made for it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use flotilla_manifests::time::Timestamp;
use flotilla_rest::authorize::SystemMasters;
use flotilla_rest::{Front, Limits, server};
use rcgen::{BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use crate::memory::Memory;

pub(crate) struct Server {
    pub(crate) backend: Arc<Memory>,
    pub(crate) front: Arc<Front<Memory>>,
    pub(crate) files: tempfile::TempDir,
    address: SocketAddr,
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
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
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
        Self { backend, front, files, address, shutdown, serving, runtime }
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

    /// What the server says to the certificate of `name`.kubeconfig, to a client that only listens. One that writes meanwhile,
    /// as kubectl does, may find its connection gone before it has read that.
    pub(crate) fn word_on_certificate_of(&self, name: &str) -> std::io::Result<usize> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("ca.pem")).unwrap()).unwrap();
        let chain = vec![CertificateDer::from_pem_file(self.path(&format!("{name}.pem"))).unwrap()];
        let key = PrivateKeyDer::from_pem_file(self.path(&format!("{name}.key"))).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let tls = versions.with_root_certificates(roots).with_client_auth_cert(chain, key).unwrap();
        self.runtime.block_on(async {
            let stream = TcpStream::connect(self.address).await?;
            let host = self.address.ip().into();
            TlsConnector::from(Arc::new(tls)).connect(host, stream).await?.read(&mut [0]).await
        })
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
