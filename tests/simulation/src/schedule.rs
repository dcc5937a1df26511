//! What people and the world do to a fleet, and when: drawn from the seed before anything runs, so that a failing run can be
//! shortened by leaving steps out.

use std::time::Duration;

use flotilla_hub::Retention;

use crate::dice::Dice;
use crate::network::{Cut, Weather};

/// What may go wrong in one world: each seed draws its own subset, so that rare combinations happen undisturbed by the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Faults {
    pub partitions: bool,
    pub weather: bool,
    pub broken_connections: bool,
    pub agent_crashes: bool,
    pub power_cuts: bool,
    pub torn_writes: bool,
    pub disk_errors: bool,
    pub full_disks: bool,
    pub clocks: bool,
    pub old_cards: bool,
    pub hub_crashes: bool,
    pub hub_power_cuts: bool,
    pub hub_disk_errors: bool,
    pub hub_restores: bool,
    pub container_ends: bool,
    /// Programs of both versions of the protocol.
    pub old_versions: bool,
}

impl Faults {
    /// Nothing goes wrong.
    pub const NONE: Self = Self {
        partitions: false,
        weather: false,
        broken_connections: false,
        agent_crashes: false,
        power_cuts: false,
        torn_writes: false,
        disk_errors: false,
        full_disks: false,
        clocks: false,
        old_cards: false,
        hub_crashes: false,
        hub_power_cuts: false,
        hub_disk_errors: false,
        hub_restores: false,
        container_ends: false,
        old_versions: false,
    };

    /// Everything does.
    const ALL: Self = Self {
        partitions: true,
        weather: true,
        broken_connections: true,
        agent_crashes: true,
        power_cuts: true,
        torn_writes: true,
        disk_errors: true,
        full_disks: true,
        clocks: true,
        old_cards: true,
        hub_crashes: true,
        hub_power_cuts: true,
        hub_disk_errors: true,
        hub_restores: true,
        container_ends: true,
        old_versions: true,
    };

    fn drawn(dice: &mut Dice) -> Self {
        let mut one = || dice.permille(450);
        Self {
            partitions: one(),
            weather: one(),
            broken_connections: one(),
            agent_crashes: one(),
            power_cuts: one(),
            torn_writes: one(),
            disk_errors: one(),
            full_disks: one(),
            clocks: one(),
            old_cards: one(),
            hub_crashes: one(),
            hub_power_cuts: one(),
            hub_disk_errors: one(),
            hub_restores: one(),
            container_ends: one(),
            old_versions: false,
        }
    }
}

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Virtual time since the beginning. Milliseconds.
    pub at_ms: u64,
    pub what: What,
}

/// Devices are named by their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// An operator writes at the hub; the number chooses what.
    Operator(u64),
    /// A technician writes at a device.
    Technician(usize, u64),
    Cut(usize, Cut),
    Weather(usize, Weather),
    BreakOff(usize),
    AgentCrash(usize),
    PowerCut(usize),
    /// The power fails in the middle of one of its next writes.
    TornWrite(usize, u64),
    /// One in so many operations of its disk fails; 0 ends that.
    DiskErrors(usize, u64),
    /// Its disk is full, or is so no more.
    DiskFull(usize, bool),
    ClockStep(usize, i64),
    ClockDrift(usize, i64),
    /// It boots in 1970.
    ClockLost(usize),
    ClockMended(usize),
    /// Its card is copied, for later.
    CopyCard(usize),
    /// The copy is put into the slot, and the device starts from it.
    OldCard(usize),
    /// Another board starts from a copy of its card, beside it, under its name.
    Clone(usize),
    /// The other board is thrown away.
    CloneEnds(usize),
    /// Its program speaks the first version of the protocol, or (after an update, with which it begins anew) the newest.
    Speaks {
        device: usize,
        old: bool,
    },
    /// The device starts, if it is down.
    Start(usize),
    ContainerEnds(usize, u64),
    HubCrash,
    HubPowerCut,
    HubTornWrite(u64),
    HubDiskErrors(u64),
    HubBackup,
    HubRestore,
    HubStart,
    /// A new card in its board, with nothing on it: it joins again, by a token for its name.
    NewCard(usize),
    /// People bring a namespace of this number, with what they run there.
    TeamComes(u64),
    /// All of those up to this number leave.
    TeamsLeave(u64),
    /// Everything that can grow is measured.
    Measure,
}

