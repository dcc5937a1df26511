//! What Pods ask of their neighbours: affinity, anti-affinity and spread over the places that Node labels make.
//!
//! Owns the counting of placed Pods by place. Refuses to look at one Node's resources or taints for their own sake:
//! [`filter`](super::filter) does. A Pod is judged once against the whole fleet ([`Neighbours::judge`]); each Node then costs a few
//! map look-ups. Semantics are those of kube-scheduler's InterPodAffinity and PodTopologySpread (KEP-895), with one
//! difference: places where no device is in contact do not hold the fewest Pods, or one silent device would hold up a fleet.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_manifests::kind;
use flotilla_manifests::object::Object;
use flotilla_manifests::workload::{
    self, Affinity, LabelSelector, PodAffinity, PodAffinityTerm, PodSpec, Taint, TopologySpreadConstraint,
    WeightedPodAffinityTerm, placing,
};

use super::{Candidate, Obstacle};
use crate::controllers::View;

type Labels = BTreeMap<String, String>;
/// A place: Node label and value.
type Place = (String, String);

/// The placed Pods, and what they ask themselves.
#[derive(Debug)]
pub(super) struct Neighbours<'a> {
    view: View<'a>,
    placed: Vec<Placed<'a>>,
}

#[derive(Debug)]
struct Placed<'a> {
    pod: &'a Object,
    labels: Labels,
    /// Index of its Node among the candidates.
    node: usize,
    affinity: Affinity,
}

/// How one waiting Pod stands to the whole fleet.
#[derive(Debug, Default)]
pub(super) struct Judgement {
    together: Vec<Together>,
    /// No Pod fulfils any required term, and this one fulfils them all itself: it may be the first of its kind.
    is_first: bool,
    /// Places with a Pod that this one must not be near.
    apart: BTreeSet<Place>,
    /// Places with a Pod that must not be near this one.
    unwelcome: BTreeSet<Place>,
    /// Sum of the weights of preferred terms, this Pod's and its neighbours'.
    preferred: BTreeMap<Place, i64>,
    spreads: Vec<Spread>,
}

/// One required affinity term.
#[derive(Debug)]
struct Together {
    key: String,
    values: BTreeSet<String>,
}

/// One spread constraint.
#[derive(Debug)]
struct Spread {
    key: String,
    is_hard: bool,
    skew_max: i64,
    /// Matching Pods by place.
    counts: BTreeMap<String, i64>,
    fewest: i64,
    /// 1 when the Pod itself matches its constraint.
    own: i64,
}

