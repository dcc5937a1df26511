//! The spec of a Pod or of a Pod template.

use std::collections::BTreeSet;

use super::place::{At, Faults};
use super::{container, metadata, scheduling, text, volume};
use crate::label::syntax;

const SECONDS_MAX: i64 = 2_147_483_647;
const ID_MAX: i64 = 2_147_483_647;

/// A whole Pod.
pub(super) fn whole(root: &At<'_>, faults: &mut Faults) {
    let spec_at = root.field("spec");
    faults.one_of(&spec_at.field("restartPolicy"), &["Always", "Never", "OnFailure"]);
    spec(&spec_at, faults);
}

/// The template of a workload whose Pods are to run for ever.
pub(super) fn template(template: &At<'_>, faults: &mut Faults) {
    metadata::template(template, faults);
    let spec_at = template.field("spec");
    faults.one_of(&spec_at.field("restartPolicy"), &["Always"]);
    let deadline = spec_at.field("activeDeadlineSeconds");
    if deadline.is_said() {
        faults.forbidden(&deadline, "activeDeadlineSeconds in a workload's template is not supported");
    }
    let ephemeral = spec_at.field("ephemeralContainers");
    if ephemeral.items().next().is_some() {
        faults.forbidden(&ephemeral, "ephemeral containers not allowed in pod template");
    }
    spec(&spec_at, faults);
}

fn spec(spec: &At<'_>, faults: &mut Faults) {
    let volumes = spec.field("volumes");
    let volumes = volume::all(&volumes, faults);
    container::all(spec, &volumes, faults);
    names(spec, faults);
    dns(spec, faults);
    scheduling::spec(spec, faults);
    security(&spec.field("securityContext"), faults);
    faults.not_negative(&spec.field("terminationGracePeriodSeconds"));
    faults.within(&spec.field("activeDeadlineSeconds"), 1, SECONDS_MAX);
    faults.one_of(&spec.field("preemptionPolicy"), &["Never", "PreemptLowerPriority"]);
    let os = spec.field("os");
    faults.one_of(&os.field("name"), &["linux", "windows"]);
    container::amounts(&spec.field("overhead"), faults);
    for gate in spec.field("readinessGates").items() {
        faults.required_syntax(&gate.field("conditionType"), syntax::qualified_name);
    }
    for alias in spec.field("hostAliases").items() {
        faults.required_syntax(&alias.field("ip"), text::ip_address);
        for name in alias.field("hostnames").items() {
            faults.syntax(&name, syntax::dns_subdomain);
        }
    }
}

fn names(spec: &At<'_>, faults: &mut Faults) {
    for name in ["nodeName", "serviceAccountName", "priorityClassName", "runtimeClassName"] {
        faults.syntax(&spec.field(name), syntax::dns_subdomain);
    }
    for name in ["hostname", "subdomain"] {
        faults.syntax(&spec.field(name), syntax::dns_label);
    }
    for secret in spec.field("imagePullSecrets").items() {
        faults.syntax(&secret.field("name"), syntax::dns_subdomain);
    }
    let mut gates = BTreeSet::new();
    for gate in spec.field("schedulingGates").items() {
        let name = gate.field("name");
        faults.required_syntax(&name, syntax::qualified_name);
        if !gates.insert(gate.value["name"].as_str().unwrap_or("")) {
            faults.duplicate(&gate, name.value);
        }
    }
}

fn dns(spec: &At<'_>, faults: &mut Faults) {
    let policy = spec.field("dnsPolicy");
    faults.one_of(&policy, &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"]);
    let config = spec.field("dnsConfig");
    let servers = config.field("nameservers");
    if policy.text() == "None" {
        if !config.is_said() {
            faults.required(&config, "must provide `dnsConfig` when `dnsPolicy` is None");
        } else if servers.items().next().is_none() {
            faults.required(&servers, "must provide at least one DNS nameserver when `dnsPolicy` is None");
        }
    }
    if servers.items().count() > 3 {
        faults.too_many(&servers, servers.items().count(), 3);
    }
    for server in servers.items() {
        faults.syntax(&server, text::ip_address);
    }
    let searches = config.field("searches");
    if searches.items().count() > 32 {
        faults.too_many(&searches, searches.items().count(), 32);
    }
    for search in searches.items() {
        faults.syntax(&search, |name| match name {
            "." => Ok(()),
            name => syntax::dns_subdomain(name.trim_end_matches('.')),
        });
    }
}

/// `securityContext` of a Pod.
fn security(context: &At<'_>, faults: &mut Faults) {
    for name in ["runAsUser", "runAsGroup", "fsGroup"] {
        faults.within(&context.field(name), 0, ID_MAX);
    }
    for group in context.field("supplementalGroups").items() {
        faults.within(&group, 0, ID_MAX);
    }
    faults.one_of(&context.field("fsGroupChangePolicy"), &["Always", "OnRootMismatch"]);
    faults.one_of(&context.field("supplementalGroupsPolicy"), &["Merge", "Strict"]);
    seccomp(&context.field("seccompProfile"), faults);
    let mut known = BTreeSet::new();
    for sysctl in context.field("sysctls").items() {
        let name = sysctl.field("name");
        if !name.is_said() {
            faults.required(&name, "");
        } else if !text::sysctl_name(name.text()) {
            faults.invalid(
                &name,
                "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
            );
        } else if !known.insert(sysctl.value["name"].as_str().unwrap_or("")) {
            faults.duplicate(&name, name.value);
        }
    }
}

/// A seccomp profile, of a Pod or a container.
pub(super) fn seccomp(profile: &At<'_>, faults: &mut Faults) {
    if !profile.is_said() {
        return;
    }
    let kind = profile.field("type");
    if !kind.is_said() {
        faults.required(&kind, "type is required when seccompProfile is set");
    }
    faults.one_of(&kind, &["Localhost", "RuntimeDefault", "Unconfined"]);
    let local = profile.field("localhostProfile");
    match (kind.text(), local.is_said()) {
        ("Localhost", false) => faults.required(&local, "must be set when seccomp type is Localhost"),
        ("Localhost", true) => faults.syntax(&local, text::relative_path),
        (_, true) => faults.invalid(&local, "can only be set when seccomp type is Localhost"),
        (_, false) => {}
    }
}
