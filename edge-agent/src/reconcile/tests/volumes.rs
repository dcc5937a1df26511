//! Volumes, decided.

use super::*;
use crate::reconcile::volume::{FilesMedium, HostPathKind, SubPathRoot, Volume, VolumeContent, VolumeFile};
use crate::runtime::{Facilities, Mount};

/// A device whose processes can have mounts.
fn place(now: u64) -> Place {
    let facilities = Facilities { process_mounts: Ok(()), ..Facilities::default() };
    Place { facilities: Arc::new(facilities), ..super::place(now) }
}

fn key(name: &str) -> (String, String) {
    ("default".to_owned(), name.to_owned())
}

fn with_map(mut desired: DesiredPods, name: &str, data: &[(&str, &str)]) -> DesiredPods {
    let data = data.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned()));
    desired.config_maps.insert(key(name), data.collect());
    desired
}

fn with_secret(mut desired: DesiredPods, name: &str, data: &[(&str, &str)]) -> DesiredPods {
    let data = data.iter().map(|(key, text)| ((*key).to_owned(), text.as_bytes().to_vec()));
    desired.secrets.insert(key(name), data.collect());
    desired
}

/// A pod whose container `a` mounts each volume at `/<name>`.
fn mounting(volumes: Value) -> Value {
    let mut main = container("a");
    let names = volumes.as_array().unwrap().iter().map(|volume| volume["name"].as_str().unwrap());
    main["volumeMounts"] = names.map(|name| json!({"name": name, "mountPath": format!("/{name}")})).collect();
    json!({"runtimeClassName": "process", "restartPolicy": "Always", "containers": [main], "volumes": volumes})
}

fn config_volume() -> Value {
    mounting(json!([{"name": "c", "configMap": {"name": "settings"}}]))
}

/// The volumes a first plan asks for.
fn asked(desired: &DesiredPods) -> BTreeMap<String, Volume> {
    let plan = plan(desired, &Observed::default(), &History::new(), &place(1_000));
    plan.actions[UID]
        .iter()
        .find_map(|step| match step {
            Action::PrepareVolumes(step) => Some(step.volumes.clone()),
            _ => None,
        })
        .unwrap()
}

fn asked_files(desired: &DesiredPods, name: &str) -> (FilesMedium, Vec<(String, u32, String)>) {
    let volume = asked(desired).remove(name).unwrap();
    let VolumeContent::Files { files, medium } = volume.content else { panic!("{name} holds no files") };
    let text = |file: &VolumeFile| String::from_utf8(file.content.clone()).unwrap();
    (medium, files.iter().map(|(path, file)| (path.clone(), file.mode, text(file))).collect())
}

fn mounts(plan: &Plan) -> Vec<Mount> {
    let config = plan.actions[UID].iter().find_map(|step| match step {
        Action::StartContainer(config) => Some((**config).clone()),
        _ => None,
    });
    config.unwrap().mounts
}

fn waiting(plan: &Plan) -> (String, String) {
    let waiting = &state(plan, 0)["state"]["waiting"];
    (waiting["reason"].as_str().unwrap().to_owned(), waiting["message"].as_str().unwrap_or("").to_owned())
}

fn noted(plan: &Plan) -> Vec<String> {
    let notices = plan.notices.get(UID).into_iter().flatten();
    notices.map(|notice| format!("{}: {}", notice.reason, notice.message)).collect()
}

