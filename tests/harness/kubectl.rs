//! The real kubectl, in every version found beside the one on the PATH.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;

use crate::wait;

/// One kubectl binary against one server.
#[derive(Debug, Clone)]
pub struct Kubectl {
    binary: PathBuf,
    kubeconfig: PathBuf,
    home: PathBuf,
}

/// `kubectl.1.29` ... `kubectl.1.33` where they exist, else the `kubectl` on the PATH, else none.
pub fn binaries() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let Some(found) = std::env::split_paths(&path).map(|folder| folder.join("kubectl")).find(|file| file.exists())
    else {
        return Vec::new();
    };
    let found = found.canonicalize().unwrap();
    let versioned =
        (29..=33).map(|minor| found.with_file_name(format!("kubectl.1.{minor}"))).filter(|file| file.exists());
    let versioned: Vec<PathBuf> = versioned.collect();
    if versioned.is_empty() { vec![found] } else { versioned }
}

impl Kubectl {
    /// The newest binary found; `None` without any.
    pub fn newest(kubeconfig: &Path, home: &Path) -> Option<Self> {
        Some(Self { binary: binaries().pop()?, kubeconfig: kubeconfig.to_path_buf(), home: home.to_path_buf() })
    }

    pub fn with_binary(&self, binary: &Path) -> Self {
        Self { binary: binary.to_path_buf(), ..self.clone() }
    }

    /// The command, ready for more arguments: `kubectl("get pods -A")`, words split at spaces.
    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new(&self.binary);
        command.env("HOME", &self.home).env("KUBECONFIG", &self.kubeconfig).env_remove("KUBERNETES_SERVICE_HOST");
        command.args(line.split_whitespace()).stdin(Stdio::null());
        command
    }

    pub fn output(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// Standard output; the standard error in `Err` when it failed.
    pub fn attempt(&self, line: &str) -> Result<String, String> {
        text(&self.output(line))
    }

    /// Standard output; the test fails when kubectl does.
    pub fn run(&self, line: &str) -> String {
        self.attempt(line).unwrap_or_else(|error| panic!("kubectl {line}: {error}"))
    }

    /// `kubectl LINE -f -` with this manifest.
    pub fn feed(&self, line: &str, manifest: &str) -> Result<String, String> {
        use std::io::Write as _;
        let mut command = self.command(line);
        command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(manifest.as_bytes()).unwrap();
        text(&child.wait_with_output().unwrap())
    }

    pub fn apply(&self, manifest: &str) -> String {
        self.feed("apply", manifest).unwrap_or_else(|error| panic!("kubectl apply: {error}\n{manifest}"))
    }

    /// `kubectl LINE -o json`, parsed.
    pub fn json(&self, line: &str) -> Result<Value, String> {
        let text = self.attempt(&format!("{line} -o json"))?;
        serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
    }
}

/// A running `kubectl get ... -w`: everything the server tells, in order, nothing left out.
#[derive(Debug)]
pub struct Watch {
    child: Child,
    events: mpsc::Receiver<Value>,
}

impl Kubectl {
    /// `kubectl LINE -w -o json --output-watch-events`.
    pub fn watch(&self, line: &str) -> Watch {
        let mut command = self.command(&format!("{line} -w -o json --output-watch-events"));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let output = std::io::BufReader::new(child.stdout.take().unwrap());
        let (sender, events) = mpsc::channel();
        drop(std::thread::spawn(move || {
            for event in serde_json::Deserializer::from_reader(output).into_iter().map_while(Result::ok) {
                if sender.send(event).is_err() {
                    return;
                }
            }
        }));
        Watch { child, events }
    }
}

impl Watch {
    /// The next event: `{type, object}`. `None` when nothing came for so long, or the watch has ended.
    pub fn next(&self, within: Duration) -> Option<Value> {
        self.events.recv_timeout(within).ok()
    }

    /// The next event; fails with `what` when none comes within the usual limit.
    pub fn expect(&self, what: &str) -> Value {
        self.next(wait::LIMIT).unwrap_or_else(|| panic!("the watch told nothing more while waiting for: {what}"))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn text(output: &Output) -> Result<String, String> {
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() { Ok(out) } else { Err(format!("{out}{}", String::from_utf8_lossy(&output.stderr))) }
}
