//! Affinity to Pods, spread and priority.

use super::*;

const SITE: &str = "flotilla.dev/site";

/// A fleet of nodes, each at a site: `north-0`, `north-1`, `south-0`, ...
fn fleet(sites: &[(&str, usize)]) -> State {
    let mut state = State::at(10_000_000);
    for (site, count) in sites {
        for index in 0..*count {
            let name = format!("{site}-{index}");
            state.node(&name);
            node_edit(&mut state, &name, |node| {
                node["metadata"]["labels"] = json!({"kubernetes.io/hostname": name, SITE: site})
            });
        }
    }
    state
}

fn labelled(state: &mut State, name: &str, labels: Value, spec: Value) {
    pod(state, name, spec);
    state.edit(&key(&kind::POD, name), |pod| pod["metadata"]["labels"] = labels);
}

fn near(app: &str, topology_key: &str) -> Value {
    json!([{"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": topology_key}])
}

fn required(field: &str, terms: &Value) -> Value {
    json!({"affinity": {field: {"requiredDuringSchedulingIgnoredDuringExecution": terms}}})
}

fn preferred(field: &str, weight: i64, term: &Value) -> Value {
    json!({"affinity": {field: {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": weight, "podAffinityTerm": term}]}}})
}

fn spread(skew: i64, key: &str, when: &str) -> Value {
    json!({"topologySpreadConstraints": [
        {"maxSkew": skew, "topologyKey": key, "whenUnsatisfiable": when, "labelSelector": {"matchLabels": {"app": "web"}}}]})
}

#[test]
fn affinity_goes_where_the_neighbour_is_and_waits_for_one() {
    let mut state = fleet(&[("north", 2), ("south", 2)]);
    labelled(&mut state, "web", json!({"app": "web"}), required("podAffinity", &near("cache", SITE)));
    run(&mut state);
    assert_eq!(why(&state, "web"), "0/4 nodes are available: 4 node(s) didn't match pod affinity rules.");
    labelled(
        &mut state,
        "cache",
        json!({"app": "cache"}),
        json!({"nodeSelector": {"kubernetes.io/hostname": "south-1"}}),
    );
    run(&mut state);
    run(&mut state);
    assert_eq!(node_of(&state, "web"), "south-0", "the same site, and the emptier node of it");
}

#[test]
fn the_first_of_its_kind_may_go_anywhere_and_the_rest_follows_it() {
    let mut state = fleet(&[("north", 2), ("south", 2)]);
    for name in ["a", "b", "c"] {
        labelled(&mut state, name, json!({"app": "web"}), required("podAffinity", &near("web", SITE)));
    }
    run(&mut state);
    let nodes = ["a", "b", "c"].map(|name| node_of(&state, name));
    assert_eq!(nodes, ["north-0", "north-1", "north-0"]);
}

#[test]
fn one_neighbour_has_to_fulfil_all_terms() {
    let mut state = fleet(&[("north", 1), ("south", 1)]);
    labelled(&mut state, "one", json!({"app": "web"}), json!({"nodeName": "north-0"}));
    labelled(&mut state, "two", json!({"tier": "x"}), json!({"nodeName": "north-0"}));
    let terms = json!([{"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": SITE},
        {"labelSelector": {"matchLabels": {"tier": "x"}}, "topologyKey": SITE}]);
    labelled(&mut state, "p", json!({}), required("podAffinity", &terms));
    run(&mut state);
    assert_eq!(node_of(&state, "p"), "");
    labelled(&mut state, "both", json!({"app": "web", "tier": "x"}), json!({"nodeName": "south-0"}));
    run(&mut state);
    assert_eq!(node_of(&state, "p"), "south-0");
}

#[test]
fn anti_affinity_holds_both_ways() {
    let mut state = fleet(&[("north", 2)]);
    let apart = required("podAntiAffinity", &near("web", "kubernetes.io/hostname"));
    for name in ["a", "b", "c"] {
        labelled(&mut state, name, json!({"app": "web"}), apart.clone());
    }
    run(&mut state);
    assert_eq!(["a", "b", "c"].map(|name| node_of(&state, name)), ["north-0", "north-1", ""]);
    assert_eq!(
        why(&state, "c"),
        "0/2 nodes are available: 2 node(s) didn't satisfy existing pods anti-affinity rules."
    );
    // One that asks for nothing is kept away by those who do not want it near, in its own namespace only.
    labelled(&mut state, "plain", json!({"app": "web"}), json!({}));
    labelled(&mut state, "other", json!({"app": "db"}), json!({}));
    run(&mut state);
    assert_eq!((node_of(&state, "plain").as_str(), node_of(&state, "other").as_str()), ("", "north-0"));
    labelled(
        &mut state,
        "lonely",
        json!({"app": "x"}),
        required("podAntiAffinity", &near("db", "kubernetes.io/hostname")),
    );
    run(&mut state);
    assert_eq!(node_of(&state, "lonely"), "north-1");
}

#[test]
fn namespaces_of_a_term_are_kept() {
    let mut state = fleet(&[("north", 1), ("south", 1)]);
    state.put(parse(
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "bank", "labels": {"team": "money"}}}),
    ));
    state.put(parse(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "db", "namespace": "bank", "labels": {"app": "db"}},
        "spec": {"nodeName": "south-0", "containers": [{"name": "c", "image": "c"}]}})));
    let term = |extra: Value| {
        let mut term = near("db", SITE);
        for (field, value) in extra.as_object().unwrap() {
            term[0][field] = value.clone();
        }
        required("podAffinity", &term)
    };
    for (name, extra, node) in [
        ("own", json!({}), ""),
        ("named", json!({"namespaces": ["bank"]}), "south-0"),
        ("selected", json!({"namespaceSelector": {"matchLabels": {"team": "money"}}}), "south-0"),
        ("others", json!({"namespaceSelector": {"matchLabels": {"team": "art"}}}), ""),
        ("all", json!({"namespaceSelector": {}}), "south-0"),
    ] {
        labelled(&mut state, name, json!({}), term(extra));
        run(&mut state);
        assert_eq!(node_of(&state, name), node, "{name}");
    }
}

