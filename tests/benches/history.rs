//! What stays of a document that is edited 100,000 times: `cargo bench -p flotilla --bench history`.
//!
//! First the document alone, with the hub's rule for epochs and, as the baseline, without: saved size, time to load, memory of a
//! process that loads it. Then a real hub and a real agent: one DaemonSet edited over the API by sixteen clients at once, and what both
//! keep of it. Judges nothing. `-- --edits N` for a shorter run. Writes `target/bench/history.json`.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    reason = "a bench reads clocks, stops at the first surprise, and counts little"
)]

#[allow(dead_code, reason = "shared with the other benches")]
mod api;

use std::path::{Path, PathBuf};
use std::time::Instant;

use flotilla_manifests::{kind, schema};
use flotilla_sync::channel::{Item, ItemKind};
use flotilla_sync::document::{Document, Edit, Rollouts};
use flotilla_tests::fleet::{Fleet, Road};
use flotilla_tests::{database, wait};
use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_flotilla");
/// Set for a child that only loads a document and says what it cost.
const LOAD: &str = "FLOTILLA_BENCH_LOAD";
/// As the hub begins documents anew (`hub/src/store/documents.rs`).
const EPOCH_CHANGES_MAX: usize = 1000;
const CLIENTS: u64 = 16;

fn main() {
    if let Some(path) = std::env::var_os(LOAD) {
        return load(Path::new(&path));
    }
    let edits = edits_asked();
    let steps: Vec<u64> = [1, 100, 1_000, 10_000, 100_000].into_iter().filter(|step| *step <= edits).collect();
    let folder = tempfile::tempdir().unwrap();
    say("the document alone");
    say("   edits |  with epochs: bytes   load ms  memory KiB |   without: bytes   load ms  memory KiB");
    let documents = documents(&steps, folder.path());
    say("hub and device, edited over the API by 16 clients");
    say(
        "   edits | epoch | hub: document      log    watch  file KiB  RSS KiB | device: item  file KiB  RSS KiB | edits/s",
    );
    let fleet = fleet(&steps);
    let out = Path::new(BINARY).ancestors().nth(2).unwrap().join("bench");
    std::fs::create_dir_all(&out).unwrap();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let all = json!({"cores": cores, "documents": documents, "fleet": fleet});
    std::fs::write(out.join("history.json"), format!("{all:#}\n")).unwrap();
    say(&format!("written: {}", out.join("history.json").display()));
}

fn edits_asked() -> u64 {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--edits").skip(1);
    arguments.next().map_or(100_000, |text| text.parse().unwrap())
}

fn manifest(edit: u64) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"name": "web", "namespace": "default", "labels": {"app": "web"}, "annotations": {"example.com/edit": edit.to_string()}},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}},
        "spec": {"runtimeClassName": "process", "terminationGracePeriodSeconds": 1, "containers": [{"name": "web", "image": "host",
            "command": ["/bin/sleep", "1000000"], "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
            "resources": {"limits": {"memory": "64Mi"}}}]}}}})
}

fn wish<'a>(object: &'a Value, rollouts: &'a Rollouts) -> Edit<'a> {
    Edit { object, rollouts, author: "admin", time_ms: 1_790_000_000_000 }
}

/// The same edits on two documents, one of which begins anew as the hub does it.
fn documents(steps: &[u64], folder: &Path) -> Vec<Value> {
    let shape = |path: &[&str]| schema::list_keys(&kind::DAEMON_SET, path);
    let rollouts = Rollouts::from([("1-1".to_owned(), u64::MAX)]);
    let first = manifest(0);
    let mut bounded = Document::create(wish(&first, &rollouts), 1, &shape, [1; 8]).unwrap();
    let mut unbounded = Document::create(wish(&first, &rollouts), 1, &shape, [1; 8]).unwrap();
    let mut rows = Vec::new();
    for number in 1..=steps.last().copied().unwrap_or(0) {
        let object = manifest(number);
        if bounded.changes_len() >= EPOCH_CHANGES_MAX {
            bounded = bounded.succeed(wish(&object, &rollouts), 1, &shape, [1; 8]).unwrap();
        } else {
            bounded.edit(wish(&object, &rollouts), &shape).unwrap();
        }
        unbounded.edit(wish(&object, &rollouts), &shape).unwrap();
        if steps.contains(&number) {
            let (with, without) = (cost(&mut bounded, folder), cost(&mut unbounded, folder));
            let shown = |cost: &Cost| format!("{:>18} {:>9.2} {:>11}", cost.bytes, cost.load_ms, cost.memory_kib);
            say(&format!("{number:>8} | {} | {}", shown(&with), shown(&without)));
            rows.push(json!({"edits": number, "epochs": with.json(), "baseline": without.json()}));
        }
    }
    rows
}

struct Cost {
    bytes: usize,
    load_ms: f64,
    memory_kib: u64,
}

impl Cost {
    fn json(&self) -> Value {
        json!({"bytes": self.bytes, "loadMs": self.load_ms, "memoryKiB": self.memory_kib})
    }
}