impl<'a> Neighbours<'a> {
    /// `None` when nobody asks anything of a neighbour, which is the rule in most fleets.
    pub(super) fn survey(view: &View<'a>, waiting: &[&Object], candidates: &[Candidate<'a>]) -> Option<Self> {
        let asks = |pod: &Object| {
            let spec = pod.value().get("spec");
            let has = |path: &str| spec.and_then(|spec| spec.pointer(path)).is_some_and(|value| !value.is_null());
            has("/affinity/podAffinity") || has("/affinity/podAntiAffinity") || has("/topologySpreadConstraints/0")
        };
        let pods_on = |candidate: &Candidate<'a>| {
            view.index.pods_on(candidate.object.name()).filter(|pod| !crate::controllers::pods::is_finished(pod))
        };
        if !waiting.iter().any(|pod| asks(pod)) && !candidates.iter().flat_map(pods_on).any(|pod| asks(pod)) {
            return None;
        }
        let mut neighbours = Self { view: *view, placed: Vec::new() };
        for (node, candidate) in candidates.iter().enumerate() {
            for pod in pods_on(candidate) {
                neighbours.take(pod, node);
            }
        }
        Some(neighbours)
    }

    /// A Pod got its Node.
    pub(super) fn take(&mut self, pod: &'a Object, node: usize) {
        let affinity = workload::view(pod.value().pointer("/spec/affinity"));
        self.placed.push(Placed { pod, labels: pod.labels(), node, affinity });
    }

    /// Weighs a waiting Pod against everything placed.
    pub(super) fn judge(&self, pod: &Object, spec: &PodSpec, candidates: &[Candidate<'_>]) -> Judgement {
        let me = Asking { namespace: pod.namespace(), labels: pod.labels() };
        let mut judgement = Judgement::default();
        let affinity = spec.affinity.clone().unwrap_or_default();
        self.required(&me, &affinity, candidates, &mut judgement);
        self.preferred(&me, &affinity, candidates, &mut judgement);
        judgement.spreads =
            spec.topology_spread_constraints.iter().map(|wish| self.spread(&me, spec, wish, candidates)).collect();
        judgement
    }

    fn required(&self, me: &Asking<'_>, affinity: &Affinity, candidates: &[Candidate<'_>], into: &mut Judgement) {
        // One neighbour has to fulfil all terms at once, as in Kubernetes.
        let together = terms(affinity.pod_affinity.as_ref());
        let means_all =
            |namespace: &str, labels: &Labels| together.iter().all(|term| self.means(me, term, namespace, labels));
        let wanted = || self.placed.iter().filter(|other| means_all(other.pod.namespace(), &other.labels));
        for term in together {
            let values = wanted().filter_map(|other| candidates[other.node].labels.get(&term.topology_key).cloned());
            into.together.push(Together { key: term.topology_key.clone(), values: values.collect() });
        }
        into.is_first = into.together.iter().all(|need| need.values.is_empty()) && means_all(me.namespace, &me.labels);
        for term in terms(affinity.pod_anti_affinity.as_ref()) {
            let matching =
                self.placed.iter().filter(|other| self.means(me, term, other.pod.namespace(), &other.labels));
            into.apart.extend(matching.filter_map(|other| place(&candidates[other.node], &term.topology_key)));
        }
        for other in &self.placed {
            let they = Asking { namespace: other.pod.namespace(), labels: other.labels.clone() };
            let terms = terms(other.affinity.pod_anti_affinity.as_ref());
            let against = terms.iter().filter(|term| self.means(&they, term, me.namespace, &me.labels));
            into.unwelcome.extend(against.filter_map(|term| place(&candidates[other.node], &term.topology_key)));
        }
    }

    /// Preferred terms count both ways, as in Kubernetes: a Pod also likes to be where it is liked.
    fn preferred(&self, me: &Asking<'_>, affinity: &Affinity, candidates: &[Candidate<'_>], into: &mut Judgement) {
        let mut count = |node: usize, key: &str, weight: i64| {
            if let Some(place) = place(&candidates[node], key) {
                *into.preferred.entry(place).or_default() += weight;
            }
        };
        for other in &self.placed {
            for (term, weight) in weighted(affinity) {
                if self.means(me, term, other.pod.namespace(), &other.labels) {
                    count(other.node, &term.topology_key, weight);
                }
            }
            let they = Asking { namespace: other.pod.namespace(), labels: other.labels.clone() };
            for (term, weight) in weighted(&other.affinity) {
                if self.means(&they, term, me.namespace, &me.labels) {
                    count(other.node, &term.topology_key, weight);
                }
            }
        }
    }

    fn spread(
        &self,
        me: &Asking<'_>,
        spec: &PodSpec,
        wish: &TopologySpreadConstraint,
        candidates: &[Candidate<'_>],
    ) -> Spread {
        let matches = |labels: &Labels| {
            wish.label_selector.as_ref().is_some_and(|selector| selector.matches(labels))
                && wish.match_label_keys.iter().all(|key| match me.labels.get(key) {
                    Some(value) => labels.get(key) == Some(value),
                    None => true,
                })
        };
        // A Node counts when it has every label the hard constraints speak of: others can never be used.
        let hard = || spec.topology_spread_constraints.iter().filter(|one| one.is_hard());
        let counts_in = |candidate: &Candidate<'_>| {
            (!wish.is_hard() || hard().all(|one| candidate.labels.contains_key(&one.topology_key)))
                && (wish.node_affinity_policy == "Ignore" || placing::unmatched(spec, candidate.object).is_none())
                && (wish.node_taints_policy != "Honor" || tolerates_all(spec, &candidate.taints))
        };
        let mut counts: BTreeMap<String, i64> = BTreeMap::new();
        let mut in_contact: BTreeSet<&String> = BTreeSet::new();
        let counted: Vec<bool> = candidates.iter().map(counts_in).collect();
        for (candidate, _) in candidates.iter().zip(&counted).filter(|(_, counted)| **counted) {
            if let Some(value) = candidate.labels.get(&wish.topology_key) {
                counts.entry(value.clone()).or_default();
                if candidate.ready {
                    in_contact.insert(value);
                }
            }
        }
        for other in self.placed.iter().filter(|other| counted[other.node]) {
            let going = other.pod.deletion_timestamp().is_some();
            if !going && other.pod.namespace() == me.namespace && matches(&other.labels) {
                let value = candidates[other.node].labels.get(&wish.topology_key);
                if let Some(count) = value.and_then(|value| counts.get_mut(value)) {
                    *count += 1;
                }
            }
        }
        let too_few_places = wish.min_domains.is_some_and(|least| i64::try_from(counts.len()).is_ok_and(|n| n < least));
        let fewest = counts.iter().filter(|(value, _)| in_contact.contains(value)).map(|(_, count)| *count).min();
        Spread {
            key: wish.topology_key.clone(),
            is_hard: wish.is_hard(),
            skew_max: wish.max_skew,
            fewest: if too_few_places { 0 } else { fewest.unwrap_or(0) },
            counts,
            own: i64::from(matches(&me.labels)),
        }
    }

    /// Whether a term of the asking Pod means a Pod with these labels in that namespace.
    fn means(&self, asking: &Asking<'_>, term: &PodAffinityTerm, namespace: &str, labels: &Labels) -> bool {
        let Some(selector) = &term.label_selector else { return false };
        let said = |key: &String| asking.labels.get(key);
        self.speaks_of(asking, term, namespace)
            && selector.matches(labels)
            && term.match_label_keys.iter().all(|key| said(key).is_none_or(|value| labels.get(key) == Some(value)))
            && term.mismatch_label_keys.iter().all(|key| said(key).is_none_or(|value| labels.get(key) != Some(value)))
    }

    fn speaks_of(&self, asking: &Asking<'_>, term: &PodAffinityTerm, namespace: &str) -> bool {
        if term.namespaces.is_empty() && term.namespace_selector.is_none() {
            return namespace == asking.namespace;
        }
        term.namespaces.iter().any(|one| one == namespace)
            || term.namespace_selector.as_ref().is_some_and(|selector| self.namespace_has(namespace, selector))
    }

    fn namespace_has(&self, namespace: &str, selector: &LabelSelector) -> bool {
        let key = flotilla_manifests::object::ObjectKey::of(&kind::NAMESPACE, "", namespace);
        selector.is_empty() || self.view.index.get(&key).is_some_and(|object| selector.matches(&object.labels()))
    }
}

