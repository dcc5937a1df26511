//! Durable writes of 1 KB on the same disk: etcd over its own API, the hub over its own, and the hub's store alone.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use flotilla_hub::{Retention, Store};
use flotilla_manifests::kind;
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::time::Timestamp;
use flotilla_tests::process::Process;
use flotilla_tests::wait;
use serde_json::json;

use super::crowd::now_us;
use super::hub::Hub;
use crate::report::Report;
use crate::say;

const WRITERS: [usize; 2] = [1, 64];
const LAST_FOR: Duration = Duration::from_secs(6);
const VALUE_BYTES: usize = 1024;

/// Writes each writer has made, in its own way, until it is told to stop.
type Writing = Box<dyn FnMut(usize) + Send>;

/// `folder` lies on the disk that is to be measured.
pub(crate) fn measure(binary: &str, folder: &Path, report: &mut Report) {
    say("writes: etcd and the hub on one disk ...");
    let etcd = Etcd::start(folder);
    let mut of_etcd = Vec::new();
    for writers in WRITERS {
        let (rate, latency) = rate(writers, |writer| etcd.as_ref().map(|etcd| etcd.writing(writer)));
        if etcd.is_some() {
            report.add(&format!("writes: etcd 3.4, gRPC gateway (JSON over HTTP), {writers} writers"), rate, "1/s");
            report.spread(&format!("writes: etcd 3.4, {writers} writers"), &latency, "ms", None);
        }
        of_etcd.push(rate);
    }
    drop(etcd);
    let hub = Hub::start(binary, folder, None, 0);
    for (writers, beside) in WRITERS.into_iter().zip(&of_etcd) {
        let (rate, latency) = rate(writers, |writer| Some(over_api(&hub, writer)));
        report.add(&format!("writes: the hub, REST API (JSON over HTTPS), {writers} writers"), rate, "1/s");
        report.spread(&format!("writes: the hub, REST API, {writers} writers"), &latency, "ms", None);
        report.add(&format!("writes: the hub's API beside etcd's, {writers} writers"), rate / beside, "x");
    }
    hub.stop();
    let path = folder.join("store.sqlite");
    let clock: Arc<dyn Fn() -> Timestamp + Send + Sync> = Arc::new(|| Timestamp(now_us() / 1000));
    let store = Store::open(&path, Retention::default(), clock).unwrap();
    for (writers, beside) in WRITERS.into_iter().zip(&of_etcd) {
        let (rate, latency) = rate(writers, |writer| Some(in_process(&store, writer)));
        report.add(&format!("writes: the hub's store alone, in the process, {writers} writers"), rate, "1/s");
        report.spread(&format!("writes: the hub's store alone, {writers} writers"), &latency, "ms", None);
        report.add(&format!("writes: the store alone beside etcd's API, {writers} writers"), rate / beside, "x");
    }
}

/// Writes per second of so many writers side by side, and what each write took in milliseconds.
fn rate(writers: usize, writing: impl Fn(usize) -> Option<Writing>) -> (f64, Vec<f64>) {
    let stop = Arc::new(AtomicBool::new(false));
    let all: Vec<Writing> = (0..writers).filter_map(writing).collect();
    if all.is_empty() {
        return (f64::NAN, Vec::new());
    }
    let start = Instant::now();
    let threads: Vec<_> = all
        .into_iter()
        .map(|mut write| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let mut took = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    write(took.len());
                    took.push(begun.elapsed().as_secs_f64() * 1000.0);
                }
                took
            })
        })
        .collect();
    std::thread::park_timeout(LAST_FOR);
    stop.store(true, Ordering::Relaxed);
    let took: Vec<f64> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    (took.len() as f64 / start.elapsed().as_secs_f64(), took)
}

fn value(number: usize) -> String {
    format!("{number:0>VALUE_BYTES$}")
}

