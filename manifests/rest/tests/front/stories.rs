//! What people do with kubectl, with every version of it that is installed.

use std::path::Path;

use serde_json::Value;

use crate::kubectl::{Kubectl, installed};
use crate::server::Server;

pub(crate) const WEB: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: web, labels: {app: web}}
data: {colour: green}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: main
        image: example/web:1
        env: [{name: COLOUR, value: green}]
";

pub(crate) const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: POD, labels: {app: POD}}
spec:
  nodeName: n1
  containers: [{name: main, image: example/web:1}]
";

/// Runs a story with each kubectl, each with a server of its own.
pub(crate) fn with_each(story: impl Fn(&Kubectl, &Server)) {
    let programs = installed();
    if programs.is_empty() {
        // Not eprintln: the test runner keeps that to itself when a test passes.
        std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("SKIPPED: no kubectl on PATH\n")).unwrap();
    }
    for program in programs {
        let server = Server::started();
        story(&as_user(&program, &server, "admin"), &server);
        server.stop();
    }
}

fn as_user(program: &Path, server: &Server, user: &str) -> Kubectl {
    Kubectl::of(program, server.path(&format!("{user}.kubeconfig")))
}

pub(crate) fn json(kubectl: &Kubectl, arguments: &[&str]) -> Value {
    let mut arguments = arguments.to_vec();
    arguments.extend(["-o", "json"]);
    serde_json::from_str(&kubectl.ok(&arguments)).unwrap()
}

/// Sets a status as a controller would.
fn set_status(kubectl: &Kubectl, object: &str, status: &str) {
    let patch = format!("{{\"status\":{status}}}");
    kubectl.ok(&["patch", object, "--subresource=status", "--type=merge", "-p", &patch]);
}

#[test]
fn discovery_version_and_explain() {
    with_each(|kubectl, _| {
        kubectl.shows(&["version"], &["Server Version: v1.33.0+flotilla"]);
        let resources = kubectl.ok(&["api-resources", "-o", "wide"]);
        let deployments = resources.lines().find(|line| line.starts_with("deployments")).unwrap();
        for word in ["deploy", "apps/v1", "true", "Deployment", "deletecollection", "all"] {
            assert!(deployments.contains(word), "{deployments}");
        }
        assert!(!resources.contains("cronjobs"), "what is not served is not listed");
        kubectl.shows(&["api-versions"], &["apps/v1", "flotilla.dev/v1alpha1", "v1"]);
        kubectl.shows(&["explain", "deployment.spec.replicas"], &["KIND:", "Deployment", "replicas", "integer"]);
        kubectl.shows(&["explain", "override.spec"], &["operations", "author", "never, if absent"]);
        kubectl.shows(&["explain", "pod.spec.containers"], &["<[]Container>", "image", "Environment variables."]);
        kubectl.shows(&["explain", "ds"], &["One Pod on every device", "What is wanted."]);
        kubectl.shows(&["explain", "lease.spec", "--recursive"], &["holderIdentity", "renewTime"]);
        kubectl.shows(&["explain", "deploy.spec.strategy.rollingUpdate.maxSurge"], &["too many"]);
        kubectl.shows(&["explain", "pod", "--recursive"], &["containers", "terminationGracePeriodSeconds"]);
        kubectl.shows(&["get", "--raw", "/readyz"], &["ok"]);
    });
}

