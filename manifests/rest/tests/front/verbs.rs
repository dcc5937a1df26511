//! The verbs of kubectl beyond reading and applying, with every version of it that is installed.

use std::os::unix::fs::PermissionsExt as _;

use crate::kubectl::Kubectl;
use crate::stories::{POD, WEB, json, with_each};

#[test]
fn typed_bodies_are_read() {
    with_each(|kubectl, _| {
        kubectl.shows(&["create", "ns", "shops"], &["namespace/shops created"]);
        kubectl.ok(&["create", "deployment", "shop", "--image=example/shop:1", "--replicas=3", "--port=80"]);
        let shop = json(kubectl, &["get", "deploy", "shop"]);
        assert_eq!((&shop["spec"]["replicas"], &shop["metadata"]["labels"]["app"]), (&3.into(), &"shop".into()));
        let container = &shop["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(
            (&container["image"], &container["ports"][0]["containerPort"]),
            (&"example/shop:1".into(), &80.into())
        );
        assert_eq!(container["terminationMessagePath"], "/dev/termination-log", "it is defaulted");
        kubectl.ok(&["create", "cm", "colours", "--from-literal=a=green"]);
        kubectl.ok(&["create", "secret", "generic", "word", "--from-literal=a=green"]);
        kubectl.shows(&["get", "secret", "word", "-o", "jsonpath={.data.a}"], &["Z3JlZW4="]);
        kubectl.ok(&["create", "sa", "robot"]);
        kubectl.ok(&["create", "priorityclass", "high", "--value=1000", "--description=first"]);
        kubectl.shows(&["get", "pc"], &["VALUE", "high", "1000", "false", "PreemptLowerPriority"]);
        kubectl.ok(&["run", "one", "--image=example/one:1", "--restart=Never", "--env=A=b", "--labels=app=one"]);
        kubectl.shows(&["get", "pod", "one", "-o", "jsonpath={.spec.containers[0].env[0].value}"], &["b"]);
        let dry = kubectl.ok(&["create", "deployment", "dry", "--image=x", "--dry-run=server", "-o", "yaml"]);
        assert!(dry.contains("restartPolicy: Always"), "{dry}");
        kubectl.fails(&["get", "deploy", "dry"]);
        let twice = kubectl.fails(&["create", "ns", "shops"]);
        assert!(twice.contains("AlreadyExists"), "{twice}");
    });
}

#[test]
fn draining() {
    with_each(|kubectl, _| {
        kubectl.create("{apiVersion: v1, kind: Node, metadata: {name: n1}}");
        kubectl.ok_with(&["create", "-f", "-"], &POD.replace("POD", "lonely"));
        let refused = kubectl.fails(&["drain", "n1"]);
        assert!(refused.contains("cannot delete") && refused.contains("lonely"), "{refused}");
        let tried = kubectl.ok(&["drain", "n1", "--force", "--dry-run=server"]);
        assert!(tried.contains("evicting pod default/lonely (server dry run)"), "{tried}");
        kubectl.shows(&["get", "pods"], &["lonely"]);
        kubectl.shows(&["drain", "n1", "--force", "--grace-period=0"], &["evicting pod default/lonely", "drained"]);
        kubectl.shows(&["get", "pods"], &["No resources found"]);
        kubectl.shows(&["get", "nodes"], &["SchedulingDisabled"]);
        kubectl.shows(&["taint", "nodes", "n1", "a=b:NoSchedule"], &["tainted"]);
        kubectl.shows(&["taint", "nodes", "n1", "a-"], &["untainted"]);
    });
}

#[test]
fn who_may_do_what() {
    with_each(|kubectl, _| {
        kubectl.shows(&["auth", "can-i", "create", "deployments"], &["yes"]);
        kubectl.shows(&["auth", "can-i", "get", "pods/log", "-n", "kube-system"], &["yes"]);
        kubectl.shows(&["auth", "can-i", "--list"], &["deployments.apps", "pods/log"]);
        kubectl.shows(&["auth", "whoami"], &["Username", "admin"]);
    });
}

