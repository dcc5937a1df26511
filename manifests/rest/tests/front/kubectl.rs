//! Stock kubectl: where it lies, and how it is run without touching the home of whoever runs the tests.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

/// `kubectl.1.29` to `kubectl.1.33` where they lie beside the `kubectl` of PATH; else that one; else none.
pub(crate) fn installed() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let Some(found) = std::env::split_paths(&path).map(|folder| folder.join("kubectl")).find(|file| file.is_file())
    else {
        return Vec::new();
    };
    let real = std::fs::canonicalize(&found).unwrap_or_else(|_| found.clone());
    let mut versions: Vec<PathBuf> = (29..=33).map(|minor| real.with_file_name(format!("kubectl.1.{minor}"))).collect();
    versions.extend((29..=33).map(|minor| found.with_file_name(format!("kubectl.1.{minor}"))));
    versions.retain(|file| file.is_file());
    versions.sort();
    versions.dedup();
    if versions.is_empty() { vec![found] } else { versions }
}

/// One kubectl, as one user of one server.
pub(crate) struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    home: tempfile::TempDir,
}

impl Kubectl {
    pub(crate) fn of(program: &Path, kubeconfig: PathBuf) -> Self {
        Self { program: program.to_owned(), kubeconfig, home: tempfile::tempdir().unwrap() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.home.path())
            .env("KUBECACHEDIR", self.home.path())
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str], input: &str) -> Output {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A kubectl that has failed early does not read.
        drop(stdin.write_all(input.as_bytes()));
        drop(stdin);
        child.wait_with_output().unwrap()
    }

    /// What it prints, warnings included; it must succeed.
    pub(crate) fn ok_with(&self, arguments: &[&str], input: &str) -> String {
        let output = self.run(arguments, input);
        let text = both(&output);
        assert!(output.status.success(), "{} {arguments:?} failed:\n{text}", self.program.display());
        text
    }

    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        self.ok_with(arguments, "")
    }

    /// Creates from YAML in flow style, which kubectl would take for JSON.
    pub(crate) fn create(&self, yaml: &str) -> String {
        self.ok_with(&["create", "-f", "-"], &format!("---\n{yaml}"))
    }

    /// What it complains about; it must fail.
    pub(crate) fn fails_with(&self, arguments: &[&str], input: &str) -> String {
        let output = self.run(arguments, input);
        let text = both(&output);
        assert!(!output.status.success(), "{} {arguments:?} should have failed:\n{text}", self.program.display());
        text
    }

    pub(crate) fn fails(&self, arguments: &[&str]) -> String {
        self.fails_with(arguments, "")
    }

    /// Succeeds and prints all of the words.
    pub(crate) fn shows(&self, arguments: &[&str], words: &[&str]) {
        let text = self.ok(arguments);
        for word in words {
            assert!(text.contains(word), "{} {arguments:?} does not show {word:?}:\n{text}", self.program.display());
        }
    }

    /// As [`Self::shows`], with input.
    pub(crate) fn shows_with(&self, arguments: &[&str], input: &str, words: &[&str]) {
        let text = self.ok_with(arguments, input);
        for word in words {
            assert!(text.contains(word), "{} {arguments:?} does not show {word:?}:\n{text}", self.program.display());
        }
    }

    /// Runs a command that opens an editor.
    pub(crate) fn edits(&self, arguments: &[&str], editor: &str) -> String {
        let output = self.command(arguments).env("KUBE_EDITOR", editor).output().unwrap();
        let text = both(&output);
        assert!(output.status.success(), "{} {arguments:?} failed:\n{text}", self.program.display());
        text
    }

    /// A command that goes on, read line by line.
    pub(crate) fn follow(&self, arguments: &[&str]) -> Followed {
        let mut child = self.command(arguments).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Followed { child, lines }
    }
}

fn both(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

pub(crate) struct Followed {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Followed {
    /// The next line; empty at the end.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line
    }

    pub(crate) fn ended_well(mut self) -> bool {
        self.child.wait().unwrap().success()
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
