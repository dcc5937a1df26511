//! Whole layouts: what is taken, what is refused, and that a refusal leaves nothing.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;
use crate::image::command::remove;

const BOUNDS: Bounds = Bounds { reserve_bytes: 0, ..Bounds::DEVICE };

/// A layout in a folder of its own, with a device's folder beside it.
struct Bench {
    folder: tempfile::TempDir,
    manifests: Vec<Value>,
}

fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        assert!(std::env::var_os("FLOTILLA_REQUIRE_ALL").is_none(), "needed here but missing: root");
        drop(writeln!(io::stderr(), "SKIPPED: images are imported by root"));
    }
    root
}

fn digest(bytes: &[u8]) -> String {
    digest_text(ring::digest::digest(&SHA256, bytes).as_ref())
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn layer(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("layout/blobs/sha256")).unwrap();
        fs::create_dir(folder.path().join("data")).unwrap();
        Self { folder, manifests: Vec::new() }
    }

    fn layout(&self) -> PathBuf {
        self.folder.path().join("layout")
    }

    fn store(&self) -> ImageStore {
        ImageStore::open(&self.folder.path().join("data")).unwrap()
    }

    fn blob(&self, bytes: &[u8]) -> Value {
        let digest = digest(bytes);
        fs::write(self.layout().join("blobs").join(digest.replace(':', "/")), bytes).unwrap();
        json!({"digest": digest, "size": bytes.len()})
    }

    /// A manifest of these layers; returns its descriptor.
    fn manifest(&self, layers: &[Vec<u8>], config: &Value) -> Value {
        let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
        let here = Platform::here();
        let config = json!({
            "os": here.os, "architecture": here.architecture, "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let blobs = layers.iter().map(|layer| {
            let mut blob = self.blob(&gzip(layer));
            blob["mediaType"] = "application/vnd.oci.image.layer.v1.tar+gzip".into();
            blob
        });
        let manifest = json!({
            "schemaVersion": 2, "config": self.blob(config.to_string().as_bytes()), "layers": blobs.collect::<Vec<_>>(),
        });
        self.blob(manifest.to_string().as_bytes())
    }

    fn offer(&mut self, mut descriptor: Value, name: &str) {
        if !name.is_empty() {
            descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        }
        self.manifests.push(descriptor);
        let index = json!({"schemaVersion": 2, "manifests": self.manifests});
        fs::write(self.layout().join("index.json"), index.to_string()).unwrap();
        fs::write(self.layout().join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
    }

    fn simple(text: &str) -> Self {
        let mut bench = Self::new();
        let manifest = bench.manifest(&[layer(&[("etc/base", "base")]), layer(&[("text", text)])], &json!({}));
        bench.offer(manifest, "");
        bench
    }

    fn import(&self, name: Option<&str>) -> Result<Vec<Imported>, ImageError> {
        import(&self.store(), &self.layout(), name, &BOUNDS, 5_000)
    }

    /// Names in `layers` and `tmp`.
    fn left(&self) -> (usize, usize) {
        let count = |name: &str| fs::read_dir(self.folder.path().join("data/images").join(name)).unwrap().count();
        (count("layers"), count("tmp"))
    }
}

