//! A UDP relay that counts what passes between one device and the hub.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes of IPv4 and UDP headers around each payload.
const HEADER_BYTES: u64 = 28;
/// With no datagram for this long, an exchange is over: far above QUIC's 25 ms of delayed acknowledgement.
const QUIET: Duration = Duration::from_millis(200);

/// Counters of one direction.
#[derive(Debug, Default)]
struct Direction {
    datagrams: AtomicU64,
    bytes: AtomicU64,
}

/// A running relay; it ends with the process.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    down: Arc<Direction>,
    up: Arc<Direction>,
}

/// What has passed, headers included.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Count {
    pub(crate) down_datagrams: u64,
    pub(crate) down_bytes: u64,
    pub(crate) up_datagrams: u64,
    pub(crate) up_bytes: u64,
}

impl Relay {
    pub(crate) fn start(hub: SocketAddr) -> Self {
        let inner = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
        let address = inner.local_addr().unwrap();
        let (down, up) = (Arc::new(Direction::default()), Arc::new(Direction::default()));
        let (counted_down, counted_up) = (down.clone(), up.clone());
        std::thread::spawn(move || {
            let mut flows: BTreeMap<SocketAddr, Arc<UdpSocket>> = BTreeMap::new();
            let mut buffer = vec![0; 65_536];
            while let Ok((length, device)) = inner.recv_from(&mut buffer) {
                let outer = flows.entry(device).or_insert_with(|| {
                    let outer = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
                    let (back, inner, counted) = (outer.clone(), inner.clone(), counted_down.clone());
                    std::thread::spawn(move || carry_back(&back, &inner, device, &counted));
                    outer
                });
                counted_up.add(length);
                // A lost datagram is what UDP is; QUIC sends it again.
                drop(outer.send_to(&buffer[..length], hub));
            }
        });
        Self { address, down, up }
    }

    pub(crate) fn count(&self) -> Count {
        let (down_datagrams, down_bytes) = self.down.read();
        let (up_datagrams, up_bytes) = self.up.read();
        Count { down_datagrams, down_bytes, up_datagrams, up_bytes }
    }

    /// Waits until something has passed since `before` and then nothing for a while; `false` when nothing came.
    pub(crate) fn settle(&self, before: Count) -> bool {
        let start = Instant::now();
        let mut last = (self.count().all_datagrams(), start);
        while start.elapsed() < Duration::from_secs(5) {
            std::thread::park_timeout(Duration::from_millis(5));
            let now = self.count().all_datagrams();
            if now != last.0 {
                last = (now, Instant::now());
            } else if now > before.all_datagrams() && last.1.elapsed() > QUIET {
                return true;
            }
        }
        last.0 > before.all_datagrams()
    }
}

impl Count {
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            down_datagrams: self.down_datagrams - before.down_datagrams,
            down_bytes: self.down_bytes - before.down_bytes,
            up_datagrams: self.up_datagrams - before.up_datagrams,
            up_bytes: self.up_bytes - before.up_bytes,
        }
    }

    pub(crate) fn all_datagrams(self) -> u64 {
        self.down_datagrams + self.up_datagrams
    }

    pub(crate) fn all_bytes(self) -> u64 {
        self.down_bytes + self.up_bytes
    }
}

impl Direction {
    fn add(&self, payload_bytes: usize) {
        self.datagrams.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(payload_bytes as u64 + HEADER_BYTES, Ordering::Relaxed);
    }

    fn read(&self) -> (u64, u64) {
        (self.datagrams.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

fn carry_back(outer: &UdpSocket, inner: &UdpSocket, device: SocketAddr, counted: &Direction) {
    let mut buffer = vec![0; 65_536];
    while let Ok(length) = outer.recv(&mut buffer) {
        counted.add(length);
        drop(inner.send_to(&buffer[..length], device));
    }
}
