//! What kubectl does not ask for, by hand-written HTTP/1.1 over the Unix socket.

use std::path::PathBuf;
use std::sync::Arc;

use flotilla_manifests::kind;
use flotilla_manifests::object::Object;
use flotilla_rest::server::serve_unix;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::server::Server;

struct Local {
    server: Server,
    socket: PathBuf,
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        let rows = self.head.lines().filter_map(|line| line.split_once(": "));
        rows.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

fn local() -> Local {
    let server = Server::started();
    let socket = server.path("api.sock");
    let _guard = server.runtime().enter();
    let listener = UnixListener::bind(&socket).unwrap();
    server.runtime().spawn(serve_unix(listener, Arc::clone(&server.front), server.shutdown_signal()));
    drop(_guard);
    Local { server, socket }
}

impl Local {
    fn ask(&self, method: &str, url: &str, headers: &[&str], body: &[u8]) -> Answer {
        self.server.runtime().block_on(async {
            let mut stream = UnixStream::connect(&self.socket).await.unwrap();
            stream.write_all(&head(method, url, headers, body.len())).await.unwrap();
            // A server that refuses early need not read everything.
            drop(stream.write_all(body).await);
            let mut bytes = Vec::new();
            drop(stream.read_to_end(&mut bytes).await);
            answer(&bytes)
        })
    }