fn pods(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn an_image_is_taken_whole_from_a_folder_and_from_a_tar() {
    if !root() {
        return;
    }
    let mut bench = Bench::new();
    let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102:Web:/srv:/bin/false\n";
    let group = "root:x:0:\nadm:x:4:web,other\nwww:x:102:\n";
    let base = layer(&[("etc/passwd", passwd), ("etc/group", group), ("a", "below")]);
    let top = layer(&[("a", "above")]);
    let config = json!({
        "Entrypoint": ["/web"], "Cmd": ["-x"], "Env": ["A=1", "B=x=y"], "WorkingDir": "/srv", "User": "web:adm",
        "StopSignal": "SIGQUIT", "ExposedPorts": {"80/tcp": {}},
    });
    // The first layer comes again: overlayfs takes no folder twice.
    let manifest = bench.manifest(&[top.clone(), base.clone(), top.clone()], &config);
    let here = Platform::here();
    let mut inner = manifest.clone();
    inner["platform"] = json!({"os": here.os, "architecture": here.architecture});
    let other = json!({"digest": digest(b"missing"), "size": 7, "platform": {"os": "linux", "architecture": "s390x"}});
    let attestation = json!({"digest": digest(b"also missing"), "size": 12, "platform": {"os": "unknown", "architecture": "unknown"}});
    let index =
        bench.blob(json!({"schemaVersion": 2, "manifests": [other, inner, attestation]}).to_string().as_bytes());
    bench.offer(index.clone(), "registry.example/web:1");
    let imported = bench.import(None).unwrap();
    assert_eq!(imported[0].reference, "registry.example/web:1");
    assert_eq!((imported[0].layers, imported[0].unpacked), (3, 2));
    let store = bench.store();
    let images = store.current();
    let image = images.resolve("registry.example/web:1").unwrap();
    assert_eq!(image.lower_dirs.len(), 2);
    assert_eq!(fs::read_to_string(image.lower_dirs[0].join("a")).unwrap(), "above");
    assert_eq!(fs::read_to_string(image.lower_dirs[1].join("a")).unwrap(), "below");
    assert_eq!((image.entrypoint.as_slice(), image.cmd.as_slice()), (&["/web".to_owned()][..], &["-x".to_owned()][..]));
    assert_eq!(image.env, [("A".to_owned(), "1".to_owned()), ("B".into(), "x=y".into())]);
    assert_eq!((image.user.uid, image.user.gid), (Some(101), Some(4)));
    assert_eq!((image.account(101).unwrap().gid, image.account(101).unwrap().groups.as_slice()), (102, &[4][..]));
    for digest in [manifest["digest"].as_str().unwrap(), index["digest"].as_str().unwrap()] {
        assert!(images.resolve(&format!("web@{digest}")).is_some(), "an image is found by its digests");
    }
    // Again, now from a tar and under a second name: nothing is unpacked.
    let tar = bench.folder.path().join("layout.tar");
    let mut builder = tar::Builder::new(File::create(&tar).unwrap());
    builder.append_dir_all(".", bench.layout()).unwrap();
    builder.into_inner().unwrap();
    fs::remove_dir_all(bench.layout()).unwrap();
    let generation = images.generation;
    let again = import(&store, &tar, Some("web"), &BOUNDS, 9_000).unwrap();
    assert_eq!((again[0].reference.as_str(), again[0].unpacked), ("docker.io/library/web:latest", 0));
    assert!(store.current().generation > generation, "the store notices what another process brings");
    assert_eq!(store.current().resolve("web").unwrap().imported_at_ms, 5_000);
    let before = store.current().generation;
    import(&store, &tar, Some("web"), &BOUNDS, 10_000).unwrap();
    assert_eq!(store.current().generation, before, "an import of what is there changes nothing");
    assert_eq!(bench.left(), (2, 0));
}

/// 4294967295 means "no change" to the kernel: a runtime told to become it would stay root.
#[test]
fn a_user_that_is_no_user_is_not_taken_for_one() {
    if !root() {
        return;
    }
    let passwd = "none:x:4294967295:0::/:\nlow:x:7:4294967295::/:\nweb:x:101:102::/:\n";
    let group = "all:x:4294967295:web\nwww:x:5:web\n";
    for (text, expected) in [
        ("4294967295", (None, None)),
        ("none", (None, None)),
        ("low", (None, None)),
        ("0:4294967295", (Some(0), None)),
        ("101:all", (Some(101), None)),
        ("web", (Some(101), Some(102))),
    ] {
        let mut bench = Bench::new();
        let base = layer(&[("etc/passwd", passwd), ("etc/group", group)]);
        let manifest = bench.manifest(&[base], &json!({"User": text}));
        bench.offer(manifest, "docker.io/library/web:latest");
        bench.import(None).unwrap();
        let store = bench.store();
        let image = store.current().resolve("web").unwrap().clone();
        assert_eq!((image.user.uid, image.user.gid), expected, "{text}");
        assert_eq!(image.account(101).unwrap().groups, [5], "{text}");
    }
}

#[test]
fn what_is_damaged_is_refused_and_leaves_nothing() {
    if !root() {
        return;
    }
    type Damage = fn(&Bench);
    let blob_of = |bench: &Bench, at: &str| -> PathBuf {
        let read = |path: PathBuf| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
        let file = |digest: &Value| bench.layout().join("blobs").join(digest.as_str().unwrap().replace(':', "/"));
        let manifest = file(&read(bench.layout().join("index.json"))["manifests"][0]["digest"]);
        if at == "manifest" { manifest } else { file(&read(manifest).pointer(at).unwrap()["digest"]) }
    };
    let flip = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        fs::write(path, bytes).unwrap();
    };
    for (at, named) in [("manifest", "manifest"), ("/config", "configuration"), ("/layers/1", "layer")] {
        let bench = Bench::simple("content");
        let path = blob_of(&bench, at);
        flip(&path);
        let told = bench.import(Some("x")).unwrap_err().to_string();
        assert!(told.starts_with(&format!("{named} sha256:")) && told.contains("digest"), "{told}");
        assert!(told.contains(&path.file_name().unwrap().to_string_lossy().into_owned()), "{told}");
        assert_eq!(bench.left(), (0, 0), "{at}");
        assert!(bench.store().current().names.is_empty());
        File::options().write(true).open(&path).unwrap().set_len(20).unwrap();
        assert!(bench.import(Some("x")).unwrap_err().to_string().contains("20 bytes"));
        fs::remove_file(&path).unwrap();
        assert!(bench.import(Some("x")).unwrap_err().to_string().contains("missing"));
        assert_eq!(bench.left(), (0, 0), "{at}");
    }
    let table: [(Damage, &str); 5] = [
        (|bench| fs::remove_file(bench.layout().join("oci-layout")).unwrap(), "oci-layout"),
        (|bench| fs::write(bench.layout().join("oci-layout"), r#"{"imageLayoutVersion": "2.0"}"#).unwrap(), "2.0"),
        (|bench| fs::write(bench.layout().join("index.json"), "{").unwrap(), "index.json"),
        (|bench| fs::write(bench.layout().join("index.json"), r#"{"manifests": []}"#).unwrap(), "names no image"),
        (
            |bench| {
                let index = json!({"manifests": [{"digest": "sha256:../../../../etc/passwd", "size": 1}]});
                fs::write(bench.layout().join("index.json"), index.to_string()).unwrap();
            },
            "only sha256",
        ),
    ];
    for (damage, why) in table {
        let bench = Bench::simple("content");
        damage(&bench);
        let told = bench.import(Some("x")).unwrap_err().to_string();
        assert!(told.contains(why), "{told}");
        assert_eq!(bench.left(), (0, 0));
    }
}

#[test]
fn a_layer_that_is_not_what_the_configuration_says_is_refused() {
    if !root() {
        return;
    }
    let mut bench = Bench::new();
    let honest = bench.manifest(&[layer(&[("a", "honest")])], &json!({}));
    let path = bench.layout().join("blobs").join(honest["digest"].as_str().unwrap().replace(':', "/"));
    let mut manifest: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let mut swapped = bench.blob(&gzip(&layer(&[("a", "swapped")])));
    swapped["mediaType"] = "application/vnd.oci.image.layer.v1.tar+gzip".into();
    manifest["layers"][0] = swapped;
    let manifest = bench.blob(manifest.to_string().as_bytes());
    bench.offer(manifest, "");
    let told = bench.import(Some("x")).unwrap_err().to_string();
    assert!(told.contains("configuration says"), "{told}");
    assert_eq!(bench.left(), (0, 0));
}

#[test]
fn an_evil_entry_is_named_with_its_layer() {
    if !root() {
        return;
    }
    let mut bench = Bench::new();
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.as_gnu_mut().unwrap().name[..9].copy_from_slice(b"../escape");
    header.set_cksum();
    let evil = [&header.as_bytes()[..], &[0; 1024]].concat();
    let manifest = bench.manifest(&[layer(&[("a", "good")]), evil.clone()], &json!({}));
    bench.offer(manifest, "");
    let told = bench.import(Some("x")).unwrap_err().to_string();
    assert!(told.contains(&digest(&gzip(&evil))) && told.contains("../escape"), "{told}");
    assert_eq!(bench.left(), (0, 0), "not even the good layer below it stays");
}

#[test]
fn names_come_from_the_layout_or_from_the_person() {
    if !root() {
        return;
    }
    let mut bench = Bench::new();
    let one = bench.manifest(&[layer(&[("a", "1")])], &json!({}));
    let two = bench.manifest(&[layer(&[("a", "2")])], &json!({}));
    bench.offer(one.clone(), "latest");
    assert!(bench.import(None).unwrap_err().to_string().contains("--name"));
    assert_eq!(bench.import(Some("shop:7")).unwrap()[0].reference, "docker.io/library/shop:7");
    bench.offer(two.clone(), "v2");
    assert!(bench.import(Some("shop:7")).unwrap_err().to_string().contains("2 images (latest, v2)"));
    assert_eq!(bench.import(Some("shop:v2")).unwrap()[0].digest, two["digest"].as_str().unwrap());
    assert!(bench.import(Some("shop@sha256:1")).is_err());
    let with_digest = format!("shop@{}", one["digest"].as_str().unwrap());
    assert!(bench.import(Some(&with_digest)).unwrap_err().to_string().contains("tag"));
}

#[test]
fn what_is_for_other_machines_is_refused() {
    if !root() {
        return;
    }
    let mut bench = Bench::simple("x");
    let mut other = bench.manifests.remove(0);
    other["platform"] = json!({"os": "linux", "architecture": "s390x"});
    bench.offer(other, "");
    let told = bench.import(Some("x")).unwrap_err().to_string();
    assert!(told.contains("linux/s390x") && told.contains(&Platform::here().architecture), "{told}");
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    if !root() {
        return;
    }
    let bench = Bench::simple("content");
    let bounds = Bounds { reserve_bytes: u64::MAX / 2, ..BOUNDS };
    let error = import(&bench.store(), &bench.layout(), Some("x"), &bounds, 0).unwrap_err();
    assert!(matches!(error, ImageError::DiskFull { .. }), "{error}");
    assert_eq!(bench.left(), (0, 0));
}

#[test]
fn an_image_in_use_keeps_its_layers_until_nobody_uses_it() {
    if !root() {
        return;
    }
    let bench = Bench::simple("first");
    let first = bench.import(Some("shop")).unwrap().remove(0).digest;
    let store = bench.store();
    let uses = BTreeMap::from([(first.clone(), pods(&["default/shop-1"]))]);
    let generation = store.current().generation;
    assert!(!store.pin(&uses, generation + 1).unwrap(), "a plan made of something else is made again");
    assert!(store.pin(&uses, generation).unwrap());
    let told = remove(&store, "shop", false).unwrap_err().to_string();
    assert!(told.contains("default/shop-1") && told.contains("--force"), "{told}");

    // Another image takes the name; what runs keeps the old one.
    let mut next = Bench::new();
    let manifest = next.manifest(&[layer(&[("etc/base", "base")]), layer(&[("text", "second")])], &json!({}));
    next.offer(manifest, "");
    let second = import(&store, &next.layout(), Some("shop"), &BOUNDS, 0).unwrap().remove(0);
    assert_eq!(second.unpacked, 1, "the layer both have is there");
    let images = store.current();
    assert_eq!(images.resolve("shop").unwrap().digest, second.digest);
    let old = &images.by_digest[&first];
    assert_eq!(fs::read_to_string(old.lower_dirs[0].join("text")).unwrap(), "first");
    assert_eq!(bench.left(), (3, 0));

    // Forced away, the image in use keeps its files; its name is gone.
    assert_eq!(remove(&store, "shop", false).unwrap(), "docker.io/library/shop:latest");
    assert!(store.current().resolve("shop").is_none());
    assert_eq!(bench.left(), (2, 0));
    assert!(matches!(remove(&store, &first, false), Err(ImageError::InUse { .. })));
    remove(&store, &first, true).unwrap();
    assert_eq!(bench.left(), (2, 0));

    assert!(store.pin(&BTreeMap::new(), store.current().generation).unwrap());
    assert_eq!(store.collect().unwrap(), 2);
    assert_eq!(bench.left(), (0, 0));
    assert!(store.current().by_digest.is_empty());
    assert!(matches!(remove(&store, "shop", false), Err(ImageError::NoSuchImage { .. })));
}

#[test]
fn leftovers_go_and_a_damaged_index_is_set_aside() {
    if !root() {
        return;
    }
    let bench = Bench::simple("content");
    bench.import(Some("shop")).unwrap();
    let images = bench.folder.path().join("data/images");
    fs::create_dir_all(images.join("tmp/1-half/etc")).unwrap();
    fs::create_dir_all(images.join("layers/0123")).unwrap();
    bench.store().tidy().unwrap();
    assert_eq!(bench.left(), (2, 0));
    let store = bench.store();
    assert!(store.current().resolve("shop").is_some());
    fs::write(images.join("index.json"), "not json").unwrap();
    assert!(store.current().resolve("shop").is_some(), "a damaged index changes nothing for who knows a good one");
    let imported = bench.import(Some("shop")).unwrap();
    assert_eq!(imported[0].unpacked, 0, "the layers are still there");
    assert!(images.join("index.json.damaged").exists() && bench.store().current().resolve("shop").is_some());
    // A layer that went missing is noticed, and an import brings it back.
    let layer = bench.store().current().resolve("shop").unwrap().lower_dirs[0].clone();
    fs::remove_dir_all(layer).unwrap();
    assert!(bench.store().current().resolve("shop").is_none());
    assert_eq!(bench.import(Some("shop")).unwrap()[0].unpacked, 1);
    assert!(bench.store().current().resolve("shop").is_some());
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    /// One wrong byte anywhere in a layout: the import fails and leaves nothing, or nothing that counts was changed.
    #[test]
    fn one_wrong_byte_in_a_layout_is_found(
        file in proptest::prelude::any::<proptest::sample::Index>(),
        at in proptest::prelude::any::<proptest::sample::Index>(),
        bit in 0..8_u8,
    ) {
        if nix::unistd::geteuid().is_root() {
            let bench = Bench::simple("content");
            let blobs = fs::read_dir(bench.layout().join("blobs/sha256")).unwrap().map(|entry| entry.unwrap().path());
            let mut files: Vec<PathBuf> = blobs.collect();
            files.sort();
            files.extend(["index.json", "oci-layout"].map(|name| bench.layout().join(name)));
            let path = &files[file.index(files.len())];
            let mut bytes = fs::read(path).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            fs::write(path, bytes).unwrap();
            match bench.import(Some("x")) {
                Ok(_) => assert!(path.parent().unwrap() == bench.layout(), "a damaged blob was taken: {}", path.display()),
                Err(_) => assert_eq!(bench.left(), (0, 0)),
            }
        }
    }
}
