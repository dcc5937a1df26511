//! What a broker needs for this installation's devices, as files: configuration, access lists, certificates.
//!
//! Owns the folder it is told to fill, and the URL under which hub and devices then find the broker. Refuses to run anything or to
//! touch the hub's database: it reads the installation's keys there, beside a running hub. What is allowed is decided in
//! `flotilla_sync::transport`.

use std::fs::{DirBuilder, File};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use flotilla_sync::identity::{IdentityError, Installation, InstallationMaterial};
use flotilla_sync::transport::mosquitto::{self, Mosquitto};

use crate::clock;
use crate::config::DATABASE_FILE;
use crate::store::StoreError;
use crate::store::settings::Setting;
use crate::store::tokens::TokenTable;

/// Names of one broker.
const NAMES_MAX: usize = 32;

/// A broker as the operator wishes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerRequest {
    /// Host names and addresses under which hub and devices reach it; the first stands in the URL.
    pub names: Vec<String>,
    /// For hub and devices.
    pub port: u16,
    /// For those who enrol; `None`: nobody does by this broker.
    pub enrol_port: Option<u16>,
}

/// Why a broker's files were not written.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error(
        "no hub has run in {folder}: start `flotilla hub run --data {folder}` first, it makes the installation's keys"
    )]
    NoHub { folder: PathBuf },
    #[error("between 1 and {NAMES_MAX} names can be given to a broker")]
    Names,
    #[error("devices and those who enrol need a port each")]
    OnePort,
    #[error("{path:?} cannot stand in mosquitto.conf: it is not UTF-8 or holds a line's end")]
    Path { path: PathBuf },
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("what the hub stored is damaged")]
    Damaged(#[from] serde_json::Error),
    #[error("a certificate for the broker cannot be made")]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Fills `folder` for mosquitto, over what stood there under the same names, with a fresh key; answers the URL for `hub run --mqtt`. In
/// mosquitto's configuration the files lie in `installed`.
///
/// # Errors
/// When no hub has run in `data_dir` yet, a name is none, or the folder cannot be written.
pub fn prepare(
    data_dir: &Path,
    folder: &Path,
    installed: &Path,
    request: &BrokerRequest,
) -> Result<String, BrokerError> {
    let first = request.names.first().filter(|_| request.names.len() <= NAMES_MAX).ok_or(BrokerError::Names)?;
    if request.enrol_port == Some(request.port) {
        return Err(BrokerError::OnePort);
    }
    let shown = installed.to_str().filter(|path| !path.contains(['\n', '\r']));
    let shown = shown.ok_or_else(|| BrokerError::Path { path: installed.to_owned() })?;
    let installation = installation(data_dir)?;
    let credentials = installation.issue_broker(&request.names, clock::system()().0)?.to_material();
    let id = installation.id();
    let broker = Mosquitto { installation: &id, folder: shown, port: request.port, enrol_port: request.enrol_port };

    let failed = |path: &Path, source| BrokerError::Write { path: path.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o750).create(folder).map_err(|source| failed(folder, source))?;
    let authority = installation.authority_pem();
    for (name, text, mode) in [
        (mosquitto::KEY_FILE, credentials.key_pem.clone(), 0o640),
        // With the authority behind it: a device that enrols knows no more of it than its hash.
        (mosquitto::CERTIFICATE_FILE, format!("{}{authority}", credentials.chain_pem), 0o644),
        (mosquitto::AUTHORITY_FILE, authority.clone(), 0o644),
        (mosquitto::DEVICE_LIST_FILE, broker.device_list(), 0o644),
        (mosquitto::STRANGER_LIST_FILE, broker.stranger_list(), 0o644),
        (mosquitto::CONFIGURATION_FILE, broker.configuration(), 0o644),
    ] {
        let path = folder.join(name);
        write(&path, &text, mode).map_err(|source| failed(&path, source))?;
    }
    let host = if first.contains(':') { format!("[{first}]") } else { first.clone() };
    let enrol = request.enrol_port.map(|port| format!("&enrol={port}")).unwrap_or_default();
    Ok(format!("mqtts://{host}:{}?pin={}{enrol}", request.port, hex(&installation.pin())))
}

fn installation(data_dir: &Path) -> Result<Installation, BrokerError> {
    let no_hub = || BrokerError::NoHub { folder: data_dir.to_owned() };
    let path = data_dir.join(DATABASE_FILE);
    if !path.exists() {
        return Err(no_hub());
    }
    let material = TokenTable::open(&path)?.setting(Setting::Installation)?.ok_or_else(no_hub)?;
    let material: InstallationMaterial = serde_json::from_slice(&material)?;
    Ok(Installation::from_material(&material)?)
}

/// All or nothing, and never readable by more than `mode` says.
fn write(path: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    let mut written = path.as_os_str().to_owned();
    written.push(".new");
    match std::fs::remove_file(&written) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().create_new(true).write(true).mode(mode).open(&written)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&written, path)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use flotilla_sync::transport::BrokerUrl;

    use super::*;
    use crate::{Retention, Store};

    fn request() -> BrokerRequest {
        BrokerRequest {
            names: vec!["broker.example".to_owned(), "10.0.0.7".to_owned()],
            port: 8883,
            enrol_port: Some(8884),
        }
    }

    #[tokio::test]
    async fn a_broker_is_prepared_beside_a_hub() {
        let folder = tempfile::tempdir().unwrap();
        let (data, out) = (folder.path().join("hub"), folder.path().join("broker"));
        let error = prepare(&data, &out, &out, &request()).unwrap_err();
        assert!(error.to_string().contains("no hub has run in"), "{error}");

        std::fs::create_dir(&data).unwrap();
        let store = Store::open(&data.join(DATABASE_FILE), Retention::default(), clock::system()).unwrap();
        drop(crate::open(&store).await.unwrap());
        let url = prepare(&data, &out, Path::new("/etc/mosquitto/flotilla"), &request()).unwrap();
        assert!(url.starts_with("mqtts://broker.example:8883?pin=") && url.ends_with("&enrol=8884"), "{url}");
        BrokerUrl::parse(&url).unwrap();
        let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
        let configuration = read(mosquitto::CONFIGURATION_FILE);
        for line in ["listener 8883", "listener 8884", "keyfile /etc/mosquitto/flotilla/broker.key"] {
            assert!(configuration.lines().any(|found| found == line), "{line} in\n{configuration}");
        }
        assert_eq!(read(mosquitto::CERTIFICATE_FILE).matches("BEGIN CERTIFICATE").count(), 2);
        let mode = std::os::unix::fs::MetadataExt::mode(&out.join(mosquitto::KEY_FILE).metadata().unwrap());
        assert_eq!(mode & 0o007, 0, "the key is nobody else's: {mode:o}");

        // Again, over what is there: a new key, and no listener for strangers.
        let key = read(mosquitto::KEY_FILE);
        let url = prepare(&data, &out, &out, &BrokerRequest { enrol_port: None, ..request() }).unwrap();
        assert!(!url.contains("enrol"), "{url}");
        assert!(!read(mosquitto::CONFIGURATION_FILE).contains("allow_anonymous true"));
        assert_ne!(read(mosquitto::KEY_FILE), key);
        for (bad, part) in [
            (BrokerRequest { names: Vec::new(), ..request() }, "names"),
            (BrokerRequest { enrol_port: Some(8883), ..request() }, "port each"),
            (BrokerRequest { names: vec!["0123.HUB.flotilla.internal.".to_owned()], ..request() }, "certificate"),
        ] {
            let error = prepare(&data, &out, &out, &bad).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
