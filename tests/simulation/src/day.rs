//! A fleet's day: where `schedule.rs` does to each of a few devices what it can within minutes, this does to a thousand of them what a
//! bad day does to a fleet. Each kind of fault is in it, at the rate at which a fleet meets it on such a day, and so is what meets all
//! devices at once: an update, a hub that is down, lines that are cut and come back, a site without power.
//!
//! Start reading at [`Drawing::day`].

use crate::dice::Dice;
use crate::network::{Cut, Weather};
use crate::people;
use crate::schedule::{Drawing, MINUTE, SECOND, What};

const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// Writes of operators in a day, each of which may reach every device; the bad days of `stories.rs` have more.
const WRITES: u64 = 200;

/// How often in a day a thousand devices meet what.
mod rate {
    pub(super) const TECHNICIANS: u64 = 200;
    pub(super) const CUTS: u64 = 300;
    pub(super) const BREAKS: u64 = 300;
    pub(super) const CONTAINER_ENDS: u64 = 300;
    pub(super) const AGENT_CRASHES: u64 = 100;
    pub(super) const POWER_CUTS: u64 = 100;
    pub(super) const TORN_WRITES: u64 = 50;
    pub(super) const DISK_ERRORS: u64 = 30;
    pub(super) const FULL_DISKS: u64 = 30;
    pub(super) const CLOCKS: u64 = 60;
    pub(super) const OLD_CARDS: u64 = 10;
}

/// Devices in a thousand whose line is bad all day, and whose program is old when it begins.
const BAD_LINES: u64 = 100;
const OLD_PROGRAMS: u64 = 300;

impl Drawing {
    /// All steps of such a day, or of as many hours of one.
    pub(crate) fn day(&mut self) {
        let writes = (WRITES * self.length_ms / DAY).max(1);
        self.operators(writes);
        for at in self.so_often(rate::TECHNICIANS) {
            let (device, choice) = (self.device(), self.dice.next());
            self.at(at, What::Technician(device, choice));
        }
        self.lines();
        self.machines();
        self.of_the_hub();
        self.of_all_at_once();
        self.each_story_once();
    }

    /// The moments of what a thousand devices meet so many times in a day.
    fn so_often(&mut self, of_thousand: u64) -> Vec<u64> {
        let count = of_thousand * self.devices * self.length_ms / (1000 * DAY);
        self.moments(count.max(1))
    }

    fn lines(&mut self) {
        for at in self.so_often(rate::CUTS) {
            let device = self.device();
            let cut = self.dice.pick(&[Cut::Both, Cut::Both, Cut::Up, Cut::Down]).copied().unwrap_or(Cut::Both);
            let lasts = if self.dice.permille(100) { self.dice.between(HOUR, 6 * HOUR) } else { self.a_while() };
            self.at(at, What::Cut(device, cut));
            self.at(at + lasts, What::Cut(device, Cut::No));
        }
        for at in self.so_often(rate::BREAKS) {
            let device = self.device();
            self.at(at, What::BreakOff(device));
        }
        for device in self.everyone() {
            if self.dice.permille(BAD_LINES) {
                let slow = self.dice.between(5, 2000);
                let mut rate = || self.dice.below(40);
                let weather =
                    Weather { latency_ms: (1, slow), lost: rate(), doubled: rate(), moved: rate(), damaged: rate() };
                self.at(1, What::Weather(device, weather));
            }
            if self.dice.permille(OLD_PROGRAMS) {
                // Most are updated in the course of the day.
                let updated = self.dice.below(self.length_ms * 5 / 4);
                self.at(0, What::Speaks { device, old: true });
                self.at(updated, What::Speaks { device, old: false });
            }
        }
    }

    fn machines(&mut self) {
        type Make = fn(usize, &mut Dice) -> What;
        let dark: [(u64, Make); 3] = [
            (rate::AGENT_CRASHES, |device, _| What::AgentCrash(device)),
            (rate::POWER_CUTS, |device, _| What::PowerCut(device)),
            (rate::TORN_WRITES, |device, dice| What::TornWrite(device, dice.between(1, 40))),
        ];
        for (often, make) in dark {
            for at in self.so_often(often) {
                let device = self.device();
                let what = make(device, &mut self.dice);
                let down = self.a_while();
                self.at(at, what);
                self.at(at + down, What::Start(device));
            }
        }
        for at in self.so_often(rate::DISK_ERRORS) {
            let (device, one_in, lasts) = (self.device(), self.dice.between(3, 60), self.dice.between(SECOND, HOUR));
            self.at(at, What::DiskErrors(device, one_in));
            self.at(at + lasts, What::DiskErrors(device, 0));
        }
        for at in self.so_often(rate::FULL_DISKS) {
            let (device, lasts) = (self.device(), self.dice.between(MINUTE, HOUR));
            self.at(at, What::DiskFull(device, true));
            self.at(at + lasts, What::DiskFull(device, false));
        }
        let clocks = self.so_often(rate::CLOCKS);
        self.clocks_at(clocks);
        for at in self.so_often(rate::OLD_CARDS) {
            let (device, later) = (self.device(), self.dice.between(MINUTE, 4 * HOUR));
            self.at(at, What::CopyCard(device));
            self.at(at + later, What::OldCard(device));
        }
        let (device, at, lasts) = (self.device(), self.dice.below(self.length_ms), self.a_while());
        self.at(at, What::Clone(device));
        self.at(at + lasts, What::CloneEnds(device));
        for at in self.so_often(rate::CONTAINER_ENDS) {
            let (device, choice) = (self.device(), self.dice.next());
            self.at(at, What::ContainerEnds(device, choice));
        }
    }

