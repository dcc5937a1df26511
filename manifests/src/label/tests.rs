#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;
use serde_json::json;

use super::field::FieldSelector;
use super::*;
use crate::kind;

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn query_selectors_match_as_kubernetes_documents() {
    let web = labels(&[("app", "web"), ("tier", "front"), ("example.com/rank", "7"), ("empty", "")]);
    let table = [
        ("", true),
        ("  ", true),
        ("app=web", true),
        ("app==web", true),
        (" app = web , tier=front ", true),
        ("app=db", false),
        ("app!=db", true),
        ("app!=web", false),
        ("gone!=x", true),
        ("app", true),
        ("gone", false),
        ("!gone", true),
        ("! gone", true),
        ("!app", false),
        ("app in (db,web)", true),
        ("app in(db,web),tier", true),
        ("app in (db)", false),
        ("gone in (db)", false),
        ("app notin (db)", true),
        ("app notin (web, db)", false),
        ("gone notin (db)", true),
        ("empty=", true),
        ("empty=,app=web", true),
        ("empty in (,x)", true),
        ("empty in (x,)", true),
        ("empty in ()", true),
        ("app=", false),
        ("example.com/rank>6", true),
        ("example.com/rank > 7", false),
        ("example.com/rank<8,app", true),
        ("app>1", false),
        ("gone<1", false),
        ("in=x", false),
        ("notin", false),
    ];
    for (text, expected) in table {
        let selector = Selector::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(selector.matches(&web), expected, "{text}");
        let again = Selector::parse(&selector.to_string()).unwrap();
        assert_eq!(again, selector, "{text} printed as {selector}");
    }
}

#[test]
fn bad_query_selectors_are_refused_with_the_place() {
    let table = [
        ("=x", "found '=', expected: identifier"),
        ("a=b,", "expected: identifier after ','"),
        (",a", "found ',', expected: identifier"),
        ("a b", "found 'b', expected: in, notin"),
        ("a in b", "found 'b' expected: '('"),
        ("a in (b", "found '', expected: ',' or ')'"),
        ("a in (b c)", "found 'c', expected: ',' or ')'"),
        ("a==b=c", "found '=', expected: ','"),
        ("a>b", "must be an integer"),
        ("-a=b", "name part must consist"),
        ("a/b/c", "a qualified name must consist"),
        ("a=-b", "a valid label must be"),
        ("!a=b", "found '=', expected: ','"),
        ("!", "found '', expected: identifier"),
        ("é=1", "name part must consist"),
    ];
    for (text, expected) in table {
        let error = Selector::parse(text).unwrap_err();
        assert_eq!(error.reason, Reason::BadRequest);
        assert!(error.message.contains(expected), "{text}: {error}");
    }
    assert!(Selector::parse(&"a,".repeat(10_000)).unwrap_err().message.contains("longer than"));
    assert!(Selector::parse(&vec!["a"; 2_000].join(",")).unwrap_err().message.contains("requirements"));
    assert!(
        Selector::parse(&format!("a in ({})", vec!["b"; 2_000].join(","))).unwrap_err().message.contains("values of")
    );
}

#[test]
fn json_selectors_match() {
    let web = labels(&[("app", "web"), ("tier", "front")]);
    let table = [
        (None, false),
        (Some(json!(null)), false),
        (Some(json!({})), true),
        (Some(json!({"matchLabels": {"app": "web"}})), true),
        (Some(json!({"matchLabels": {"app": "web", "tier": "back"}})), false),
        (Some(json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["web", "db"]}]})), true),
        (Some(json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]})), false),
        (Some(json!({"matchExpressions": [{"key": "gone", "operator": "DoesNotExist"}]})), true),
        (
            Some(
                json!({"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "tier", "operator": "Exists", "values": []}]}),
            ),
            true,
        ),
    ];
    for (value, expected) in table {
        let selector = Selector::of_json(value.as_ref(), "spec.selector").unwrap();
        assert_eq!(selector.matches(&web), expected, "{value:?}");
    }
    assert!(Selector::of_json(Some(&json!({})), "s").unwrap().is_everything());
    assert!(Selector::nothing().is_empty() && !Selector::nothing().is_everything());
}

#[test]
fn all_faults_of_a_json_selector_are_named() {
    let value = json!({
        "matchLabels": {"-": "ok", "app": "no way"},
        "matchExpressions": [
            {"key": "a", "operator": "In"},
            {"key": "a", "operator": "Exists", "values": ["x"]},
            {"key": "a", "operator": "Gt", "values": ["1"]},
            {"key": "", "operator": "Like"},
        ],
    });
    let faults = Selector::of_json(Some(&value), "spec.selector").unwrap_err();
    let mut fields: Vec<&str> = faults.iter().map(|fault| fault.field.as_str()).collect();
    fields.sort_unstable();
    assert_eq!(
        fields,
        [
            "spec.selector.matchExpressions[0].values",
            "spec.selector.matchExpressions[1].values",
            "spec.selector.matchExpressions[2].operator",
            "spec.selector.matchExpressions[3].key",
            "spec.selector.matchExpressions[3].operator",
            "spec.selector.matchLabels",
            "spec.selector.matchLabels",
        ]
    );
}

