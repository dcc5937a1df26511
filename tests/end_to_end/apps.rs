//! Applications as they are: Debian's nginx, Redis and Python, made into OCI images, imported, run from one manifest each, and asked.
//! And images as other tools make them, and imports that are killed.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use flotilla_tests::fleet::{Containers, Fleet, Road};
use flotilla_tests::images::{self, Image};
use flotilla_tests::kubectl::Kubectl;
use flotilla_tests::{port, process_path, skip, wait};
use serde_json::{Value, json};

use crate::{BINARY, story};

const GROUP: &[u8] = b"root:x:0:\nwww-data:x:33:\nredis:x:101:\n";
const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\n\
                        redis:x:100:101::/var/lib/redis:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n";

/// Whether everything is here to run an app; its packages, then.
fn packages(app: &str) -> Option<Vec<PathBuf>> {
    if !story::ready_to_run() || !story::containers_are_here() {
        return None;
    }
    let packages = images::packages(app);
    if packages.is_none() {
        skip(&format!("no packages of {app} (.ci/images downloads them), or no dpkg-deb"));
    }
    packages
}

/// What Debian's installation scripts would make.
fn debian(name: &str, packages: &[PathBuf]) -> Image {
    let image = Image::named(name).with_packages(packages);
    let image = image.with_file("etc/passwd", 0o644, PASSWD).with_file("etc/group", 0o644, GROUP);
    image.with_folder("run", 0o755).with_folder("tmp", 0o1777).with_folder("proc", 0o555).with_folder("dev", 0o755)
}

/// One request, and all that comes back.
fn ask(port: u16, request: &str) -> Result<String, String> {
    let said = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).map_err(said)?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).map_err(said)?;
    stream.write_all(request.as_bytes()).map_err(said)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(said)?;
    Ok(answer)
}