    /// Each time the whole fleet comes back.
    fn of_the_hub(&mut self) {
        let makes: [fn(&mut Dice) -> What; 4] = [
            |_| What::HubCrash,
            |_| What::HubCrash,
            |_| What::HubPowerCut,
            |dice| What::HubTornWrite(dice.between(1, 60)),
        ];
        for make in makes {
            let at = self.dice.below(self.length_ms);
            let what = make(&mut self.dice);
            let down = self.a_while();
            self.at(at, what);
            self.at(at + down, What::HubStart);
        }
        for at in self.moments(2) {
            let (one_in, lasts) = (self.dice.between(3, 60), self.dice.between(SECOND, MINUTE));
            self.at(at, What::HubDiskErrors(one_in));
            self.at(at + lasts, What::HubDiskErrors(0));
        }
        // In the first two thirds, so that there is something to learn and time to learn it.
        let at = self.dice.between(self.length_ms / 10, self.length_ms / 3);
        let later = self.dice.between(MINUTE, self.length_ms / 3);
        self.at(at, What::HubBackup);
        self.at(at + later, What::HubRestore);
        self.at(at + later + 5 * SECOND, What::HubStart);
    }

    /// What meets many in one moment.
    fn of_all_at_once(&mut self) {
        // The lines of all are cut, people go on, and all come back.
        let (mut now, lasts) =
            (self.dice.below(self.length_ms), self.dice.between(self.length_ms / 48, self.length_ms / 12));
        let back = now + lasts;
        self.everyone().for_each(|device| self.at(now, What::Cut(device, Cut::Both)));
        for _ in 0..self.dice.between(10, 20) {
            now += self.dice.below(lasts / 20);
            let subject = self.subject();
            self.write(now, subject);
        }
        for device in self.everyone() {
            let at = back + self.dice.below(10 * SECOND);
            self.at(at, What::Cut(device, Cut::No));
        }
        // A site has no power for a while.
        let (at, lasts) = (self.dice.below(self.length_ms), self.dice.between(MINUTE, HOUR));
        let site = self.everyone().step_by(people::GROUPS.len());
        for device in site {
            self.at(at, What::PowerCut(device));
            let up = at + lasts + self.dice.below(20 * SECOND);
            self.at(up, What::Start(device));
        }
    }

    /// Seconds mostly, and now and then minutes.
    fn a_while(&mut self) -> u64 {
        if self.dice.permille(700) {
            self.dice.between(10, 20 * SECOND)
        } else {
            self.dice.between(MINUTE, 20 * MINUTE)
        }
    }

    fn everyone(&self) -> std::ops::Range<usize> {
        0..usize::try_from(self.devices).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::schedule::draw;

    #[test]
    fn a_day_of_a_thousand_has_every_kind_of_fault_and_two_hundred_writes() {
        let (devices, length_ms) = (1000, DAY);
        let (_, steps) = draw(3, devices, length_ms);
        assert_eq!(steps, draw(3, devices, length_ms).1);
        assert!(steps.is_sorted_by_key(|step| step.at_ms) && steps.iter().all(|step| step.at_ms < length_ms));
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for step in &steps {
            let told = format!("{:?}", step.what);
            let kind = told.split(['(', ' ']).next().unwrap_or_default().to_owned();
            *kinds.entry(kind).or_default() += 1;
        }
        for kind in [
            "Technician",
            "Cut",
            "Weather",
            "BreakOff",
            "AgentCrash",
            "PowerCut",
            "TornWrite",
            "DiskErrors",
            "DiskFull",
            "ClockStep",
            "ClockDrift",
            "ClockLost",
            "ClockMended",
            "CopyCard",
            "OldCard",
            "Clone",
            "CloneEnds",
            "Speaks",
            "Start",
            "ContainerEnds",
            "HubCrash",
            "HubPowerCut",
            "HubTornWrite",
            "HubDiskErrors",
            "HubBackup",
            "HubRestore",
            "HubStart",
        ] {
            assert!(kinds.contains_key(kind), "no {kind} among {kinds:?}");
        }
        assert!((200..400).contains(&kinds["Operator"]), "{kinds:?}");
        assert!(kinds["Cut"] >= 2 * devices, "the lines of all are cut once: {kinds:?}");
        assert_eq!(kinds["HubRestore"], 1, "a hub is put back once in its life");
    }

    #[test]
    fn worlds_of_minutes_are_dense() {
        let step_every_ms =
            |devices: usize, length_ms: u64| length_ms * devices as u64 / draw(3, devices, length_ms).1.len() as u64;
        assert!(step_every_ms(3, 8 * MINUTE) < 30 * SECOND);
        assert!(step_every_ms(1000, DAY) > HOUR);
    }
}