/// Most writes of operators, each of which may reach every device: two hundred a day in a fleet of a thousand.
const UPDATES_MAX: u64 = 200_000;
const WRITES_MIN: u64 = 40;

pub(crate) const SECOND: u64 = 1000;
pub(crate) const MINUTE: u64 = 60 * SECOND;

/// A world of more device hours than this is a fleet's day (`day.rs`): at the density of worlds of minutes, in which something happens
/// to each device every few seconds, a thousand devices for a day would take a day.
const DENSE_DEVICE_HOURS_MAX: u64 = 500;

fn is_dense(devices: usize, length_ms: u64) -> bool {
    devices as u64 * length_ms <= DENSE_DEVICE_HOURS_MAX * 60 * MINUTE
}

/// How often the oracles look at such a world while nothing is scheduled: after a step they look after one second, and then after ever
/// longer, up to this.
#[must_use]
pub fn look_every(devices: usize, length_ms: u64) -> Duration {
    Duration::from_secs(if is_dense(devices, length_ms) { 1 } else { 60 })
}

/// The steps of one world, in order, and what may go wrong in it.
pub fn draw(seed: u64, devices: usize, length_ms: u64) -> (Faults, Vec<Step>) {
    if !is_dense(devices, length_ms) {
        return draw_day(seed, devices, length_ms);
    }
    let mut dice = Dice::new(seed).apart("schedule");
    let mut faults = Faults::drawn(&mut dice);
    // Apart: which programs there are moves nothing else that a seed does.
    let mut versions = Dice::new(seed).apart("versions");
    faults.old_versions = versions.permille(450);
    let mut drawing = Drawing { dice, devices: devices as u64, length_ms, steps: Vec::new() };
    drawing.people();
    drawing.network(faults);
    drawing.devices(faults);
    drawing.hub(faults);
    drawing.stories(faults);
    drawing.dice = versions;
    drawing.versions(faults);
    let mut steps = drawing.steps;
    steps.sort_by_key(|step| step.at_ms);
    (faults, steps)
}

/// A fleet's day; see `day.rs`.
fn draw_day(seed: u64, devices: usize, length_ms: u64) -> (Faults, Vec<Step>) {
    let dice = Dice::new(seed).apart("day");
    let mut drawing = Drawing { dice, devices: devices as u64, length_ms, steps: Vec::new() };
    drawing.day();
    let mut steps = drawing.steps;
    steps.sort_by_key(|step| step.at_ms);
    (Faults::ALL, steps)
}

/// Bounds of history that a world of minutes reaches, as a fleet reaches its own in months: each seed has its own.
pub fn retention(seed: u64) -> Retention {
    let mut dice = Dice::new(seed).apart("retention");
    let one_of = |dice: &mut Dice, of: [usize; 3]| dice.pick(&of).copied().unwrap_or(40);
    Retention {
        events_count_max: one_of(&mut dice, [60, 300, 300]),
        log_records_max: one_of(&mut dice, [8, 16, 40]) as u64,
        log_bytes_max: 256 << 10,
        audit_count_max: 200,
        ..Retention::default()
    }
}

#[derive(Debug)]
pub(crate) struct Drawing {
    pub(crate) dice: Dice,
    pub(crate) devices: u64,
    pub(crate) length_ms: u64,
    steps: Vec<Step>,
}

impl Drawing {
    pub(crate) fn at(&mut self, at_ms: u64, what: What) {
        if at_ms < self.length_ms {
            self.steps.push(Step { at_ms, what });
        }
    }

    pub(crate) fn device(&mut self) -> usize {
        usize::try_from(self.dice.below(self.devices)).unwrap_or(0)
    }

    /// So many times in the whole length, at random moments.
    pub(crate) fn moments(&mut self, count: u64) -> Vec<u64> {
        (0..count).map(|_| self.dice.below(self.length_ms)).collect()
    }

    /// How often something happens to the devices: it grows with them, but not without end.
    fn often(&mut self, of_each: u64) -> u64 {
        let share = self.devices.min(200) * of_each / 10;
        self.dice.between(1, share.max(2))
    }

