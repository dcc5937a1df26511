//! The rest of kubectl against a real hub and real devices, with every version of it that is installed.

use std::path::Path;

use flotilla_tests::fleet::{Containers, Fleet, Road};
use flotilla_tests::kubectl::{Kubectl, binaries};
use flotilla_tests::wait;
use serde_json::Value;

use crate::BINARY;
use crate::story::{self, WEB};

/// Everything of one kubectl's turn, in a namespace of its own.
struct Turn<'a> {
    fleet: &'a Fleet,
    kubectl: Kubectl,
    name: String,
    space: String,
}

impl<'a> Turn<'a> {
    fn of(fleet: &'a Fleet, binary: &Path) -> Self {
        let name = binary.file_name().unwrap().to_string_lossy().into_owned();
        let space = name.replace('.', "-");
        let kubectl = fleet.kubectl().with_binary(binary);
        kubectl.run(&format!("create ns {space}"));
        Self { fleet, kubectl, name, space }
    }

    fn line(&self, line: &str) -> String {
        format!("-n {} {line}", self.space)
    }

    #[track_caller]
    fn run(&self, line: &str) -> String {
        self.kubectl.attempt(&self.line(line)).unwrap_or_else(|error| panic!("{} {line}: {error}", self.name))
    }

    #[track_caller]
    fn shows(&self, line: &str, words: &[&str]) -> String {
        let text = self.run(line);
        self.holds(line, &text, words);
        text
    }

    /// It must fail, and say all of this.
    #[track_caller]
    fn refuses(&self, line: &str, words: &[&str]) {
        let Err(text) = self.kubectl.attempt(&self.line(line)) else { panic!("{} {line} did not fail", self.name) };
        self.holds(line, &text, words);
    }

    #[track_caller]
    fn feed(&self, line: &str, manifest: &str) -> String {
        self.tried(line, manifest).unwrap_or_else(|error| panic!("{} {line}: {error}", self.name))
    }

    fn tried(&self, line: &str, manifest: &str) -> Result<String, String> {
        self.kubectl.feed(&self.line(line), manifest)
    }

    #[track_caller]
    fn holds(&self, line: &str, text: &str, words: &[&str]) {
        for word in words {
            assert!(text.contains(word), "{} {line}: {word:?} is missing in:\n{text}", self.name);
        }
    }

