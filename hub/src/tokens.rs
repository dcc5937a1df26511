//! Enrolment tokens, made by an operator at the hub's machine. Works beside a running hub: the table in the database is the
//! one place where tokens live (see [`crate::store`]), and the hub writes there what a token must carry.

use std::path::{Path, PathBuf};

use flotilla_sync::enrol::Token;
use flotilla_sync::identity::{IdentityError, Installation, InstallationMaterial, NodeName, NodeNameError};

use crate::config::DATABASE_FILE;
use crate::store::StoreError;
use crate::store::settings::Setting;
use crate::store::tokens::{StoredToken, TokenTable};
use crate::{clock, installation::Addresses};

/// The longest life of a token.
const TTL_MS_MAX: u64 = 366 * 86_400_000;
/// Most devices one token admits.
const USES_MAX: u32 = 100_000;

/// What a token is to admit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRequest {
    /// The only node it admits; also lets a new device take over that node's name.
    pub node: Option<String>,
    pub fleet: String,
    pub ttl_ms: u64,
    pub uses: u32,
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenCreateError {
    #[error(
        "no hub has run in {folder}: start `flotilla hub run --data {folder}` first, it decides what a token carries"
    )]
    NoHub { folder: PathBuf },
    #[error("{what} {text:?} is no valid name")]
    Name { what: &'static str, text: String, source: NodeNameError },
    #[error("{what} must be between 1 and {max}")]
    Range { what: &'static str, max: u64 },
    #[error("what the hub stored is damaged")]
    Damaged(#[from] serde_json::Error),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Makes a token and stores what the hub must know of it; answers its text.
///
/// # Errors
/// When no hub has run in the folder yet, or a wish is out of bounds.
pub fn create(data_dir: &Path, request: &TokenRequest) -> Result<String, TokenCreateError> {
    let name = |what, text: &str| {
        NodeName::parse(text).map_err(|source| TokenCreateError::Name { what, text: text.to_owned(), source })
    };
    let node = request.node.as_deref().map(|text| name("node", text)).transpose()?;
    name("fleet", &request.fleet)?;
    if request.ttl_ms == 0 || request.ttl_ms > TTL_MS_MAX {
        return Err(TokenCreateError::Range { what: "the time to live (ms)", max: TTL_MS_MAX });
    }
    if request.uses == 0 || request.uses > USES_MAX {
        return Err(TokenCreateError::Range { what: "the number of uses", max: USES_MAX.into() });
    }
    let no_hub = || TokenCreateError::NoHub { folder: data_dir.to_owned() };
    let path = data_dir.join(DATABASE_FILE);
    if !path.exists() {
        return Err(no_hub());
    }
    let mut table = TokenTable::open(&path)?;
    let material = table.setting(Setting::Installation)?.ok_or_else(no_hub)?;
    let material: InstallationMaterial = serde_json::from_slice(&material)?;
    let installation = Installation::from_material(&material)?;
    let addresses: Addresses = serde_json::from_slice(&table.setting(Setting::Addresses)?.ok_or_else(no_hub)?)?;
    let now_ms = clock::system()().0;
    let (token, record) = Token::generate(
        (addresses.quic, addresses.mqtt),
        (installation.pin(), installation.root().public()),
        now_ms.saturating_add(request.ttl_ms),
        node,
        request.uses,
    )?;
    table.add(&StoredToken { record, fleet: request.fleet.clone() }, now_ms)?;
    Ok(token.with_sealing(installation.sealing().public()?).encode())
}