    fn get(&self, url: &str, headers: &[&str]) -> Answer {
        self.ask("GET", url, headers, b"")
    }
}

fn head(method: &str, url: &str, headers: &[&str], body_bytes: usize) -> Vec<u8> {
    let mut text =
        format!("{method} {url} HTTP/1.1\r\nHost: local\r\nConnection: close\r\nContent-Length: {body_bytes}\r\n");
    for header in headers {
        text.push_str(header);
        text.push_str("\r\n");
    }
    text.push_str("\r\n");
    text.into_bytes()
}

fn answer(bytes: &[u8]) -> Answer {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no whole answer: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

fn config_map(name: &str, label: &str) -> Object {
    let mut object = Object::empty(&kind::CONFIG_MAP, "default", name);
    object.metadata_mut().insert("labels".into(), json!({"app": label}));
    object
}

/// A watch read line by line, its chunk sizes left out.
struct Watch {
    lines: tokio::io::Lines<BufReader<UnixStream>>,
}

impl Watch {
    async fn open(socket: &PathBuf, url: &str, headers: &[&str]) -> Self {
        let mut stream = UnixStream::connect(socket).await.unwrap();
        stream.write_all(&head("GET", url, headers, 0)).await.unwrap();
        Self { lines: BufReader::new(stream).lines() }
    }

    /// The next event; `None` when the watch has ended.
    async fn next(&mut self) -> Option<Value> {
        while let Some(line) = self.lines.next_line().await.unwrap() {
            if line.starts_with('{') {
                return Some(serde_json::from_str(&line).unwrap());
            }
        }
        None
    }

    async fn word_and_name(&mut self) -> (String, String) {
        let event = self.next().await.unwrap();
        let name = event["object"]["metadata"]["name"].as_str().unwrap_or("");
        (event["type"].as_str().unwrap().to_owned(), name.to_owned())
    }
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// What a client is told whose pages have waited too long, and how it goes on.
#[test]
fn an_expired_page_comes_with_a_way_on() {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let local = local();
    for name in ["a", "b", "c"] {
        local.server.backend.create(config_map(name, "x"));
    }
    let first = local.get(&format!("{MAPS}?limit=1"), &[]).json();
    let token = first["metadata"]["continue"].as_str().unwrap();
    let mut wire: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token).unwrap()).unwrap();
    wire["rv"] = json!(7);
    let old = URL_SAFE_NO_PAD.encode(wire.to_string());
    let expired = local.get(&format!("{MAPS}?limit=1&continue={old}"), &[]);
    let status = expired.json();
    assert_eq!((expired.status, &status["reason"]), (410, &json!("Expired")), "{status}");
    assert!(status["message"].as_str().unwrap().starts_with("The provided continue parameter is too old"), "{status}");
    let fresh = status["metadata"]["continue"].as_str().unwrap();
    local.server.backend.create(config_map("aa", "x"));
    let rest = local.get(&format!("{MAPS}?limit=5&continue={fresh}"), &[]).json();
    let names: Vec<&Value> = rest["items"].as_array().unwrap().iter().map(|item| &item["metadata"]["name"]).collect();
    assert_eq!(names, ["aa", "b", "c"], "the rest of what is there now");
    assert_eq!(local.get(&format!("{MAPS}?continue=nonsense"), &[]).status, 400);
    assert_eq!(local.get(&format!("{MAPS}?limit=-1"), &[]).status, 400);
}

#[test]
fn bodies_have_a_bound_and_types() {
    let local = local();
    let huge = vec![b' '; 4 * 1024 * 1024];
    let refused = local.ask("POST", MAPS, &["Content-Type: application/json"], &huge);
    assert_eq!((refused.status, refused.json()["reason"].clone()), (413, json!("RequestEntityTooLarge")));
    let yaml = b"metadata: {name: yam}\ndata: {a: b}\n";
    let created = local.ask("POST", MAPS, &["Content-Type: application/yaml"], yaml);
    assert_eq!(created.status, 201, "{}", created.body);
    assert_eq!(created.json()["kind"], "ConfigMap", "kind and apiVersion follow from the URL");
    let garbage = local.ask("POST", MAPS, &["Content-Type: application/json"], b"{\"a\":");
    assert_eq!((garbage.status, garbage.json()["kind"].clone()), (400, json!("Status")));
    let other = br#"{"apiVersion":"v1","kind":"Secret","metadata":{"name":"x"}}"#;
    let mismatch = local.ask("POST", MAPS, &[], other);
    assert!(mismatch.status == 400 && mismatch.body.contains("does not match the expected kind"), "{}", mismatch.body);
    let elsewhere = br#"{"metadata":{"name":"x","namespace":"kube-system"}}"#;
    assert_eq!(local.ask("POST", MAPS, &[], elsewhere).status, 400);
    let renamed = local.ask("PUT", &format!("{MAPS}/yam"), &[], br#"{"metadata":{"name":"z"}}"#);
    assert!(renamed.status == 400 && renamed.body.contains("does not match the name on the URL"), "{}", renamed.body);
    let twice = br#"{"metadata":{"name":"t"},"data":{},"data":{"a":"b"}}"#;
    let strict = local.ask("POST", &format!("{MAPS}?fieldValidation=Strict"), &[], twice);
    assert!(strict.status == 400 && strict.body.contains("duplicate field"), "{}", strict.body);
    let warned = local.ask("POST", MAPS, &[], twice);
    assert!(warned.header("warning").unwrap().starts_with("299 - \"duplicate field"), "{}", warned.head);
    local.server.stop();
}

#[test]
fn shapes_and_headers() {
    let local = local();
    local.server.backend.create(config_map("a", "web"));
    let partial = local.get(MAPS, &["Accept: application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"]).json();
    assert_eq!(partial["kind"], "PartialObjectMetadataList");
    assert_eq!(partial["items"][0]["metadata"]["name"], "a");
    assert!(partial["items"][0].get("data").is_none());
    let table = "Accept: application/json;as=Table;v=v1beta1;g=meta.k8s.io";
    let table = local.get(&format!("{MAPS}?includeObject=Object"), &[table]).json();
    assert_eq!(
        (&table["apiVersion"], &table["rows"][0]["object"]["kind"]),
        (&json!("meta.k8s.io/v1beta1"), &json!("ConfigMap"))
    );
    assert_eq!(local.get(MAPS, &["Accept: application/vnd.kubernetes.protobuf"]).status, 406);
    let yaml = local.get(MAPS, &["Accept: application/yaml"]);
    assert_eq!(yaml.header("content-type"), Some("application/yaml"));
    let plain = local.get(MAPS, &["Audit-Id: mine"]);
    assert_eq!((plain.header("audit-id"), plain.header("cache-control")), (Some("mine"), Some("no-cache, private")));
    assert_ne!(local.get(MAPS, &[]).header("audit-id"), local.get(MAPS, &[]).header("audit-id"));
    let discovery = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";
    let answer = local.get("/apis", &[&format!("Accept: {discovery},application/json")]);
    assert_eq!(answer.header("content-type"), Some(discovery));
    let index = local.get("/openapi/v3", &[]).json();
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
    let document = local.get(url, &[]);
    assert_eq!(document.header("cache-control"), Some("public, immutable"));
    let etag = format!("If-None-Match: {}", document.header("etag").unwrap());
    assert_eq!(local.get(url, &[&etag]).status, 304);
    assert_eq!(local.get(&format!("{MAPS}?resourceVersion=9000000000000000000"), &[]).status, 504);
    assert_eq!(local.get(&format!("{MAPS}?watch=1&resourceVersion=5"), &[]).status, 410);
    assert_eq!(local.get(&format!("{MAPS}?continue=abc"), &[]).status, 400);
    assert_eq!(local.get("/api/v1/nope", &[]).json()["reason"], "NotFound");
    local.server.stop();
}

#[test]
fn watches() {
    let local = local();
    let backend = Arc::clone(&local.server.backend);
    backend.create(config_map("a", "web"));
    backend.create(config_map("other", "shop"));
    let runtime = local.server.runtime();
    let listed = local.get(MAPS, &[]).json()["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    runtime.block_on(async {
        let selected = format!("{MAPS}?watch=true&labelSelector=app%3Dweb");
        let mut synthetic = Watch::open(&local.socket, &selected, &[]).await;
        assert_eq!(synthetic.word_and_name().await, ("ADDED".to_owned(), "a".to_owned()));
        let mut later = Watch::open(&local.socket, &format!("{selected}&resourceVersion={listed}"), &[]).await;
        let list = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
        let mut list = Watch::open(&local.socket, &format!("{selected}&{list}"), &[]).await;
        assert_eq!(list.word_and_name().await, ("ADDED".to_owned(), "a".to_owned()));
        let bookmark = list.next().await.unwrap();
        assert_eq!(bookmark["type"], "BOOKMARK");
        assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
        assert_eq!(bookmark["object"]["metadata"]["resourceVersion"], listed);
        backend.create(config_map("quiet", "shop"));
        backend.create(config_map("b", "web"));
        for watch in [&mut synthetic, &mut later, &mut list] {
            assert_eq!(watch.word_and_name().await, ("ADDED".to_owned(), "b".to_owned()));
        }
        let mut short =
            Watch::open(&local.socket, &format!("{selected}&timeoutSeconds=1&resourceVersion={listed}"), &[]).await;
        assert_eq!(short.word_and_name().await.1, "b");
        assert!(short.next().await.is_none(), "timeoutSeconds ends a watch");
    });
    local.server.stop();
}

#[test]
fn a_shutdown_ends_watches_and_followed_logs() {
    let local = local();
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"},
        "spec": {"containers": [{"name": "endless", "image": "x"}]}});
    local.server.backend.create(Object::parse(pod).unwrap());
    let (mut watch, mut log) = local.server.runtime().block_on(async {
        let mut watch = Watch::open(
            &local.socket,
            &format!("{MAPS}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"),
            &[],
        )
        .await;
        assert_eq!(watch.word_and_name().await.0, "BOOKMARK");
        let url = "/api/v1/namespaces/default/pods/p/log?follow=true&container=endless&tailLines=1";
        let mut log = Watch::open(&local.socket, url, &[]).await;
        while log.lines.next_line().await.unwrap().unwrap() != "followed" {}
        (watch, log)
    });
    let handle = local.server.runtime().handle().clone();
    let ended = std::thread::spawn(move || {
        handle.block_on(async {
            assert!(watch.next().await.is_none());
            while log.lines.next_line().await.unwrap().is_some() {}
        });
    });
    // `stop` drops the runtime the readers stand on, so they are read to their end first.
    local.server.end_and(|| ended.join().unwrap());
}

#[test]
fn too_many_at_once_are_told_to_come_back() {
    let local = local();
    local.server.runtime().block_on(async {
        let mut watches = Vec::new();
        let url = format!("{MAPS}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan");
        for _ in 0..local.server.front.limits().streams_open_max {
            let mut watch = Watch::open(&local.socket, &url, &[]).await;
            assert_eq!(watch.word_and_name().await.0, "BOOKMARK");
            watches.push(watch);
        }
        let mut refused = UnixStream::connect(&local.socket).await.unwrap();
        refused.write_all(&head("GET", &url, &[], 0)).await.unwrap();
        let mut bytes = Vec::new();
        refused.read_to_end(&mut bytes).await.unwrap();
        let refused = answer(&bytes);
        assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
    });
    assert_eq!(local.get(MAPS, &[]).status, 200, "other requests go on");
    local.server.stop();
}