#[test]
fn node_affinity_expressions_compare_integers() {
    let more = Requirement::of_json(&json!({"key": "cores", "operator": "Gt", "values": ["3"]}), "f").unwrap();
    assert!(more.matches(Some("4")) && !more.matches(Some("3")) && !more.matches(None) && !more.matches(Some("many")));
    for values in [json!([]), json!(["1", "2"]), json!(["x"])] {
        assert!(
            Requirement::of_json(&json!({"key": "a", "operator": "Lt", "values": values}), "f").is_err(),
            "{values}"
        );
    }
}

#[test]
fn names_follow_rfc_1123() {
    for good in ["a", "a-b", "a.b-c.d1", "0"] {
        assert_eq!(syntax::dns_subdomain(good), Ok(()), "{good}");
    }
    for bad in ["", "A", "a_b", "-a", "a-", "a..b", ".a", "a.", "é", "a.-b"] {
        assert!(syntax::dns_subdomain(bad).is_err(), "{bad}");
    }
    assert!(syntax::dns_label("a.b").is_err());
    assert!(syntax::dns_label(&"a".repeat(63)).is_ok() && syntax::dns_label(&"a".repeat(64)).is_err());
    assert!(syntax::dns_subdomain(&"a".repeat(254)).is_err());
    for good in ["app", "App_1.x", "example.com/app", "a/b"] {
        assert_eq!(syntax::qualified_name(good), Ok(()), "{good}");
    }
    for bad in ["", "/a", "a/", "a/b/c", "Example.com/a", "a b", "-a", &"a".repeat(64)] {
        assert!(syntax::qualified_name(bad).is_err(), "{bad}");
    }
    assert!(
        syntax::label_value("").is_ok() && syntax::label_value("a b").is_err() && syntax::label_value("a.").is_err()
    );
}

#[test]
fn fields_select_what_kubernetes_lets_them() {
    let pod = Object::parse(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"nodeName": "n1", "restartPolicy": "Always"}, "status": {"phase": "Running"},
    }))
    .unwrap();
    let table = [
        ("", true),
        ("metadata.name=web", true),
        ("metadata.name==web,metadata.namespace=default", true),
        ("metadata.name!=web", false),
        ("status.phase!=Failed,spec.nodeName=n1", true),
        ("spec.nodeName=", false),
        ("status.podIP=", true),
        ("spec.hostNetwork=false", true),
        ("metadata.name=we\\,b", false),
    ];
    for (text, expected) in table {
        let selector = FieldSelector::parse(text, &kind::POD).unwrap();
        assert_eq!(selector.matches(&pod), expected, "{text}");
        assert_eq!(FieldSelector::parse(&selector.to_string(), &kind::POD).unwrap(), selector);
    }
    let event = Object::parse(json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e", "namespace": "default"},
        "involvedObject": {"kind": "Pod", "name": "web", "fieldPath": "spec.containers{app}"},
        "source": {"component": "agent"}, "type": "Warning",
    }))
    .unwrap();
    let text = "involvedObject.name=web,involvedObject.fieldPath=spec.containers{app},source=agent,type!=Normal";
    assert!(FieldSelector::parse(text, &kind::EVENT).unwrap().matches(&event));
    let node = Object::empty(&kind::NODE, "", "n1");
    assert!(FieldSelector::parse("spec.unschedulable=false", &kind::NODE).unwrap().matches(&node));
    assert_eq!(FieldSelector::parse("metadata.name=n1", &kind::NODE).unwrap().required("metadata.name"), Some("n1"));

    for (text, expected) in [
        ("spec.image=x", "field label not supported: spec.image"),
        ("metadata.name", "can't understand"),
        ("metadata.name=a=b", "unescaped character"),
        ("metadata.name=a\\x", "invalid escape"),
        ("status.phase!Running", "can't understand"),
    ] {
        let error = FieldSelector::parse(text, &kind::POD).unwrap_err();
        assert!(error.message.contains(expected), "{text}: {error}");
    }
    assert!(FieldSelector::parse("spec.nodeName=n1", &kind::CONFIG_MAP).is_err());
}

proptest! {
    #[test]
    fn no_selector_text_panics(text in "[-a-z0-9=!,()<> /._\\\\é]{0,40}") {
        if let Ok(selector) = Selector::parse(&text) {
            prop_assert_eq!(Selector::parse(&selector.to_string()).unwrap(), selector);
        }
        drop(FieldSelector::parse(&text, &kind::POD));
    }

    #[test]
    fn negations_are_opposites(key in "[a-c]", value in "[a-c]", pairs in prop::collection::btree_map("[a-c]", "[a-c]", 0..3)) {
        for (yes, no) in [(format!("{key}={value}"), format!("{key}!={value}")), (key.clone(), format!("!{key}")),
            (format!("{key} in ({value},x)"), format!("{key} notin ({value},x)"))] {
            prop_assert_ne!(Selector::parse(&yes).unwrap().matches(&pairs), Selector::parse(&no).unwrap().matches(&pairs));
        }
    }
}
