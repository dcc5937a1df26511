//! Story j: whatever comes in wrong is told, by name and place, to whoever sent it; the rest of the fleet does not notice.

use flotilla_sync::channel::ItemId;
use flotilla_sync::record::Draft;
use flotilla_tests::database::set_version;
use flotilla_tests::fleet::{Fleet, Road, is_ready};
use flotilla_tests::kubectl::Kubectl;
use flotilla_tests::wait;

use crate::BINARY;
use crate::rogue::{ACK, OBSERVATIONS_ACK, Rogue, log_frames, observation_frame};
use crate::story::{self, WEB, local_pods, pod_pids};

/// A fleet with one device that runs one Pod, and that Pod's process.
fn running_fleet() -> (Fleet, Vec<i32>) {
    let fleet = Fleet::with_agents(BINARY, Road::Quic, flotilla_tests::fleet::Containers::Processes, 1);
    fleet.kubectl().apply(WEB);
    fleet.running_pods("app=web", 1);
    let pids = pod_pids(&fleet, "n1");
    assert_eq!(pids.len(), 1);
    (fleet, pids)
}

/// Writes still reach the device, and its Pod has not been touched.
fn goes_on(fleet: &Fleet, pids: &[i32], note: &str) {
    fleet.kubectl().run(&format!("patch cm web-config --type=merge -p {{\"data\":{{\"NOTE\":\"{note}\"}}}}"));
    let local = fleet.local_kubectl("n1");
    wait::until(&format!("the device hears of {note}"), || {
        let config = local.json("get cm web-config")?;
        if config["data"]["NOTE"] == note { Ok(()) } else { Err(config.to_string()) }
    });
    local_pods(&local, 1);
    assert_eq!(pod_pids(fleet, "n1"), pids, "a healthy pod was touched");
}

/// Whether a refusal says all of this.
#[track_caller]
fn says(refusal: &str, words: &[&str]) {
    for word in words {
        assert!(refusal.contains(word), "{word:?} is missing in: {}", refusal.get(..4000).unwrap_or(refusal));
    }
}

#[test]
fn manifests_that_cannot_be() {
    if !story::ready_to_run() {
        return;
    }
    let (fleet, pids) = running_fleet();
    let kubectl = fleet.kubectl();
    let refused =
        |line: &str, manifest: &str| kubectl.feed(line, manifest).expect_err(manifest.get(..200).unwrap_or(manifest));
    let huge =
        format!("{{apiVersion: v1, kind: ConfigMap, metadata: {{name: huge}}, data: {{a: {}}}}}", "x".repeat(10 << 20));
    says(&refused("create", &huge), &["RequestEntityTooLarge", "limit", "3145728"]);

    let unknown = WEB.replace("command:", "comand:");
    says(&refused("apply", &unknown), &["BadRequest", "unknown field", "spec.template.spec.containers[0].comand"]);
    let typed = WEB.replace("terminationGracePeriodSeconds: 2", "terminationGracePeriodSeconds: soon");
    says(&refused("apply --validate=false", &typed), &["spec.template.spec.terminationGracePeriodSeconds", "integer"]);
    let faults = WEB
        .replace("image: host", "imagePullPolicy: Often")
        .replace("matchLabels: {app: web}", "matchLabels: {app: wob}");
    let told = refused("apply", &faults.replace("name: web}", "name: Web}"));
    let places =
        ["metadata.name", "spec.template.metadata.labels", "containers[0].image", "containers[0].imagePullPolicy"];
    says(&told, &places);
    says(
        &refused("apply", "{apiVersion: batch/v1, kind: CronJob, metadata: {name: a}}"),
        &["no matches for kind \"CronJob\"", "batch/v1"],
    );

    let raw = |text: &str| {
        kubectl
            .feed("create --raw /api/v1/namespaces/default/configmaps", text)
            .expect_err(text.get(..80).unwrap_or(text))
    };
    says(&raw("{\"apiVersion\": \"v1\", \"kind\": "), &["BadRequest"]);
    says(&raw("\u{0}\u{1}\u{2}"), &["BadRequest"]);
    says(&raw(&"[".repeat(100_000)), &["BadRequest"]);
    let nested = format!(
        "{{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{{\"name\":\"a\"}},\"data\":{}1{}}}",
        "{\"a\":".repeat(5000),
        "}".repeat(5000)
    );
    says(&raw(&nested), &["Error from server"]);
    says(&raw(r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"../../etc"}}"#), &["metadata.name"]);
    assert!(kubectl.run("get cm -o name").lines().eq(["configmap/web-config"]), "something of it was kept");
    goes_on(&fleet, &pids, "manifests");
}

