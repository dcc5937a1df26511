//! When to try again, and over which road: pure, with time and chance as arguments.

/// First upper bound of a wait.
const FIRST_MS: u64 = 250;
/// Upper bound during the first two minutes of an outage.
const EARLY_MS_MAX: u64 = 5_000;
const EARLY_FOR_MS: u64 = 2 * 60_000;
/// Upper bound after that.
const LATE_MS_MAX: u64 = 60_000;
/// A connection that lasted this long ends the outage; a shorter one does not.
const STABLE_MS: u64 = 60_000;
/// A device that a busy hub has nothing new for leaves so much more time to those that are behind.
const NOTHING_NEW_FACTOR: u64 = 4;
/// First upper bound of a wait for a hub that is there and has too much to do, and the largest in the first two minutes: a fleet that
/// comes back takes a hub's time by asking, too.
const BUSY_FIRST_MS: u64 = 1_000;
const BUSY_MS_MAX: u64 = 16_000;
/// Largest wait that a hub may ask for.
const RETRY_AFTER_MS_MAX: u64 = 60 * 60_000;
/// While on a worse road, how long until a better one is tried; doubled with each attempt, and spread upwards by as much.
const BETTER_AFTER_MS_MIN: u64 = 20_000;
const BETTER_AFTER_MS_MAX: u64 = 5 * 60_000;
/// How long a road is tried before the next one is tried beside it. Milliseconds.
pub const HEAD_START_MS: u64 = 3_000;

/// Full-jitter exponential backoff.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backoff {
    attempts: u32,
    outage_since_ms: Option<u64>,
    connected_since_ms: Option<u64>,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

impl Backoff {
    /// No failure yet.
    pub const fn new() -> Self {
        Self { attempts: 0, outage_since_ms: None, connected_since_ms: None }
    }

    /// A connection stands.
    pub fn connected(&mut self, now_ms: u64) {
        self.connected_since_ms = Some(now_ms);
    }

    /// An attempt failed or a connection ended: how long to wait, in milliseconds. `random` is uniform over all of `u64`. The
    /// hub's retry-after wins over every other rule, spread upwards by up to a quarter so that those who were told the same do
    /// not come back together.
    pub fn wait_ms(&mut self, now_ms: u64, random: u64, retry_after_ms: Option<u64>) -> u64 {
        let bound_ms = self.next_bound_ms(now_ms, FIRST_MS, EARLY_MS_MAX);
        if let Some(asked_ms) = retry_after_ms {
            let asked_ms = asked_ms.min(RETRY_AFTER_MS_MAX);
            return asked_ms + random % (asked_ms / 4 + 1);
        }
        random % (bound_ms + 1)
    }

    /// The same after a hub had too much to do and did not say for how long.
    pub fn busy_wait_ms(&mut self, now_ms: u64, random: u64) -> u64 {
        random % (self.next_bound_ms(now_ms, BUSY_FIRST_MS, BUSY_MS_MAX) + 1)
    }

    fn next_bound_ms(&mut self, now_ms: u64, first_ms: u64, early_ms_max: u64) -> u64 {
        if let Some(since_ms) = self.connected_since_ms.take()
            && now_ms.saturating_sub(since_ms) >= STABLE_MS
        {
            self.attempts = 0;
            self.outage_since_ms = None;
        }
        let since_ms = *self.outage_since_ms.get_or_insert(now_ms);
        let exponential = first_ms.saturating_mul(1 << self.attempts.min(16));
        self.attempts = self.attempts.saturating_add(1);
        let early = now_ms.saturating_sub(since_ms) < EARLY_FOR_MS;
        exponential.min(if early { early_ms_max } else { LATE_MS_MAX })
    }
}

/// What a wait for a busy hub becomes at a device that has heard that its fleet's channel has nothing new: those that are behind go
/// first. Bounded, since what it has heard may be old.
pub fn wait_without_news_ms(wait_ms: u64) -> u64 {
    wait_ms.saturating_mul(NOTHING_NEW_FACTOR).min(LATE_MS_MAX.max(wait_ms))
}