#[test]
fn what_is_not_served_is_told() {
    with_each(|kubectl, _| {
        kubectl.ok_with(&["create", "-f", "-"], &POD.replace("POD", "one"));
        let ready = "{\"status\":{\"phase\":\"Running\"}}";
        kubectl.ok(&["patch", "pod", "one", "--subresource=status", "--type=merge", "-p", ready]);
        let exec = kubectl.fails(&["exec", "one", "--", "ls"]);
        assert!(exec.contains("pods/exec is not served here") && exec.contains("kubectl logs"), "{exec}");
        let forward = kubectl.fails(&["port-forward", "one", "18080:80"]);
        assert!(forward.contains("pods/portforward is not served here"), "{forward}");
        let expose = kubectl.fails(&["expose", "pod", "one", "--port=80"]);
        assert!(expose.contains("Service") || expose.contains("could not find the requested resource"), "{expose}");
        let top = kubectl.fails(&["top", "pods"]);
        assert!(top.contains("Metrics API not available"), "{top}");
        let job = kubectl.fails(&["create", "job", "x", "--image=x"]);
        assert!(job.contains("could not find the requested resource") || job.contains("no matches"), "{job}");
    });
}

/// An editor that replaces one word by another.
fn editor(folder: &std::path::Path, from: &str, to: &str) -> String {
    let path = folder.join(format!("edit-{from}-{to}"));
    std::fs::write(&path, format!("#!/bin/sh\nsed -i 's/{from}/{to}/' \"$1\"\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.to_string_lossy().into_owned()
}

#[test]
fn diff_edit_replace_and_prune() {
    with_each(|kubectl, server| {
        kubectl.ok_with(&["apply", "-f", "-"], WEB);
        kubectl.ok_with(&["diff", "-f", "-"], WEB);
        let diff = kubectl.fails_with(&["diff", "-f", "-"], &WEB.replace("web:1", "web:9"));
        assert!(
            diff.contains("-        image: example/web:1") || diff.contains("-      - image: example/web:1"),
            "{diff}"
        );
        assert!(diff.contains("image: example/web:9"), "{diff}");

        let edited = kubectl.edits(&["edit", "cm", "web"], &editor(&server.path(""), "green", "grey"));
        assert!(edited.contains("configmap/web edited"), "{edited}");
        kubectl.shows(&["get", "cm", "web", "-o", "jsonpath={.data.colour}"], &["grey"]);
        let unchanged = kubectl.edits(&["edit", "cm", "web"], &editor(&server.path(""), "green", "grey"));
        assert!(unchanged.contains("no changes made"), "{unchanged}");

        let before = json(kubectl, &["get", "cm", "web"])["metadata"]["uid"].clone();
        let config = kubectl.ok(&["get", "cm", "web", "-o", "yaml"]);
        kubectl.shows_with(
            &["replace", "--force", "-f", "-"],
            &config.replace("grey", "blue"),
            &["configmap/web replaced"],
        );
        assert_ne!(json(kubectl, &["get", "cm", "web"])["metadata"]["uid"], before, "it was made anew");

        let set = |names: &[&str]| {
            let one = |name: &&str| {
                format!("---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, labels: {{set: s}}}}\n")
            };
            names.iter().map(one).collect::<String>()
        };
        let prune = ["apply", "--prune", "-l", "set=s", "--prune-allowlist=core/v1/ConfigMap", "-f", "-"];
        kubectl.ok_with(&prune, &set(&["p1", "p2"]));
        kubectl.shows_with(&prune, &set(&["p1"]), &["configmap/p2 pruned"]);
        kubectl.shows(&["get", "cm", "-l", "set=s", "-o", "name"], &["configmap/p1"]);
        kubectl.shows(&["delete", "deploy", "web", "--cascade=foreground", "--wait=false"], &["deleted"]);
    });
}

#[test]
fn long_lists_come_in_pages() {
    with_each(|kubectl: &Kubectl, server| {
        for number in 0..12 {
            server.create_config_map(&format!("n{number:02}"));
        }
        let names = kubectl.ok(&["get", "cm", "--chunk-size=5", "-o", "name"]);
        let expected: String = (0..12).map(|number| format!("configmap/n{number:02}\n")).collect();
        assert_eq!(names, expected);
        let raw =
            |url: &str| -> serde_json::Value { serde_json::from_str(&kubectl.ok(&["get", "--raw", url])).unwrap() };
        let first = raw("/api/v1/namespaces/default/configmaps?limit=5");
        assert_eq!(
            (first["items"].as_array().unwrap().len(), &first["metadata"]["remainingItemCount"]),
            (5, &7.into())
        );
        // What happens meanwhile does not show in the pages that follow.
        kubectl.ok(&["delete", "cm", "n06", "n11"]);
        server.create_config_map("n05-late");
        let token = first["metadata"]["continue"].as_str().unwrap();
        let rest = raw(&format!("/api/v1/namespaces/default/configmaps?limit=50&continue={token}"));
        let names: Vec<&str> =
            rest["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["n05", "n06", "n07", "n08", "n09", "n10", "n11"]);
        assert_eq!(rest["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
        assert_eq!(rest["metadata"]["continue"], serde_json::Value::Null);
        let version = first["metadata"]["resourceVersion"].as_str().unwrap();
        let exact =
            raw(&format!("/api/v1/namespaces/default/configmaps?resourceVersion={version}&resourceVersionMatch=Exact"));
        assert_eq!(exact["items"].as_array().unwrap().len(), 12);
        let foreign = kubectl.fails(&["get", "--raw", &format!("/api/v1/secrets?continue={token}")]);
        assert!(foreign.contains("continue key is not valid"), "{foreign}");
        let both = format!("/api/v1/namespaces/default/configmaps?continue={token}&resourceVersion={version}");
        assert!(kubectl.fails(&["get", "--raw", &both]).contains("not allowed when using continue"));
    });
}

#[test]
fn server_side_apply() {
    with_each(|kubectl, _| {
        let ssa = |manager: &'static str| ["apply", "--server-side", "--field-manager", manager, "-f", "-"];
        let applied = kubectl.ok_with(&ssa("ops"), WEB);
        assert!(applied.contains("deployment.apps/web serverside-applied"), "{applied}");
        kubectl
            .shows(&["get", "deploy", "web", "-o", "yaml", "--show-managed-fields"], &["manager: ops", "f:replicas"]);
        let version = || json(kubectl, &["get", "deploy", "web"])["metadata"]["resourceVersion"].clone();
        let before = version();
        kubectl.ok_with(&ssa("ops"), WEB);
        assert_eq!(version(), before, "applying again changes nothing");

        let refused = kubectl.fails_with(&ssa("mesh"), &WEB.replace("web:1", "web:9"));
        assert!(refused.contains("Apply failed with 1 conflict: conflict with \"ops\""), "{refused}");
        assert!(refused.contains(".spec.template.spec.containers[name=\"main\"].image"), "{refused}");
        assert!(refused.contains("Please review the fields above"), "{refused}");
        let mut forced = ssa("mesh").to_vec();
        forced.push("--force-conflicts");
        kubectl.ok_with(&forced, &WEB.replace("web:1", "web:9"));
        let diff = ["diff", "--server-side", "--field-manager", "mesh", "-f", "-"];
        kubectl.ok_with(&diff, &WEB.replace("web:1", "web:9"));
        let seen = kubectl.fails_with(&diff, &WEB.replace("web:1", "web:7"));
        assert!(seen.contains("example/web:7"), "{seen}");
        let image = "jsonpath={.spec.template.spec.containers[0].image}";
        kubectl.shows(&["get", "deploy", "web", "-o", image], &["example/web:9"]);

        // A variable that its only manager no longer applies goes.
        let without = WEB.replace("        env: [{name: COLOUR, value: green}]\n", "");
        kubectl.ok_with(&ssa("ops"), &without.replace("web:1", "web:9"));
        kubectl.shows(&["get", "deploy", "web", "-o", "jsonpath={.spec.template.spec.containers[0].env}"], &["COLOUR"]);
        let mut forced = ssa("mesh").to_vec();
        forced.push("--force-conflicts");
        kubectl.ok_with(&forced, &without.replace("web:1", "web:9"));
        let env = kubectl.ok(&["get", "deploy", "web", "-o", "jsonpath={.spec.template.spec.containers[0].env}"]);
        assert_eq!(env, "");
    });
}

#[test]
fn from_client_side_to_server_side_apply() {
    with_each(|kubectl, _| {
        kubectl.ok_with(&["apply", "-f", "-"], WEB);
        let next = WEB.replace("web:1", "web:2").replace("  replicas: 2\n", "");
        let moved = kubectl.ok_with(&["apply", "--server-side", "-f", "-"], &next);
        assert!(moved.contains("serverside-applied"), "{moved}");
        let deployment = json(kubectl, &["get", "deploy", "web", "--show-managed-fields"]);
        assert_eq!(deployment["spec"]["template"]["spec"]["containers"][0]["image"], "example/web:2");
        let managers = deployment["metadata"]["managedFields"].as_array().unwrap();
        let names: Vec<&str> = managers.iter().map(|row| row["manager"].as_str().unwrap()).collect();
        assert!(
            names.contains(&"kubectl") && !names.contains(&"kubectl-client-side-apply"),
            "kubectl took over: {names:?}"
        );
        // What kubectl owned and no longer says is gone: the default holds.
        assert_eq!(deployment["spec"]["replicas"], 1);
    });
}