#[test]
fn apply_and_read_back() {
    with_each(|kubectl, _| {
        let applied = kubectl.ok_with(&["apply", "-f", "-"], WEB);
        assert!(
            applied.contains("configmap/web created") && applied.contains("deployment.apps/web created"),
            "{applied}"
        );
        let again = kubectl.ok_with(&["apply", "-f", "-"], WEB);
        assert_eq!(again.matches("unchanged").count(), 2, "{again}");
        let version = || json(kubectl, &["get", "deploy", "web"])["metadata"]["resourceVersion"].clone();
        let before = version();
        let changed = kubectl.ok_with(&["apply", "-f", "-"], &WEB.replace("web:1", "web:2"));
        assert!(changed.contains("deployment.apps/web configured"), "{changed}");
        assert_ne!(version(), before);

        kubectl.shows(&["get", "deploy"], &["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE", "web", "0/2"]);
        kubectl.shows(
            &["get", "deploy", "web", "-o", "wide"],
            &["CONTAINERS", "IMAGES", "SELECTOR", "example/web:2", "app=web"],
        );
        kubectl.shows(&["get", "deploy", "web", "-o", "yaml"], &["kind: Deployment", "image: example/web:2", "uid: "]);
        kubectl.shows(
            &["get", "deploy,cm", "-l", "app=web", "-A"],
            &["NAMESPACE", "default", "deployment.apps/web", "configmap/web"],
        );
        kubectl.shows(&["get", "all"], &["deployment.apps/web"]);
        kubectl.shows(&["get", "cm", "--show-labels", "--sort-by=.metadata.name"], &["app=web", "DATA"]);
        kubectl.shows(&["get", "cm", "web", "-o", "jsonpath={.data.colour}"], &["green"]);
        kubectl.shows(&["get", "deploy", "-l", "app!=web"], &["No resources found"]);
        kubectl
            .shows(&["get", "deploy", "--field-selector", "metadata.name=web", "-o", "name"], &["deployment.apps/web"]);
        kubectl
            .shows(&["describe", "deploy", "web"], &["StrategyType:", "RollingUpdate", "example/web:2", "2 desired"]);
        kubectl.shows(&["describe", "cm", "web"], &["colour", "green"]);
        kubectl.ok_with(&["diff", "-f", "-"], &WEB.replace("web:1", "web:2"));
    });
}

#[test]
fn unknown_fields_and_faults_are_told() {
    with_each(|kubectl, _| {
        let unknown = WEB.replace("replicas: 2", "replicas: 2\n  replicsa: 3");
        let refused = kubectl.fails_with(&["apply", "-f", "-"], &unknown);
        assert!(refused.contains("unknown field \"spec.replicsa\""), "{refused}");
        let warned = kubectl.ok_with(&["apply", "--validate=warn", "-f", "-"], &unknown);
        assert!(warned.contains("Warning: unknown field \"spec.replicsa\""), "{warned}");
        let twice = "{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"x\"},\"data\":{\"a\":\"b\"},\"data\":{}}";
        let refused = kubectl.fails_with(
            &["create", "--validate=false", "-f", "-"],
            &WEB.replace("image: example/web:1", "").replace("name: web,", "name: bad,"),
        );
        assert!(refused.contains("spec.template.spec.containers[0].image"), "{refused}");
        kubectl.ok_with(&["create", "--validate=false", "-f", "-"], twice);
        let exists = kubectl.fails_with(&["create", "--validate=false", "-f", "-"], twice);
        assert!(exists.contains("(AlreadyExists)") && exists.contains("configmaps \"x\" already exists"), "{exists}");
        let missing = kubectl.fails(&["get", "pod", "nope"]);
        assert!(missing.contains("Error from server (NotFound): pods \"nope\" not found"), "{missing}");
        let unknown = kubectl.fails(&["get", "cronjobs"]);
        assert!(unknown.contains("the server doesn't have a resource type \"cronjobs\""), "{unknown}");
        let selector = kubectl.fails(&["get", "pods", "--field-selector", "spec.colour=red"]);
        assert!(selector.contains("field label not supported"), "{selector}");
        let warned = kubectl.ok_with(&["create", "-f", "-"], &POD.replace("POD", "warned"));
        assert!(warned.contains("Warning: accepted here, not yet synced"), "{warned}");
        let dry = kubectl.ok_with(&["create", "--dry-run=server", "-f", "-"], &POD.replace("POD", "dry"));
        assert!(dry.contains("pod/dry created (server dry run)"), "{dry}");
        kubectl.fails(&["get", "pod", "dry"]);
    });
}

