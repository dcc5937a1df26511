//! How a container is made of its manifest and its image.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;
use crate::image::{Account, ImageUser};
use crate::reconcile::DesiredPod;
use crate::reconcile::pod::PodSpec;
use flotilla_manifests::kind;
use flotilla_manifests::object::Object;

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn facts() -> ImageFacts {
    ImageFacts {
        digest: format!("sha256:{}", "a".repeat(64)),
        lower_dirs: vec![PathBuf::from("/images/top"), PathBuf::from("/images/bottom")],
        entrypoint: words(&["/entry"]),
        cmd: words(&["cmd", "$(A)"]),
        env: vec![("A".into(), "image".into()), ("PATH".into(), "/image/bin".into()), ("A".into(), "last".into())],
        working_dir: "/work".into(),
        user: ImageUser { text: "web".into(), uid: Some(101), gid: Some(102) },
        accounts: BTreeMap::from([
            (0, Account { name: "root".into(), gid: 0, home: "/root".into(), groups: vec![] }),
            (101, Account { name: "web".into(), gid: 102, home: "/srv".into(), groups: vec![4] }),
            (7, Account { name: "seven".into(), gid: 77, home: String::new(), groups: vec![] }),
        ]),
        ..ImageFacts::default()
    }
}

fn pod(spec: Value) -> DesiredPod {
    let mut object = Object::empty(kind::find("", "Pod").unwrap(), "default", "web");
    object.value_mut()["spec"] = spec;
    DesiredPod { object: Arc::new(object), deletion: None }
}

fn with<T>(container: Value, ask: impl FnOnce(&PodSpec<'_>, &ContainerSpec<'_>) -> T) -> T {
    let pod = pod(json!({"containers": [container]}));
    let spec = PodSpec::of(&pod);
    let container = spec.containers[0];
    ask(&spec, &container)
}

#[test]
fn command_and_args_stand_before_entrypoint_and_cmd() {
    // The table of "Define a Command and Arguments for a Container".
    let table: [(Value, &[&str]); 5] = [
        (json!({}), &["/entry", "cmd", "$(A)"]),
        (json!({"command": ["/own"]}), &["/own"]),
        (json!({"args": ["x", "$(A)"]}), &["/entry", "x", "value"]),
        (json!({"command": ["/own"], "args": ["x"]}), &["/own", "x"]),
        (json!({"command": [], "args": []}), &["/entry", "cmd", "$(A)"]),
    ];
    let environment = BTreeMap::from([("A".to_owned(), "value".to_owned())]);
    for (container, expected) in table {
        let found = with(container.clone(), |_, container| argv(container, Some(&facts()), &environment));
        assert_eq!(found.unwrap(), words(expected), "{container}");
    }
    let nothing = ImageFacts { entrypoint: vec![], cmd: vec![], ..facts() };
    let found = with(json!({}), |_, container| argv(container, Some(&nothing), &environment));
    assert!(found.unwrap_err().contains("no command"));
}

#[test]
fn the_manifest_decides_who_runs_and_else_the_image() {
    let check = |container: Value, image: ImageFacts, uid: u32, gid: u32, groups: &[u32]| {
        let found = user(&json!({}), &container, Some(&image)).unwrap();
        assert_eq!((found.uid, found.gid, found.groups.as_slice()), (Some(uid), Some(gid), groups), "{container}");
    };
    check(json!({}), facts(), 101, 102, &[4]);
    check(json!({"securityContext": {"runAsUser": 7}}), facts(), 7, 77, &[]);
    check(json!({"securityContext": {"runAsUser": 999}}), facts(), 999, 0, &[]);
    check(json!({"securityContext": {"runAsUser": 999, "runAsGroup": 3}}), facts(), 999, 3, &[]);
    check(json!({"securityContext": {"runAsGroup": 3}}), facts(), 101, 3, &[4]);
    let root = ImageUser { text: String::new(), uid: Some(0), gid: Some(0) };
    check(json!({}), ImageFacts { user: root.clone(), ..facts() }, 0, 0, &[]);

    let unknown = ImageFacts { user: ImageUser { text: "who".into(), uid: None, gid: None }, ..facts() };
    assert!(user(&json!({}), &json!({}), Some(&unknown)).unwrap_err().contains("\"who\""));
    check(json!({"securityContext": {"runAsUser": 7}}), unknown, 7, 77, &[]);

    let strict = json!({"securityContext": {"runAsNonRoot": true}});
    let as_root = ImageFacts { user: root, ..facts() };
    assert!(user(&strict, &json!({}), Some(&as_root)).unwrap_err().contains("runAsNonRoot"));
    assert!(user(&strict, &json!({}), Some(&facts())).is_ok());
    assert_eq!(user(&json!({}), &json!({}), None), Ok(User::default()), "a process of the host is the agent's user");
}

#[test]
fn what_the_image_says_lies_below_the_manifest() {
    let who = user(&json!({}), &json!({}), Some(&facts())).unwrap();
    let environment = environment(Some(&facts()), &who);
    let expected = [("A", "last"), ("HOME", "/srv"), ("PATH", "/image/bin")];
    assert_eq!(environment, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    assert_eq!(with(json!({}), |_, container| working_dir(container, Some(&facts()))), "/work");
    assert_eq!(with(json!({"workingDir": "/own"}), |_, container| working_dir(container, Some(&facts()))), "/own");
    assert_eq!(with(json!({}), |_, container| working_dir(container, None)), "/");
    let read_only = json!({"image": "web", "securityContext": {"readOnlyRootFilesystem": true}});
    let root = with(read_only, |_, container| rootfs(container, &facts()));
    assert!(root.read_only && root.image == "web" && root.lower_dirs.len() == 2);
}

#[test]
fn a_missing_image_says_what_to_do() {
    let mut images = Images::default();
    let look = |images: &Images, container: Value| with(container, |spec, container| find(spec, container, images));
    let (reason, message) = look(&images, json!({"image": "web:1"})).unwrap_err();
    assert_eq!(reason, "ImagePullBackOff");
    assert!(message.contains("flotilla agent image import --data DIR PATH --name web:1"), "{message}");
    let (reason, _) = look(&images, json!({"image": "web:1", "imagePullPolicy": "Never"})).unwrap_err();
    assert_eq!(reason, "ErrImageNeverPull");
    let (reason, _) = look(&images, json!({"image": "No Image"})).unwrap_err();
    assert_eq!(reason, "InvalidImageName");

    let image = Arc::new(facts());
    images.names.insert("docker.io/library/web:1".into(), image.digest.clone());
    images.by_digest.insert(image.digest.clone(), image.clone());
    assert_eq!(look(&images, json!({"image": "web:1"})).unwrap(), Some(image.clone()));
    assert_eq!(look(&images, json!({"image": format!("web@{}", image.digest)})).unwrap(), Some(image));
    let host = pod(json!({"runtimeClassName": "process", "containers": [{"image": "host"}]}));
    let spec = PodSpec::of(&host);
    assert_eq!(find(&spec, &spec.containers[0], &images), Ok(None));
}
