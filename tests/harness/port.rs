//! Ports for servers that come and go under one number.

use std::net::{TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below those that Linux hands out by itself (`net.ipv4.ip_local_port_range`): nobody is given one while its server is down.
const FIRST: u16 = 20_000;

/// A port of TCP and UDP that nobody has, and that this process is told once.
pub fn free() -> u16 {
    static TOLD: AtomicU16 = AtomicU16::new(0);
    // Others may test here too.
    let own = FIRST + u16::try_from(std::process::id() % 100).unwrap_or(0) * 100;
    loop {
        let port = own + TOLD.fetch_add(1, Ordering::Relaxed) % 2_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
