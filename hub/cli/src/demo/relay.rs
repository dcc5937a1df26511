//! A link that can be cut: forwards UDP datagrams between one device and the hub, or drops them.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};

/// Largest UDP payload.
const DATAGRAM_BYTES_MAX: usize = 65_536;
/// Sockets towards the hub, one per socket of the device; the oldest are forgotten.
const FLOWS_MAX: usize = 64;

/// A running relay; it ends with the process.
#[derive(Debug)]
pub(super) struct Relay {
    address: SocketAddr,
    cut: Arc<AtomicBool>,
}

impl Relay {
    /// Forwards between a fresh loopback port and `hub`.
    pub(super) fn start(hub: SocketAddr) -> Result<Self> {
        let inner = Arc::new(UdpSocket::bind("127.0.0.1:0").context("no UDP port for the relay")?);
        let address = inner.local_addr()?;
        let cut = Arc::new(AtomicBool::new(false));
        let flag = cut.clone();
        std::thread::spawn(move || outbound(&inner, hub, &flag));
        Ok(Self { address, cut })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn set_cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::Relaxed);
    }
}

/// From the device to the hub; each of the device's sockets gets one of ours, whose answers a thread carries back.
fn outbound(inner: &Arc<UdpSocket>, hub: SocketAddr, cut: &Arc<AtomicBool>) {
    let mut flows: BTreeMap<SocketAddr, Arc<UdpSocket>> = BTreeMap::new();
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    while let Ok((length, device)) = inner.recv_from(&mut buffer) {
        if cut.load(Ordering::Relaxed) {
            continue;
        }
        if !flows.contains_key(&device) {
            if flows.len() >= FLOWS_MAX {
                flows.pop_first();
            }
            let Ok(outer) = UdpSocket::bind("127.0.0.1:0").map(Arc::new) else { continue };
            let (back, inner, cut) = (outer.clone(), inner.clone(), cut.clone());
            std::thread::spawn(move || inbound(&back, &inner, device, &cut));
            flows.insert(device, outer);
        }
        // A lost datagram is what UDP is; QUIC sends it again.
        drop(flows[&device].send_to(&buffer[..length], hub));
    }
}

fn inbound(outer: &UdpSocket, inner: &UdpSocket, device: SocketAddr, cut: &AtomicBool) {
    if outer.set_read_timeout(Some(Duration::from_secs(120))).is_err() {
        return;
    }
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    while let Ok(length) = outer.recv(&mut buffer) {
        if !cut.load(Ordering::Relaxed) {
            drop(inner.send_to(&buffer[..length], device));
        }
    }
}
