//! What passes over the loopback: the kernel's own count. Exact in a network namespace of one's own.

use std::time::{Duration, Instant};

/// What has passed since the namespace began.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Traffic {
    /// IP and UDP headers included.
    pub(crate) bytes: f64,
    pub(crate) packets: f64,
    /// Datagrams that found a receiver's buffer full.
    pub(crate) dropped: f64,
}

impl Traffic {
    pub(crate) fn now() -> Self {
        let devices = std::fs::read_to_string("/proc/net/dev").unwrap();
        let line = devices.lines().find_map(|line| line.trim().strip_prefix("lo:")).unwrap();
        let fields: Vec<f64> = line.split_whitespace().map(|text| text.parse().unwrap()).collect();
        let snmp = std::fs::read_to_string("/proc/net/snmp").unwrap();
        let udp: Vec<&str> = snmp.lines().filter(|line| line.starts_with("Udp:")).collect();
        let column = udp[0].split_whitespace().position(|name| name == "RcvbufErrors").unwrap();
        let dropped = udp[1].split_whitespace().nth(column).unwrap().parse().unwrap();
        Self { bytes: fields[0], packets: fields[1], dropped }
    }

    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            bytes: self.bytes - before.bytes,
            packets: self.packets - before.packets,
            dropped: self.dropped - before.dropped,
        }
    }

    /// Waits until next to nothing passes any more: fewer than one packet per hundred devices in 200 ms.
    pub(crate) fn settle(devices: usize) {
        let start = Instant::now();
        let mut last = Self::now();
        while start.elapsed() < Duration::from_secs(30) {
            std::thread::park_timeout(Duration::from_millis(200));
            let now = Self::now();
            if now.since(last).packets * 100.0 < devices as f64 {
                return;
            }
            last = now;
        }
    }
}
