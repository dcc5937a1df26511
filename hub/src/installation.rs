//! Who this hub is: the installation's keys, its writer, the addresses under which devices find it. Kept in the database.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use flotilla_sync::identity::writer::WriterIdentity;
use flotilla_sync::identity::{IdentityError, Installation, InstallationMaterial};

use crate::mint;
use crate::store::settings::Setting;
use crate::store::{Batch, StoreError};

/// What tokens carry, and what devices are told at enrolment.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Addresses {
    pub(crate) quic: Vec<String>,
    pub(crate) mqtt: Vec<String>,
}

impl Addresses {
    /// `advertise` as it stands; else the bound address, or, when every interface is bound, this host's own one.
    pub(crate) fn of(advertise: &[String], bound: SocketAddr, mqtt: Option<&str>) -> Self {
        let quic = if advertise.is_empty() {
            let ip = if bound.ip().is_unspecified() { own_address() } else { bound.ip() };
            vec![SocketAddr::new(ip, bound.port()).to_string()]
        } else {
            advertise.to_vec()
        };
        Self { quic, mqtt: mqtt.map(str::to_owned).into_iter().collect() }
    }
}

/// The address from which this host would reach others; loopback on a host without a network. Sends nothing.
pub(crate) fn own_address() -> IpAddr {
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let found = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        // TEST-NET-1 (RFC 5737): the kernel picks the route, no packet leaves.
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        socket.local_addr()
    });
    found.map_or(loopback, |address| address.ip())
}

/// What cannot be had of the stored keys.
#[derive(Debug, thiserror::Error)]
pub enum InstallationError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the stored keys of the installation are damaged")]
    Damaged(#[from] serde_json::Error),
    #[error("the stored writer of the hub is damaged: it has {0} bytes")]
    Writer(usize),
    #[error("the operating system gave no random bytes")]
    NoRandomness,
}

/// The stored installation and writer; made at the first start.
pub(crate) fn open(batch: &mut Batch<'_>) -> Result<(Installation, WriterIdentity), InstallationError> {
    let installation = match batch.setting(Setting::Installation)? {
        Some(stored) => {
            let material: InstallationMaterial = serde_json::from_slice(&stored)?;
            Installation::from_material(&material)?
        }
        None => {
            let installation = Installation::create(batch.now().0)?;
            let material = serde_json::to_vec(&installation.to_material())?;
            batch.set_setting(Setting::Installation, &material)?;
            installation
        }
    };
    let writer = match batch.setting(Setting::Writer)? {
        Some(stored) => {
            let Some((seed, chain)) = stored.split_first_chunk::<32>() else {
                return Err(InstallationError::Writer(stored.len()));
            };
            WriterIdentity::restore(*seed, chain, &installation.root().public())?
        }
        None => {
            let (writer, stored) = fresh_writer(&installation, batch.incarnation())?;
            batch.set_setting(Setting::Writer, &stored)?;
            writer
        }
    };
    Ok((installation, writer))
}

/// A writer for a life of the hub's database, and the bytes to store it by.
pub(crate) fn fresh_writer(
    installation: &Installation,
    incarnation: u64,
) -> Result<(WriterIdentity, Vec<u8>), InstallationError> {
    let seed = mint::bytes::<32>().map_err(|_| InstallationError::NoRandomness)?;
    let writer = WriterIdentity::for_hub(seed, incarnation, installation.root())?;
    let mut stored = seed.to_vec();
    stored.extend(writer.chain().encode());
    Ok((writer, stored))
}
