//! How a device comes to its identity, and keeps it.
//!
//! Owns the order of a first start: keys are durable before the token is shown, the answer before it is used. Refuses to ask
//! anyone when the identity is on the disk. Start reading at [`Identity::open`].

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use flotilla_manifests::time::Timestamp;
use flotilla_sync::chance;
use flotilla_sync::enrol::{self, Enrolment, EnrolmentMaterial, Introduction, Proof, Token};
use flotilla_sync::identity::writer::WriterIdentity;
use flotilla_sync::identity::{
    CredentialsMaterial, DeviceKeys, DeviceKeysMaterial, Installation, InstallationMaterial, NodeName, TrustTime,
};
use flotilla_sync::transport::{BrokerUrl, Connector, EnrolConnector, Target};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::args::{Labels, RunArguments, Transport};
use crate::replica::WriterMaterial;
use crate::store::salvage::SALVAGED;
use crate::store::{IDENTITY_COPY, Ingest, Loaded, Store, StoreError};

/// What makes this device this device.
#[derive(Debug)]
pub struct Identity {
    pub node: NodeName,
    pub node_uid: String,
    pub keys: DeviceKeys,
    pub enrolment: Enrolment,
    pub writer: WriterMaterial,
    /// Kept as long as the certificate it shows: it resumes TLS sessions.
    connector: Option<Connector>,
    /// Asked at each attempt to reach the hub; the certificate is parsed for it once.
    renew_at: Timestamp,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum EnrolmentError {
    #[error("this device has not joined a hub yet: start it once with --join TOKEN (from `flotilla token create`)")]
    NoToken,
    #[error("--join")]
    Token(#[from] enrol::TokenParseError),
    #[error("{0:?} cannot be a node's name: lower case letters, digits, '-' and '.', at most 253; set it with --name")]
    Name(String),
    #[error(
        "--name {given} is not the name {known} this device joined with; leave it out, or use another --data folder"
    )]
    OtherName { given: String, known: String },
    #[error("the token has no address for this transport; make one at a hub that has")]
    NoAddress,
    #[error("could not join the hub (tried {tried})")]
    Unreachable { tried: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("stored identity: {what} is damaged: {why}")]
    Damaged { what: &'static str, why: String },
    #[error("the system's random source failed")]
    Random,
    #[error(transparent)]
    Identity(#[from] flotilla_sync::identity::IdentityError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Identity {
    /// Reads the identity, or joins a hub to get one.
    ///
    /// # Errors
    /// No token on a first start, a hub that cannot be reached or says no, a damaged database.
    pub async fn open(
        store: &Store,
        loaded: &Loaded,
        arguments: &RunArguments,
        time: &Arc<dyn TrustTime>,
    ) -> Result<Self, EnrolmentError> {
        let keys = open_keys(store, loaded).await?;
        let enrolment = match stored::<EnrolmentMaterial>(loaded, "enrolment")? {
            Some(material) => from_material(&material)?,
            None => join(store, arguments, &keys, time).await?,
        };
        let node = enrolment.certificate.node.clone();
        if let Some(given) = arguments.name.as_deref().filter(|given| *given != node.as_str()) {
            return Err(EnrolmentError::OtherName { given: given.to_owned(), known: node.to_string() });
        }
        Self::of(store, loaded, keys, enrolment).await
    }

    /// The identity of a device that has joined.
    ///
    /// # Errors
    /// It has not, or the database is damaged.
    pub async fn of_joined(store: &Store, loaded: &Loaded) -> Result<Self, EnrolmentError> {
        let material = stored::<EnrolmentMaterial>(loaded, "enrolment")?.ok_or(EnrolmentError::NoToken)?;
        Self::of(store, loaded, open_keys(store, loaded).await?, from_material(&material)?).await
    }

    async fn of(
        store: &Store,
        loaded: &Loaded,
        keys: DeviceKeys,
        enrolment: Enrolment,
    ) -> Result<Self, EnrolmentError> {
        let node = enrolment.certificate.node.clone();
        let writer = open_writer(store, loaded, &keys, &enrolment).await?;
        let node_uid = enrolment.certificate.node_uid.clone();
        let renew_at = renew_at(&enrolment);
        Ok(Self { node, node_uid, keys, enrolment, writer, connector: None, renew_at })
    }

    /// The way to sessions with the present certificate.
    ///
    /// # Errors
    /// When key and certificate do not fit.
    pub fn connector(
        &mut self,
        time: &Arc<dyn TrustTime>,
    ) -> Result<Connector, flotilla_sync::identity::IdentityError> {
        if let Some(connector) = &self.connector {
            return Ok(connector.clone());
        }
        let Enrolment { credentials, authority, root, .. } = &self.enrolment;
        let made = Connector::new(credentials, authority, root, self.node.clone(), time)?;
        Ok(self.connector.insert(made).clone())
    }

    /// When the session certificate should be replaced by a younger one.
    pub fn renew_at(&self) -> Timestamp {
        self.renew_at
    }

    /// Enrols again with the device key, over one road; the new certificate is durable when this returns.
    ///
    /// # Errors
    /// The hub cannot be reached there, or says no.
    pub async fn renew(
        &mut self,
        store: &Store,
        target: &Target,
        time: &Arc<dyn TrustTime>,
    ) -> Result<(), EnrolmentError> {
        let proof = Proof::Device(self.enrolment.certificate.encode());
        let pin = ring::digest::digest(&ring::digest::SHA256, &self.enrolment.authority);
        let mut introduction = Introduction {
            proof,
            node: self.node.clone(),
            labels: std::collections::BTreeMap::new(),
            pin: [0; 32],
            root: self.enrolment.root,
        };
        introduction.pin.copy_from_slice(pin.as_ref());
        let renewed = exchange(&introduction, &self.keys, target, time).await?;
        put(store, "enrolment", &renewed.to_material()).await?;
        self.renew_at = renew_at(&renewed);
        self.enrolment = renewed;
        self.connector = None;
        Ok(())
    }
}

/// At once, when the certificate does not say.
fn renew_at(enrolment: &Enrolment) -> Timestamp {
    Timestamp(enrolment.credentials.renew_after_ms().unwrap_or(0))
}

/// Takes keys and enrolment from their second copy when the database has lost them: a device goes on being who it is.
pub async fn recall(folder: &Path, store: &Store, loaded: &mut Loaded) {
    let whole = matches!(stored::<DeviceKeysMaterial>(loaded, "keys"), Ok(Some(_)))
        && matches!(stored::<EnrolmentMaterial>(loaded, "enrolment"), Ok(Some(_)));
    let Ok(bytes) = std::fs::read(folder.join(IDENTITY_COPY)) else { return };
    let copy = match serde_json::from_slice::<IdentityCopy>(&bytes) {
        Ok(copy) if !whole => copy,
        Ok(_) => return,
        Err(error) => {
            tracing::error!(%error, "the second copy of this device's identity is damaged; it is made anew");
            return;
        }
    };
    tracing::warn!("the database does not hold this device's identity; it is taken from its second copy");
    for (name, value) in [("keys", copy.keys), ("enrolment", copy.enrolment)] {
        let value = value.to_string().into_bytes();
        if let Err(error) = store.set_meta(name, value.clone()).await {
            tracing::error!(error = %chain(&error), "the identity was not stored; its second copy serves again next time");
        }
        loaded.meta.insert(name.to_owned(), value);
    }
    // Certified for an identity that may be older than it.
    loaded.meta.remove("writer");
}

/// Keeps a second copy of keys and enrolment beside the database.
pub fn keep_copy(folder: &Path, identity: &Identity) {
    let keep = || -> std::io::Result<()> {
        let keys = serde_json::to_value(identity.keys.to_material())?;
        let enrolment = serde_json::to_value(identity.enrolment.to_material())?;
        let text = serde_json::to_vec(&IdentityCopy { keys, enrolment })?;
        let path = folder.join(IDENTITY_COPY);
        if std::fs::read(&path).is_ok_and(|known| known == text) {
            return Ok(());
        }
        let written = folder.join(format!("{IDENTITY_COPY}.new"));
        let mut file = std::fs::File::options().create(true).truncate(true).write(true).mode(0o600).open(&written)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&written, &path)
    };
    if let Err(error) = keep() {
        tracing::warn!(%error, "no second copy of this device's identity was kept");
    }
}

/// As stored: both as in the database.
#[derive(serde::Serialize, serde::Deserialize)]
struct IdentityCopy {
    keys: serde_json::Value,
    enrolment: serde_json::Value,
}

/// Addresses to try, best first: those of the hub, where the arguments do not name others.
pub fn targets(arguments: &RunArguments, quic: &[String], mqtt: &[String]) -> Vec<Target> {
    let transport = arguments.transport;
    let quic = if arguments.hub.is_empty() { quic } else { &arguments.hub };
    let mqtt = if arguments.broker.is_empty() { mqtt } else { &arguments.broker };
    let quic = quic.iter().map(|address| Target::Quic(address.clone()));
    let mqtt = mqtt.iter().filter_map(|url| match BrokerUrl::parse(url) {
        Ok(url) => Some(Target::Mqtt(url)),
        Err(error) => {
            tracing::warn!(%error, "an address of the hub cannot be used");
            None
        }
    });
    match transport {
        Transport::Auto => quic.chain(mqtt).collect(),
        Transport::Quic => quic.collect(),
        Transport::Mqtt => mqtt.collect(),
    }
}

/// The authority of the local API and its administrator's credentials: made once, of no worth elsewhere. What the database has lost
/// of them is made anew.
///
/// # Errors
/// The disk, or the system's random source.
pub async fn local_authority(
    store: &Store,
    loaded: &Loaded,
) -> Result<(Installation, CredentialsMaterial), EnrolmentError> {
    let kept = usable::<InstallationMaterial>(loaded, "local-authority");
    let kept = kept.and_then(|material| Installation::from_material(&material).ok());
    let user = usable::<CredentialsMaterial>(loaded, "local-user");
    if let (Some(authority), Some(user)) = (kept, user) {
        return Ok((authority, user));
    }
    // The one without the other opens nothing.
    let authority = Installation::create_timeless()?;
    let user = authority.issue_user_timeless("technician", Some("system:masters"))?.to_material();
    let both = [
        ("local-authority", encoded("local-authority", &authority.to_material())?),
        ("local-user", encoded("local-user", &user)?),
    ];
    store.ingest(Ingest { meta: both.into(), ..Ingest::default() }).await?;
    Ok((authority, user))
}

/// What is stored, unless it is damaged.
fn usable<T: DeserializeOwned>(loaded: &Loaded, what: &'static str) -> Option<T> {
    stored(loaded, what).unwrap_or_else(|error| {
        tracing::error!(error = %chain(&error), "it is made anew");
        None
    })
}

pub(crate) async fn open_keys(store: &Store, loaded: &Loaded) -> Result<DeviceKeys, EnrolmentError> {
    if let Some(material) = stored::<DeviceKeysMaterial>(loaded, "keys")? {
        return Ok(DeviceKeys::from_material(&material)?);
    }
    let keys = DeviceKeys::generate()?;
    put(store, "keys", &keys.to_material()).await?;
    Ok(keys)
}

async fn open_writer(
    store: &Store,
    loaded: &Loaded,
    keys: &DeviceKeys,
    enrolment: &Enrolment,
) -> Result<WriterMaterial, EnrolmentError> {
    let salvaged = loaded.meta.contains_key(SALVAGED);
    let kept: Option<([u8; 32], Vec<u8>)> = if salvaged { usable(loaded, "writer") } else { stored(loaded, "writer")? };
    if let Some((seed, chain)) = kept {
        return Ok(WriterMaterial { seed, chain });
    }
    let seed = chance::bytes::<32>().map_err(|_none| EnrolmentError::Random)?;
    let made = WriterIdentity::for_device(seed, enrolment.incarnation, &keys.signing, &enrolment.certificate)?;
    let chain = made.chain().encode().to_vec();
    put(store, "writer", &(seed, chain.clone())).await?;
    Ok(WriterMaterial { seed, chain })
}

async fn join(
    store: &Store,
    arguments: &RunArguments,
    keys: &DeviceKeys,
    time: &Arc<dyn TrustTime>,
) -> Result<Enrolment, EnrolmentError> {
    let token = Token::parse(arguments.join.as_deref().ok_or(EnrolmentError::NoToken)?)?;
    let name = name_of(arguments.name.as_deref(), &token);
    let node = NodeName::parse(&name).map_err(|_invalid| EnrolmentError::Name(name.clone()))?;
    let introduction = Introduction {
        proof: Proof::Token(token.proof()),
        node,
        labels: labels_of(&arguments.labels),
        pin: token.pin,
        root: token.root,
    };
    let targets = targets(arguments, &token.quic, &token.mqtt);
    let mut last = None;
    for target in &targets {
        match exchange(&introduction, keys, target, time).await {
            Ok(enrolment) => {
                put(store, "enrolment", &enrolment.to_material()).await?;
                return Ok(enrolment);
            }
            Err(error) => {
                tracing::warn!(%target, error = %chain(&error), "could not join over this road");
                last = Some(error);
            }
        }
    }
    Err(last.unwrap_or(EnrolmentError::NoAddress))
}

async fn exchange(
    introduction: &Introduction,
    keys: &DeviceKeys,
    target: &Target,
    time: &Arc<dyn TrustTime>,
) -> Result<Enrolment, EnrolmentError> {
    let unreachable = |source: Box<dyn std::error::Error + Send + Sync>| EnrolmentError::Unreachable {
        tried: target.to_string(),
        source,
    };
    let connector = EnrolConnector::new(introduction.pin, &introduction.root, time)?;
    let stream = connector.connect(target).await.map_err(|error| unreachable(Box::new(error)))?;
    enrol::enrol(stream, introduction, keys).await.map_err(|error| unreachable(Box::new(error)))
}

fn from_material(material: &EnrolmentMaterial) -> Result<Enrolment, EnrolmentError> {
    Enrolment::from_material(material)
        .map_err(|error| EnrolmentError::Damaged { what: "enrolment", why: error.to_string() })
}

pub(crate) fn stored<T: DeserializeOwned>(loaded: &Loaded, what: &'static str) -> Result<Option<T>, EnrolmentError> {
    let Some(bytes) = loaded.meta.get(what) else { return Ok(None) };
    serde_json::from_slice(bytes).map(Some).map_err(|error| EnrolmentError::Damaged { what, why: error.to_string() })
}

pub(crate) async fn put<T: Serialize>(store: &Store, what: &'static str, value: &T) -> Result<(), EnrolmentError> {
    Ok(store.set_meta(what, encoded(what, value)?).await?)
}

fn encoded<T: Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, EnrolmentError> {
    serde_json::to_vec(value).map_err(|error| EnrolmentError::Damaged { what, why: error.to_string() })
}

/// What was given, and what kubelet says of every machine.
pub(crate) fn labels_of(given: &Labels) -> Labels {
    let mut labels = given.clone();
    labels.insert("kubernetes.io/arch".into(), crate::host::architecture(std::env::consts::ARCH).into());
    labels.insert("kubernetes.io/os".into(), std::env::consts::OS.into());
    labels
}

/// The name a device asks for: as given, else the token's, else the host's.
pub(crate) fn name_of(given: Option<&str>, token: &Token) -> String {
    given.map_or_else(|| token.node.as_ref().map_or_else(host_name, ToString::to_string), str::to_owned)
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_lowercase()
}

/// An error with its sources, as one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}
