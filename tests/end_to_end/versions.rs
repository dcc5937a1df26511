//! Every kubectl from 1.29 to 1.33 that is installed, against a real hub with a real device.

use std::path::Path;

use flotilla_tests::fleet::{Fleet, Road, is_ready};
use flotilla_tests::kubectl::{Kubectl, binaries};
use flotilla_tests::wait;

use crate::BINARY;
use crate::story;

/// Everything of one kubectl's turn, in a namespace of its own.
struct Turn {
    kubectl: Kubectl,
    minor: u32,
    space: String,
}

impl Turn {
    fn of(fleet: &Fleet, binary: &Path) -> Self {
        let kubectl = fleet.kubectl().with_binary(binary);
        let version = kubectl.json("version").unwrap();
        let minor = version["clientVersion"]["minor"].as_str().unwrap().trim_end_matches('+').parse().unwrap();
        Self { kubectl, minor, space: format!("v{minor}") }
    }

    /// Runs a line in the turn's namespace; its output must hold all of this.
    #[track_caller]
    fn shows(&self, line: &str, words: &[&str]) -> String {
        let text = self.run(line);
        for word in words {
            assert!(text.contains(word), "kubectl 1.{} {line}: {word:?} is missing in:\n{text}", self.minor);
        }
        text
    }

    #[track_caller]
    fn run(&self, line: &str) -> String {
        let answer = self.kubectl.attempt(&format!("-n {} {line}", self.space));
        answer.unwrap_or_else(|error| panic!("kubectl 1.{} {line}: {error}", self.minor))
    }

    /// As [`Self::shows`], for what takes its time.
    fn comes_to_show(&self, line: &str, words: &[&str]) {
        wait::until(&format!("kubectl 1.{} {line} shows {words:?}", self.minor), || {
            let text = self.kubectl.attempt(&format!("-n {} {line}", self.space))?;
            if words.iter().all(|word| text.contains(word)) { Ok(()) } else { Err(text) }
        });
    }

    fn feed(&self, line: &str, manifest: &str) -> String {
        let answer = self.kubectl.feed(&format!("-n {} {line}", self.space), manifest);
        answer.unwrap_or_else(|error| panic!("kubectl 1.{} {line}: {error}", self.minor))
    }
}

#[test]
fn every_kubectl_works() {
    if !story::ready_to_run() {
        return;
    }
    let fleet = Fleet::with_agents(BINARY, Road::Quic, flotilla_tests::fleet::Containers::Processes, 1);
    for binary in binaries() {
        let turn = Turn::of(&fleet, &binary);
        namespace(&turn);
        applies(&turn);
        reads(&turn);
        edits(&turn);
        rolls(&turn);
        watches_and_logs(&turn);
        cordons_and_deletes(&turn);
    }
}

fn namespace(turn: &Turn) {
    let space = &turn.space;
    let created = turn.kubectl.run(&format!("create ns {space}"));
    assert!(created.contains("created"), "{created}");
    turn.shows("get ns", &["kube-system", "default", space, "Active"]);
}

const NOTE: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: note, labels: {app: shop}}
data: {colour: blue}
";

fn shop(version: &str) -> String {
    story::deployment(2, version).replace("name: shop}\n", "name: shop, labels: {app: shop}}\n")
}

fn applies(turn: &Turn) {
    let applied = turn.feed("apply", &shop("1"));
    assert!(applied.contains("deployment.apps/shop created"), "{applied}");
    assert!(turn.feed("apply", &shop("1")).contains("unchanged"));
    let made = turn.feed("create", NOTE);
    assert!(made.contains("configmap/note created"), "{made}");
    let again = turn.kubectl.feed(&format!("-n {} create", turn.space), NOTE);
    assert!(again.unwrap_err().contains("AlreadyExists"));
    turn.shows("rollout status deploy/shop --timeout=120s", &["successfully rolled out"]);
    turn.shows("wait --for=condition=Available deploy/shop --timeout=120s", &["condition met"]);
    turn.shows("wait --for=condition=Ready pod -l app=shop --timeout=120s", &["condition met"]);
}