    fn raw(&self, url: &str) -> Value {
        let text = self.run(&format!("get --raw {url}"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{url}: {error}: {text}"))
    }
}

#[test]
fn the_rest_of_kubectl_works() {
    if !story::ready_to_run() {
        return;
    }
    let fleet = Fleet::with_agents(BINARY, Road::Quic, Containers::Processes, 2);
    long_lists(&fleet);
    for binary in binaries() {
        let turn = Turn::of(&fleet, &binary);
        drains(&turn);
        applies_at_the_server(&turn);
        elects(&turn);
        streams_lists(&turn);
        gives_priority(&turn);
        selects_fields(&turn);
        goes(&turn);
    }
}

/// More objects than kubectl asks for at once: it fetches pages, and shows them as one list.
fn long_lists(fleet: &Fleet) {
    let kubectl = fleet.kubectl();
    kubectl.run("create ns many");
    let maps: String = (0..620)
        .map(|number| {
            format!("---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: m{number:03}, namespace: many}}\n")
        })
        .collect();
    kubectl.feed("create", &maps).unwrap();
    for binary in binaries() {
        let names = kubectl.with_binary(&binary).run("get cm -n many -o name");
        let numbers: Vec<&str> = names.lines().filter_map(|name| name.strip_prefix("configmap/m")).collect();
        assert_eq!(numbers.len(), 620, "{}", binary.display());
        assert!(numbers.is_sorted());
    }
    kubectl.run("delete ns many --wait=false");
}

fn drains(turn: &Turn<'_>) {
    turn.feed("apply", &story::deployment(2, "1"));
    turn.shows("rollout status deploy/shop --timeout=120s", &["successfully rolled out"]);
    turn.feed("apply", WEB);
    turn.shows("rollout status ds/web --timeout=120s", &["successfully rolled out"]);
    turn.refuses("drain n1 --timeout=120s", &["DaemonSet", "--ignore-daemonsets"]);
    turn.shows("drain n1 --ignore-daemonsets --timeout=120s", &["drained"]);
    wait::until("every pod of the Deployment on the other device", || {
        let pods = turn.kubectl.json(&turn.line("get pods -l app=shop"))?;
        let nodes: Vec<&str> =
            pods["items"].as_array().unwrap().iter().filter_map(|pod| pod["spec"]["nodeName"].as_str()).collect();
        if nodes == ["n2", "n2"] { Ok(()) } else { Err(format!("{nodes:?}")) }
    });
    turn.shows("get pods -l app=web -o wide", &["n1", "n2"]);
    turn.shows("uncordon n1", &["uncordoned"]);
    turn.run("delete deploy shop --cascade=foreground");
    turn.refuses("delete ds web --cascade=orphan", &["end them with it"]);
}

fn applies_at_the_server(turn: &Turn<'_>) {
    let note = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: note}\ndata: {a: '1', b: '2'}\n";
    let ops = "apply --server-side --field-manager=ops";
    turn.holds("apply", &turn.feed(ops, note), &["serverside-applied"]);
    turn.run("patch cm note --type=merge -p {\"data\":{\"a\":\"9\"}}");
    let refused = turn.tried(ops, note).unwrap_err();
    turn.holds("apply", &refused, &["Apply failed with 1 conflict", "kubectl-patch", ".data.a"]);
    turn.feed(&format!("{ops} --force-conflicts"), &note.replace(", b: '2'", ""));
    turn.shows("get cm note -o jsonpath={.data}", &["{\"a\":\"1\"}"]);

    // What technicians hold at their devices is no conflict here; it is told.
    let local = turn.fleet.local_kubectl("n1");
    local.run(&format!("-n {} set env ds/web COLOUR=white", turn.space));
    wait::until("the override at the hub", || {
        let found = turn.kubectl.attempt(&turn.line("get overrides -o name"))?;
        if found.is_empty() { Err("none yet".to_owned()) } else { Ok(()) }
    });
    let web = &WEB[WEB.rfind("---").unwrap()..].replace("blue", "green");
    let told = turn.tried("apply --server-side --force-conflicts --warnings-as-errors", web);
    turn.holds("apply", &told.unwrap_err(), &["device n1 overrides fields of this object"]);
    let env =
        story::env(&turn.kubectl.json(&turn.line("get ds web")).unwrap()["spec"]["template"], "COLOUR").to_owned();
    assert_eq!(env, "green");
    local.run(&format!("-n {} set env ds/web COLOUR=green", turn.space));
}

/// Leases: exact compare-and-swap at the hub, none at a device, and those of the Nodes.
fn elects(turn: &Turn<'_>) {
    let lease = "apiVersion: coordination.k8s.io/v1\nkind: Lease\nmetadata: {name: office}\nspec: {holderIdentity: one, leaseDurationSeconds: 15}\n";
    turn.feed("create", lease);
    let seen = turn.run("get lease office -o yaml");
    turn.feed("replace", &seen.replace("holderIdentity: one", "holderIdentity: two"));
    let late = turn.tried("replace", &seen.replace("holderIdentity: one", "holderIdentity: three")).unwrap_err();
    turn.holds("replace", &late, &["the object has been modified"]);
    turn.shows("get leases", &["HOLDER", "office", "two"]);
    turn.shows("get leases -n kube-node-lease", &["n1", "n2"]);
    let local = turn.fleet.local_kubectl("n1");
    let refused = local.feed(&turn.line("create"), lease).unwrap_err();
    turn.holds("create", &refused, &["Forbidden", "Use the hub's API"]);
    let whole = local.run("get pods -A -o name");
    assert_eq!(local.run("get pods -A -o name --chunk-size=1"), whole, "a device gives pages, too");
    let spaces = local.run("get ns -o name");
    turn.holds("get ns", &spaces, &[&format!("namespace/{}", turn.space)]);
}

/// A list as a stream (KEP-3157), and a client that prefers it.
fn streams_lists(turn: &Turn<'_>) {
    let url = format!(
        "/api/v1/namespaces/{}/configmaps?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1",
        turn.space
    );
    let text = turn.run(&format!("get --raw {url}"));
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let end = events.iter().position(|event| {
        event["type"] == "BOOKMARK" && event["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"] == "true"
    });
    assert_eq!(end, Some(events.len() - 1), "{text}");
    assert!(events[..events.len() - 1].iter().all(|event| event["type"] == "ADDED"), "{text}");
    let mut command = turn.kubectl.command(&turn.line("wait --for=jsonpath={.data.a}=1 cm/note --timeout=120s"));
    let output = command.env("KUBE_FEATURE_WatchListClient", "true").output().unwrap();
    assert!(output.status.success(), "{}: {}", turn.name, String::from_utf8_lossy(&output.stderr));
}

fn gives_priority(turn: &Turn<'_>) {
    let class = format!("class-{}", turn.space);
    turn.shows(&format!("create priorityclass {class} --value=1000"), &["created"]);
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: urgent}}\nspec:\n  priorityClassName: {class}\n  runtimeClassName: process\n  containers: [{{name: a, image: host, command: [sleep, '1000']}}]\n"
    );
    turn.feed("create", &pod);
    turn.shows("get pod urgent -o jsonpath={.spec.priority}", &["1000"]);
    let unknown = turn.tried("create", &pod.replace(&class, "none").replace("urgent", "other")).unwrap_err();
    turn.holds("create", &unknown, &["no PriorityClass with name none was found"]);
    turn.shows("get pc", &["system-node-critical", &class]);
    turn.refuses("delete pc system-node-critical", &["cannot be deleted"]);
    turn.run(&format!("delete pc {class}"));
    turn.shows("wait --for=condition=Ready pod/urgent --timeout=120s", &["condition met"]);
    turn.run("delete pod urgent --now");
}

