use proptest::prelude::*;

use super::*;

/// A field that holds bytes: text, a message, an entry of a map.
fn field(number: u64, bytes: &[u8]) -> Vec<u8> {
    let mut out = number_bytes(number << 3 | 2);
    out.extend(number_bytes(bytes.len() as u64));
    out.extend(bytes);
    out
}

fn whole(number: u64, value: i64) -> Vec<u8> {
    let mut out = number_bytes(number << 3);
    out.extend(number_bytes(value.cast_unsigned()));
    out
}

fn number_bytes(mut number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while number >= 0x80 {
        out.push(u8::try_from(number & 0x7f).unwrap() | 0x80);
        number >>= 7;
    }
    out.push(u8::try_from(number).unwrap());
    out
}

fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
    [MAGIC.to_vec(), field(1, &meta), field(2, raw), field(3, b""), field(4, b"")].concat()
}

fn metadata(name: &str) -> Vec<u8> {
    // As Go writes it: every plain text field, said or not; a zero time is an empty message.
    let label = [field(1, b"app"), field(2, b"")].concat();
    [
        field(1, name.as_bytes()),
        field(2, b""),
        field(3, b""),
        field(5, b""),
        whole(7, 0),
        field(8, b""),
        field(11, &label),
    ]
    .concat()
}

#[test]
fn a_namespace() {
    let raw = [field(1, &metadata("shop")), field(2, b""), field(3, &field(1, b""))].concat();
    let value = value(&body("v1", "Namespace", &raw)).unwrap();
    assert_eq!(
        value,
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"app": ""}}, "spec": {}})
    );
}

#[test]
fn a_deployment_with_what_go_embeds_and_points_to() {
    let quantity = field(1, b"100m");
    let limits = [field(1, b"cpu"), field(2, &quantity)].concat();
    let probe = [
        field(1, &field(2, &[field(1, b"/"), field(2, &[whole(1, 0), whole(2, 80), field(3, b"")].concat())].concat())),
        whole(2, 0),
    ]
    .concat();
    let container = [
        field(1, b"main"),
        field(2, b"host"),
        field(3, b"/bin/sh"),
        field(3, b""),
        field(8, &field(1, &limits)),
        field(10, &probe),
    ]
    .concat();
    let claim = field(19, &[field(1, &field(1, b"note")), whole(3, 0)].concat());
    let volume = [field(1, b"data"), field(2, &claim)].concat();
    let pod = [field(1, &volume), field(2, &container), whole(4, 0), whole(11, 0)].concat();
    let template = [field(1, &metadata("")), field(2, &pod)].concat();
    let surge = [whole(1, 1), whole(2, 0), field(3, b"25%")].concat();
    let strategy = [field(1, b"RollingUpdate"), field(2, &field(2, &surge))].concat();
    let spec = [whole(1, 0), field(3, &template), field(4, &strategy), whole(5, 0), whole(7, 0)].concat();
    let raw = [field(1, &metadata("web")), field(2, &spec), field(3, b"")].concat();
    let value = value(&body("apps/v1", "Deployment", &raw)).unwrap();
    assert_eq!(
        value["spec"],
        json!({
            "replicas": 0,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%"}},
            "template": {"metadata": {"labels": {"app": ""}}, "spec": {
                "terminationGracePeriodSeconds": 0,
                "volumes": [{"name": "data", "configMap": {"name": "note", "defaultMode": 0}}],
                "containers": [{
                    "name": "main", "image": "host", "command": ["/bin/sh", ""],
                    "resources": {"limits": {"cpu": "100m"}},
                    "livenessProbe": {"httpGet": {"path": "/", "port": 80}},
                }],
            }},
        })
    );
    assert_eq!(value.get("status"), None);
}

#[test]
fn what_drain_and_leaders_send() {
    let options = [whole(1, 30), field(5, b"All")].concat();
    let raw = [field(1, &metadata("web-1")), field(2, &options)].concat();
    let eviction = value(&body("policy/v1", "Eviction", &raw)).unwrap();
    assert_eq!(eviction["deleteOptions"], json!({"gracePeriodSeconds": 30, "dryRun": ["All"]}));
    let deletion = value(&body("v1", "DeleteOptions", &field(4, b"Foreground"))).unwrap();
    assert_eq!(deletion["propagationPolicy"], "Foreground");
    let time = [whole(1, 1_700_000_000), whole(2, 123_456_789)].concat();
    let spec = [field(1, b"one"), whole(2, 15), field(3, &time), whole(5, 0)].concat();
    let lease = value(&body("coordination.k8s.io/v1", "Lease", &field(2, &spec))).unwrap();
    assert_eq!(
        lease["spec"],
        json!({"holderIdentity": "one", "leaseDurationSeconds": 15, "acquireTime": "2023-11-14T22:13:20.123456Z", "leaseTransitions": 0})
    );
    let secret = [field(1, b"key"), field(2, &[0xff, 0])].concat();
    let secret = value(&body("v1", "Secret", &[field(2, &secret), field(3, b"Opaque")].concat())).unwrap();
    assert_eq!((&secret["data"]["key"], &secret["type"]), (&json!("/wA="), &json!("Opaque")));
}

#[test]
fn what_is_no_body_is_refused_with_its_reason() {
    let check = |bytes: &[u8], words: &str| {
        let error = value(bytes).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    check(b"{}", "does not begin with");
    check(&body("v1", "Service", b""), "no kind \"Service\"");
    check(&body("v1", "Pod", &[0x0a, 0x7f]), "cut short");
    check(&body("v1", "Pod", &[0x0b]), "wire type 3");
    check(&body("v1", "Pod", &field(1, &field(1, &[0xff]))), "not UTF-8");
    check(&body("v1", "Pod", &whole(1, 5)), "a number where");
    check(&[MAGIC, &field(3, b"gzip")].concat(), "compressed");
    let items: Vec<u8> = std::iter::repeat_n(field(2, b""), VALUES_MAX + 1).flatten().collect();
    check(&body("v1", "Pod", &field(2, &items)), "more than");
    check(&vec![0; BODY_BYTES_MAX + 1], "too large");
}

#[test]
fn every_stored_kind_can_be_sent() {
    for kind in kind::ALL.iter().filter(|kind| kind.schema.starts_with("io.k8s.")) {
        let sent = value(&body(&kind.api_version(), kind.name, &field(1, &metadata("web")))).unwrap();
        assert_eq!(sent["metadata"]["name"], "web", "{kind}");
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        drop(value(&body("v1", "Pod", &bytes)));
        drop(value(&[MAGIC, &bytes].concat()));
    }
}
