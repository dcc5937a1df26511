//! The mind of a fleet: store, admission, publication into channels, controllers, scheduler, fleet door.
//!
//! Owns what a fleet should run and what is known of it. Refuses to know how a device makes it true: that is the agent's.
//! Start reading at [`Hub::start`], then [`store`].
#![forbid(unsafe_code)]

mod admission;
pub mod clock;
pub mod config;
pub mod controllers;
pub mod fleet;
mod installation;
mod mint;
mod publish;
pub mod runner;
pub mod scheduler;
mod seed;
pub mod store;
pub mod tokens;

use std::net::SocketAddr;

pub use config::{HubConfig, Retention};
pub use fleet::contact::{Contact, Contacts};
pub use store::Store;

/// A running hub.
#[derive(Debug)]
pub struct Hub {
    api: SocketAddr,
    quic: SocketAddr,
    store: Store,
    contacts: Contacts,
}

/// Why a hub did not start.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("cannot use the data folder {path}")]
    Folder { path: std::path::PathBuf, source: std::io::Error },
    #[error("cannot listen at {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Store(#[from] store::StoreError),
}

impl Hub {
    /// Opens the data folder, seeds it, starts the controllers, the fleet door and the API. Ready when it returns:
    /// `DIR/admin.kubeconfig` is written and both doors are open.
    ///
    /// # Errors
    /// When the folder, the database or a listener cannot be had.
    pub async fn start(config: HubConfig) -> Result<Self, HubError> {
        unimplemented!("{config:?}")
    }

    /// Where the Kubernetes API listens; the port is the real one even when 0 was asked for.
    pub fn api(&self) -> SocketAddr {
        self.api
    }

    /// Where the fleet door listens (UDP).
    pub fn quic(&self) -> SocketAddr {
        self.quic
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    pub fn contacts(&self) -> &Contacts {
        &self.contacts
    }

    /// Ends gracefully: no new work, watches end, requests in flight are answered, sessions close, the database closes.
    pub async fn stop(self) {
        unimplemented!()
    }
}