    fn people(&mut self) {
        let writes = self.dice.between(8, 40) * (1 + self.length_ms / (20 * MINUTE)).min(24);
        let writes = writes.min((UPDATES_MAX / self.devices.max(1)).max(WRITES_MIN));
        self.operators(writes);
        let edits = self.often(8);
        for at in self.moments(edits) {
            let (device, choice) = (self.device(), self.dice.next());
            self.at(at, What::Technician(device, choice));
        }
    }

    /// So many writes at the hub in the whole length.
    pub(crate) fn operators(&mut self, writes: u64) {
        for at in self.moments(writes) {
            let choice = self.dice.next();
            self.at(at, What::Operator(choice));
        }
        // At the beginning there is something to run.
        for at in [100, 200, 300, 400] {
            let choice = self.dice.next() & !0xff;
            self.at(at, What::Operator(choice));
        }
    }

    fn network(&mut self, faults: Faults) {
        if faults.partitions {
            let count = self.often(10);
            for at in self.moments(count) {
                let device = self.device();
                let ways = [Cut::Both, Cut::Both, Cut::Up, Cut::Down];
                let cut = self.dice.pick(&ways).copied().unwrap_or(Cut::Both);
                let lasts = self.dice.between(SECOND, 10 * MINUTE);
                self.at(at, What::Cut(device, cut));
                self.at(at + lasts, What::Cut(device, Cut::No));
            }
        }
        if faults.weather {
            for device in 0..usize::try_from(self.devices).unwrap_or(0) {
                let slow = self.dice.between(5, 2000);
                let mut rate = || self.dice.below(40);
                let weather =
                    Weather { latency_ms: (1, slow), lost: rate(), doubled: rate(), moved: rate(), damaged: rate() };
                self.at(1, What::Weather(device, weather));
            }
        }
        if faults.broken_connections {
            let count = self.often(15);
            for at in self.moments(count) {
                let device = self.device();
                self.at(at, What::BreakOff(device));
            }
        }
    }

    fn devices(&mut self, faults: Faults) {
        type Make = fn(usize, &mut Dice) -> What;
        let crashes: [(bool, Make); 3] = [
            (faults.agent_crashes, |device, _| What::AgentCrash(device)),
            (faults.power_cuts, |device, _| What::PowerCut(device)),
            (faults.torn_writes, |device, dice| What::TornWrite(device, dice.between(1, 40))),
        ];
        for (wanted, make) in crashes {
            if !wanted {
                continue;
            }
            let count = self.often(8);
            for at in self.moments(count) {
                let device = self.device();
                let what = make(device, &mut self.dice);
                let down = if self.dice.permille(700) {
                    self.dice.between(10, 20 * SECOND)
                } else {
                    self.dice.between(MINUTE, 10 * MINUTE)
                };
                self.at(at, what);
                self.at(at + down, What::Start(device));
            }
        }
        let spells: [(bool, Make, Make); 2] = [
            (
                faults.disk_errors,
                |device, dice| What::DiskErrors(device, dice.between(3, 60)),
                |device, _| What::DiskErrors(device, 0),
            ),
            (faults.full_disks, |device, _| What::DiskFull(device, true), |device, _| What::DiskFull(device, false)),
        ];
        for (wanted, begin, end) in spells {
            if !wanted {
                continue;
            }
            let count = self.often(4);
            for at in self.moments(count) {
                let device = self.device();
                let lasts = self.dice.between(SECOND, 3 * MINUTE);
                let (begin, end) = (begin(device, &mut self.dice), end(device, &mut self.dice));
                self.at(at, begin);
                self.at(at + lasts, end);
            }
        }
        self.clocks(faults);
        self.cards(faults);
        if faults.container_ends {
            let count = self.often(15);
            for at in self.moments(count) {
                let (device, choice) = (self.device(), self.dice.next());
                self.at(at, What::ContainerEnds(device, choice));
            }
        }
    }

    fn clocks(&mut self, faults: Faults) {
        if !faults.clocks {
            return;
        }
        let count = self.often(6);
        let moments = self.moments(count);
        self.clocks_at(moments);
    }

