//! Bad days: a few things that go wrong together, as they do in the field, where each alone would show nothing. What an accident needs
//! to be seen is rarely drawn by chance alone: somebody writes while the disk refuses, and then the power fails before anyone heard of it.

use crate::network::{Cut, Weather};
use crate::people::{self, Subject};
use crate::schedule::{Drawing, Faults, MINUTE, SECOND, What};

/// Frames of records in a thousand that meet each fate on the worst of lines.
const WORST: Weather = Weather { latency_ms: (20, 400), lost: 90, doubled: 90, moved: 90, damaged: 20 };

/// A group that no device is of.
const NOBODY: u64 = 3;

impl Drawing {
    const BAD_DAYS: [fn(&mut Self, u64); 8] = [
        Self::much_is_changed_while_a_device_is_away,
        Self::changed_on_a_failing_disk,
        Self::dark_right_after_an_answer,
        Self::an_old_card_is_worked_on,
        Self::work_without_a_line,
        Self::lines_break_in_mid_sentence,
        Self::the_worst_of_lines,
        Self::the_hubs_disk_fails,
    ];

    /// Each of them, at any moment.
    pub(crate) fn each_story_once(&mut self) {
        for story in Self::BAD_DAYS {
            let at = SECOND + self.dice.below(self.length_ms);
            story(self, at);
        }
    }

    /// About one bad day in ten minutes; some worlds have none.
    pub(crate) fn stories(&mut self, faults: Faults) {
        let count = self.dice.below(3) + self.length_ms / (10 * MINUTE);
        let days = Self::BAD_DAYS;
        for _ in 0..count {
            let at = SECOND + self.dice.below(self.length_ms / 2);
            let Some(day) = self.dice.pick(&days).copied() else { continue };
            day(self, at);
        }
        // A hub is put back one way or the other.
        if !faults.hub_restores && self.dice.permille(150) {
            let at = SECOND + self.dice.below(self.length_ms / 3);
            self.restored_while_nobody_is_there(at);
        }
    }

    /// More changes than a log keeps, and documents that begin anew, behind a device's back.
    fn much_is_changed_while_a_device_is_away(&mut self, at: u64) {
        let device = self.device();
        let subject = self.subject();
        let switched_off = self.dice.permille(500);
        if switched_off {
            self.write(at, Subject::Roaming(device as u64 % 3));
        }
        let mut now = at + 5 * SECOND;
        self.at(now, What::Cut(device, Cut::Both));
        for _ in 0..self.dice.between(20, 60) {
            let other = self.dice.permille(250);
            let subject = if other { self.subject() } else { subject };
            self.write(now, subject);
            now += self.dice.between(SECOND / 2, 3 * SECOND);
        }
        if switched_off {
            self.write(now, Subject::Roaming(NOBODY));
        }
        let back = now + SECOND + self.dice.below(MINUTE);
        self.at(back, What::Cut(device, Cut::No));
    }

    /// A technician works at a device whose disk takes little or nothing, and then it goes dark.
    fn changed_on_a_failing_disk(&mut self, at: u64) {
        let device = self.device();
        if self.dice.permille(700) {
            self.at(at, What::Cut(device, Cut::Both));
        }
        let full = self.dice.permille(300);
        let one_in = self.dice.between(2, 5);
        self.at(at + SECOND, if full { What::DiskFull(device, true) } else { What::DiskErrors(device, one_in) });
        let mut now = at + 2 * SECOND;
        for _ in 0..self.dice.between(2, 8) {
            self.technician(now, device);
            if self.dice.permille(300) {
                let subject = self.subject();
                self.write(now, subject);
            }
            now += self.dice.between(100, 3 * SECOND);
        }
        let dark = if self.dice.permille(500) { What::PowerCut(device) } else { What::AgentCrash(device) };
        self.at(now, dark);
        self.at(now + 1, if full { What::DiskFull(device, false) } else { What::DiskErrors(device, 0) });
        self.at(now + SECOND, What::Start(device));
        let later = self.dice.between(10 * SECOND, 2 * MINUTE);
        self.at(now + later, What::Cut(device, Cut::No));
    }

    /// Somebody was told that it is done, and the power fails.
    fn dark_right_after_an_answer(&mut self, at: u64) {
        let mut now = at;
        for _ in 0..self.dice.between(2, 6) {
            let dark = self.dice.between(1, SECOND / 2);
            if self.dice.permille(500) {
                let device = self.device();
                self.technician(now, device);
                self.at(now + dark, What::PowerCut(device));
                self.at(now + dark + SECOND, What::Start(device));
            } else {
                let subject = self.subject();
                self.write(now, subject);
                self.at(now + dark, What::HubPowerCut);
                self.at(now + dark + SECOND, What::HubStart);
            }
            now += self.dice.between(5 * SECOND, 30 * SECOND);
        }
    }

    /// A card is replaced by a copy of it, and a technician goes on where the copy ended.
    fn an_old_card_is_worked_on(&mut self, at: u64) {
        let device = self.device();
        let mut now = at;
        for step in [None, Some(What::CopyCard(device)), Some(What::OldCard(device))] {
            if let Some(what) = step {
                self.at(now, what);
                now += self.dice.between(SECOND, 20 * SECOND);
            }
            for _ in 0..self.dice.between(1, 3) {
                self.technician(now, device);
                now += self.dice.between(SECOND, 10 * SECOND);
            }
        }
    }