fn config_map(writer: usize, number: usize) -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("w{writer}"), "namespace": "default"},
        "data": {"value": value(number)}})
}

fn over_api(hub: &Hub, writer: usize) -> Writing {
    let mut connection = hub.server().connect().unwrap();
    let path = "/api/v1/namespaces/default/configmaps";
    let named = format!("{path}/w{writer}");
    let made = connection.get(&format!("{path}?fieldSelector=metadata.name=w{writer}"));
    if made["items"].as_array().is_none_or(Vec::is_empty) {
        connection.request("POST", path, "application/json", Some(&config_map(writer, 0)));
    }
    Box::new(move |number| {
        let body = json!({"data": {"value": value(number + 1)}});
        connection.request("PATCH", &named, "application/merge-patch+json", Some(&body));
    })
}

fn in_process(store: &Store, writer: usize) -> Writing {
    let store = store.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let key = ObjectKey::of(&kind::CONFIG_MAP, "default", format!("w{writer}"));
    Box::new(move |number| {
        let key = key.clone();
        let written = store.write(move |batch| {
            let object = Object::parse(config_map(writer, number + 1)).unwrap();
            if batch.get(&key).is_none() {
                batch.create(object)?;
            } else {
                batch.update(&key, |stored| stored.value_mut()["data"] = object.value()["data"].clone())?;
            }
            Ok(())
        });
        runtime.block_on(written).unwrap();
    })
}

struct Etcd {
    address: SocketAddr,
    _process: Process,
}

impl Etcd {
    /// `None`, with a line, where there is no etcd.
    fn start(folder: &Path) -> Option<Self> {
        let Some(program) = flotilla_tests::process_path("etcd") else {
            say("SKIPPED: etcd (Debian: etcd-server) is not here");
            return None;
        };
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (address, peers) = (free(), free());
        let data = folder.join("etcd");
        let arguments = [
            ("--data-dir", data.to_string_lossy().into_owned()),
            ("--listen-client-urls", format!("http://{address}")),
            ("--advertise-client-urls", format!("http://{address}")),
            ("--listen-peer-urls", format!("http://{peers}")),
            ("--initial-advertise-peer-urls", format!("http://{peers}")),
            ("--initial-cluster", format!("default=http://{peers}")),
        ];
        let arguments: Vec<String> = arguments.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect();
        let process = Process::start(&program, &arguments, &folder.join("etcd.log"));
        let etcd = Self { address, _process: process };
        wait::until_true("etcd leads itself", || {
            TcpStream::connect(address).is_ok_and(|stream| put(&mut BufReader::new(stream), "first", "value").is_ok())
        });
        Some(etcd)
    }

    fn writing(&self, writer: usize) -> Writing {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut stream = BufReader::new(stream);
        let key = format!("/configmaps/default/w{writer}");
        Box::new(move |number| put(&mut stream, &key, &value(number)).unwrap())
    }
}

/// One put over the gateway, answered once durable.
fn put(stream: &mut BufReader<TcpStream>, key: &str, value: &str) -> Result<(), String> {
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let body = json!({"key": encode(key), "value": encode(value)}).to_string();
    let request = format!(
        "POST /v3/kv/put HTTP/1.1\r\nHost: etcd\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.get_mut().write_all(request.as_bytes()).map_err(|error| error.to_string())?;
    let mut line = String::new();
    stream.read_line(&mut line).map_err(|error| error.to_string())?;
    let fine = line.contains(" 200 ");
    let mut length = 0;
    loop {
        let mut header = String::new();
        stream.read_line(&mut header).map_err(|error| error.to_string())?;
        if header.trim().is_empty() {
            break;
        }
        if let Some(text) = header.to_ascii_lowercase().strip_prefix("content-length:") {
            length = text.trim().parse().unwrap();
        }
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer).map_err(|error| error.to_string())?;
    if fine { Ok(()) } else { Err(format!("{line} {}", String::from_utf8_lossy(&answer))) }
}
