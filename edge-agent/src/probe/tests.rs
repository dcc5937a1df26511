use serde_json::{Value, json};

use super::machine::{Check, Machine, Probe};

fn probe(probe: Value) -> Probe {
    let container = json!({"ports": [{"name": "web", "containerPort": 8080}], "readinessProbe": probe});
    Probe::of(&container, "readinessProbe").unwrap()
}

#[test]
fn kubernetes_defaults_and_named_ports() {
    let read = probe(json!({"httpGet": {"port": "web", "path": "/ok", "httpHeaders": [{"name": "A", "value": "b"}]}}));
    let check = Check::Http { host: None, port: 8080, path: "/ok".into(), headers: vec![("A".into(), "b".into())] };
    let expected = Probe {
        check,
        initial_delay_ms: 0,
        period_ms: 10_000,
        timeout_ms: 1_000,
        success_threshold: 1,
        failure_threshold: 3,
    };
    assert_eq!(read, expected);
    assert_eq!(probe(json!({"tcpSocket": {"port": 9}, "periodSeconds": 0})).period_ms, 10_000, "0 means the default");
    assert_eq!(probe(json!({"exec": {"command": ["true"]}})).check, Check::Exec(vec!["true".into()]));
    assert!(Probe::of(&json!({}), "livenessProbe").is_none());
}

#[test]
fn what_cannot_be_run_says_why() {
    for (given, said) in [
        (json!({"tcpSocket": {"port": "gone"}}), "\"gone\" names no port"),
        (json!({"tcpSocket": {"port": 0}}), "0 names no port"),
        (json!({"exec": {"command": []}}), "command is empty"),
        (json!({"grpc": {"port": 1}}), "exec, httpGet and tcpSocket"),
        (json!({"httpGet": {"port": 1, "path": "/a\r\nEvil: 1"}}), "control character"),
    ] {
        let Check::Unusable(why) = probe(given).check else { panic!("usable") };
        assert!(why.contains(said), "{why}");
    }
}

/// Results in order -> verdict and the time the next probe is due, after each.
fn check(given: Value, results: &[bool], expected: &[(Option<bool>, u64)]) {
    let mut machine = Machine::starting(probe(given), 1_000);
    let mut seen = Vec::new();
    for &result in results {
        let (before, at) = (machine.verdict(), machine.due_ms());
        let changed = machine.record(result, at);
        assert_eq!(changed, before != machine.verdict());
        seen.push((machine.verdict(), machine.due_ms()));
    }
    assert_eq!(seen, expected);
}

#[test]
fn thresholds_count_in_a_row() {
    let given = json!({"tcpSocket": {"port": 1}, "initialDelaySeconds": 2, "periodSeconds": 5, "failureThreshold": 2,
        "successThreshold": 2});
    let results = [true, false, true, true, false, true, false, false, true, true];
    let expected = [
        (None, 8_000),
        (None, 13_000),
        (None, 18_000),
        (Some(true), 23_000),
        (Some(true), 28_000),
        (Some(true), 33_000),
        (Some(true), 38_000),
        (Some(false), 43_000),
        (Some(false), 48_000),
        (Some(true), 53_000),
    ];
    check(given, &results, &expected);
}

#[test]
fn a_slow_probe_does_not_run_twice_to_catch_up() {
    let mut machine = Machine::starting(probe(json!({"tcpSocket": {"port": 1}, "periodSeconds": 1})), 0);
    machine.record(true, 60_000);
    assert_eq!(machine.due_ms(), 61_000);
    machine.hold_until(90_000);
    assert_eq!(machine.due_ms(), 90_000);
}