fn reads(turn: &Turn) {
    turn.shows("get deploy", &["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "2/2"]);
    turn.shows("get pods -o wide", &["NAME", "RESTARTS", "NODE", "Running", "n1"]);
    turn.shows("get deploy,rs,pods -l app=shop", &["deployment.apps/shop", "replicaset.apps/shop-", "pod/shop-"]);
    turn.shows("get all", &["deployment.apps/shop"]);
    turn.shows("get pods -A", &["NAMESPACE", &turn.space]);
    turn.shows("get deploy shop -o yaml", &["kind: Deployment", "replicas: 2", "observedGeneration"]);
    turn.shows("get deploy shop -o jsonpath={.status.readyReplicas}", &["2"]);
    turn.shows("get cm note -o go-template={{.data.colour}}", &["blue"]);
    turn.shows("get pods -o custom-columns=N:.metadata.name,P:.status.phase", &["Running"]);
    turn.shows("get pods --field-selector spec.nodeName=n1,status.phase=Running -o name", &["pod/shop-"]);
    turn.shows("get pods --show-labels --sort-by=.metadata.name", &["app=shop", "pod-template-hash="]);
    turn.shows("get nodes -o wide", &["n1", "Ready", "SITE", "SYNC"]);
    turn.shows("get ds,cm,secrets,sa,runtimeclasses,events,controllerrevisions -A", &["note"]);
    turn.shows("describe deploy shop", &["RollingUpdateStrategy", "2 desired", "NewReplicaSet:", "ScalingReplicaSet"]);
    turn.shows(
        "describe pods -l app=shop",
        &["Node:", "n1", "State:", "Running", "Controlled By:", "ReplicaSet/shop-"],
    );
    turn.shows("describe node n1", &["Capacity:", "Non-terminated Pods:", "shop-"]);
    turn.shows("describe cm note", &["colour", "blue"]);
    turn.shows("api-resources", &["deployments", "apps/v1", "overrides", "flotilla.dev/v1alpha1"]);
    turn.shows("api-versions", &["apps/v1", "v1"]);
    turn.shows("version", &["Server Version: v1.33."]);
    turn.shows("explain deployment.spec.strategy", &["rollingUpdate"]);
    turn.shows("explain override.spec", &["operations"]);
    turn.comes_to_show("events", &["ScalingReplicaSet"]);
    turn.shows("get --raw /livez", &["ok"]);
}

fn edits(turn: &Turn) {
    turn.shows("label deploy shop tier=front", &["labeled"]);
    turn.shows("annotate deploy shop kubernetes.io/change-cause=second", &["annotated"]);
    turn.shows("patch cm note --type=merge -p {\"data\":{\"size\":\"1\"}}", &["patched"]);
    turn.shows(
        "patch cm note --type=json -p [{\"op\":\"replace\",\"path\":\"/data/size\",\"value\":\"2\"}]",
        &["patched"],
    );
    turn.shows("patch cm note -p {\"data\":{\"colour\":null}}", &["patched"]);
    turn.shows("get cm note -o jsonpath={.data}", &["{\"size\":\"2\"}"]);
    turn.shows("label deploy shop tier-", &["unlabeled"]);
    let yaml = turn.run("get cm note -o yaml").replace("size: \"2\"", "size: \"3\"");
    assert!(turn.feed("replace", &yaml).contains("replaced"));
    let stale = turn.kubectl.feed(&format!("-n {} replace", turn.space), &yaml).unwrap_err();
    assert!(stale.contains("Conflict"), "{stale}");
    let diff = turn.kubectl.feed(&format!("-n {} diff", turn.space), &shop("9")).unwrap_err();
    assert!(diff.contains("+          value: \"9\"") || diff.contains("\"9\""), "{diff}");
    turn.shows("scale deploy shop --replicas=3", &["scaled"]);
    turn.comes_to_show("get deploy shop", &["3/3"]);
    turn.shows("scale deploy shop --replicas=2 --current-replicas=3", &["scaled"]);
    turn.comes_to_show("get deploy shop", &["2/2"]);
}

fn rolls(turn: &Turn) {
    turn.shows("set env deploy/shop VERSION=2", &["env updated"]);
    turn.shows("rollout status deploy/shop --timeout=120s", &["successfully rolled out"]);
    turn.shows("rollout history deploy/shop", &["REVISION", "1", "2", "second"]);
    turn.shows("rollout undo deploy/shop", &["rolled back"]);
    turn.shows("rollout status deploy/shop --timeout=120s", &["successfully rolled out"]);
    turn.shows("rollout restart deploy/shop", &["restarted"]);
    turn.shows("rollout status deploy/shop --timeout=120s", &["successfully rolled out"]);
    turn.shows("rollout pause deploy/shop", &["paused"]);
    turn.shows("set image deploy/shop shop=host:2", &["image updated"]);
    turn.shows("set image deploy/shop shop=host", &["image updated"]);
    turn.shows("rollout resume deploy/shop", &["resumed"]);
    turn.shows("rollout status deploy/shop --timeout=120s", &["successfully rolled out"]);
}

fn watches_and_logs(turn: &Turn) {
    let watch = turn.kubectl.watch(&format!("-n {} get pods -l app=talk", turn.space));
    let talk = "
apiVersion: v1
kind: Pod
metadata: {name: talk, labels: {app: talk}}
spec:
  runtimeClassName: process
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: host
    command: [/bin/sh, -c, 'test -e $HOME/second || { echo first life; : > $HOME/second; exit 3; }; echo one; echo two; while :; do sleep 1; done']
    env: [{name: HOME, value: FOLDER}]
";
    let folder = tempfile::tempdir().unwrap();
    turn.feed("apply", &talk.replace("FOLDER", &folder.path().to_string_lossy()));
    let mut kinds = Vec::new();
    loop {
        let event = watch.expect("the pod's second life");
        kinds.push(event["type"].as_str().unwrap().to_owned());
        let pod = &event["object"];
        if is_ready(pod) && pod["status"]["containerStatuses"][0]["restartCount"] == 1 {
            break;
        }
    }
    assert_eq!(kinds.iter().filter(|kind| *kind == "ADDED").count(), 1, "{kinds:?}");
    turn.comes_to_show("logs talk", &["one\ntwo\n"]);
    assert_eq!(turn.run("logs talk --tail=1"), "two\n");
    assert_eq!(turn.run("logs talk --previous"), "first life\n");
    turn.shows("logs talk --timestamps", &["Z one"]);
    turn.shows("logs deploy/shop --limit-bytes=7", &["version"]);
    follow_to_the_end(turn);
    loop {
        if watch.expect("the pod's end")["type"] == "DELETED" {
            break;
        }
    }
}

/// `logs -f` shows what is there, and ends when the container does.
fn follow_to_the_end(turn: &Turn) {
    use std::io::{BufRead as _, Read as _};
    let mut command = turn.kubectl.command(&format!("-n {} logs -f talk", turn.space));
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    while !text.contains("two") {
        assert_ne!(output.read_line(&mut text).unwrap(), 0, "the log ended at {text:?}");
    }
    turn.shows("delete pod talk", &["deleted"]);
    output.read_to_string(&mut text).unwrap();
    assert_eq!(text, "one\ntwo\n");
    assert!(child.wait().unwrap().success());
}

fn cordons_and_deletes(turn: &Turn) {
    turn.shows("cordon n1", &["cordoned"]);
    turn.shows("get nodes", &["SchedulingDisabled"]);
    turn.run("scale deploy shop --replicas=3");
    turn.comes_to_show("get pods", &["Pending"]);
    turn.comes_to_show("describe pods -l app=shop", &["FailedScheduling"]);
    turn.shows("uncordon n1", &["uncordoned"]);
    turn.comes_to_show("get deploy shop", &["3/3"]);
    turn.shows("delete cm -l app=shop", &["configmap \"note\" deleted"]);
    turn.shows("delete deploy shop --cascade=foreground", &["deleted"]);
    turn.run(&format!("delete ns {} --timeout=120s", turn.space));
    let left = turn.run("get deploy,rs,pods,cm -o name");
    assert!(left.is_empty(), "{left}");
    let gone = turn.kubectl.attempt(&format!("get ns {}", turn.space)).unwrap_err();
    assert!(gone.contains("NotFound"), "{gone}");
}
