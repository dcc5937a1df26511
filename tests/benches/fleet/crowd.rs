//! Where all devices of one generator stand: what they have, what they lack, when they got it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, Semaphore};

/// Kinds of trouble that are told apart.
const TROUBLES_MAX: usize = 32;

/// Microseconds since the epoch: the same clock in all processes of this bench.
pub(crate) fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_micros()).unwrap()
}

#[derive(Debug, Default, Clone, Copy)]
struct Standing {
    connected: bool,
    /// Durable here: of the fleet's channel, and of the device's own.
    fleet: u64,
    device: u64,
    /// What the hub named.
    wanted: (u64, u64),
    /// Heard what the hub named, in this session.
    told: bool,
    came_us: u64,
    durable_us: u64,
}

#[derive(Debug, Default)]
struct State {
    devices: Vec<Standing>,
    expected: u64,
    /// Devices that lack something of what is expected.
    lacking: usize,
    counts: BTreeMap<&'static str, u64>,
    troubles: BTreeMap<String, u64>,
}

#[derive(Debug)]
pub(crate) struct Crowd {
    state: Mutex<State>,
    arrived: Notify,
    /// Devices that may dial at one time: they share a processor, which devices do not.
    pub(crate) dialling: Semaphore,
}

impl Standing {
    fn lacks(&self, expected: u64) -> bool {
        !self.connected || !self.told || self.fleet < expected.max(self.wanted.0) || self.device < self.wanted.1
    }
}

impl Crowd {
    pub(crate) fn of(count: usize, dialling: usize) -> Self {
        let state = State { devices: vec![Standing::default(); count], lacking: count, ..State::default() };
        Self { state: Mutex::new(state), arrived: Notify::new(), dialling: Semaphore::new(dialling) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn change(&self, index: usize, change: impl FnOnce(&mut Standing)) {
        let mut state = self.state();
        let expected = state.expected;
        let device = &mut state.devices[index];
        let lacked = device.lacks(expected);
        change(device);
        let lacks = device.lacks(expected);
        state.lacking = state.lacking + usize::from(lacks && !lacked) - usize::from(!lacks && lacked);
        if state.lacking == 0 && lacked {
            self.arrived.notify_waiters();
        }
    }

    pub(crate) fn connected(&self, index: usize, connected: bool) {
        self.change(index, |device| {
            device.connected = connected;
            device.told &= connected;
        });
    }

    pub(crate) fn wants(&self, index: usize, wanted: (u64, u64), now_us: u64) {
        self.change(index, |device| {
            device.wanted = wanted;
            device.told = true;
            device.durable_us = device.durable_us.max(now_us);
        });
    }

    /// What is on a device's disk already.
    pub(crate) fn holds(&self, index: usize, (fleet, own): (u64, u64)) {
        self.change(index, |device| {
            device.fleet = device.fleet.max(fleet);
            device.device = device.device.max(own);
        });
    }

    pub(crate) fn stands_at(&self, index: usize, (fleet, own): (u64, u64), came_us: u64, durable_us: u64) {
        self.change(index, |device| {
            device.fleet = device.fleet.max(fleet);
            device.device = device.device.max(own);
            (device.came_us, device.durable_us) = (came_us, durable_us);
        });
    }

    /// From now on this record of the fleet's channel is expected of everyone.
    pub(crate) fn expect(&self, seq: u64) {
        let mut state = self.state();
        state.expected = seq;
        state.lacking = state.devices.iter().filter(|device| device.lacks(seq)).count();
    }

    /// Waits until nobody lacks anything; then when it came to each device and when it was durable there.
    pub(crate) async fn arrival(&self) -> Vec<(u64, u64)> {
        loop {
            let arrived = self.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            {
                let state = self.state();
                if state.lacking == 0 {
                    return state.devices.iter().map(|device| (device.came_us, device.durable_us)).collect();
                }
            }
            arrived.await;
        }
    }

    pub(crate) fn cut(&self) {
        let count = self.state().devices.len();
        for index in 0..count {
            self.connected(index, false);
        }
    }

    /// How many lack something, how many are connected, the newest record of the fleet's channel anywhere.
    pub(crate) fn census(&self) -> (usize, usize, u64) {
        let state = self.state();
        let connected = state.devices.iter().filter(|device| device.connected).count();
        (
            state.lacking,
            connected,
            state.devices.iter().map(|device| device.fleet.max(device.wanted.0)).max().unwrap_or(0),
        )
    }

    pub(crate) fn count(&self, what: &'static str) {
        *self.state().counts.entry(what).or_default() += 1;
    }

    pub(crate) fn trouble(&self, what: &str, why: &str) {
        let mut state = self.state();
        let full = state.troubles.len() >= TROUBLES_MAX;
        let why = why.split(':').next_back().unwrap_or_default().trim();
        let text = format!("{what}: {why}");
        if !full || state.troubles.contains_key(&text) {
            *state.troubles.entry(text).or_default() += 1;
        }
    }

    /// Counts and troubles since the last call.
    pub(crate) fn take_counts(&self) -> (BTreeMap<&'static str, u64>, BTreeMap<String, u64>) {
        let mut state = self.state();
        (std::mem::take(&mut state.counts), std::mem::take(&mut state.troubles))
    }
}