fn selects_fields(turn: &Turn<'_>) {
    let pod = turn.run("get pods -l app=web -o jsonpath={.items[0].metadata.name}");
    let node = turn.run(&format!("get pod {pod} -o jsonpath={{.spec.nodeName}}"));
    for selector in [
        format!("metadata.name={pod},spec.nodeName={node},status.phase=Running,spec.restartPolicy=Always"),
        "spec.schedulerName=default-scheduler,spec.serviceAccountName=default,spec.hostNetwork=false".to_owned(),
        "status.nominatedNodeName=,status.podIP!=1.2.3.4".to_owned(),
    ] {
        turn.shows(&format!("get pods --field-selector {selector} -o name"), &[&format!("pod/{pod}")]);
    }
    turn.shows(
        "get events --field-selector involvedObject.kind=Deployment,type=Normal,reason=ScalingReplicaSet",
        &["shop"],
    );
    turn.shows("get nodes --field-selector spec.unschedulable=false -o name", &["node/n1"]);
    turn.shows("get ns --field-selector status.phase=Active -o name", &["namespace/default"]);
    assert_eq!(turn.run("get secrets --field-selector type=Opaque -o name"), "");
    turn.refuses("get pods --field-selector spec.colour=red", &["field label not supported"]);
    let url = format!("/api/v1/namespaces/{}/pods?resourceVersionMatch=Exact", turn.space);
    turn.refuses(
        &format!("get --raw {url}"),
        &["resourceVersionMatch is forbidden unless resourceVersion is provided"],
    );
}

fn goes(turn: &Turn<'_>) {
    turn.run("patch cm note --type=merge -p {\"metadata\":{\"finalizers\":[\"example.org/hold\"]}}");
    turn.run(&format!("delete ns {} --wait=false", turn.space));
    wait::until("the namespace says what holds it", || {
        let namespace = turn.raw(&format!("/api/v1/namespaces/{}", turn.space));
        let text = namespace["status"]["conditions"].to_string();
        if text.contains("example.org/hold in 1 resource instances") { Ok(()) } else { Err(text) }
    });
    turn.run("patch cm note --type=merge -p {\"metadata\":{\"finalizers\":null}}");
    turn.run(&format!("wait --for=delete ns/{} --timeout=120s", turn.space));
}

/// A technician's change that ends by itself.
#[test]
fn an_override_ends_when_it_was_said_to() {
    if !story::ready_to_run() {
        return;
    }
    let mut fleet = Fleet::with_agents(BINARY, Road::Quic, Containers::Processes, 1);
    let kubectl = fleet.kubectl();
    kubectl.apply(WEB);
    fleet.running_pods("app=web", 1);
    let local = fleet.local_kubectl("n1");
    fleet.stop_hub();
    local.run("set env ds/web COLOUR=white");
    local.run("annotate ds/web flotilla.dev/override-expires=2h");
    let stands = local.json("get overrides").unwrap();
    assert!(stands["items"][0]["spec"]["expires"].is_string(), "{stands}");
    let refused = local.attempt("annotate ds/web flotilla.dev/override-expires=soon").unwrap_err();
    assert!(refused.contains("must be a span such as 90m"), "{refused}");
    local.run("annotate ds/web flotilla.dev/override-expires=3s");
    wait::until("the end of the override", || {
        let left = local.attempt("get overrides -o name")?;
        let set = local.json("get ds web")?;
        let colour = story::env(&set["spec"]["template"], "COLOUR").to_owned();
        if left.is_empty() && colour == "blue" { Ok(()) } else { Err(format!("{left} {colour}")) }
    });
    fleet.start_hub();
    fleet.running_pods("app=web", 1);
}

/// `admin.kubeconfig` names the host that people reach, and the certificate is good for it.
#[test]
fn the_kubeconfig_names_what_is_advertised() {
    if !story::ready_to_run() {
        return;
    }
    let fleet = Fleet::start(BINARY, Road::Quic, &["--advertise-api", "localhost"]);
    let text = std::fs::read_to_string(fleet.hub_folder().join("admin.kubeconfig")).unwrap();
    let port = fleet.api().rsplit_once(':').unwrap().1.to_owned();
    assert!(text.contains(&format!("https://localhost:{port}")), "{text}");
    assert!(fleet.kubectl().run("get ns -o name").contains("namespace/default"));
    let refused = fleet.refused(&[
        "hub",
        "run",
        "--data",
        &fleet.folder().join("other").to_string_lossy(),
        "--advertise-api",
        "https://hub",
    ]);
    assert!(refused.contains("neither HOST nor HOST:PORT"), "{refused}");
}