/// Which transports a device may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preference {
    /// QUIC, then MQTT, then wait; back to the better one when it works again.
    #[default]
    Auto,
    /// QUIC alone.
    Quic,
    /// MQTT alone.
    Mqtt,
}

impl Preference {
    /// Reads `auto`, `quic` or `mqtt`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            "quic" => Some(Self::Quic),
            "mqtt" => Some(Self::Mqtt),
            _ => None,
        }
    }
}

/// One address to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Road {
    /// The QUIC address with this index.
    Quic(usize),
    /// The MQTT address with this index.
    Mqtt(usize),
}

/// The order in which the known addresses are tried, best first, and when a better one than the present is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roads {
    order: Vec<Road>,
    connected: Option<usize>,
    better_at_ms: Option<u64>,
    better_wait_ms: u64,
}

impl Roads {
    /// The roads a preference leaves of so many QUIC and MQTT addresses.
    pub fn new(preference: Preference, quic_len: usize, mqtt_len: usize) -> Self {
        let quic = (0..quic_len).map(Road::Quic).filter(|_| preference != Preference::Mqtt);
        let mqtt = (0..mqtt_len).map(Road::Mqtt).filter(|_| preference != Preference::Quic);
        let order = quic.chain(mqtt).collect();
        Self { order, connected: None, better_at_ms: None, better_wait_ms: BETTER_AFTER_MS_MIN }
    }

    /// All of them, best first; each begins [`HEAD_START_MS`] after the one before it, or when that has failed, and the first that
    /// works is taken. None at all: the configuration is at fault and waiting does not help.
    pub fn order(&self) -> &[Road] {
        &self.order
    }

    /// The road works. `random` is uniform over all of `u64` and spreads the return of many devices to a better road.
    pub fn connected(&mut self, road: Road, now_ms: u64, random: u64) {
        let Some(index) = self.order.iter().position(|known| *known == road) else { return };
        self.connected = Some(index);
        let better = self.order.first().is_some_and(|best| kind(*best) != kind(road));
        if !better {
            self.better_wait_ms = BETTER_AFTER_MS_MIN;
        }
        self.better_at_ms = better.then(|| now_ms + self.wait(random));
    }

    /// The connection ended.
    pub fn disconnected(&mut self) {
        self.connected = None;
        self.better_at_ms = None;
    }

    /// When to ask [`Self::better`] while connected; `None` on the best kind of road. Milliseconds.
    pub fn better_at_ms(&self) -> Option<u64> {
        self.better_at_ms
    }

    /// The roads of a better kind to try now while the present one keeps serving; empty when it is not time. Asking when it is
    /// time sets the time of the next attempt, each later than the one before.
    pub fn better(&mut self, now_ms: u64, random: u64) -> Vec<Road> {
        let (Some(index), Some(at_ms)) = (self.connected, self.better_at_ms) else { return Vec::new() };
        if now_ms < at_ms {
            return Vec::new();
        }
        self.better_wait_ms = (self.better_wait_ms * 2).min(BETTER_AFTER_MS_MAX);
        self.better_at_ms = Some(now_ms + self.wait(random));
        let present = kind(self.order[index]);
        self.order[..index].iter().copied().filter(|road| kind(*road) != present).collect()
    }

    /// The roads to try, best first, while nothing is heard on the present one.
    pub fn others(&self) -> Vec<Road> {
        let present = self.connected.map(|index| self.order[index]);
        self.order.iter().copied().filter(|road| Some(*road) != present).collect()
    }

    fn wait(&self, random: u64) -> u64 {
        self.better_wait_ms + random % self.better_wait_ms
    }
}

fn kind(road: Road) -> std::mem::Discriminant<Road> {
    std::mem::discriminant(&road)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
