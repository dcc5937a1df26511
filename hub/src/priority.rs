//! What a Pod's `priorityClassName` means: Kubernetes' priority admission.
//!
//! Owns the resolution of a name to `spec.priority` and `spec.preemptionPolicy` when a Pod is made, and the rules between
//! PriorityClasses. Pure. Refuses to act on a priority: that is the scheduler's. Start at [`resolve`].

use flotilla_manifests::api_error::{ApiError, Reason};
use flotilla_manifests::kind;
use flotilla_manifests::object::{Object, ObjectKey};
use serde_json::{Value, json};

use crate::store::Index;

/// Classes that every hub has; their values are Kubernetes'.
pub(crate) const SYSTEM: [(&str, i64, &str); 2] = [
    ("system-cluster-critical", 2_000_000_000, "Used for system critical pods that must run, but can be moved."),
    ("system-node-critical", 2_000_001_000, "Used for system critical pods that must not be moved from their node."),
];

/// Writes what the Pod's class says into its spec, or what the default class says if it names none.
///
/// # Errors
/// 403 for a class that does not exist, and for a stated priority that is not the class's.
pub(crate) fn resolve(index: &Index, pod: &mut Object) -> Result<(), ApiError> {
    let name = pod.text("/spec/priorityClassName").to_owned();
    let class = if name.is_empty() {
        index.list(&kind::PRIORITY_CLASS, None).find(|class| is_default(class)).cloned()
    } else {
        let found = index.get(&ObjectKey::of(&kind::PRIORITY_CLASS, "", name.as_str())).cloned();
        Some(found.ok_or_else(|| forbidden(pod, &format!("no PriorityClass with name {name} was found")))?)
    };
    let number = class.as_ref().map_or(0, |class| value_of(class));
    if let Some(stated) = pod.at("/spec/priority").filter(|stated| stated.as_i64() != Some(number)) {
        let why = format!(
            "the integer value of priority ({stated}) must not be provided in pod spec; priority admission controller computed {number} from the given PriorityClass name"
        );
        return Err(forbidden(pod, &why));
    }
    let policy = class.as_ref().map_or("", |class| class.text("/preemptionPolicy"));
    let policy = if policy.is_empty() { "PreemptLowerPriority" } else { policy };
    let stated = pod.text("/spec/preemptionPolicy");
    if !stated.is_empty() && stated != policy {
        let why = format!(
            "the string value of PreemptionPolicy ({stated}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
        );
        return Err(forbidden(pod, &why));
    }
    let policy = policy.to_owned();
    let class = class.map(|class| class.name().to_owned());
    if let Some(spec) = pod.value_mut().get_mut("spec").and_then(Value::as_object_mut) {
        if let Some(class) = class {
            spec.insert("priorityClassName".to_owned(), class.into());
        }
        spec.insert("priority".to_owned(), number.into());
        spec.insert("preemptionPolicy".to_owned(), policy.into());
    }
    Ok(())
}

/// The system's classes stay, and at most one class is the default.
///
/// # Errors
/// 403 in Kubernetes' words.
pub(crate) fn check_class(index: &Index, class: &Object) -> Result<(), ApiError> {
    let other = index
        .list(&kind::PRIORITY_CLASS, None)
        .find(|other| is_default(other) && is_default(class) && other.name() != class.name());
    let Some(other) = other else { return Ok(()) };
    let why = format!("PriorityClass {} is already marked as default. Only one default can exist", other.name());
    Err(forbidden(class, &why))
}

pub(crate) fn is_system(name: &str) -> bool {
    SYSTEM.iter().any(|(system, _, _)| *system == name)
}

/// A class of [`SYSTEM`] as an object.
pub(crate) fn system_class((name, value, description): (&str, i64, &str)) -> Object {
    let mut class = Object::empty(&kind::PRIORITY_CLASS, "", name);
    if let Some(map) = class.value_mut().as_object_mut() {
        map.insert("value".to_owned(), value.into());
        map.insert("description".to_owned(), description.into());
        map.insert("preemptionPolicy".to_owned(), json!("PreemptLowerPriority"));
    }
    class
}

fn is_default(class: &Object) -> bool {
    class.at("/globalDefault").and_then(Value::as_bool).unwrap_or(false)
}

fn value_of(class: &Object) -> i64 {
    class.at("/value").and_then(Value::as_i64).unwrap_or(0)
}

fn forbidden(object: &Object, why: &str) -> ApiError {
    let key = object.key();
    ApiError::of(Reason::Forbidden, format!("{} {:?} is forbidden: {why}", key.kind.plural, key.name)).about(&key)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn index(classes: &[(&str, i64, bool)]) -> Index {
        let mut index = Index::default();
        for (name, value, default) in classes {
            let mut class = system_class((name, *value, ""));
            class.value_mut()["globalDefault"] = json!(default);
            index.set(&class.key(), Some(Arc::new(class)));
        }
        index
    }

    fn pod(spec: Value) -> Object {
        let mut pod = Object::empty(&kind::POD, "default", "web");
        pod.value_mut()["spec"] = spec;
        pod
    }

    #[test]
    fn a_pod_gets_the_number_of_its_class() {
        let classes = index(&[("high", 1000, false), ("usual", 5, true)]);
        let check = |spec: Value, expected: Result<(&str, i64), &str>| {
            let mut pod = pod(spec.clone());
            let seen = resolve(&classes, &mut pod).map_err(|error| error.message);
            match (seen, expected) {
                (Ok(()), Ok((class, number))) => {
                    assert_eq!(
                        (pod.text("/spec/priorityClassName"), pod.at("/spec/priority")),
                        (class, Some(&json!(number)))
                    );
                    resolve(&classes, &mut pod).unwrap();
                }
                (Err(message), Err(words)) => assert!(message.contains(words), "{message}"),
                (seen, _) => panic!("{spec}: {seen:?}"),
            }
        };
        check(json!({"priorityClassName": "high"}), Ok(("high", 1000)));
        check(json!({}), Ok(("usual", 5)));
        check(json!({"priorityClassName": "none"}), Err("pods \"web\" is forbidden: no PriorityClass with name none"));
        check(json!({"priorityClassName": "high", "priority": 7}), Err("must not be provided in pod spec"));
        check(json!({"preemptionPolicy": "Never"}), Err("PreemptionPolicy (Never) must not be provided"));
        let mut plain = pod(json!({}));
        resolve(&index(&[]), &mut plain).unwrap();
        assert_eq!(plain.value()["spec"], json!({"priority": 0, "preemptionPolicy": "PreemptLowerPriority"}));
    }

    #[test]
    fn one_class_is_the_default() {
        let classes = index(&[("usual", 5, true)]);
        let mut second = system_class(("second", 6, ""));
        check_class(&classes, &second).unwrap();
        second.value_mut()["globalDefault"] = json!(true);
        let refusal = check_class(&classes, &second).unwrap_err();
        assert!(refusal.message.contains("usual is already marked as default"), "{refusal}");
        check_class(&classes, &classes.list(&kind::PRIORITY_CLASS, None).next().unwrap().as_ref().clone()).unwrap();
    }
}