#[test]
fn tokens_folders_and_addresses_that_cannot_be() {
    if !story::ready_to_run() {
        return;
    }
    let (mut fleet, pids) = running_fleet();
    tokens(&fleet);
    folders(&mut fleet);
    goes_on(&fleet, &pids, "folders");
}

fn tokens(fleet: &Fleet) {
    let folder = fleet.agent_folder("stranger");
    let join = |token: &str, name: &str| {
        let data = folder.to_string_lossy();
        fleet.refused(&["agent", "run", "--data", &data, "--name", name, "--join", token, "--transport", "quic"])
    };
    let used = fleet.token(&[]);
    drop(Rogue::enrol(&used, "first"));
    says(&join(&used, "second"), &["the hub refused", "has been used by 1 of 1 devices", "flotilla token create"]);
    let named = fleet.token(&["--node", "somebody"]);
    says(&join(&named, "nobody"), &["admits only node somebody", "not nobody"]);
    let brief = fleet.token(&["--ttl", "1s"]);
    wait::until("the refusal of a token that has run out", || {
        // Until then the hub, asked for another name, would admit it: so a name is asked for that nobody may have.
        let refusal = join(&brief, "n1");
        if refusal.contains("expired") { Ok(()) } else { Err(refusal) }
    });
    let cut = &brief[..brief.len() / 2];
    says(&join(cut, "stranger"), &["--join", "token is damaged", "copy it again"]);
    says(&join("hunter2", "stranger"), &["--join", "not a Flotilla token", "flt1."]);
    says(&join("flt9.AAAA", "stranger"), &["newer version", "flt9"]);
    says(&join(&fleet.token(&[]), "Not A Name"), &["Not A Name", "--name"]);
    let data = folder.to_string_lossy();
    says(&fleet.refused(&["agent", "run", "--data", &data, "--name", "stranger"]), &["has not joined", "--join TOKEN"]);
    says(&fleet.refused(&["token", "create", "--data", &data]), &["no hub has run in", &data]);
    let hub = fleet.hub_folder();
    let hub = hub.to_string_lossy();
    says(&fleet.refused(&["token", "create", "--data", &hub, "--node", "Not A Name"]), &["Not A Name"]);
    says(&fleet.refused(&["token", "create", "--data", &hub, "--ttl", "soon"]), &["--ttl", "soon"]);
    let nodes = fleet.kubectl().run("get nodes -o name");
    assert!(nodes.lines().eq(["node/first", "node/n1"]), "a refused device has a node: {nodes}");
}

fn folders(fleet: &mut Fleet) {
    let own = fleet.agent_folder("n1").to_string_lossy().into_owned();
    says(&fleet.refused(&["agent", "run", "--data", &own]), &["another agent uses", &own]);
    let hub = fleet.hub_folder().to_string_lossy().into_owned();
    let anywhere = ["--listen", "127.0.0.1:0", "--quic", "127.0.0.1:0"];
    let second: Vec<&str> = ["hub", "run", "--data", &hub].into_iter().chain(anywhere).collect();
    says(&fleet.refused(&second), &["another hub", &hub]);
    let other = fleet.folder().join("other").to_string_lossy().into_owned();
    let api = fleet.api();
    says(
        &fleet.refused(&["hub", "run", "--data", &other, "--listen", &api, "--quic", "127.0.0.1:0"]),
        &[&api, "in use"],
    );
    says(&fleet.refused(&["hub", "run", "--data", &other, "--listen", "nowhere"]), &["--listen", "nowhere"]);
    let token = fleet.token(&["--node", "n2"]);
    let agent = fleet.agent_folder("n2").to_string_lossy().into_owned();
    says(
        &fleet.refused(&["agent", "run", "--data", &agent, "--join", &token, "--listen", &api]),
        &["--listen", &api, "in use"],
    );
    says(&fleet.refused(&["agent", "run", "--data", &agent, "--name", "n3"]), &["n3", "n2", "--name"]);
    let file = fleet.folder().join("file");
    std::fs::write(&file, "no folder").unwrap();
    let file = file.to_string_lossy().into_owned();
    says(&fleet.refused(&["hub", "run", "--data", &file]), &[&file]);
    says(&fleet.refused(&["agent", "run", "--data", &file, "--join", &token]), &[&file]);

    // Written by a newer version: refused, unharmed, and fine again with that version.
    fleet.stop_hub();
    let database = fleet.hub_folder().join("hub.sqlite");
    let version = set_version(&database, 9999);
    says(&fleet.refused(&second), &["newer version", "9999", &hub]);
    assert_eq!(set_version(&database, version), 9999);
    fleet.start_hub();
    let database = fleet.agent_folder("n2").join("device.db");
    let version = set_version(&database, 9999);
    says(&fleet.refused(&["agent", "run", "--data", &agent]), &["newer version", "9999", &agent]);
    set_version(&database, version);
}

