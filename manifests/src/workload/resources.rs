//! What a Pod asks for and what a Node has.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{Container, PodSpec, ResourceRequirements, lenient};
use crate::quantity::Quantity;

/// Amounts by resource name (`cpu`, `memory`, `ephemeral-storage`, `pods`, extended ones).
pub type Amounts = BTreeMap<String, Quantity>;

/// Quantities that can be read; admission has refused the others.
pub fn amounts(quantities: &BTreeMap<String, String>) -> Amounts {
    quantities.iter().filter_map(|(name, text)| Some((name.clone(), Quantity::parse(text).ok()?))).collect()
}

/// Kubernetes' effective request of a Pod: the sum over containers and sidecars, or the greatest init container together
/// with the sidecars started before it if that is more; plus overhead. A limit without a request is the request.
pub fn pod_requests(spec: &PodSpec) -> Amounts {
    let of = |container: &Container| Asking {
        resources: container.resources.clone(),
        restart_policy: container.restart_policy.clone().unwrap_or_default(),
    };
    requests(&AskingPod {
        containers: spec.containers.iter().map(of).collect(),
        init_containers: spec.init_containers.iter().map(of).collect(),
        overhead: spec.overhead.clone(),
    })
}

/// [`pod_requests`] of a `spec` as JSON, without reading the rest of it: for sums over many Pods.
pub fn pod_requests_in(spec: Option<&Value>) -> Amounts {
    requests(&super::view::<AskingPod>(spec))
}

/// The parts of a Pod that ask for something.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AskingPod {
    #[serde(deserialize_with = "lenient")]
    containers: Vec<Asking>,
    #[serde(deserialize_with = "lenient")]
    init_containers: Vec<Asking>,
    #[serde(deserialize_with = "super::container::quantities")]
    overhead: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Asking {
    #[serde(deserialize_with = "lenient")]
    resources: ResourceRequirements,
    #[serde(deserialize_with = "lenient")]
    restart_policy: String,
}

fn requests(pod: &AskingPod) -> Amounts {
    let mut running = Amounts::new();
    for container in &pod.containers {
        add(&mut running, &container_requests(&container.resources));
    }
    let mut sidecars = Amounts::new();
    let mut starting = Amounts::new();
    for container in &pod.init_containers {
        let requests = container_requests(&container.resources);
        let mut peak = sidecars.clone();
        add(&mut peak, &requests);
        raise(&mut starting, &peak);
        if container.restart_policy == "Always" {
            sidecars = peak;
            add(&mut running, &requests);
        }
    }
    raise(&mut running, &starting);
    add(&mut running, &amounts(&pod.overhead));
    running
}

/// Adds each of `more` to `sum`.
pub fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let entry = sum.entry(name.clone()).or_insert(Quantity::ZERO);
        *entry = entry.plus(*amount);
    }
}

fn raise(highest: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let entry = highest.entry(name.clone()).or_insert(Quantity::ZERO);
        *entry = (*entry).max(*amount);
    }
}

fn container_requests(resources: &ResourceRequirements) -> Amounts {
    let mut requests = amounts(&resources.limits);
    requests.extend(amounts(&resources.requests));
    requests
}