/// Whose wish it is.
struct Asking<'a> {
    namespace: &'a str,
    labels: Labels,
}

impl Judgement {
    /// What keeps the Pod from a Node, in the order in which Kubernetes looks.
    pub(super) fn obstacle(&self, labels: &Labels) -> Option<Obstacle> {
        let is_at = |(key, value): &Place| labels.get(key) == Some(value);
        let has = |need: &Together| labels.get(&need.key).is_some_and(|value| need.values.contains(value));
        for spread in self.spreads.iter().filter(|spread| spread.is_hard) {
            let Some(value) = labels.get(&spread.key) else { return Some(Obstacle::SpreadLabel) };
            if spread.with_it(value) - spread.fewest > spread.skew_max {
                return Some(Obstacle::Spread);
            }
        }
        if self.unwelcome.iter().any(is_at) {
            return Some(Obstacle::ExistingAntiAffinity);
        }
        if self.apart.iter().any(is_at) {
            return Some(Obstacle::AntiAffinity);
        }
        let may_be_first = || self.is_first && self.together.iter().all(|need| labels.contains_key(&need.key));
        (!self.together.iter().all(has) && !may_be_first()).then_some(Obstacle::PodAffinity)
    }

    /// Sum of the weights that speak for a Node.
    pub(super) fn preferred(&self, labels: &Labels) -> i64 {
        let is_at = |place: &Place| labels.get(&place.0) == Some(&place.1);
        self.preferred.iter().filter(|(place, _)| is_at(place)).map(|(_, weight)| *weight).sum()
    }

    /// How uneven the soft constraints would find the Node, beyond what they allow. A Node without their label is the worst.
    pub(super) fn unevenness(&self, labels: &Labels) -> i64 {
        let soft = self.spreads.iter().filter(|spread| !spread.is_hard);
        soft.map(|spread| match labels.get(&spread.key) {
            Some(value) => (spread.with_it(value) - spread.fewest).max(0),
            None => i64::from(u16::MAX),
        })
        .sum()
    }
}

impl Spread {
    fn with_it(&self, value: &str) -> i64 {
        self.counts.get(value).copied().unwrap_or(0) + self.own
    }
}

fn terms(affinity: Option<&PodAffinity>) -> &[PodAffinityTerm] {
    affinity.map_or(&[], |affinity| &affinity.required)
}

/// Preferred terms, those of anti-affinity with a negative weight.
fn weighted(affinity: &Affinity) -> impl Iterator<Item = (&PodAffinityTerm, i64)> {
    let liked = preferred_terms(affinity.pod_affinity.as_ref()).iter();
    let disliked = preferred_terms(affinity.pod_anti_affinity.as_ref()).iter();
    let liked = liked.map(|one| (&one.pod_affinity_term, one.weight));
    liked.chain(disliked.map(|one| (&one.pod_affinity_term, -one.weight)))
}

fn preferred_terms(affinity: Option<&PodAffinity>) -> &[WeightedPodAffinityTerm] {
    affinity.map_or(&[], |affinity| &affinity.preferred)
}

fn place(candidate: &Candidate<'_>, key: &str) -> Option<Place> {
    candidate.labels.get(key).map(|value| (key.to_owned(), value.clone()))
}

fn tolerates_all(spec: &PodSpec, taints: &[Taint]) -> bool {
    placing::untolerated(&spec.tolerations, taints, &["NoSchedule", "NoExecute"]).is_none()
}
