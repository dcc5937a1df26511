//! PriorityClass and Lease.

use super::place::{At, Faults};

/// Highest value a user may give; what lies above is the system's.
const PRIORITY_MAX: i64 = 1_000_000_000;
const RESERVED_PREFIX: &str = "system-";

pub(super) fn priority_class(root: &At<'_>, faults: &mut Faults) {
    let metadata = root.field("metadata");
    let (name, value) = (metadata.field("name"), root.field("value"));
    if name.text().starts_with(RESERVED_PREFIX) {
        faults.forbidden(&name, "priority class names with 'system-' prefix are reserved for system use only");
    }
    if value.number().is_some_and(|number| number > PRIORITY_MAX) {
        let why = format!("maximum allowed value of a user defined priority is {PRIORITY_MAX}");
        faults.forbidden(&value, &why);
    }
    faults.one_of(&root.field("preemptionPolicy"), &["PreemptLowerPriority", "Never"]);
}

pub(super) fn lease(root: &At<'_>, faults: &mut Faults) {
    let spec = root.field("spec");
    let (duration, transitions) = (spec.field("leaseDurationSeconds"), spec.field("leaseTransitions"));
    if duration.number().is_some_and(|seconds| seconds <= 0) {
        faults.invalid(&duration, "must be greater than 0");
    }
    faults.not_negative(&transitions);
}