#[test]
fn edits() {
    with_each(|kubectl, _| {
        kubectl.ok_with(&["create", "-f", "-"], WEB);
        kubectl.shows(&["label", "deploy", "web", "tier=front"], &["labeled"]);
        kubectl.shows(&["annotate", "deploy", "web", "note=hello there"], &["annotated"]);
        kubectl.shows(&["scale", "deploy", "web", "--replicas=5"], &["scaled"]);
        kubectl.shows(&["set", "image", "deploy/web", "main=example/web:7"], &["image updated"]);
        kubectl.shows(&["set", "env", "deploy/web", "COLOUR=red", "SIZE=small"], &["env updated"]);
        let merge = "{\"spec\":{\"paused\":true}}";
        kubectl.shows(&["patch", "deploy", "web", "--type=merge", "-p", merge], &["patched"]);
        let steps = "[{\"op\":\"add\",\"path\":\"/metadata/labels/step\",\"value\":\"json\"}]";
        kubectl.shows(&["patch", "deploy", "web", "--type=json", "-p", steps], &["patched"]);
        let strategic =
            "{\"spec\":{\"template\":{\"spec\":{\"containers\":[{\"name\":\"side\",\"image\":\"example/side:1\"}]}}}}";
        kubectl.shows(&["patch", "deploy", "web", "-p", strategic], &["patched"]);
        kubectl.shows(&["patch", "deploy", "web", "-p", strategic], &["no change"]);
        kubectl.shows(&["rollout", "resume", "deploy/web"], &["resumed"]);
        kubectl.shows(&["rollout", "restart", "deploy/web"], &["restarted"]);

        let deployment = json(kubectl, &["get", "deploy", "web"]);
        assert_eq!(deployment["metadata"]["labels"]["tier"], "front");
        assert_eq!(deployment["metadata"]["labels"]["step"], "json");
        assert_eq!(deployment["metadata"]["annotations"]["note"], "hello there");
        assert_eq!(deployment["spec"]["replicas"], 5);
        let template = &deployment["spec"]["template"];
        assert!(template["metadata"]["annotations"]["kubectl.kubernetes.io/restartedAt"].is_string());
        let containers = template["spec"]["containers"].as_array().unwrap();
        let main = containers.iter().find(|container| container["name"] == "main").unwrap();
        assert_eq!(containers.len(), 2, "a strategic merge keeps what it does not name");
        assert_eq!(main["image"], "example/web:7");
        assert_eq!(
            main["env"],
            serde_json::json!([{"name": "COLOUR", "value": "red"}, {"name": "SIZE", "value": "small"}])
        );

        let config = kubectl.ok(&["get", "cm", "web", "-o", "yaml"]);
        kubectl.ok_with(&["replace", "-f", "-"], &config.replace("green", "blue"));
        let stale = kubectl.fails_with(&["replace", "-f", "-"], &config.replace("green", "grey"));
        assert!(stale.contains("the object has been modified"), "{stale}");
        kubectl.shows(&["get", "cm", "web", "-o", "jsonpath={.data.colour}"], &["blue"]);
        kubectl.shows(&["label", "deploy", "web", "tier-"], &["unlabeled"]);
    });
}

