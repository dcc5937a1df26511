//! The architecture as three tables: the crate arrows, the pure modules, and the one door of each I/O dependency.
//! Each table has a test that fails with file and word, and a test that plants a violation and sees it found.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Which of our crates each crate may name in its `Cargo.toml`.
const ARROWS: &[(&str, &[&str])] = &[
    ("manifests", &[]),
    ("manifests/rest", &["flotilla-manifests"]),
    ("sync", &[]),
    ("hub", &["flotilla-manifests", "flotilla-rest", "flotilla-sync"]),
    ("edge-agent", &["flotilla-manifests", "flotilla-rest", "flotilla-sync"]),
    ("hub/cli", &["flotilla-manifests", "flotilla-rest", "flotilla-sync", "flotilla-hub", "flotilla-agent"]),
];

/// Modules that decide and must not touch the world. A folder name stands for all below it.
const PURE: &[&str] = &[
    "manifests/src",
    "manifests/rest/src/route.rs",
    "manifests/rest/src/page.rs",
    "manifests/rest/src/review.rs",
    "manifests/rest/src/table.rs",
    "sync/src/blob.rs",
    "sync/src/document.rs",
    "sync/src/document",
    "sync/src/record.rs",
    "sync/src/log.rs",
    "sync/src/log",
    "sync/src/channel.rs",
    "sync/src/list.rs",
    "sync/src/session.rs",
    "sync/src/session",
    "sync/src/observation.rs",
    "sync/src/bundle/format.rs",
    "sync/src/bundle/section.rs",
    "sync/src/bundle/report.rs",
    "sync/src/backoff.rs",
    "sync/src/enrol/token.rs",
    "sync/src/transport/mqtt/frame.rs",
    "sync/src/transport/mqtt/stream.rs",
    "sync/src/transport/mqtt/topic.rs",
    "sync/src/transport/mqtt/url.rs",
    "hub/src/learn/merge.rs",
    "hub/src/publish.rs",
    "hub/src/publish",
    "hub/src/controllers",
    "hub/src/leases.rs",
    "hub/src/priority.rs",
    "hub/src/scheduler.rs",
    "hub/src/scheduler",
    "edge-agent/src/reconcile.rs",
    "edge-agent/src/reconcile",
    "edge-agent/src/effective.rs",
    "edge-agent/src/store/pages.rs",
    "edge-agent/src/image/facts.rs",
    "edge-agent/src/image/reference.rs",
    "edge-agent/src/events.rs",
    "edge-agent/src/local_write.rs",
    "edge-agent/src/view.rs",
    "edge-agent/src/probe/machine.rs",
    "edge-agent/src/runtime/admission.rs",
    "edge-agent/src/runtime/facilities.rs",
    "edge-agent/src/runtime/oci.rs",
    "edge-agent/src/runtime/oci",
];

/// What a pure module may not say.
const IMPURE_WORDS: &[&str] = &[
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "UnixListener",
    "ToSocketAddrs",
    "std::fs",
    "std::thread",
    "std::process",
    "SystemTime",
    "Instant::now",
    "tokio::",
    "rusqlite",
    "quinn",
    "rumqttc",
    "SystemRandom",
    "getrandom",
    "rand::",
];

/// The one door of each I/O dependency: word -> where it may stand.
const DOORS: &[(&str, &[&str])] = &[
    ("rusqlite::", &["hub/src/store.rs", "hub/src/store/", "edge-agent/src/store.rs", "edge-agent/src/store/"]),
    ("quinn::", &["sync/src/transport/quic.rs", "sync/src/transport/quic/"]),
    ("rumqttc::", &["sync/src/transport/mqtt/packet.rs"]),
    ("automerge::", &["sync/src/document.rs", "sync/src/document/"]),
    (
        "rustls::",
        &[
            "sync/src/identity",
            "sync/src/enrol",
            "sync/src/transport",
            "manifests/rest/src/server",
            "manifests/rest/src/tls.rs",
            "hub/cli/src/demo/api.rs",
        ],
    ),
    ("tar::", &["edge-agent/src/image/unpack/"]),
    ("flate2::", &["edge-agent/src/image/unpack/"]),
    ("ruzstd::", &["edge-agent/src/image/unpack/"]),
    (
        "process::Command",
        &[
            "edge-agent/src/runtime",
            "edge-agent/src/shim",
            "edge-agent/src/stage",
            "edge-agent/src/probe",
            "hub/cli/src/demo",
        ],
    ),
    ("SystemTime::now", &["edge-agent/src/clock.rs", "hub/src/clock.rs", "hub/cli/src/", "edge-agent/src/shim"]),
];

