//! Where a Pod may run: node selector, affinity, tolerations, spread; taints of a Node.

use std::collections::BTreeSet;

use super::metadata;
use super::place::{At, Faults};
use crate::label::{Requirement, Selector, syntax};

const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

pub(super) fn spec(spec: &At<'_>, faults: &mut Faults) {
    metadata::labels(&spec.field("nodeSelector"), faults);
    tolerations(&spec.field("tolerations"), faults);
    let affinity = spec.field("affinity");
    node_affinity(&affinity.field("nodeAffinity"), faults);
    for name in ["podAffinity", "podAntiAffinity"] {
        pod_affinity(&affinity.field(name), faults);
    }
    spread(&spec.field("topologySpreadConstraints"), faults);
}

fn tolerations(tolerations: &At<'_>, faults: &mut Faults) {
    for toleration in tolerations.items() {
        let (key, operator) = (toleration.field("key"), toleration.field("operator"));
        faults.syntax(&key, syntax::qualified_name);
        if !key.is_said() && operator.text() != "Exists" {
            faults.invalid(
                &operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            );
        }
        let value = toleration.field("value");
        match operator.text() {
            "" | "Equal" => faults.syntax(&value, syntax::label_value),
            "Exists" if value.is_said() => {
                faults.invalid(&operator, "value must be empty when `operator` is 'Exists'");
            }
            "Exists" => {}
            "Gt" | "Lt" if value.text().parse::<i64>().is_err() => {
                faults.invalid(&value, "must be an integer when `operator` is 'Gt' or 'Lt'");
            }
            "Gt" | "Lt" => {}
            _ => faults.unsupported(&operator, &["Equal", "Exists"]),
        }
        let effect = toleration.field("effect");
        faults.one_of(&effect, EFFECTS);
        if toleration.field("tolerationSeconds").is_said() && effect.text() != "NoExecute" {
            faults.invalid(&effect, "effect must be 'NoExecute' when `tolerationSeconds` is set");
        }
    }
}

fn node_affinity(affinity: &At<'_>, faults: &mut Faults) {
    let required = affinity.field("requiredDuringSchedulingIgnoredDuringExecution");
    let terms = required.field("nodeSelectorTerms");
    if required.is_said() && terms.items().next().is_none() {
        faults.required(&terms, "must have at least one node selector term");
    }
    terms.items().for_each(|term| node_term(&term, faults));
    for preferred in affinity.field("preferredDuringSchedulingIgnoredDuringExecution").items() {
        weight(&preferred, faults);
        node_term(&preferred.field("preference"), faults);
    }
}

fn node_term(term: &At<'_>, faults: &mut Faults) {
    for expression in term.field("matchExpressions").items() {
        if let Err(found) = Requirement::of_json(expression.value, &expression.path()) {
            faults.extend(found);
        }
    }
    for field in term.field("matchFields").items() {
        faults.one_of(&field.field("key"), &["metadata.name"]);
        faults.one_of(&field.field("operator"), &["In", "NotIn"]);
        let values = field.field("values");
        if values.items().count() != 1 {
            faults
                .required(&values, "must be only one value when `operator` is 'In' or 'NotIn' for node field selector");
        }
    }
}

fn pod_affinity(affinity: &At<'_>, faults: &mut Faults) {
    for term in affinity.field("requiredDuringSchedulingIgnoredDuringExecution").items() {
        pod_term(&term, faults);
    }
    for preferred in affinity.field("preferredDuringSchedulingIgnoredDuringExecution").items() {
        weight(&preferred, faults);
        pod_term(&preferred.field("podAffinityTerm"), faults);
    }
}

fn pod_term(term: &At<'_>, faults: &mut Faults) {
    for name in ["labelSelector", "namespaceSelector"] {
        selector(&term.field(name), faults);
    }
    for namespace in term.field("namespaces").items() {
        faults.syntax(&namespace, syntax::dns_label);
    }
    let key = term.field("topologyKey");
    if key.is_said() {
        faults.syntax(&key, syntax::qualified_name);
    } else {
        faults.required(&key, "can not be empty");
    }
}

fn weight(preferred: &At<'_>, faults: &mut Faults) {
    let weight = preferred.field("weight");
    if weight.number().is_none_or(|weight| !(1..=100).contains(&weight)) {
        faults.invalid(&weight, "must be in the range 1-100");
    }
}

/// A label selector; an absent one is fine.
pub(super) fn selector(selector: &At<'_>, faults: &mut Faults) {
    if selector.is_said()
        && let Err(found) = Selector::of_json(Some(selector.value), &selector.path())
    {
        faults.extend(found);
    }
}

fn spread(constraints: &At<'_>, faults: &mut Faults) {
    let mut known = BTreeSet::new();
    for constraint in constraints.items() {
        let skew = constraint.field("maxSkew");
        if skew.number().is_none_or(|skew| skew <= 0) {
            faults.invalid(&skew, "must be greater than zero");
        }
        let key = constraint.field("topologyKey");
        if key.is_said() {
            faults.syntax(&key, syntax::qualified_name);
        } else {
            faults.required(&key, "can not be empty");
        }
        let when = constraint.field("whenUnsatisfiable");
        faults.one_of(&when, &["DoNotSchedule", "ScheduleAnyway"]);
        if !known.insert((key.text().to_owned(), when.text().to_owned())) {
            faults.duplicate(&constraint, &format!("{{{}, {}}}", key.text(), when.text()).into());
        }
        let domains = constraint.field("minDomains");
        if domains.number().is_some_and(|count| count <= 0) {
            faults.invalid(&domains, "must be greater than zero");
        }
        for name in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            faults.one_of(&constraint.field(name), &["Honor", "Ignore"]);
        }
        selector(&constraint.field("labelSelector"), faults);
    }
}

/// `spec.taints` of a Node.
pub(super) fn taints(taints: &At<'_>, faults: &mut Faults) {
    let mut known = BTreeSet::new();
    for taint in taints.items() {
        let (key, effect) = (taint.field("key"), taint.field("effect"));
        faults.required_syntax(&key, syntax::qualified_name);
        faults.syntax(&taint.field("value"), syntax::label_value);
        faults.one_of(&effect, EFFECTS);
        if !known.insert((key.text().to_owned(), effect.text().to_owned())) {
            faults.duplicate(&taint, &format!("{}:{}", key.text(), effect.text()).into());
        }
    }
}