#[test]
fn a_peer_with_a_valid_certificate() {
    if !story::ready_to_run() {
        return;
    }
    let (mut fleet, pids) = running_fleet();
    let kubectl = fleet.kubectl();
    let rogue = Rogue::enrol(&fleet.token(&["--node", "rogue"]), "rogue");

    rogue.noise(&[0xff; 64]);
    says(&rogue.goodbye_to(&[b"no frame at all".to_vec()]), &["frame"]);
    let register = || vec![Draft::register(item("override/a"), b"{}".to_vec(), "rogue", 1)];
    let forged = log_frames(&rogue.writer(1), "device/rogue", register(), |payload| {
        let at = payload.windows(2).position(|pair| pair == b"{}").unwrap();
        payload[at] = b'[';
    });
    says(&rogue.goodbye_to(&forged), &["device/rogue", "signature does not verify"]);
    let elsewhere = log_frames(&rogue.writer(2), "device/n1", register(), |_payload| {});
    says(&rogue.goodbye_to(&elsewhere), &["device/n1 is not this device's"]);
    let everyone = log_frames(&rogue.writer(3), "fleet/default", register(), |_payload| {});
    says(&rogue.goodbye_to(&everyone), &["device/rogue may not write in fleet/default"]);
    goes_on(&fleet, &pids, "forgeries");

    // Signed, and still rubbish: set aside, and what is good beside it counts.
    let poison = vec![
        Draft::snapshot(item("5b7a30a4-7b1f-4b3c-8a0d-9f6d6a4a5f10"), 1, b"no document".to_vec(), "rogue", 1),
        Draft::change(item("5b7a30a4-7b1f-4b3c-8a0d-9f6d6a4a5f11"), 1, vec![0; 4096], "rogue", 1),
        Draft::register(item("override/not-json"), b"{{{{".to_vec(), "rogue", 1),
        Draft::register(item("override/not-an-override"), b"{\"id\": 7}".to_vec(), "rogue", 1),
        Draft::register(item("placement/of-my-own"), b"{}".to_vec(), "rogue", 1),
        Draft::remove(item("grant/nothing"), "rogue", 1),
    ];
    rogue.talk(&log_frames(&rogue.writer(4), "device/rogue", poison, |_payload| {}), ACK);
    says_falsehoods(&kubectl, &rogue);
    assert!(kubectl.json("get overrides -A").unwrap()["items"].as_array().unwrap().is_empty());
    goes_on(&fleet, &pids, "poison");

    // What was set aside does not stop the next start either.
    fleet.stop_hub();
    fleet.start_hub();
    goes_on(&fleet, &pids, "restart");
    says(&fleet.hub().output(), &["rogue", "signature does not verify"]);
}

/// Observations of what is another device's, and of what is nothing at all.
fn says_falsehoods(kubectl: &Kubectl, rogue: &Rogue) {
    let list = kubectl.json("get pods -l app=web").unwrap();
    let pod = list["items"].as_array().unwrap().iter().find(|pod| pod["spec"]["nodeName"] == "n1").unwrap();
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let body = serde_json::json!({
        "namespace": "default", "name": pod["metadata"]["name"], "uid": uid, "attempt": 9, "number": "1-1",
        "workload": pod["metadata"]["ownerReferences"][0]["uid"], "status": {"phase": "Failed"},
    });
    let incarnation = rogue.enrolment.incarnation;
    for (subject, body) in [
        (format!("pod/{uid}"), body.to_string().into_bytes()),
        ("pod/00000000-0000-0000-0000-000000000000".to_owned(), b"{}".to_vec()),
        ("node".to_owned(), b"[1, 2".to_vec()),
        ("event/x".to_owned(), b"{\"kind\": \"Secret\"}".to_vec()),
        ("\u{7}nonsense".to_owned(), b"null".to_vec()),
    ] {
        rogue.talk(&[observation_frame(incarnation, &subject, &body)], OBSERVATIONS_ACK);
    }
    let name = pod["metadata"]["name"].as_str().unwrap();
    let after = kubectl.json(&format!("get pod {name}")).unwrap();
    assert!(is_ready(&after), "a stranger changed a pod that is not its own: {after}");
}

fn item(id: &str) -> ItemId {
    ItemId::parse(id).unwrap()
}