fn get(port: u16, path: &str) -> Result<String, String> {
    let answer = ask(port, &format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n"))?;
    if answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200") { Ok(answer) } else { Err(answer) }
}

/// A hub and one device.
fn fleet() -> Fleet {
    Fleet::with_agents(BINARY, Road::Quic, Containers::Processes, 1)
}

fn import(fleet: &Fleet, layout: &Path) -> String {
    let data = fleet.agent_folder("n1");
    fleet.run(&["agent", "image", "import", "--data", &data.to_string_lossy(), &layout.to_string_lossy()]).unwrap()
}

fn image(fleet: &Fleet, words: &[&str]) -> Result<String, String> {
    let data = fleet.agent_folder("n1");
    let mut all = vec!["agent", "image", words[0], "--data"];
    let data = data.to_string_lossy();
    all.push(&data);
    all.extend(&words[1..]);
    fleet.run(&all)
}

/// The only pod, ready.
fn pod(fleet: &Fleet, app: &str) -> Value {
    fleet.running_pods(&format!("app={app}"), 1).into_values().next().unwrap()
}

/// Deletes the workload and waits until nothing of it is left on the device; then its image can go, with every layer.
fn away(fleet: &Fleet, kubectl: &Kubectl, workload: &str, name: &str) {
    let refused = image(fleet, &["remove", name]).unwrap_err();
    assert!(refused.contains("is used by default/"), "{refused}");
    kubectl.run(&format!("delete {workload} --wait=false"));
    wait::until("nothing of the pod is left on the device", || {
        let left = fleet.leftovers("n1");
        if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
    });
    wait::until("the image is free", || image(fleet, &["remove", name]));
    let images = fleet.agent_folder("n1").join("images");
    for folder in ["layers", "tmp"] {
        let left: Vec<_> = std::fs::read_dir(images.join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn nginx_waits_for_its_image_and_serves() {
    let Some(packages) = packages("nginx") else { return };
    let fleet = fleet();
    let kubectl = fleet.kubectl();
    let port = port::free();
    kubectl.apply(&format!(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {{name: site}}
data:
  site.conf: |
    server {{ listen 127.0.0.1:{port}; location / {{ return 200 "from the ConfigMap\n"; }} }}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: nginx}}
spec:
  selector: {{matchLabels: {{app: nginx}}}}
  template:
    metadata: {{labels: {{app: nginx}}}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - name: nginx
        image: nginx
        readinessProbe: {{httpGet: {{host: 127.0.0.1, port: {port}, path: /}}, periodSeconds: 1}}
        volumeMounts: [{{name: site, mountPath: /etc/nginx/conf.d}}]
      volumes: [{{name: site, configMap: {{name: site}}}}]
"#
    ));
    let message = wait::until("the pod waits for its image", || {
        let pods = kubectl.json("get pods -l app=nginx")?;
        let waiting = &pods["items"][0]["status"]["containerStatuses"][0]["state"]["waiting"];
        let message = waiting["message"].as_str().filter(|_| waiting["reason"] == "ImagePullBackOff");
        message.map(str::to_owned).ok_or_else(|| pods.to_string())
    });
    assert!(message.contains("flotilla agent image import --data DIR PATH --name nginx"), "{message}");

    let layout = fleet.folder().join("nginx-layout");
    debian("nginx", &packages)
        .with_link("var/log/nginx/access.log", "/dev/stdout")
        .with_link("var/log/nginx/error.log", "/dev/stderr")
        .configured(json!({
            "Entrypoint": ["/usr/sbin/nginx"], "Cmd": ["-g", "daemon off;"], "StopSignal": "SIGQUIT",
            "ExposedPorts": {"80/tcp": {}},
        }))
        .write(&layout);
    let told = import(&fleet, &layout);
    assert!(told.starts_with("imported docker.io/library/nginx:latest (sha256:"), "{told}");
    let pod = pod(&fleet, "nginx");
    assert!(!fleet.logs().contains("noticed late"), "the import wakes the agent");
    assert!(get(port, "/").unwrap().ends_with("from the ConfigMap\n"));
    let id = pod["status"]["containerStatuses"][0]["imageID"].as_str().unwrap();
    assert!(id.starts_with("docker.io/library/nginx@sha256:"), "{id}");
    let name = pod["metadata"]["name"].as_str().unwrap();
    wait::until("the log tells of the request", || {
        let log = kubectl.attempt(&format!("logs {name}"))?;
        if log.contains("GET / HTTP/1.0") { Ok(()) } else { Err(log) }
    });
    wait::until("the node tells of its image", || {
        let node = kubectl.json("get node n1")?;
        let names = node["status"]["images"][0]["names"].to_string();
        if names.contains("docker.io/library/nginx:latest") { Ok(()) } else { Err(node["status"].to_string()) }
    });
    let table = image(&fleet, &["list"]).unwrap();
    let row: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!((row[0], *row.last().unwrap()), ("docker.io/library/nginx:latest", "1"), "{table}");
    away(&fleet, &kubectl, "ds/nginx", "nginx");
}

#[test]
fn redis_runs_as_its_own_user_and_keeps_its_data_in_a_volume() {
    let Some(packages) = packages("redis-server") else { return };
    let fleet = fleet();
    let kubectl = fleet.kubectl();
    let layout = fleet.folder().join("redis-layout");
    debian("registry.example/redis:7", &packages)
        .configured(
            json!({"Entrypoint": ["redis-server"], "User": "redis", "WorkingDir": "/data", "Env": ["LC_ALL=C"]}),
        )
        .write(&layout);
    import(&fleet, &layout);
    let port = port::free();
    kubectl.apply(&format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: redis}}
spec:
  selector: {{matchLabels: {{app: redis}}}}
  template:
    metadata: {{labels: {{app: redis}}}}
    spec:
      terminationGracePeriodSeconds: 5
      securityContext: {{fsGroup: 101, runAsNonRoot: true}}
      containers:
      - name: redis
        image: registry.example/redis:7
        args: ["--bind", 127.0.0.1, "--port", "{port}", "--dir", /data, "--appendonly", "yes"]
        readinessProbe: {{exec: {{command: [redis-cli, -p, "{port}", ping]}}, periodSeconds: 1}}
        resources: {{limits: {{memory: 64Mi}}}}
        volumeMounts: [{{name: data, mountPath: /data}}]
      volumes: [{{name: data, emptyDir: {{}}}}]
"#
    ));
    pod(&fleet, "redis");
    assert_eq!(ask(port, "SET where here\r\nQUIT\r\n").unwrap(), "+OK\r\n+OK\r\n");
    let info = ask(port, "INFO server\r\nQUIT\r\n").unwrap();
    let process = info.lines().find_map(|line| line.strip_prefix("process_id:")).unwrap();
    assert_eq!(process, "1", "it has process ids of its own");
    // Killed, it starts again and finds its data, for the volume lives as long as the pod.
    ask(port, "SHUTDOWN NOSAVE\r\n").ok();
    wait::until("it runs again with its data", || {
        let answer = ask(port, "GET where\r\nQUIT\r\n")?;
        let restarts = pod(&fleet, "redis")["status"]["containerStatuses"][0]["restartCount"].as_i64();
        if answer.contains("here") && restarts == Some(1) { Ok(()) } else { Err(format!("{restarts:?}: {answer}")) }
    });
    away(&fleet, &kubectl, "deployment/redis", "registry.example/redis:7");
}

