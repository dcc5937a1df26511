use serde_json::{Value, json};

use super::*;

fn yaml(text: &str) -> Value {
    value(text.as_bytes(), Format::Yaml).unwrap().value
}

fn failure(text: &str, format: Format) -> String {
    value(text.as_bytes(), format).unwrap_err().to_string()
}

#[test]
fn plain_scalars_follow_kubernetes() {
    for (text, expected) in [
        ("0644", json!(420)),
        ("0o644", json!(420)),
        ("0x1F", json!(31)),
        ("-12", json!(-12)),
        ("1_000", json!(1000)),
        ("09", json!(9.0)),
        ("1.5", json!(1.5)),
        ("1e3", json!(1000.0)),
        ("18446744073709551615", json!(18_446_744_073_709_551_615_u64)),
        ("yes", json!(true)),
        ("Off", json!(false)),
        ("true", json!(true)),
        ("~", json!(null)),
        ("", json!(null)),
        ("'yes'", json!("yes")),
        ("\"1\"", json!("1")),
        ("100m", json!("100m")),
        ("64Mi", json!("64Mi")),
        ("25%", json!("25%")),
        ("1.2.3", json!("1.2.3")),
        ("2026-11-21T07:30:53Z", json!("2026-11-21T07:30:53Z")),
        ("1e", json!("1e")),
        ("!!str 12", json!("12")),
        ("!!int '12'", json!(12)),
        ("nginx:1.27", json!("nginx:1.27")),
        ("-D", json!("-D")),
        ("0x", json!("0x")),
    ] {
        assert_eq!(yaml(&format!("a: {text}\n"))["a"], expected, "{text}");
    }
}

#[test]
fn structure_anchors_and_merge_keys() {
    let text = "
base: &base {a: 1, b: [1, 2]}
copy: *base
merged:
  <<: *base
  a: 2
many:
  <<: [*base, {c: 3, a: 9}]
text: |
  line
  line
folded: >-
  one
  two
8080: number
on: word
";
    assert_eq!(
        yaml(text),
        json!({
            "base": {"a": 1, "b": [1, 2]}, "copy": {"a": 1, "b": [1, 2]}, "merged": {"a": 2, "b": [1, 2]},
            "many": {"a": 1, "b": [1, 2], "c": 3}, "text": "line\nline\n", "folded": "one two", "8080": "number", "on": "word",
        })
    );
}

#[test]
fn duplicates_are_told_and_the_last_counts() {
    let found = value(b"{\"spec\": {\"a\": 1, \"list\": [{\"b\": 1, \"b\": 2}], \"a\": 3}}", Format::Json).unwrap();
    assert_eq!(found.value, json!({"spec": {"a": 3, "list": [{"b": 2}]}}));
    assert_eq!(found.duplicates, ["duplicate field \"spec.list[0].b\"", "duplicate field \"spec.a\""]);
    let found = value(b"spec:\n  a: 1\n  a: 2\n", Format::Yaml).unwrap();
    assert_eq!(found.value, json!({"spec": {"a": 2}}));
    let long = format!("{{\"{0}\": 1, \"{0}\": 2}}", "x".repeat(100_000));
    assert!(value(long.as_bytes(), Format::Json).unwrap().duplicates[0].len() < 1100);
    assert_eq!(found.duplicates, ["line 3: key \"a\" already set in map"]);
}

#[test]
fn bad_syntax_says_where() {
    for (text, format, expected) in [
        ("{\"a\": }", Format::Json, "invalid JSON: expected value at line 1 column 7"),
        ("{} {}", Format::Json, "invalid JSON: trailing characters at line 1 column 4"),
        ("", Format::Json, "the body is empty"),
        ("# nothing\n", Format::Yaml, "the body is empty"),
        ("a: 1\n---\nb: 2\n", Format::Yaml, "the body has more than one document where one is expected"),
        ("a: .nan", Format::Yaml, "JSON has no NaN at line 1 column 4"),
        ("a: !!binary aGk=", Format::Yaml, "the tag !!binary is not supported at line 1 column 4"),
        ("? [a]\n: b", Format::Yaml, "a list or map cannot be a key at line 1 column 3"),
        ("a: !local b", Format::Yaml, "the tag !local is not supported"),
        ("a: \n<<: 3", Format::Yaml, "`<<` needs a map or a list of maps"),
    ] {
        let found = failure(text, format);
        assert!(found.starts_with(expected), "{text:?}: {found}");
    }
    let found = failure("a: [1\nb: 2", Format::Yaml);
    assert!(found.starts_with("invalid YAML: ") && found.contains("line 2"), "{found}");
}