    pub(crate) fn clocks_at(&mut self, moments: Vec<u64>) {
        for at in moments {
            let device = self.device();
            let day = 86_400 * SECOND.cast_signed();
            let what = match self.dice.below(4) {
                0 => What::ClockStep(
                    device,
                    [-3650 * day, -day, -SECOND.cast_signed(), day, 3650 * day]
                        [usize::try_from(self.dice.below(5)).unwrap_or(0)],
                ),
                1 => What::ClockDrift(device, self.dice.between(0, 400).cast_signed() - 200),
                2 => What::ClockMended(device),
                _ => {
                    self.at(at + 1, What::PowerCut(device));
                    self.at(at + 2 * SECOND, What::Start(device));
                    What::ClockLost(device)
                }
            };
            self.at(at, what);
        }
    }

    fn cards(&mut self, faults: Faults) {
        if !faults.old_cards {
            return;
        }
        let count = self.often(2);
        for at in self.moments(count) {
            let device = self.device();
            let later = self.dice.between(10 * SECOND, 20 * MINUTE);
            self.at(at, What::CopyCard(device));
            self.at(at + later, What::OldCard(device));
        }
        if self.dice.permille(500) {
            let (device, at) = (self.device(), self.dice.below(self.length_ms));
            let lasts = self.dice.between(MINUTE, 10 * MINUTE);
            self.at(at, What::Clone(device));
            self.at(at + lasts, What::CloneEnds(device));
        }
    }

    fn versions(&mut self, faults: Faults) {
        if !faults.old_versions {
            return;
        }
        for device in 0..usize::try_from(self.devices).unwrap_or(0) {
            if self.dice.permille(600) {
                let updated = self.dice.below(2 * self.length_ms);
                self.at(0, What::Speaks { device, old: true });
                self.at(updated, What::Speaks { device, old: false });
            }
        }
    }

    fn hub(&mut self, faults: Faults) {
        let often = 1 + self.length_ms / (30 * MINUTE);
        let mut crash = |wanted: bool, count: u64, make: fn(&mut Dice) -> What| {
            if !wanted {
                return;
            }
            for at in self.moments(count.min(30)) {
                let what = make(&mut self.dice);
                let down = self.dice.between(10, MINUTE);
                self.at(at, what);
                self.at(at + down, What::HubStart);
            }
        };
        crash(faults.hub_crashes, 2 * often, |_| What::HubCrash);
        crash(faults.hub_power_cuts, often, |_| What::HubPowerCut);
        crash(faults.hub_power_cuts, 2 * often, |dice| What::HubTornWrite(dice.between(1, 60)));
        if faults.hub_disk_errors {
            for at in self.moments(often.min(10)) {
                let (one_in, lasts) = (self.dice.between(3, 60), self.dice.between(SECOND, MINUTE));
                self.at(at, What::HubDiskErrors(one_in));
                self.at(at + lasts, What::HubDiskErrors(0));
            }
        }
        if faults.hub_restores {
            // In the first two thirds, the first time: there is something to learn, and time to learn it.
            let at = self.dice.between(self.length_ms / 10, self.length_ms / 3);
            let later = self.dice.between(SECOND, self.length_ms / 3);
            self.at(at, What::HubBackup);
            self.at(at + later, What::HubRestore);
            self.at(at + later + 5 * SECOND, What::HubStart);
            let mut twice = self.dice.apart("restored twice");
            if twice.permille(300) {
                let again = at + later + twice.between(20 * SECOND, self.length_ms / 4);
                self.at(again, What::HubRestore);
                self.at(again + 5 * SECOND, What::HubStart);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_draws_the_same_and_another_one_another() {
        let length = 60 * MINUTE;
        assert_eq!(draw(5, 10, length), draw(5, 10, length));
        assert_ne!(draw(5, 10, length).1, draw(6, 10, length).1);
        let (_, steps) = draw(5, 10, length);
        assert!(steps.is_sorted_by_key(|step| step.at_ms) && steps.iter().all(|step| step.at_ms < length));
    }

    #[test]
    fn some_hubs_are_restored_from_one_backup_twice() {
        let restores = |seed| {
            let (_, steps) = draw(seed, 3, 8 * MINUTE);
            steps.iter().filter(|step| step.what == What::HubRestore).count()
        };
        let drawn: Vec<usize> = (1..100).map(restores).collect();
        assert!([0, 1, 2].iter().all(|count| drawn.contains(count)), "{drawn:?}");
    }
}
