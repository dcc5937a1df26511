//! What a Pod asks for and what a Node has.

use std::collections::BTreeMap;

use super::{Container, PodSpec};
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
    let mut running = Amounts::new();
    for container in &spec.containers {
        add(&mut running, &container_requests(container));
    }
    let mut sidecars = Amounts::new();
    let mut starting = Amounts::new();
    for container in &spec.init_containers {
        let requests = container_requests(container);
        let mut peak = sidecars.clone();
        add(&mut peak, &requests);
        raise(&mut starting, &peak);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars = peak;
            add(&mut running, &requests);
        }
    }
    raise(&mut running, &starting);
    add(&mut running, &amounts(&spec.overhead));
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

fn container_requests(container: &Container) -> Amounts {
    let mut requests = amounts(&container.resources.limits);
    requests.extend(amounts(&container.resources.requests));
    requests
}