#[test]
fn python_serves_what_a_config_map_says_now() {
    let Some(packages) = packages("python3") else { return };
    let fleet = fleet();
    let kubectl = fleet.kubectl();
    let layout = fleet.folder().join("python-layout");
    debian("python:3", &packages).configured(json!({"Cmd": ["python3"]})).write(&layout);
    import(&fleet, &layout);
    let port = port::free();
    let content = |page: &str| {
        format!("{{apiVersion: v1, kind: ConfigMap, metadata: {{name: pages}}, data: {{index.html: '<p>{page}</p>'}}}}")
    };
    kubectl.apply(&content("first"));
    kubectl.apply(&format!(
        r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: pages}}
spec:
  selector: {{matchLabels: {{app: pages}}}}
  template:
    metadata: {{labels: {{app: pages}}}}
    spec:
      terminationGracePeriodSeconds: 1
      securityContext: {{runAsUser: 65534}}
      containers:
      - name: python
        image: python:3
        command: [python3, -m, http.server, "$(PORT)", --bind, 127.0.0.1, --directory, /srv/pages]
        env: [{{name: PORT, value: "{port}"}}, {{name: PYTHONUNBUFFERED, value: "1"}}]
        securityContext: {{readOnlyRootFilesystem: true, capabilities: {{drop: [ALL]}}}}
        readinessProbe: {{tcpSocket: {{host: 127.0.0.1, port: {port}}}, periodSeconds: 1}}
        volumeMounts: [{{name: pages, mountPath: /srv/pages}}]
      volumes: [{{name: pages, configMap: {{name: pages}}}}]
"#
    ));
    let before = pod(&fleet, "pages");
    assert!(get(port, "/").unwrap().ends_with("<p>first</p>"));
    kubectl.apply(&content("second"));
    wait::until("the page follows the ConfigMap", || {
        let answer = get(port, "/")?;
        if answer.ends_with("<p>second</p>") { Ok(()) } else { Err(answer) }
    });
    let after = pod(&fleet, "pages");
    assert_eq!(before["metadata"]["uid"], after["metadata"]["uid"]);
    assert_eq!(after["status"]["containerStatuses"][0]["restartCount"], 0, "nothing was restarted for it");
    away(&fleet, &kubectl, "ds/pages", "python:3");
}

/// What upper layers hide, a container does not see, and owners and modes are those of the layer.
#[test]
fn layers_are_stacked_as_their_image_says() {
    if !story::ready_to_run() || !story::containers_are_here() {
        return;
    }
    let fleet = fleet();
    let layout = fleet.folder().join("stacked-layout");
    let bottom = images::layer(&[
        ("d/kept", 0o4755, 7),
        ("d/gone", 0o644, 0),
        ("opaque/old", 0o644, 0),
        ("again/old", 0o644, 0),
    ]);
    let middle = images::layer(&[
        ("d/.wh.gone", 0, 0),
        ("opaque/.wh..wh..opq", 0, 0),
        ("opaque/new", 0o600, 8),
        (".wh.again", 0, 0),
    ]);
    let top = images::layer(&[("again/new", 0o644, 0)]);
    images::with_busybox(Image::named("stacked").with_layer(bottom).with_layer(middle).with_layer(top)).write(&layout);
    import(&fleet, &layout);
    let kubectl = fleet.kubectl();
    kubectl.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: look}
spec:
  restartPolicy: Never
  containers:
  - name: look
    image: stacked
    command: [/bin/sh, -c, 'ls -ln /d /opaque /again | busybox awk "NF > 2 {print \$1, \$3, \$NF}"']
"#,
    );
    let log = wait::until("the pod has looked", || {
        let pod = kubectl.json("get pod look")?;
        let phase = &pod["status"]["phase"];
        if *phase == "Succeeded" { kubectl.attempt("logs look") } else { Err(pod["status"].to_string()) }
    });
    let seen: Vec<&str> = log.lines().collect();
    assert_eq!(seen, ["-rw-r--r-- 0 new", "-rwsr-xr-x 7 kept", "-rw------- 8 new"], "{log}");
}