#[test]
fn rollouts() {
    with_each(|kubectl, _| {
        kubectl.ok_with(&["apply", "-f", "-"], WEB);
        let mut status = kubectl.follow(&["rollout", "status", "deploy/web", "--timeout=60s"]);
        assert!(status.line().contains("Waiting for deployment"), "it waits at first");
        let generation = json(kubectl, &["get", "deploy", "web"])["metadata"]["generation"].clone();
        let done = format!(
            "{{\"observedGeneration\":{generation},\"replicas\":2,\"updatedReplicas\":2,\"readyReplicas\":2,\"availableReplicas\":2,\
             \"conditions\":[{{\"type\":\"Available\",\"status\":\"True\"}}]}}"
        );
        set_status(kubectl, "deploy/web", &done);
        let mut last = String::new();
        loop {
            let line = status.line();
            if line.is_empty() {
                break;
            }
            last = line;
        }
        assert!(last.contains("successfully rolled out"), "{last}");
        assert!(status.ended_well());
        kubectl.shows(&["wait", "--for=condition=Available", "deploy/web", "--timeout=60s"], &["condition met"]);

        let uid = json(kubectl, &["get", "deploy", "web"])["metadata"]["uid"].as_str().unwrap().to_owned();
        for revision in [1, 2] {
            let set = format!(
                "{{apiVersion: apps/v1, kind: ReplicaSet, metadata: {{name: web-{revision}, labels: {{app: web, pod-template-hash: h{revision}}},
                  annotations: {{deployment.kubernetes.io/revision: '{revision}', kubernetes.io/change-cause: cause {revision}}},
                  ownerReferences: [{{apiVersion: apps/v1, kind: Deployment, name: web, uid: {uid}, controller: true}}]}},
                  spec: {{replicas: 0, selector: {{matchLabels: {{app: web, pod-template-hash: h{revision}}}}},
                  template: {{metadata: {{labels: {{app: web, pod-template-hash: h{revision}}}}},
                  spec: {{containers: [{{name: main, image: 'example/web:{revision}'}}]}}}}}}}}"
            );
            kubectl.create(&set);
        }
        kubectl.ok_with(&["apply", "-f", "-"], &WEB.replace("web:1", "web:2"));
        kubectl.ok(&["annotate", "deploy", "web", "deployment.kubernetes.io/revision=2"]);
        kubectl.shows(&["rollout", "history", "deploy/web"], &["REVISION", "1", "cause 1", "2", "cause 2"]);
        kubectl.shows(&["rollout", "history", "deploy/web", "--revision=1"], &["example/web:1"]);
        kubectl.shows(&["rollout", "undo", "deploy/web"], &["rolled back"]);
        let image = "jsonpath={.spec.template.spec.containers[0].image}";
        kubectl.shows(&["get", "deploy", "web", "-o", image], &["example/web:1"]);
        kubectl.shows(&["describe", "rs", "web-1"], &["Controlled By:", "Deployment/web"]);
    });
}

#[test]
fn daemon_sets_have_a_history() {
    with_each(|kubectl, _| {
        let set = |image: &str| {
            format!(
                "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {{name: eye}}\nspec:\n  selector: {{matchLabels: {{app: eye}}}}\n  \
                 template: {{metadata: {{labels: {{app: eye}}}}, spec: {{containers: [{{name: main, image: '{image}'}}]}}}}\n"
            )
        };
        kubectl.ok_with(&["apply", "-f", "-"], &set("example/eye:2"));
        let uid = json(kubectl, &["get", "ds", "eye"])["metadata"]["uid"].as_str().unwrap().to_owned();
        for revision in [1, 2] {
            kubectl.create(&format!(
                "{{apiVersion: apps/v1, kind: ControllerRevision, metadata: {{name: eye-{revision}, labels: {{app: eye}},
                  annotations: {{kubernetes.io/change-cause: cause {revision}}},
                  ownerReferences: [{{apiVersion: apps/v1, kind: DaemonSet, name: eye, uid: {uid}, controller: true}}]}},
                  revision: {revision}, data: {{spec: {{template: {{$patch: replace, metadata: {{labels: {{app: eye}}}},
                  spec: {{containers: [{{name: main, image: 'example/eye:{revision}'}}]}}}}}}}}}}"
            ));
        }
        kubectl.shows(&["get", "controllerrevisions"], &["CONTROLLER", "daemonset.apps/eye", "REVISION"]);
        kubectl.shows(&["rollout", "history", "ds/eye"], &["cause 1", "cause 2"]);
        kubectl.shows(&["rollout", "undo", "ds/eye", "--to-revision=1"], &["rolled back"]);
        let image = "jsonpath={.spec.template.spec.containers[0].image}";
        kubectl.shows(&["get", "ds", "eye", "-o", image], &["example/eye:1"]);
        kubectl.shows(&["get", "ds", "-o", "wide"], &["DESIRED", "NODE SELECTOR", "SILENT"]);
        kubectl.shows(&["describe", "ds", "eye"], &["Selector:", "app=eye"]);
    });
}