#[test]
fn preferences_decide_among_the_possible() {
    let mut state = fleet(&[("north", 1), ("south", 1)]);
    labelled(&mut state, "db", json!({"app": "db"}), json!({"nodeName": "north-0"}));
    labelled(&mut state, "shy", json!({"app": "shy"}), preferred("podAntiAffinity", 100, &near("db", SITE)[0]));
    labelled(&mut state, "fond", json!({"app": "fond"}), preferred("podAffinity", 10, &near("db", SITE)[0]));
    run(&mut state);
    assert_eq!((node_of(&state, "shy").as_str(), node_of(&state, "fond").as_str()), ("south-0", "north-0"));
    // Liked by one that is there: a Pod of the kind that `fond` is fond of, without wishes of its own.
    labelled(&mut state, "db-2", json!({"app": "db"}), json!({}));
    run(&mut state);
    assert_eq!(node_of(&state, "db-2"), "north-0");
}

#[test]
fn a_hard_spread_keeps_places_even() {
    let mut state = fleet(&[("north", 3), ("south", 1)]);
    state.node("nowhere");
    for index in 0..6 {
        labelled(&mut state, &format!("w-{index}"), json!({"app": "web"}), spread(1, SITE, "DoNotSchedule"));
    }
    run(&mut state);
    let south = (0..6).filter(|index| node_of(&state, &format!("w-{index}")) == "south-0").count();
    assert_eq!(south, 3, "three at either site, though one has a single node");
    node_edit(&mut state, "south-0", |node| node["spec"]["unschedulable"] = true.into());
    for name in ["more", "most"] {
        labelled(&mut state, name, json!({"app": "web"}), spread(1, SITE, "DoNotSchedule"));
    }
    run(&mut state);
    assert!(node_of(&state, "more").starts_with("north"), "one more than elsewhere is allowed");
    assert_eq!(
        why(&state, "most"),
        "0/5 nodes are available: 1 node(s) didn't match pod topology spread constraints (missing required label), \
         1 node(s) were unschedulable, 3 node(s) didn't match pod topology spread constraints."
    );
}