#[test]
fn limits_hold() {
    let large = vec![b' '; BODY_BYTES_MAX + 1];
    assert_eq!(
        value(&large, Format::Json).unwrap_err().to_string(),
        "request entity too large: limit is 3145728, the body has 3145729 bytes"
    );
    for format in [Format::Json, Format::Yaml] {
        let deep = "[".repeat(DEPTH_MAX + 1);
        assert!(matches!(value(deep.as_bytes(), format), Err(DecodeError::TooDeep { .. })), "{format:?}");
        let fine = format!("{}1{}", "[".repeat(DEPTH_MAX), "]".repeat(DEPTH_MAX));
        assert!(value(fine.as_bytes(), format).is_ok(), "{format:?}");
    }
    let mut laughs = String::from("a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n");
    for level in 1..12 {
        let aliases = vec![format!("*a{}", level - 1); 9].join(", ");
        laughs.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
    }
    assert!(matches!(value(laughs.as_bytes(), Format::Yaml), Err(DecodeError::TooExpanded { .. })));
    let many = "---\na: 1\n".repeat(DOCUMENTS_MAX + 1);
    assert!(matches!(documents(many.as_bytes(), Format::Yaml), Err(DecodeError::TooManyDocuments { .. })));
}

#[test]
fn a_manifest_file_is_a_list_of_objects() {
    let text = "
# comment
---
apiVersion: v1
kind: ConfigMap
metadata: {name: a, creationTimestamp: null}
---
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Secret, metadata: {name: b}}
- {apiVersion: v1, kind: Namespace, metadata: {name: c}}
...
";
    let found = documents(text.as_bytes(), Format::Yaml).unwrap();
    let names: Vec<String> = found.iter().map(|decoded| decoded.value.key().to_string()).collect();
    assert_eq!(names, ["configmaps a", "secrets b", "namespaces c"]);
    assert_eq!(found[0].value.value()["metadata"], json!({"name": "a"}));
    let unknown = documents(b"apiVersion: v1\nkind: Podd\n", Format::Yaml).unwrap_err();
    assert_eq!(unknown.to_string(), "no kind \"Podd\" in \"v1\" is served here");
}

#[test]
fn kubectls_nulls_and_empty_status_are_dropped_or_kept_as_kubernetes_does() {
    let body = br#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"a","creationTimestamp":null},
        "spec":{"strategy":{},"template":{"metadata":{"creationTimestamp":null},"spec":{"containers":[]}}},"status":{}}"#;
    let found = object(body, Format::Json).unwrap();
    assert!(found.duplicates.is_empty());
    assert!(schema::unknown_fields(&found.value).is_empty());
    assert!(schema::type_errors(&found.value).is_empty());
    assert_eq!(found.value.at("/spec/template/metadata"), Some(&json!({})));
    assert_eq!(
        object(b"{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":null}", Format::Json).unwrap().value.name(),
        ""
    );
    // A patch keeps its nulls: they mean removal.
    assert_eq!(value(b"{\"a\":null}", Format::Json).unwrap().value, json!({"a": null}));
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        for format in [Format::Json, Format::Yaml] {
            let _unread = documents(&bytes, format).is_ok();
        }
    }

    #[test]
    fn no_yaml_like_text_makes_it_panic(text in "[-:&*!<>|{}\\[\\]a-c0-9 \n\"'#?,%~.]{0,80}") {
        let _unread = documents(text.as_bytes(), Format::Yaml).is_ok();
    }

    #[test]
    fn json_reads_the_same_as_json_and_as_yaml(number in proptest::num::i64::ANY, text in "\\PC{0,20}") {
        let written = json!({"number": number, "text": text, "list": [text, null, {"x": true}]}).to_string();
        let (json, yaml) = (value(written.as_bytes(), Format::Json).unwrap(), value(written.as_bytes(), Format::Yaml).unwrap());
        proptest::prop_assert_eq!(&json.value, &serde_json::from_str::<Value>(&written).unwrap());
        proptest::prop_assert_eq!(json, yaml);
    }
}