#[test]
fn watching_and_waiting() {
    with_each(|kubectl, _| {
        kubectl.ok_with(&["create", "-f", "-"], &POD.replace("POD", "one"));
        let mut watch = kubectl.follow(&["get", "pods", "-w", "-l", "app=one"]);
        assert!(watch.line().contains("READY"));
        assert!(watch.line().starts_with("one"));
        kubectl.ok_with(&["create", "-f", "-"], &POD.replace("POD", "two"));
        let ready = "{\"phase\":\"Running\",\"conditions\":[{\"type\":\"Ready\",\"status\":\"True\"}],\
            \"containerStatuses\":[{\"name\":\"main\",\"ready\":true,\"restartCount\":0,\"image\":\"\",\"imageID\":\"\",\"state\":{\"running\":{}}}]}";
        let wait = kubectl.follow(&["wait", "--for=condition=Ready", "pod/one", "--timeout=60s"]);
        set_status(kubectl, "pod/one", ready);
        let line = watch.line();
        assert!(line.starts_with("one") && line.contains("1/1") && line.contains("Running"), "{line}");
        assert!(wait.ended_well());
        let gone = kubectl.follow(&["wait", "--for=delete", "pod/one", "--timeout=60s"]);
        kubectl.shows(&["delete", "pod", "one", "--now", "--wait=false"], &["deleted"]);
        kubectl.ok(&["delete", "pod", "one", "--force", "--grace-period=0", "--ignore-not-found"]);
        assert!(gone.ended_well());
        kubectl.shows(&["get", "pods", "-o", "name"], &["pod/two"]);
        let mut events = kubectl.follow(&["get", "pods", "two", "-w", "-o", "name"]);
        assert_eq!(events.line().trim(), "pod/two");
    });
}

#[test]
fn deleting() {
    with_each(|kubectl, _| {
        kubectl.ok_with(&["apply", "-f", "-"], WEB);
        kubectl.shows(&["delete", "deploy", "web", "--timeout=60s"], &["deployment.apps \"web\"", "deleted"]);
        kubectl.fails(&["get", "deploy", "web"]);
        kubectl.shows(&["delete", "cm", "-l", "app=web"], &["configmap \"web\"", "deleted"]);
        kubectl.ok_with(&["apply", "-f", "-"], WEB);
        kubectl.ok_with(&["delete", "-f", "-"], WEB);
        kubectl.shows(&["get", "deploy,cm"], &["No resources found"]);
        let generated = "{apiVersion: v1, kind: ConfigMap, metadata: {generateName: gen-}}";
        assert!(kubectl.create(generated).contains("configmap/gen-"));
        kubectl.create(generated);
        kubectl.ok(&["delete", "--raw", "/api/v1/namespaces/default/configmaps?labelSelector=none%3Dsuch"]);
        assert_eq!(json(kubectl, &["get", "cm"])["items"].as_array().unwrap().len(), 2);
        kubectl.ok(&["delete", "--raw", "/api/v1/namespaces/default/configmaps"]);
        kubectl.shows(&["get", "cm"], &["No resources found"]);
        let held = "{apiVersion: v1, kind: ConfigMap, metadata: {name: held, finalizers: [example.org/hold]}}";
        kubectl.create(held);
        kubectl.ok(&["delete", "cm", "held", "--wait=false"]);
        assert!(json(kubectl, &["get", "cm", "held"])["metadata"]["deletionTimestamp"].is_string());
        kubectl.ok(&["patch", "cm", "held", "--type=merge", "-p", "{\"metadata\":{\"finalizers\":null}}"]);
        kubectl.fails(&["get", "cm", "held"]);
    });
}