#[derive(Debug, PartialEq)]
struct Finding {
    file: String,
    word: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Every source file of the product (not its tests) below the root, by relative path.
fn sources() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut open: Vec<PathBuf> = ARROWS.iter().map(|(folder, _)| root().join(folder).join("src")).collect();
    while let Some(folder) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
                found.insert(name, std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    assert!(found.len() > 40, "the walk found only {} source files", found.len());
    found
}

/// Code without comments and without the test module at the file's end; test files are empty.
fn code(name: &str, text: &str) -> String {
    if name.ends_with("tests.rs") || name.contains("/tests/") {
        return String::new();
    }
    let product = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let product = product.split("#[cfg(test)]\n#[allow").next().unwrap();
    product.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Whether `word` stands in `line` as a path of its own (`tokio_rustls::` is not `rustls::`).
fn says(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        before.is_none_or(|letter| !letter.is_alphanumeric() && letter != '_')
    })
}

fn impure(files: &BTreeMap<String, String>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, text) in files {
        let stem = name.trim_end_matches(".rs");
        let pure = PURE.iter().any(|entry| name == entry || name.starts_with(&format!("{entry}/")) || stem == *entry);
        for word in IMPURE_WORDS.iter().filter(|word| pure && says(&code(name, text), word)) {
            findings.push(Finding { file: name.clone(), word: (*word).to_owned() });
        }
    }
    findings
}

fn wrong_doors(files: &BTreeMap<String, String>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, text) in files {
        let text = code(name, text);
        for (word, doors) in DOORS {
            if says(&text, word) && !doors.iter().any(|door| name.starts_with(door)) {
                findings.push(Finding { file: name.clone(), word: (*word).to_owned() });
            }
        }
    }
    findings
}

fn wrong_arrows(manifests: &BTreeMap<String, String>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (folder, allowed) in ARROWS {
        let text = manifests.get(*folder).map(String::as_str).unwrap_or_default();
        let section = text.split("[dependencies]").nth(1).unwrap_or_default();
        let section = section.split("\n[").next().unwrap_or_default();
        for line in section.lines().filter(|line| line.starts_with("flotilla")) {
            let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
            if !allowed.contains(&name) {
                findings.push(Finding { file: format!("{folder}/Cargo.toml"), word: name.to_owned() });
            }
        }
    }
    findings
}

fn cargo_files() -> BTreeMap<String, String> {
    let read = |folder: &str| std::fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
    ARROWS.iter().map(|(folder, _)| ((*folder).to_owned(), read(folder))).collect()
}

#[test]
fn crate_arrows_point_one_way() {
    assert_eq!(wrong_arrows(&cargo_files()), []);
}

#[test]
fn a_planted_arrow_is_found() {
    let mut files = cargo_files();
    let sync = files.get_mut("sync").unwrap();
    *sync = sync.replace("[dependencies]\n", "[dependencies]\nflotilla-hub.workspace = true\n");
    assert_eq!(wrong_arrows(&files), [Finding { file: "sync/Cargo.toml".into(), word: "flotilla-hub".into() }]);
}

#[test]
fn pure_modules_name_no_outside_world() {
    assert_eq!(impure(&sources()), []);
}

#[test]
fn a_planted_clock_in_a_pure_module_is_found() {
    let mut files = sources();
    let text = files.entry("manifests/src/object.rs".into()).or_default();
    text.insert_str(0, "fn now() -> std::time::SystemTime { std::time::SystemTime::now() }\n");
    let planted = Finding { file: "manifests/src/object.rs".into(), word: "SystemTime".into() };
    assert!(impure(&files).contains(&planted));
}

#[test]
fn each_dependency_has_one_door() {
    assert_eq!(wrong_doors(&sources()), []);
}

#[test]
fn a_planted_second_door_is_found() {
    let mut files = sources();
    files.insert("hub/src/scheduler.rs".into(), "use rusqlite::Connection;".into());
    assert!(wrong_doors(&files).contains(&Finding { file: "hub/src/scheduler.rs".into(), word: "rusqlite::".into() }));
}

/// Decision record 0021: rumqttc's own TLS would bring an rustls-webpki with known faults.
fn brought_by_rumqttc(lock: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in lock.split("[[package]]") {
        let named = |name: &str| package.contains(&format!("name = \"{name}\""));
        let version = package.split("version = \"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default();
        let number = |at: usize| version.split('.').nth(at).and_then(|part| part.parse().ok()).unwrap_or(0_u32);
        let old = named("rustls-webpki") && (number(0), number(1), number(2)) < (0, 103, 13);
        if old || (named("rumqttc") && package.contains("tls")) {
            findings.push(Finding { file: "Cargo.lock".into(), word: version.to_owned() });
        }
    }
    findings
}

#[test]
fn rumqttc_brings_no_tls_of_its_own() {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    assert!(lock.contains("name = \"rumqttc\"") && lock.contains("name = \"rustls-webpki\""));
    assert_eq!(brought_by_rumqttc(&lock), []);
    let planted = lock.replacen(" \"fixedbitset\",", " \"fixedbitset\",\n \"rustls-webpki 0.102.8\",", 1);
    assert_eq!(brought_by_rumqttc(&planted).len(), 1, "a planted dependency is found");
    let planted = format!("{lock}[[package]]\nname = \"rustls-webpki\"\nversion = \"0.102.8\"\n");
    assert_eq!(brought_by_rumqttc(&planted), [Finding { file: "Cargo.lock".into(), word: "0.102.8".into() }]);
}