#[test]
fn volumes_stand_before_anything_starts() {
    let spec = mounting(json!([
        {"name": "e", "emptyDir": {}},
        {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        {"name": "h", "hostPath": {"path": "/srv", "type": "Directory"}},
        {"name": "c", "configMap": {"name": "settings"}},
        {"name": "s", "secret": {"secretName": "key"}},
        {"name": "unused", "configMap": {"name": "nobody-has-it"}},
    ]));
    let mut spec = spec;
    spec["containers"][0]["volumeMounts"].as_array_mut().unwrap().pop();
    spec["containers"][0]["volumeMounts"][0]["readOnly"] = true.into();
    let desired = with_secret(with_map(one(spec), "settings", &[("a", "1")]), "key", &[("k", "v")]);
    let first = plan(&desired, &Observed::default(), &History::new(), &place(1_000));
    let mount = |source: &str, destination: &str, read_only| Mount {
        source: source.into(),
        destination: destination.into(),
        read_only,
    };
    assert_eq!(
        mounts(&first),
        [
            mount("/data/volumes/0000-uid/files~c", "/c", true),
            mount("/data/volumes/0000-uid/empty~e", "/e", true),
            mount("/srv", "/h", false),
            mount("/data/volumes/0000-uid/memory~m", "/m", false),
            mount("/data/volumes/0000-uid/secret~s", "/s", true),
        ]
    );
    let asked = asked(&desired);
    assert_eq!(asked["memory~m"].content, VolumeContent::Memory { size_bytes_max: Some(1024 * 1024) });
    let host = VolumeContent::Host { path: "/srv".into(), kind: HostPathKind::Directory };
    assert_eq!(asked["host~h"].content, host);
    let (done, _) = World::default().settle(&desired, &place(1_000));
    assert_eq!(done, ["volumes empty~e files~c host~h memory~m secret~s", "sandbox 0", "start a 0"]);
}

#[test]
fn a_missing_source_is_waited_for_by_name() {
    let mut world = World::default();
    let (done, told) = world.settle(&one(config_volume()), &place(1_000));
    assert_eq!(done, Vec::<String>::new());
    let (reason, message) = waiting(&told);
    assert_eq!(reason, "ContainerCreating");
    assert!(message.contains("configmap \"settings\" not found: create it in namespace \"default\""), "{message}");
    assert!(
        noted(&told)[0].starts_with("FailedMount: MountVolume.SetUp failed for volume \"c\""),
        "{:?}",
        noted(&told)
    );
    assert_eq!((told.wake_at, told.statuses[UID]["phase"].as_str()), (None, Some("Pending")), "nothing is tried again");
    let (done, told) = world.settle(&with_map(one(config_volume()), "settings", &[("a", "1")]), &place(2_000));
    assert_eq!(done, ["volumes files~c", "sandbox 0", "start a 0"]);
    assert_eq!(noted(&told), Vec::<String>::new());
}

#[test]
fn an_optional_source_is_an_empty_volume_until_it_comes() {
    let mut spec = config_volume();
    spec["volumes"][0]["configMap"]["optional"] = true.into();
    let mut world = World::default();
    assert_eq!(asked_files(&one(spec.clone()), "files~c").1, []);
    let (done, _) = world.settle(&one(spec.clone()), &place(1_000));
    assert_eq!(done, ["volumes files~c", "sandbox 0", "start a 0"]);
    let (done, _) = world.settle(&with_map(one(spec), "settings", &[("a", "1")]), &place(2_000));
    assert_eq!(done, ["volumes files~c"]);
}

#[test]
fn changed_content_is_taken_up_and_restarts_nobody() {
    let mut world = World::default();
    let with = |text: &str| with_map(one(config_volume()), "settings", &[("a", text)]);
    world.settle(&with("1"), &place(1_000));
    let (done, told) = world.settle(&with("2"), &place(2_000));
    assert_eq!((done, state(&told, 0)["restartCount"].as_u64()), (vec!["volumes files~c".to_owned()], Some(0)));
    let (done, told) = world.settle(&one(config_volume()), &place(3_000));
    assert_eq!(done, Vec::<String>::new(), "what it held is kept");
    assert!(noted(&told)[0].ends_with("what it held before is still used"), "{:?}", noted(&told));
    world.ends("a", 1, 3_000);
    let (done, _) = world.settle(&one(config_volume()), &place(60_000));
    assert_eq!(done, ["start a 1"], "and good enough to start with");
}

#[test]
fn parts_of_volumes_are_made_for_each_start_alone() {
    let mut spec = mounting(json!([{"name": "c", "configMap": {"name": "settings"}}, {"name": "e", "emptyDir": {}}]));
    spec["containers"][0]["env"] = json!([{"name": "WHO", "value": "me"}]);
    spec["containers"][0]["volumeMounts"] = json!([
        {"name": "c", "mountPath": "/etc//./app/one.conf", "subPath": "one"},
        {"name": "e", "mountPath": "data", "subPathExpr": "$(WHO)/x"},
    ]);
    let with = |text: &str| with_map(one(spec.clone()), "settings", &[("one", text)]);
    let mut world = World::default();
    let first = plan(&with("1"), &world.observed, &world.history, &place(1_000));
    let sources: Vec<(String, String)> =
        mounts(&first).into_iter().map(|one| (one.source.display().to_string(), one.destination)).collect();
    let at = |name: &str| format!("/data/volumes/0000-uid/{name}");
    assert_eq!(sources, [(at("sub~a~1"), "/data".into()), (at("sub~a~0"), "/etc/app/one.conf".into())]);
    let Action::PrepareVolumes(step) = &first.actions[UID][0] else { panic!() };
    let roots: Vec<(SubPathRoot, &str)> =
        step.sub_paths.iter().map(|one| (one.root.clone(), one.path.as_str())).collect();
    let expected = [(SubPathRoot::Files("files~c".into()), "one"), (SubPathRoot::Directory("empty~e".into()), "me/x")];
    assert_eq!(roots, expected);
    world.settle(&with("1"), &place(1_000));
    assert_eq!(world.settle(&with("2"), &place(2_000)).0, ["volumes files~c"], "the part is not touched");
    world.ends("a", 1, 3_000);
    assert_eq!(world.settle(&with("2"), &place(60_000)).0, ["volumes sub~a~0 sub~a~1", "start a 1"]);
}

#[test]
fn a_volume_that_cannot_be_made_is_tried_again_later_and_later() {
    let mut world = World::default();
    let desired = with_map(one(config_volume()), "settings", &[("a", "1")]);
    let failure = |at, count| Failure { message: "could not write x: no space".into(), at: Timestamp(at), count };
    world.observed.volume_failures.insert(UID.into(), failure(1_000, 3));
    let (done, told) = world.settle(&desired, &place(2_000));
    assert_eq!((done, waiting(&told)), (vec![], ("ContainerCreating".into(), "could not write x: no space".into())));
    assert_eq!(told.wake_at, Some(Timestamp(5_000)));
    assert_eq!(noted(&told), ["FailedMount: could not write x: no space"]);
    let (done, _) = world.settle(&desired, &place(5_000));
    assert_eq!(done, ["volumes files~c", "sandbox 0", "start a 0"]);
}

#[test]
fn a_failed_update_keeps_no_container_from_starting() {
    let mut world = World::default();
    world.settle(&with_map(one(config_volume()), "settings", &[("a", "1")]), &place(1_000));
    let changed = with_map(one(config_volume()), "settings", &[("a", "2")]);
    let failure = Failure { message: "no space".into(), at: Timestamp(2_000), count: 9 };
    world.observed.volume_failures.insert(UID.into(), failure);
    assert_eq!(world.settle(&changed, &place(3_000)).0, Vec::<String>::new());
    world.ends("a", 1, 4_000);
    let (done, told) = world.settle(&changed, &place(30_000));
    assert_eq!(done, ["start a 1"]);
    assert_eq!(noted(&told), ["FailedMount: no space"]);
}

#[test]
fn volumes_end_with_their_pod() {
    let mut world = World::default();
    let desired = with_map(one(config_volume()), "settings", &[("a", "1")]);
    world.settle(&desired, &place(1_000));
    let mut deleted = desired.clone();
    deleted.pods.get_mut(UID).unwrap().deletion = Some(Deletion { grace_seconds: None });
    assert_eq!(world.settle(&deleted, &place(2_000)).0, ["stop a 0 30000ms"]);
    world.ends("a", 143, 2_500);
    let (done, told) = world.settle(&deleted, &place(3_000));
    assert_eq!(done, ["remove sandbox", "remove volumes"]);
    assert!(told.ended.contains(UID) && world.observed.volumes.is_empty());

    // Nobody knows the pod any more, and its volumes outlived its sandbox.
    world.observed.volumes.insert(UID.into(), Default::default());
    let nothing = DesiredPods::default();
    let first = plan(&nothing, &world.observed, &world.history, &place(4_000));
    assert_eq!(first.actions[UID], [Action::RemoveVolumes]);
    world.observed.failures.insert(UID.into(), Failure { message: "busy".into(), at: Timestamp(4_000), count: 1 });
    let waits = plan(&nothing, &world.observed, &world.history, &place(4_500));
    assert_eq!((waits.actions.len(), waits.wake_at), (0, Some(Timestamp(5_000))));
}

#[test]
fn a_pod_at_its_end_keeps_its_logs_and_loses_its_volumes() {
    let mut spec = config_volume();
    spec["restartPolicy"] = "Never".into();
    let desired = with_map(one(spec), "settings", &[("a", "1")]);
    let mut world = World::default();
    world.settle(&desired, &place(1_000));
    world.ends("a", 0, 2_000);
    let (done, told) = world.settle(&desired, &place(3_000));
    assert_eq!(
        (done, told.statuses[UID]["phase"].as_str()),
        (vec!["stop sandbox".into(), "remove volumes".into()], Some("Succeeded"))
    );
}

#[test]
fn what_becomes_of_keys_modes_and_groups() {
    let mut desired = one(mounting(json!([
        {"name": "c", "configMap": {"name": "settings", "defaultMode": 256, "items": [
            {"key": "a", "path": "deep/a.conf"}, {"key": "b", "path": "b", "mode": 511},
        ]}},
        {"name": "all", "configMap": {"name": "settings"}},
        {"name": "s", "secret": {"secretName": "key", "defaultMode": 256}},
    ])));
    desired = with_secret(with_map(desired, "settings", &[("a", "1"), ("b", "2")]), "key", &[("k", "v")]);
    desired.config_map_binaries.insert(key("settings"), BTreeMap::from([("bin".to_owned(), b"raw".to_vec())]));
    let file = |path: &str, mode: u32, content: &str| (path.to_owned(), mode, content.to_owned());
    let all = vec![file("a", 0o644, "1"), file("b", 0o644, "2"), file("bin", 0o644, "raw")];
    assert_eq!(asked_files(&desired, "files~all"), (FilesMedium::Disk, all));
    let some = vec![file("b", 0o777, "2"), file("deep/a.conf", 0o400, "1")];
    assert_eq!(asked_files(&desired, "files~c"), (FilesMedium::Disk, some));
    assert_eq!(asked_files(&desired, "secret~s"), (FilesMedium::Memory, vec![file("k", 0o400, "v")]));

    let pod = desired.pods.get_mut(UID).unwrap();
    let mut object = (*pod.object).clone();
    object.value_mut()["spec"]["securityContext"] = json!({"fsGroup": 77, "supplementalGroups": [5]});
    pod.object = Arc::new(object);
    assert_eq!(asked_files(&desired, "secret~s").1, [file("k", 0o440, "v")]);
    assert_eq!(asked(&desired)["secret~s"].group, Some(77));
    let first = plan(&desired, &Observed::default(), &History::new(), &place(1_000));
    let Some(Action::StartContainer(config)) = first.actions[UID].last() else { panic!() };
    assert_eq!(config.supplemental_groups, [5, 77]);
}

#[test]
fn projections_show_everything_in_one_place() {
    let mut spec = mounting(json!([{"name": "p", "projected": {"defaultMode": 292, "sources": [
        {"configMap": {"name": "settings", "items": [{"key": "a", "path": "map/a"}]}},
        {"secret": {"name": "key", "items": [{"key": "k", "path": "secret/k", "mode": 256}]}},
        {"downwardAPI": {"items": [
            {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
            {"path": "who", "fieldRef": {"fieldPath": "metadata.name"}},
            {"path": "cpu", "resourceFieldRef": {"containerName": "a", "resource": "limits.cpu"}},
        ]}},
        {"secret": {"name": "none", "optional": true}},
    ]}}]));
    spec["containers"][0]["resources"] = json!({"limits": {"cpu": "1500m"}});
    let mut desired = with_secret(with_map(one(spec), "settings", &[("a", "1"), ("b", "2")]), "key", &[("k", "v")]);
    let pod = desired.pods.get_mut(UID).unwrap();
    let mut object = (*pod.object).clone();
    object.metadata_mut().insert("labels".into(), json!({"b": "two \"words\"", "a": "1"}));
    pod.object = Arc::new(object);
    let (medium, files) = asked_files(&desired, "secret~p");
    let file = |path: &str, mode: u32, content: &str| (path.to_owned(), mode, content.to_owned());
    assert_eq!(medium, FilesMedium::Memory);
    assert_eq!(
        files,
        [
            file("cpu", 0o444, "2"),
            file("labels", 0o444, "a=\"1\"\nb=\"two \\\"words\\\"\""),
            file("map/a", 0o444, "1"),
            file("secret/k", 0o400, "v"),
            file("who", 0o444, "web"),
        ]
    );
}

#[test]
fn what_a_device_does_not_provide_is_said() {
    let cases = [
        (
            json!({"persistentVolumeClaim": {"claimName": "x"}}),
            "volumes of kind persistentVolumeClaim are not provided",
        ),
        (json!({"csi": {"driver": "x"}}), "volumes of kind csi are not provided"),
        (json!({"emptyDir": {"medium": "HugePages"}}), "emptyDir medium \"HugePages\" is not provided"),
        (
            json!({"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}),
            "serviceAccountToken is not provided",
        ),
        (json!({"secret": {"secretName": "x"}}), "secret \"x\" not found"),
        (
            json!({"configMap": {"name": "settings", "items": [{"key": "z", "path": "z"}]}}),
            "references non-existent key \"z\"",
        ),
        (
            json!({"projected": {"sources": [
                {"configMap": {"name": "settings"}},
                {"configMap": {"name": "settings", "items": [{"key": "a", "path": "a/b"}]}},
            ]}}),
            "\"a\" is both a file and a directory",
        ),
    ];
    for (source, expected) in cases {
        let mut volume = source.clone();
        volume["name"] = "v".into();
        let desired = with_map(one(mounting(json!([volume]))), "settings", &[("a", "1")]);
        let (done, told) = World::default().settle(&desired, &place(1_000));
        let (reason, message) = waiting(&told);
        assert_eq!((done.len(), reason.as_str()), (0, "ContainerCreating"), "{source}");
        assert!(message.contains(expected), "{source}: {message}");
        assert!(noted(&told)[0].contains(expected), "{source}");
    }
    for (mount, expected) in [
        (json!({"mountPath": "/v", "mountPropagation": "HostToContainer"}), "mountPropagation HostToContainer"),
        (json!({"mountPath": "/a/../.."}), "must not contain '..'"),
        (json!({"mountPath": "/./"}), "would hide the container's own file system"),
        (json!({"mountPath": "/v", "subPathExpr": "$(NOBODY)"}), "names a variable that the container does not have"),
    ] {
        let mut spec = mounting(json!([{"name": "v", "emptyDir": {}}]));
        let mut whole = mount.clone();
        whole["name"] = "v".into();
        spec["containers"][0]["volumeMounts"] = json!([whole]);
        let (_, told) = World::default().settle(&one(spec), &place(1_000));
        let (reason, message) = waiting(&told);
        assert!(reason == "CreateContainerConfigError" && message.contains(expected), "{mount}: {reason} {message}");
    }
}

#[test]
fn mounts_make_another_container_and_content_does_not() {
    let digest = |spec: &Value| container_digest(spec, &spec["containers"][0]);
    let base = config_volume();
    let mut other_map = base.clone();
    other_map["volumes"][0]["configMap"]["name"] = "other".into();
    let mut defaulted = base.clone();
    defaulted["volumes"][0]["configMap"]["defaultMode"] = 420.into();
    assert_eq!((digest(&other_map), digest(&defaulted)), (digest(&base), digest(&base)));
    let mut moved = base.clone();
    moved["containers"][0]["volumeMounts"][0]["mountPath"] = "/elsewhere".into();
    let mut secret = base.clone();
    secret["volumes"][0] = json!({"name": "c", "secret": {"secretName": "settings"}});
    let mut writable = base.clone();
    writable["containers"][0]["volumeMounts"][0]["readOnly"] = true.into();
    for changed in [moved, secret, writable] {
        assert_ne!(digest(&changed), digest(&base), "{changed}");
    }
    // The form before there were volumes: what runs is not restarted by a new agent.
    let mut without = base;
    without["containers"][0].as_object_mut().unwrap().remove("volumeMounts");
    let plain = json!({"runtimeClassName": "process", "restartPolicy": "Always", "containers": [container("a")]});
    assert_eq!(digest(&without), digest(&plain));
}

#[test]
fn volumes_of_another_manifest_go_when_nothing_uses_them() {
    let mut world = World::default();
    let two = mounting(json!([{"name": "a", "emptyDir": {}}, {"name": "b", "emptyDir": {}}]));
    let only = mounting(json!([{"name": "a", "emptyDir": {}}]));
    world.settle(&one(two), &place(1_000));
    assert_eq!(world.settle(&one(only.clone()), &place(2_000)).0, ["stop a 0 30000ms"]);
    assert_eq!(world.observed.volumes[UID].prepared.len(), 2, "its container still runs");
    world.ends("a", 143, 3_000);
    assert_eq!(world.settle(&one(only), &place(4_000)).0, ["volumes ", "start a 1"]);
    assert_eq!(world.observed.volumes[UID].prepared.keys().collect::<Vec<_>>(), ["empty~a"]);
}

#[test]
fn what_stands_on_the_disk_instead_of_in_memory_is_told() {
    let mut world = World::default();
    let desired =
        with_secret(one(mounting(json!([{"name": "s", "secret": {"secretName": "key"}}]))), "key", &[("k", "v")]);
    world.settle(&desired, &place(1_000));
    world.observed.volumes.get_mut(UID).unwrap().on_disk.insert("secret~s".into());
    let (done, told) = world.settle(&desired, &place(2_000));
    assert_eq!(done, Vec::<String>::new());
    assert!(noted(&told)[0].starts_with("VolumeOnDisk: volume \"s\" belongs in memory"), "{:?}", noted(&told));
}
