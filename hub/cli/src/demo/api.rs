//! A Kubernetes client small enough for the demo: one request per connection, JSON in and out.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use base64::Engine as _;
use flotilla_manifests::decode::{self, Format};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;

/// Talks to the server of one kubeconfig.
#[derive(Debug)]
pub(super) struct Api {
    host: String,
    tls: Arc<rustls::ClientConfig>,
}

impl Api {
    /// Reads server, authority and client certificate of the first cluster and user.
    pub(super) fn from_kubeconfig(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let config = decode::value(&bytes, Format::Yaml).map_err(|error| anyhow!("{}: {error}", path.display()))?.value;
        let server = text(&config, "/clusters/0/cluster/server")?;
        let host = server.strip_prefix("https://").context("the server is not https")?.trim_end_matches('/').to_owned();
        let authority = data(&config, "/clusters/0/cluster/certificate-authority-data")?;
        let chain = data(&config, "/users/0/user/client-certificate-data")?;
        let key = data(&config, "/users/0/user/client-key-data")?;
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&authority) {
            roots.add(certificate?)?;
        }
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&chain).collect::<Result<_, _>>()?;
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(&key)?)?;
        Ok(Self { host, tls: Arc::new(tls) })
    }

    pub(super) fn get(&self, path: &str) -> Result<Value> {
        self.request("GET", path, "", None)
    }

    /// Creates; an object that exists is an error.
    pub(super) fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.request("POST", path, "application/json", Some(body))
    }

    pub(super) fn patch(&self, path: &str, body: &Value) -> Result<Value> {
        self.request("PATCH", path, "application/strategic-merge-patch+json", Some(body))
    }

    fn request(&self, method: &str, path: &str, kind: &str, body: Option<&Value>) -> Result<Value> {
        let socket = TcpStream::connect(&self.host).with_context(|| format!("connecting to {}", self.host))?;
        socket.set_read_timeout(Some(Duration::from_secs(30)))?;
        let name = self.host.rsplit_once(':').map_or(self.host.as_str(), |(name, _)| name);
        let name = ServerName::try_from(name.trim_matches(['[', ']']).to_owned())?;
        let mut stream = rustls::StreamOwned::new(rustls::ClientConnection::new(self.tls.clone(), name)?, socket);
        let body = body.map(Value::to_string).unwrap_or_default();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nAccept: application/json\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n",
            self.host
        );
        let head = if kind.is_empty() { head.replace("Content-Type: \r\n", "") } else { head };
        stream.write_all(head.as_bytes())?;
        stream.write_all(body.as_bytes())?;
        let mut answer = Vec::new();
        // A server that closes without TLS's farewell has still sent its Content-Length.
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(error.into()),
        }
        let split = answer.windows(4).position(|four| four == b"\r\n\r\n").context("no HTTP answer")?;
        let (head, body) = (String::from_utf8_lossy(&answer[..split]).into_owned(), &answer[split + 4..]);
        let code: u16 = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no HTTP status")?;
        let value: Value =
            serde_json::from_slice(body).with_context(|| format!("{method} {path}: no JSON in the answer"))?;
        if code >= 300 {
            bail!("{method} {path}: {code} {}", value["message"].as_str().unwrap_or_default());
        }
        Ok(value)
    }
}

fn text<'a>(config: &'a Value, pointer: &str) -> Result<&'a str> {
    config.pointer(pointer).and_then(Value::as_str).with_context(|| format!("the kubeconfig has no {pointer}"))
}

fn data(config: &Value, pointer: &str) -> Result<Vec<u8>> {
    Ok(base64::engine::general_purpose::STANDARD.decode(text(config, pointer)?)?)
}