/// Measured in a process of its own, which has loaded nothing before.
fn cost(document: &mut Document, folder: &Path) -> Cost {
    let saved = document.save();
    let path = folder.join("document");
    std::fs::write(&path, &saved).unwrap();
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    let output = command.env(LOAD, &path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (load_ms, memory) = text.trim().split_once(' ').unwrap_or_else(|| panic!("the child said {text:?}"));
    Cost { bytes: saved.len(), load_ms: load_ms.parse().unwrap(), memory_kib: memory.parse().unwrap() }
}

/// The child: milliseconds (best of five) and how much more memory the process had at most, in KiB.
fn load(path: &Path) {
    let saved = std::fs::read(path).unwrap();
    let before = memory_kib("self", "VmHWM:");
    let first = Document::load(&saved).unwrap();
    let peak = memory_kib("self", "VmHWM:") - before;
    drop(first);
    let times = (0..5).map(|_| {
        let started = Instant::now();
        drop(Document::load(&saved).unwrap());
        started.elapsed().as_secs_f64() * 1000.0
    });
    say(&format!("{:.3} {peak}", times.fold(f64::MAX, f64::min)));
}

fn memory_kib(process: &str, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn fleet(steps: &[u64]) -> Vec<Value> {
    let mut fleet = Fleet::start(BINARY, Road::Quic, &[]);
    fleet.join("n1", &[]);
    let kubeconfig = fleet.folder().join("hub/admin.kubeconfig");
    let server = api::Server::of(&kubeconfig).unwrap();
    let mut client = server.connect().unwrap();
    wait::until_true("the node is there", || !client.get("/api/v1/nodes")["items"].as_array().unwrap().is_empty());
    let made =
        client.request("POST", "/apis/apps/v1/namespaces/default/daemonsets", "application/json", Some(&manifest(0)));
    let uid = made.value["metadata"]["uid"].as_str().unwrap().to_owned();
    let mut rows = Vec::new();
    let mut done = 0;
    for step in steps {
        let started = Instant::now();
        edit(&server, done, *step);
        let per_second = (step - done) as f64 / started.elapsed().as_secs_f64();
        done = *step;
        rows.push(measured(&mut fleet, &uid, done, per_second));
    }
    rows
}

/// Edits number `from + 1` to `to`, each by one of the clients.
fn edit(server: &api::Server, from: u64, to: u64) {
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            scope.spawn(move || {
                let mut connection = server.connect().unwrap();
                let path = "/apis/apps/v1/namespaces/default/daemonsets/web";
                for number in (from + 1..=to).filter(|number| number % CLIENTS == client) {
                    let patch = json!({"metadata": {"annotations": {"example.com/edit": number.to_string()}}});
                    connection.request("PATCH", path, "application/merge-patch+json", Some(&patch));
                }
            });
        }
    });
}

fn measured(fleet: &mut Fleet, uid: &str, edits: u64, per_second: f64) -> Value {
    let (hub_folder, agent_folder) = (fleet.hub_folder(), fleet.agent_folder("n1"));
    let hub = database::hub_history(&hub_folder, uid);
    let heads = Document::load(&hub.state).unwrap().heads();
    let item = wait::until("the device has the newest", || {
        let bytes = database::device_item(&agent_folder, uid).ok_or("no item yet")?;
        let item = Item::decode(&bytes.clone().into()).map_err(|error| error.to_string())?;
        let ItemKind::Document(document) = item.kind else { return Err("no document yet".to_owned()) };
        let there = Document::load(&document.saved).unwrap().heads();
        if there == heads { Ok(bytes.len()) } else { Err(format!("epoch {}", document.epoch)) }
    });
    let kib = |path: PathBuf| database::size(&path) / 1024;
    let (hub_file, device_file) = (kib(hub_folder.join("hub.sqlite")), kib(agent_folder.join("device.db")));
    let rss = |pid: i32| memory_kib(&pid.to_string(), "VmRSS:");
    let (hub_rss, device_rss) = (rss(fleet.hub().pid()), rss(fleet.agent("n1").pid()));
    let database::HubHistory { epoch, state, log_bytes, watch_bytes } = hub;
    say(&format!(
        "{edits:>8} | {epoch:>5} | {:>13} {log_bytes:>8} {watch_bytes:>8} {hub_file:>9} {hub_rss:>8} | {item:>12} {device_file:>9} {device_rss:>8} | {per_second:>7.0}",
        state.len()
    ));
    json!({
        "edits": edits, "epoch": epoch, "editsPerSecond": per_second,
        "hub": {"documentBytes": state.len(), "logBytes": log_bytes, "watchBytes": watch_bytes, "fileKiB": hub_file, "rssKiB": hub_rss},
        "device": {"itemBytes": item, "fileKiB": device_file, "rssKiB": device_rss},
    })
}

#[expect(clippy::print_stdout, reason = "a bench is run to be read")]
fn say(line: &str) {
    println!("{line}");
}