#[test]
fn logs_nodes_and_events() {
    with_each(|kubectl, _| {
        kubectl.ok_with(&["create", "-f", "-"], &POD.replace("POD", "talker"));
        let all = kubectl.ok(&["logs", "talker"]);
        assert_eq!((all.lines().count(), all.lines().next()), (9, Some("present line 1")), "{all}");
        assert_eq!(kubectl.ok(&["logs", "talker", "--tail=1", "--previous"]).trim(), "previous line 9");
        let followed = kubectl.ok(&["logs", "-f", "talker", "--tail=2"]);
        assert_eq!(followed.lines().collect::<Vec<_>>(), ["present line 8", "present line 9", "followed"]);
        assert!(kubectl.fails(&["logs", "mute"]).contains("pods \"mute\" not found"));

        let node = "{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {flotilla.dev/site: mill}, annotations: {flotilla.dev/sync: synced}}}";
        kubectl.create(node);
        kubectl.shows(&["cordon", "n1"], &["node/n1 cordoned"]);
        kubectl.shows(&["get", "nodes"], &["SITE", "SEEN", "SYNC", "Unknown,SchedulingDisabled", "mill", "synced"]);
        kubectl.shows(&["uncordon", "n1"], &["node/n1 uncordoned"]);
        kubectl.shows(&["describe", "node", "n1"], &["flotilla.dev/site=mill", "talker"]);
        kubectl.shows(&["get", "pods", "--field-selector", "spec.nodeName=n1", "-o", "wide"], &["talker", "n1"]);

        let uid = json(kubectl, &["get", "pod", "talker"])["metadata"]["uid"].as_str().unwrap().to_owned();
        let event = format!(
            "{{apiVersion: v1, kind: Event, metadata: {{name: talker.1, namespace: default}}, type: Warning, reason: BackOff, message: too loud,
              involvedObject: {{apiVersion: v1, kind: Pod, name: talker, namespace: default, uid: {uid}}}, count: 4,
              source: {{component: agent}}, firstTimestamp: '2026-01-01T00:00:00Z', lastTimestamp: '2026-01-01T00:00:00Z'}}"
        );
        kubectl.create(&event);
        kubectl.shows(&["get", "events"], &["LAST SEEN", "BackOff", "pod/talker", "too loud"]);
        kubectl.shows(&["events", "--for", "pod/talker"], &["BackOff", "too loud"]);
        kubectl.shows(&["describe", "pod", "talker"], &["Events:", "BackOff", "too loud"]);
    });
}

#[test]
fn strangers() {
    let programs = installed();
    let Some(program) = programs.last() else {
        // Not eprintln: the test runner keeps that to itself when a test passes.
        std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("SKIPPED: no kubectl on PATH\n")).unwrap();
        return;
    };
    let server = Server::started();
    let other = as_user(program, &server, "other");
    let refused = other.fails(&["get", "--raw", "/api/v1/namespaces/default/secrets"]);
    let words = "secrets is forbidden: User \"other\" cannot list resource \"secrets\" in API group \"\" in the namespace \"default\"";
    assert!(refused.contains(words), "{refused}");
    let nobody = as_user(program, &server, "nobody");
    let unknown = nobody.fails(&["get", "--raw", "/api/v1/pods"]);
    assert!(unknown.contains("Unauthorized") || unknown.contains("You must be logged in"), "{unknown}");
    assert_eq!(nobody.ok(&["get", "--raw", "/livez"]), "ok");
    let forged = as_user(program, &server, "forged").fails(&["get", "--raw", "/livez"]);
    // Its words for a connection that ends are many; an answer would be one of these.
    assert!(!forged.contains("Error from server"), "another root's certificate, of the same name: {forged}");
    let alert = server.word_on_certificate_of("forged").unwrap_err().to_string();
    assert!(alert.contains("DecryptError"), "what bears the root's name was not signed by it: {alert}");
    assert!(nobody.ok(&["get", "--raw", "/version"]).contains("\"minor\":\"33\""));
    let admin = as_user(program, &server, "admin");
    let impersonated = admin.fails(&["get", "--raw", "/api/v1/pods", "--as=other"]);
    assert!(impersonated.contains("impersonation is not allowed"), "{impersonated}");
    server.stop();
}
