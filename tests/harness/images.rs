//! OCI image layouts made from programs of this machine: no registry, no network, no tool but this page.
//!
//! Owns the layout's format (OCI image specification 1.1: `oci-layout`, `index.json`, `blobs/sha256/`) as a test writes it. Start
//! reading at [`Image`].

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

use crate::process_path;

/// Applets of busybox that the stories' shells use.
const APPLETS: &[&str] =
    &["sh", "cat", "echo", "env", "id", "ls", "mkdir", "nc", "sleep", "test", "touch", "true", "false", "wget"];

/// An image: layers taken as they are, and above them one that is filled entry by entry.
#[derive(Debug)]
pub struct Image {
    name: String,
    below: Vec<Vec<u8>>,
    entries: Vec<(String, u32, Entry)>,
    config: Value,
}

#[derive(Debug)]
enum Entry {
    Folder,
    File(Vec<u8>),
    Link(String),
}

impl Image {
    /// An empty one; `name` as a manifest writes it, `busybox` or `registry.example/app:1`.
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), below: Vec::new(), entries: Vec::new(), config: json!({}) }
    }

    /// Entrypoint, Cmd, Env, WorkingDir, User: the `config` of the image specification.
    #[must_use]
    pub fn configured(mut self, config: Value) -> Self {
        self.config = config;
        self
    }

    /// A whole layer, a tar, above those given before.
    #[must_use]
    pub fn with_layer(mut self, tar: Vec<u8>) -> Self {
        self.below.push(tar);
        self
    }

    /// Every file of these Debian packages, a layer each, compressed; what their scripts would do at installation is not done.
    #[must_use]
    pub fn with_packages(self, packages: &[PathBuf]) -> Self {
        packages.iter().fold(self, |image, package| {
            let unpacked = Command::new("dpkg-deb").arg("--fsys-tarfile").arg(package).output().unwrap();
            assert!(unpacked.status.success(), "{}: {}", package.display(), String::from_utf8_lossy(&unpacked.stderr));
            image.with_layer(unpacked.stdout)
        })
    }

    #[must_use]
    pub fn with_folder(self, path: &str, mode: u32) -> Self {
        self.with(path, mode, Entry::Folder)
    }

    #[must_use]
    pub fn with_file(self, path: &str, mode: u32, content: &[u8]) -> Self {
        self.with(path, mode, Entry::File(content.to_vec()))
    }

    #[must_use]
    pub fn with_link(self, path: &str, target: &str) -> Self {
        self.with(path, 0o777, Entry::Link(target.to_owned()))
    }

    fn with(mut self, path: &str, mode: u32, entry: Entry) -> Self {
        self.entries.push((path.to_owned(), mode, entry));
        self
    }

    /// Writes the layout; the folder must not be there yet.
    pub fn write(self, folder: &Path) {
        let mut layers = self.below;
        layers.push(archive(&self.entries));
        let blobs = folder.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let diff_ids: Vec<String> = layers.iter().map(|layer| name_of(layer)).collect();
        let layers = layers.iter().map(|layer| {
            let packed = gzip(layer);
            descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &blob(&blobs, &packed), packed.len())
        });
        let layers: Vec<Value> = layers.collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &blob(&blobs, &config), config.len()),
            "layers": layers,
        });
        let manifest = manifest.to_string().into_bytes();
        let mut entry =
            descriptor("application/vnd.oci.image.manifest.v1+json", &blob(&blobs, &manifest), manifest.len());
        entry["annotations"] = json!({"io.containerd.image.name": self.name});
        std::fs::write(folder.join("index.json"), json!({"schemaVersion": 2, "manifests": [entry]}).to_string())
            .unwrap();
        std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    }
}

/// The image `busybox`: a shell and what the stories call from it.
pub fn busybox(folder: &Path) {
    with_busybox(Image::named("busybox")).write(folder);
}

/// Puts a shell, its tools and the usual folders into an image, which runs the shell.
pub fn with_busybox(image: Image) -> Image {
    let program = process_path("busybox").expect("busybox was looked for before this test began");
    let mut image = image.configured(json!({"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]}));
    for name in ["bin", "dev", "etc", "proc", "root", "sys", "tmp"] {
        image = image.with_folder(name, if name == "tmp" { 0o1777 } else { 0o755 });
    }
    image = image.with_file("bin/busybox", 0o755, &std::fs::read(program).unwrap());
    image = image.with_file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n");
    image = image.with_file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n");
    APPLETS.iter().fold(image, |image, applet| image.with_link(&format!("bin/{applet}"), "busybox"))
}

/// A layer of small files, each with a mode and an owner.
pub fn layer(files: &[(&str, u32, u64)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, mode, owner) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(*mode);
        header.set_uid(*owner);
        header.set_gid(*owner);
        header.set_size(4);
        archive.append_data(&mut header, name, &b"text"[..]).unwrap();
    }
    archive.into_inner().unwrap()
}

fn archive(entries: &[(String, u32, Entry)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, mode, entry) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(*mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        match entry {
            Entry::Folder => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_size(0);
                archive.append_data(&mut header, path, std::io::empty()).unwrap();
            }
            Entry::File(content) => {
                header.set_size(u64::try_from(content.len()).unwrap());
                archive.append_data(&mut header, path, &**content).unwrap();
            }
            Entry::Link(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                archive.append_link(&mut header, path, target).unwrap();
            }
        }
    }
    archive.into_inner().unwrap()
}

/// Writes a blob under its digest, which is answered.
fn blob(blobs: &Path, bytes: &[u8]) -> String {
    let name = name_of(bytes);
    std::fs::write(blobs.join(name.trim_start_matches("sha256:")), bytes).unwrap();
    name
}

fn name_of(bytes: &[u8]) -> String {
    let hex: String = digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// The packages that `.ci/images` has downloaded for an app, in the order of their names; `None` without them.
pub fn packages(app: &str) -> Option<Vec<PathBuf>> {
    let folder = std::env::var_os("FLOTILLA_IMAGES").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/images")).join(app);
    if !folder.join("complete").exists() || process_path("dpkg-deb").is_none() {
        return None;
    }
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut packages: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|end| end == "deb")).collect();
    packages.sort();
    Some(packages)
}

fn descriptor(media_type: &str, digest: &str, size: usize) -> Value {
    json!({"mediaType": media_type, "digest": digest, "size": size})
}
