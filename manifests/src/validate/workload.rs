//! Deployment, ReplicaSet, DaemonSet, ControllerRevision.

use std::collections::BTreeMap;

use serde_json::Value;

use super::place::{At, Faults};
use super::pod;
use crate::int_or_string::IntOrPercent;
use crate::label::Selector;

pub(super) fn deployment(root: &At<'_>, faults: &mut Faults) {
    let spec = root.field("spec");
    for name in ["replicas", "minReadySeconds", "revisionHistoryLimit"] {
        faults.not_negative(&spec.field(name));
    }
    selection(&spec, "deployment", faults);
    let strategy = spec.field("strategy");
    let kind = strategy.field("type");
    let rolling = strategy.field("rollingUpdate");
    match kind.text() {
        "RollingUpdate" => {
            let unavailable = amount(&rolling.field("maxUnavailable"), faults);
            let surge = amount(&rolling.field("maxSurge"), faults);
            if unavailable.is_some_and(is_zero) && surge.is_some_and(is_zero) {
                faults.invalid(&rolling.field("maxUnavailable"), "may not be 0 when `maxSurge` is 0");
            }
        }
        "Recreate" if rolling.is_said() => {
            faults.forbidden(&rolling, "may not be specified when strategy `type` is 'Recreate'");
        }
        _ => faults.one_of(&kind, &["Recreate", "RollingUpdate"]),
    }
    let progress = spec.field("progressDeadlineSeconds");
    faults.not_negative(&progress);
    let ready = spec.field("minReadySeconds").number().unwrap_or(0);
    if progress.number().is_some_and(|seconds| seconds <= ready) {
        faults.invalid(&progress, "must be greater than minReadySeconds");
    }
    pod::template(&spec.field("template"), faults);
}

pub(super) fn replica_set(root: &At<'_>, faults: &mut Faults) {
    let spec = root.field("spec");
    for name in ["replicas", "minReadySeconds"] {
        faults.not_negative(&spec.field(name));
    }
    selection(&spec, "replicaset", faults);
    pod::template(&spec.field("template"), faults);
}

pub(super) fn daemon_set(root: &At<'_>, faults: &mut Faults) {
    let spec = root.field("spec");
    for name in ["minReadySeconds", "revisionHistoryLimit"] {
        faults.not_negative(&spec.field(name));
    }
    selection(&spec, "daemonset", faults);
    let strategy = spec.field("updateStrategy");
    let kind = strategy.field("type");
    faults.one_of(&kind, &["RollingUpdate", "OnDelete"]);
    let rolling = strategy.field("rollingUpdate");
    if kind.text() == "RollingUpdate" {
        let unavailable = amount(&rolling.field("maxUnavailable"), faults);
        let surge = amount(&rolling.field("maxSurge"), faults);
        match (unavailable.map(is_zero), surge.map(is_zero)) {
            (Some(false), Some(false)) => {
                faults.invalid(&rolling.field("maxSurge"), "may not be set when maxUnavailable is non-zero");
            }
            (Some(true), Some(true)) => {
                faults.required(&rolling.field("maxUnavailable"), "cannot be 0 when maxSurge is 0");
            }
            _ => {}
        }
    }
    pod::template(&spec.field("template"), faults);
}

pub(super) fn controller_revision(root: &At<'_>, faults: &mut Faults) {
    faults.not_negative(&root.field("revision"));
    let data = root.field("data");
    if !data.is_said() {
        faults.required(&data, "data is mandatory");
    }
}

/// `spec.selector`: there, not empty, and one that selects the Pods of the template.
fn selection(spec: &At<'_>, kind: &str, faults: &mut Faults) {
    let selector = spec.field("selector");
    if !selector.is_said() {
        return faults.required(&selector, "");
    }
    let parsed = match Selector::of_json(Some(selector.value), &selector.path()) {
        Ok(parsed) => parsed,
        Err(found) => return faults.extend(found),
    };
    if parsed.is_everything() {
        return faults.invalid(&selector, &format!("empty selector is invalid for {kind}"));
    }
    let template = spec.field("template");
    let metadata = template.field("metadata");
    let labels = metadata.field("labels");
    let entries = labels.entries().map(|(key, value)| (key.to_owned(), value.text().to_owned()));
    let entries: BTreeMap<String, String> = entries.collect();
    if template.is_said() && !parsed.matches(&entries) {
        let shown = if labels.value.is_null() { &Value::Object(serde_json::Map::new()) } else { labels.value };
        faults.invalid_as(&labels, shown, "`selector` does not match template `labels`");
    }
}

/// `maxSurge` or `maxUnavailable`; `None` for what cannot be read.
fn amount(at: &At<'_>, faults: &mut Faults) -> Option<IntOrPercent> {
    if at.value.is_null() {
        return None;
    }
    match IntOrPercent::of_json(at.value) {
        Ok(IntOrPercent::Int(count)) if count < 0 => {
            faults.invalid(at, "must be greater than or equal to 0");
            None
        }
        Ok(IntOrPercent::Percent(percent)) if percent > 100 => {
            faults.invalid(at, "must not be greater than 100%");
            None
        }
        Ok(amount) => Some(amount),
        Err(error) => {
            faults.invalid(at, &error.to_string());
            None
        }
    }
}

fn is_zero(amount: IntOrPercent) -> bool {
    matches!(amount, IntOrPercent::Int(0) | IntOrPercent::Percent(0))
}