#[test]
fn a_silent_place_does_not_hold_the_others_up() {
    let mut state = fleet(&[("north", 1), ("south", 1)]);
    state.silence("south-0");
    for name in ["a", "b", "c"] {
        labelled(&mut state, name, json!({"app": "web"}), spread(1, SITE, "DoNotSchedule"));
    }
    run(&mut state);
    assert_eq!(["a", "b", "c"].map(|name| node_of(&state, name)), ["north-0", "north-0", "north-0"]);
}

#[test]
fn too_few_places_count_as_an_empty_one() {
    let mut state = fleet(&[("north", 1), ("south", 1)]);
    let mut wish = spread(1, SITE, "DoNotSchedule");
    wish["topologySpreadConstraints"][0]["minDomains"] = 3.into();
    for name in ["a", "b", "c"] {
        labelled(&mut state, name, json!({"app": "web"}), wish.clone());
    }
    run(&mut state);
    assert_eq!(["a", "b", "c"].map(|name| node_of(&state, name)), ["north-0", "south-0", ""]);
}

#[test]
fn a_soft_spread_prefers_and_never_refuses() {
    let mut state = fleet(&[("north", 2), ("south", 1)]);
    for index in 0..4 {
        labelled(&mut state, &format!("w-{index}"), json!({"app": "web"}), spread(1, SITE, "ScheduleAnyway"));
    }
    run(&mut state);
    let south = (0..4).filter(|index| node_of(&state, &format!("w-{index}")) == "south-0").count();
    assert_eq!(south, 2);
    node_edit(&mut state, "south-0", |node| node["spec"]["unschedulable"] = true.into());
    for index in 4..8 {
        labelled(&mut state, &format!("w-{index}"), json!({"app": "web"}), spread(1, SITE, "ScheduleAnyway"));
    }
    run(&mut state);
    assert!((4..8).all(|index| node_of(&state, &format!("w-{index}")).starts_with("north")));
}

#[test]
fn only_pods_with_the_same_value_of_a_key_are_counted() {
    let mut state = fleet(&[("north", 1), ("south", 1)]);
    let mut wish = spread(1, SITE, "DoNotSchedule");
    wish["topologySpreadConstraints"][0]["matchLabelKeys"] = json!(["version"]);
    for name in ["old-1", "old-2"] {
        labelled(&mut state, name, json!({"app": "web", "version": "1"}), json!({"nodeName": "north-0"}));
    }
    labelled(&mut state, "new", json!({"app": "web", "version": "2"}), wish);
    run(&mut state);
    assert_eq!(node_of(&state, "new"), "south-0", "no version 2 anywhere: the emptiest");
}

#[test]
fn higher_priority_goes_first_and_displaces_nobody() {
    let mut state = fleet(&[("north", 1)]);
    for (name, priority) in [("low", 0), ("high", 1000), ("mid", 10)] {
        let mut spec = requests("2", "1Gi");
        spec["priority"] = priority.into();
        pod(&mut state, name, spec);
    }
    run(&mut state);
    assert_eq!(["high", "mid", "low"].map(|name| node_of(&state, name)), ["north-0", "north-0", ""]);
    let mut spec = requests("2", "1Gi");
    spec["priority"] = 1_000_000.into();
    pod(&mut state, "highest", spec);
    run(&mut state);
    assert_eq!(why(&state, "highest"), "0/1 nodes are available: 1 Insufficient cpu.");
}