    /// The hub is put back to a backup and written to before anybody could tell it what it has lost.
    fn restored_while_nobody_is_there(&mut self, at: u64) {
        let subjects = [self.subject(), self.subject()];
        let mut now = at;
        let some = |drawing: &mut Self, now: &mut u64, most: u64| {
            for _ in 0..drawing.dice.between(2, most) {
                let subject = drawing.dice.pick(&subjects).copied().unwrap_or(Subject::Map(0));
                drawing.write(*now, subject);
                *now += drawing.dice.between(SECOND / 2, 2 * SECOND);
            }
        };
        some(self, &mut now, 4);
        self.at(now, What::HubBackup);
        some(self, &mut now, 12);
        now += 5 * SECOND;
        let devices = usize::try_from(self.devices).unwrap_or(0);
        (0..devices).for_each(|device| self.at(now, What::Cut(device, Cut::Both)));
        self.at(now + SECOND, What::HubRestore);
        self.at(now + 2 * SECOND, What::HubStart);
        now += 3 * SECOND;
        some(self, &mut now, 8);
        for device in 0..devices {
            let back = self.dice.between(1, 10 * SECOND);
            self.at(now + back, What::Cut(device, Cut::No));
        }
    }

    /// Changes, restarts and ends that the hub hears of much later.
    fn work_without_a_line(&mut self, at: u64) {
        let device = self.device();
        self.at(at, What::Cut(device, Cut::Both));
        let mut now = at;
        for _ in 0..self.dice.between(3, 10) {
            now += self.dice.between(SECOND, 20 * SECOND);
            match self.dice.below(8) {
                0 => {
                    let choice = self.dice.next();
                    self.at(now, What::ContainerEnds(device, choice));
                }
                1 => {
                    self.at(now, What::AgentCrash(device));
                    self.at(now + SECOND, What::Start(device));
                }
                2 => {
                    self.at(now, What::PowerCut(device));
                    self.at(now + SECOND, What::Start(device));
                }
                _ => self.technician(now, device),
            }
        }
        let back = now + self.dice.between(SECOND, MINUTE);
        self.at(back, What::Cut(device, Cut::No));
    }

    /// Whatever is said is cut off a moment later; what is switched on and off ends while nobody hears of it.
    fn lines_break_in_mid_sentence(&mut self, at: u64) {
        let device = self.device();
        let mut on = false;
        let mut now = at;
        for _ in 0..self.dice.between(5, 20) {
            match self.dice.below(6) {
                0 => self.technician(now, device),
                1 => {
                    let choice = self.dice.next();
                    self.at(now, What::ContainerEnds(device, choice));
                }
                2 => {
                    let subject = self.subject();
                    self.write(now, subject);
                }
                _ => {
                    on = !on;
                    self.write(now, Subject::Roaming(if on { device as u64 % 3 } else { NOBODY }));
                }
            }
            let breaks = self.dice.between(1, SECOND / 2);
            self.at(now + breaks, What::BreakOff(device));
            now += self.dice.between(SECOND, 15 * SECOND);
        }
    }

    fn the_worst_of_lines(&mut self, at: u64) {
        let device = self.device();
        self.at(at, What::Weather(device, WORST));
        let mut now = at;
        for _ in 0..self.dice.between(15, 40) {
            let subject = self.subject();
            self.write(now, subject);
            now += self.dice.between(SECOND / 4, 4 * SECOND);
        }
        self.at(now, What::Weather(device, Weather::FAIR));
    }

    /// The hub's disk refuses while people write and devices report.
    fn the_hubs_disk_fails(&mut self, at: u64) {
        let one_in = self.dice.between(2, 8);
        self.at(at, What::HubDiskErrors(one_in));
        let mut now = at;
        for _ in 0..self.dice.between(5, 20) {
            let device = self.device();
            match self.dice.below(4) {
                0 => self.technician(now, device),
                1 => {
                    let choice = self.dice.next();
                    self.at(now, What::ContainerEnds(device, choice));
                }
                _ => {
                    let subject = self.subject();
                    self.write(now, subject);
                }
            }
            now += self.dice.between(SECOND / 4, 5 * SECOND);
        }
        self.at(now, What::HubDiskErrors(0));
        if self.dice.permille(300) {
            self.at(now + SECOND, What::HubCrash);
            self.at(now + 3 * SECOND, What::HubStart);
        }
    }

    pub(crate) fn subject(&mut self) -> Subject {
        let number = self.dice.next();
        match self.dice.below(8) {
            0..=3 => Subject::Set(number % people::SETS),
            4 | 5 => Subject::Map(0),
            _ => Subject::Deployment(number % people::DEPLOYMENTS),
        }
    }

    pub(crate) fn write(&mut self, at: u64, subject: Subject) {
        let choice = people::choice(subject, self.dice.next());
        self.at(at, What::Operator(choice));
    }

    fn technician(&mut self, at: u64, device: usize) {
        let choice = self.dice.next();
        self.at(at, What::Technician(device, choice));
    }
}