/// An import that is killed at any moment leaves nothing to see, and the next one clears up and succeeds.
#[test]
fn an_import_can_be_killed_at_any_moment() {
    if !story::containers_are_here() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let layout = folder.path().join("layout");
    let many = (0..400).fold(Image::named("many"), |image, number| {
        image.with_file(&format!("folder/file-{number}"), 0o644, &vec![number.to_string().as_bytes()[0]; 4000])
    });
    many.write(&layout);
    let data = folder.path().join("data");
    let import = || {
        let mut command = Command::new(BINARY);
        command
            .args(["agent", "image", "import", "--data"])
            .arg(&data)
            .arg(&layout)
            .stdout(std::process::Stdio::null());
        command
    };
    let list = || {
        let mut command = Command::new(BINARY);
        let output = command.args(["agent", "image", "list", "-o", "json", "--data"]).arg(&data).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let list: Value = serde_json::from_slice(&output.stdout).unwrap();
        list["items"].as_array().unwrap().len()
    };
    std::fs::create_dir(&data).unwrap();
    for moment in 0..30 {
        let mut child = import().spawn().unwrap();
        std::thread::park_timeout(Duration::from_millis(moment));
        child.kill().unwrap();
        if child.wait().unwrap().success() {
            assert_eq!(list(), 1);
            std::fs::remove_dir_all(data.join("images")).unwrap();
        } else if list() == 0 {
            // Killed before it was named: whole layers may be there, but nothing half under a layer's name.
            for layer in std::fs::read_dir(data.join("images/layers")).unwrap() {
                let files = std::fs::read_dir(layer.unwrap().path().join("folder")).unwrap().count();
                assert_eq!(files, 400, "killed after {moment} ms");
            }
        }
    }
    assert!(import().status().unwrap().success());
    assert_eq!(list(), 1);
    let count = |name: &str| std::fs::read_dir(data.join("images").join(name)).unwrap().count();
    assert_eq!((count("layers"), count("tmp")), (1, 0));
}

/// A disk of 8 MiB is too small: said in words, nothing left, and the device's folder as before.
#[test]
fn an_import_onto_a_full_disk_leaves_nothing() {
    if !story::containers_are_here() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    images::busybox(&folder.path().join("layout"));
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let none: Option<&str> = None;
    let flags = nix::mount::MsFlags::empty();
    if nix::mount::mount(Some("tmpfs"), &data, Some("tmpfs"), flags, Some("size=8m")).is_err() {
        skip("nothing can be mounted here");
        return;
    }
    let mut command = Command::new(BINARY);
    let output = command.args(["agent", "image", "import", "--data"]).arg(&data).arg(folder.path().join("layout"));
    let output = output.output();
    let left: Vec<usize> = ["layers", "tmp"]
        .iter()
        .map(|name| std::fs::read_dir(data.join("images").join(name)).map_or(0, Iterator::count))
        .collect();
    nix::mount::umount2(&data, nix::mount::MntFlags::MNT_DETACH).unwrap();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("too little space"), "{said}");
    assert_eq!((left, none), (vec![0, 0], None));
}

/// umoci's images are images.
#[test]
fn what_umoci_makes_can_be_imported() {
    if !story::containers_are_here() {
        return;
    }
    let Some(umoci) = process_path("umoci") else { return skip("no umoci (Debian: apt-get install umoci)") };
    let folder = tempfile::tempdir().unwrap();
    let layout = folder.path().join("layout");
    let tagged = format!("{}:v1", layout.display());
    let run = |arguments: &[&str]| {
        let output = Command::new(&umoci).args(arguments).output().unwrap();
        assert!(output.status.success(), "umoci {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let busybox = process_path("busybox").unwrap();
    let busybox = busybox.to_string_lossy();
    run(&["init", "--layout", &layout.to_string_lossy()]);
    run(&["new", "--image", &tagged]);
    run(&["insert", "--image", &tagged, &busybox, "/bin/busybox"]);
    run(&["insert", "--image", &tagged, "--whiteout", "/bin/gone"]);
    run(&["config", "--image", &tagged, "--config.cmd", "/bin/busybox", "--config.user", "7:8"]);
    let data = folder.path().join("data");
    let flotilla = |arguments: &[&str]| {
        let mut command = Command::new(BINARY);
        let output = command.args(["agent", "image"]).args(arguments).arg("--data").arg(&data).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(said) } else { Err(said) }
    };
    let layout = layout.to_string_lossy();
    let unnamed = flotilla(&["import", &layout]).unwrap_err();
    assert!(unnamed.contains("v1") && unnamed.contains("--name"), "a tag alone is no name: {unnamed}");
    flotilla(&["import", &layout, "--name", "tool:v1"]).unwrap();
    let list: Value = serde_json::from_str(&flotilla(&["list", "-o", "json"]).unwrap()).unwrap();
    let item = &list["items"][0];
    assert_eq!(
        (&item["names"][0], &item["user"], &item["layers"]),
        (&json!("docker.io/library/tool:v1"), &json!("7:8"), &json!(2))
    );
}
