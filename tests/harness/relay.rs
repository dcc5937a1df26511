//! A UDP relay between one device and the hub that can be blocked without a word, slowed down, and counts what it carries down.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// A running relay; it ends with the process.
#[derive(Debug, Clone)]
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    blocked: AtomicBool,
    /// Bytes a second towards the device; 0: as many as there are.
    rate: AtomicU64,
    down: AtomicU64,
}

impl Relay {
    pub fn start(hub: SocketAddr) -> Self {
        let inner = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
        let relay = Self { address: inner.local_addr().unwrap(), shared: Arc::default() };
        let shared = relay.shared.clone();
        std::thread::spawn(move || up(&inner, hub, &shared));
        relay
    }

    /// Where the device finds the hub.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Drops everything, as a firewall does that says nothing.
    pub fn block(&self, blocked: bool) {
        self.shared.blocked.store(blocked, Ordering::Relaxed);
    }

    /// Lets so many bytes a second pass towards the device; what waits, waits in order.
    pub fn slow_down(&self, bytes_per_second: u64) {
        self.shared.rate.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Bytes carried towards the device so far.
    pub fn down(&self) -> u64 {
        self.shared.down.load(Ordering::Relaxed)
    }
}

fn up(inner: &Arc<UdpSocket>, hub: SocketAddr, shared: &Arc<Shared>) {
    let mut flows: BTreeMap<SocketAddr, Arc<UdpSocket>> = BTreeMap::new();
    let mut buffer = vec![0; 65_536];
    while let Ok((length, device)) = inner.recv_from(&mut buffer) {
        if shared.blocked.load(Ordering::Relaxed) {
            continue;
        }
        let outer = flows.entry(device).or_insert_with(|| {
            let outer = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
            let (back, inner, shared) = (outer.clone(), inner.clone(), shared.clone());
            std::thread::spawn(move || down(&back, &inner, device, &shared));
            outer
        });
        // A lost datagram is what UDP is; QUIC sends it again.
        drop(outer.send_to(&buffer[..length], hub));
    }
}

#[expect(clippy::disallowed_methods, reason = "a slow link takes real time")]
fn down(outer: &UdpSocket, inner: &UdpSocket, device: SocketAddr, shared: &Shared) {
    let mut buffer = vec![0; 65_536];
    while let Ok(length) = outer.recv(&mut buffer) {
        if shared.blocked.load(Ordering::Relaxed) {
            continue;
        }
        shared.down.fetch_add(length as u64, Ordering::Relaxed);
        if let Some(nanoseconds) = (length as u64 * 1_000_000_000).checked_div(shared.rate.load(Ordering::Relaxed)) {
            std::thread::sleep(Duration::from_nanos(nanoseconds));
        }
        drop(inner.send_to(&buffer[..length], device));
    }
}
