//! What `flotilla bundle` says: a table for people, JSON for programs.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Result;
use flotilla_manifests::time::Timestamp;
use flotilla_sync::bundle::Report;
use flotilla_sync::bundle::courier::Failure;
use serde_json::{Value, json};

use super::{Format, code_of};

/// How it went with one file.
pub(super) struct Outcome {
    pub(super) path: PathBuf,
    pub(super) result: Result<Report, Failure>,
}

/// Writes the outcomes; answers the exit code.
pub(super) fn show(outcomes: &[Outcome], format: Format) -> Result<u8> {
    let code = code_of(outcomes);
    let mut out = std::io::stdout().lock();
    match format {
        Format::Json => {
            let bundles: Vec<Value> = outcomes.iter().map(as_json).collect();
            serde_json::to_writer_pretty(&mut out, &json!({"exitCode": code, "bundles": bundles}))?;
            writeln!(out)?;
        }
        Format::Table => {
            for outcome in outcomes {
                match &outcome.result {
                    Ok(report) => out.write_all(table(&outcome.path.display().to_string(), report)?.as_bytes())?,
                    Err(failure) => complain(&format!("error: {}: {failure}\n", outcome.path.display())),
                }
            }
        }
    }
    out.flush()?;
    Ok(code)
}

fn as_json(outcome: &Outcome) -> Value {
    match &outcome.result {
        Ok(report) => {
            let missing: Vec<String> = report.missing.iter().map(ToString::to_string).collect();
            json!({"file": outcome.path, "report": report, "missing": missing})
        }
        Err(failure) => json!({"file": outcome.path, "error": failure}),
    }
}

fn table(path: &str, report: &Report) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    let from = if report.from.is_empty() { "(sealed)" } else { &report.from };
    let kind = report.direction.map_or_else(|| "sealed".to_owned(), |direction| direction.to_string());
    writeln!(text, "{path}: {kind} bundle of installation {}", report.installation)?;
    writeln!(text, "  from {from} to {}, made {}", report.to, Timestamp(report.time_ms).to_rfc3339())?;
    writeln!(
        text,
        "  {} in {} sections, {}",
        bytes(report.bytes),
        report.sections,
        if report.whole { "whole" } else { "NOT whole" }
    )?;
    if report.direction.is_some() {
        let rows = [
            ("records", report.records, Some(report.records_new)),
            ("snapshots", report.snapshots, Some(report.snapshots_new)),
            ("blobs", report.blobs, None),
            ("observations", report.observations, None),
            ("acknowledgements", report.acknowledgements, None),
        ];
        for (name, count, new) in rows.into_iter().filter(|(_, count, _)| *count > 0) {
            match new.filter(|new| *new > 0) {
                Some(new) => writeln!(text, "  {name:<18}{count:>8}  ({new} new)")?,
                None => writeln!(text, "  {name:<18}{count:>8}")?,
            }
        }
        if report.enrolment {
            writeln!(text, "  enrolment")?;
        }
    }
    let width = report.logs.iter().map(|log| log.channel.len()).max().unwrap_or(0).max(7);
    if !report.logs.is_empty() {
        writeln!(text, "  {:<width$}  {:<16}  {:>8}  {:>8}", "CHANNEL", "LOG", "FROM", "TO")?;
    }
    for log in &report.logs {
        writeln!(text, "  {:<width$}  {:<16}  {:>8}  {:>8}", log.channel, log.writer, log.from, log.to)?;
    }
    for missing in &report.missing {
        writeln!(text, "  missing: {missing}")?;
    }
    for line in &report.set_aside {
        writeln!(text, "  set aside: {line}")?;
    }
    for note in &report.notes {
        writeln!(text, "  note: {note}")?;
    }
    Ok(text)
}

/// So many bytes, for people.
pub(super) fn bytes(count: u64) -> String {
    let units = [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.into_iter().find(|(_, scale)| count >= *scale) {
        Some((unit, scale)) => format!("{}.{} {unit}", count / scale, count % scale * 10 / scale),
        None => format!("{count} bytes"),
    }
}

/// Text on standard error that the next one overwrites.
pub(super) fn progress(text: &str) {
    complain(text);
}

fn complain(text: &str) {
    let mut err = std::io::stderr().lock();
    // Nobody is left to tell when standard error is closed.
    drop(err.write_all(text.as_bytes()).and_then(|()| err.flush()));
}
