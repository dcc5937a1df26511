//! A Kubernetes client whose own cost is small and known: one open TLS connection, JSON in and out, and a watch.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use base64::Engine as _;
use flotilla_manifests::decode::{self, Format};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;

/// Longest line of an HTTP answer's head.
const LINE_BYTES_MAX: u64 = 64 * 1024;
/// Events that wait to be looked at.
const EVENTS_LEN_MAX: usize = 65_536;

type Stream = BufReader<rustls::StreamOwned<rustls::ClientConnection, TcpStream>>;

/// The server of one kubeconfig.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    host: String,
    tls: Arc<rustls::ClientConfig>,
}

/// One open connection.
#[derive(Debug)]
pub(crate) struct Connection {
    host: String,
    stream: Stream,
}

/// What a request was answered, and when.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) value: Value,
    pub(crate) sent: Instant,
    pub(crate) answered: Instant,
}

/// One watch event, stamped when its last byte was read.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) kind: String,
    pub(crate) object: Value,
    pub(crate) seen: Instant,
}

impl Server {
    pub(crate) fn of(kubeconfig: &Path) -> Result<Self, String> {
        let bytes = std::fs::read(kubeconfig).map_err(|error| format!("{}: {error}", kubeconfig.display()))?;
        let config = decode::value(&bytes, Format::Yaml).map_err(|error| error.to_string())?.value;
        let text = |pointer: &str| config.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let data = |pointer: &str| base64::engine::general_purpose::STANDARD.decode(text(pointer)).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&data("/clusters/0/cluster/certificate-authority-data")) {
            roots.add(certificate.unwrap()).unwrap();
        }
        let chain = data("/users/0/user/client-certificate-data");
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&chain).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_slice(&data("/users/0/user/client-key-data")).unwrap();
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .unwrap();
        let host = text("/clusters/0/cluster/server").trim_start_matches("https://").trim_end_matches('/').to_owned();
        Ok(Self { host, tls: Arc::new(tls) })
    }

    pub(crate) fn connect(&self) -> Result<Connection, String> {
        let socket = TcpStream::connect(&self.host).map_err(|error| format!("{}: {error}", self.host))?;
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(600))).unwrap();
        let name = self.host.rsplit_once(':').map_or(self.host.as_str(), |(name, _)| name).to_owned();
        let session = rustls::ClientConnection::new(self.tls.clone(), ServerName::try_from(name).unwrap()).unwrap();
        Ok(Connection { host: self.host.clone(), stream: BufReader::new(rustls::StreamOwned::new(session, socket)) })
    }

    /// Watches `path` from now on, on a connection and a thread of its own; ends when the receiver is dropped.
    pub(crate) fn watch(&self, path: &str) -> Receiver<Event> {
        let mut connection = self.connect().unwrap();
        let at = connection.request("GET", path, "", None).value["metadata"]["resourceVersion"].clone();
        let path = format!("{path}?watch=true&resourceVersion={}", at.as_str().unwrap());
        let mut watching = self.connect().unwrap();
        watching.send("GET", &path, "", "");
        let (code, length) = watching.head();
        assert!(code == 200 && length.is_none(), "the watch was answered {code} with length {length:?}");
        let (sender, events) = sync_channel(EVENTS_LEN_MAX);
        std::thread::spawn(move || {
            let mut rest: Vec<u8> = Vec::new();
            while let Some(chunk) = watching.chunk() {
                rest.extend(chunk);
                while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = rest.drain(..=end).collect();
                    let seen = Instant::now();
                    let mut event: Value = serde_json::from_slice(&line).unwrap();
                    let kind = event["type"].as_str().unwrap().to_owned();
                    if sender.send(Event { kind, object: event["object"].take(), seen }).is_err() {
                        return;
                    }
                }
            }
        });
        events
    }
}

impl Connection {
    pub(crate) fn get(&mut self, path: &str) -> Value {
        self.request("GET", path, "", None).value
    }

    /// Sends one request and reads its answer; any refusal is a failure of the bench.
    pub(crate) fn request(&mut self, method: &str, path: &str, kind: &str, body: Option<&Value>) -> Answer {
        let body = body.map(Value::to_string).unwrap_or_default();
        let sent = Instant::now();
        self.send(method, path, kind, &body);
        let (code, length) = self.head();
        let mut bytes = Vec::new();
        match length {
            Some(length) => {
                bytes.resize(length, 0);
                self.stream.read_exact(&mut bytes).unwrap();
            }
            None => {
                while let Some(chunk) = self.chunk() {
                    bytes.extend(chunk);
                }
            }
        }
        let answered = Instant::now();
        let value: Value = serde_json::from_slice(&bytes).unwrap();
        assert!(code < 300, "{method} {path}: {code} {value}");
        Answer { value, sent, answered }
    }

    fn send(&mut self, method: &str, path: &str, kind: &str, body: &str) {
        let kind = if kind.is_empty() { String::new() } else { format!("Content-Type: {kind}\r\n") };
        let text = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nAccept: application/json\r\n{kind}Content-Length: {}\r\n\r\n{body}",
            self.host,
            body.len()
        );
        self.stream.get_mut().write_all(text.as_bytes()).unwrap();
        self.stream.get_mut().flush().unwrap();
    }

    /// Status code, and the body's length unless it comes in chunks.
    fn head(&mut self) -> (u16, Option<usize>) {
        let code = self.line().split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap();
        let mut length = None;
        loop {
            let line = self.line().to_ascii_lowercase();
            if line.is_empty() {
                return (code, length);
            }
            if let Some(text) = line.strip_prefix("content-length:") {
                length = Some(text.trim().parse().unwrap());
            }
        }
    }

    /// The next chunk of a chunked body; `None` at its end.
    fn chunk(&mut self) -> Option<Vec<u8>> {
        let length = usize::from_str_radix(self.line().split(';').next().unwrap_or("0"), 16).ok()?;
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).ok()?;
        self.line();
        (length > 0).then_some(bytes)
    }

    /// One line without its ending; empty when the server has closed.
    fn line(&mut self) -> String {
        let mut text = String::new();
        match (&mut self.stream).take(LINE_BYTES_MAX).read_line(&mut text) {
            Ok(_) => text.trim_end().to_owned(),
            Err(_closed) => String::new(),
        }
    }
}
