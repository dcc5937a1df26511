//! Long lives: working days and quiet ones, months that a device is away, cards and backups, over years. Where `schedule.rs` draws a
//! fault every few seconds, this draws what a fleet meets in its life, at the rate at which it meets it, so that whatever is kept of it
//! for ever shows (`growth.rs`).

use std::sync::Arc;

use flotilla_manifests::admission::{DeleteOptions, Mutation};
use flotilla_manifests::kind::{self, KindRef};
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_rest::Backend as _;
use flotilla_sync::enrol::Token;
use serde_json::json;

use crate::dice::Dice;
use crate::hub::HubLife;
use crate::network::Cut;
use crate::people::{self, GROUPS, Wish};
use crate::schedule::{Step, What};
use crate::world::World;

/// How time is divided. A world may have shorter days than ours; what is kept by age should then be kept for shorter too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Calendar {
    /// Milliseconds.
    pub day_ms: u64,
    pub days_of_month: u64,
    pub months: u64,
}

/// Days of a year.
const YEAR: u64 = 365;
/// Names of what teams bring begin so.
const TEAM: &str = "team";

impl Calendar {
    /// Of so many years as they are.
    #[must_use]
    pub fn years(years: u64) -> Self {
        Self { day_ms: 24 * 3_600_000, days_of_month: 30, months: years * YEAR / 30 }
    }

    /// Milliseconds.
    #[must_use]
    pub fn length_ms(&self) -> u64 {
        self.day_ms * self.days_of_month * self.months
    }

    fn days(&self) -> u64 {
        self.days_of_month * self.months
    }

    /// A moment of the part of a day between two of its 24 hours.
    fn moment(&self, dice: &mut Dice, day: u64, from_hour: u64, to_hour: u64) -> u64 {
        let hour = self.day_ms / 24;
        day * self.day_ms + dice.between(from_hour * hour, to_hour * hour)
    }
}

/// The steps of one world's whole life, in order; each month ends with a measurement.
#[must_use]
pub fn draw_life(seed: u64, devices: usize, calendar: &Calendar) -> Vec<Step> {
    let mut life = Life {
        dice: Dice::new(seed).apart("life"),
        calendar: *calendar,
        away_until: vec![0; devices],
        teams: 0,
        steps: Vec::new(),
    };
    for day in 0..calendar.days() {
        if day % 7 < 5 {
            life.people(day);
        }
        life.devices(day);
        life.hub(day);
        if (day + 1).is_multiple_of(calendar.days_of_month) {
            // At night: what was asked for by day is done.
            life.at((day + 1) * calendar.day_ms - 1, What::Measure);
        }
    }
    // Whoever looks at the end for what is left of a team finds none.
    life.at((calendar.days() - 1) * calendar.day_ms, What::TeamsLeave(u64::MAX));
    life.steps.sort_by_key(|step| step.at_ms);
    life.steps
}

#[derive(Debug)]
struct Life {
    dice: Dice,
    calendar: Calendar,
    /// The day on which each device is back.
    away_until: Vec<u64>,
    teams: u64,
    steps: Vec<Step>,
}

impl Life {
    fn at(&mut self, at_ms: u64, what: What) {
        if at_ms < self.calendar.length_ms() {
            self.steps.push(Step { at_ms, what });
        }
    }

    /// So many times in a thousand days.
    fn happens(&mut self, permille: u64) -> bool {
        self.dice.permille(permille)
    }

    fn by_day(&mut self, day: u64) -> u64 {
        self.calendar.moment(&mut self.dice, day, 8, 17)
    }

    fn people(&mut self, day: u64) {
        for _ in 0..self.dice.between(2, 8) {
            let (at, choice) = (self.by_day(day), self.dice.next());
            self.at(at, What::Operator(choice));
        }
        // Nobody comes after those who look for what is left have sent all away.
        if self.happens(300) && day + 1 < self.calendar.days() {
            let at = self.by_day(day);
            self.at(at, What::TeamComes(self.teams));
            let stays = self.dice.between(1, 15);
            let leaves = self.by_day(day + stays);
            // The hub may not be there when they first ask.
            self.at(leaves, What::TeamsLeave(self.teams));
            self.at(leaves + self.calendar.day_ms, What::TeamsLeave(self.teams));
            self.teams += 1;
        }
        for device in 0..self.away_until.len() {
            if self.happens(70) {
                let (at, choice) = (self.by_day(day), self.dice.next());
                self.at(at, What::Technician(device, choice));
            }
        }
    }

    fn devices(&mut self, day: u64) {
        for device in 0..self.away_until.len() {
            if self.away_until[device] > day {
                continue;
            }
            if self.goes_away(device, day) {
                continue;
            }
            let at = self.calendar.moment(&mut self.dice, day, 0, 23);
            let (minute, soon) = (self.calendar.day_ms / 1440, self.calendar.moment(&mut self.dice, 0, 0, 1));
            match self.dice.below(1000) {
                0..60 => {
                    self.at(at, What::AgentCrash(device));
                    self.at(at + soon, What::Start(device));
                }
                60..90 => {
                    self.at(at, What::PowerCut(device));
                    self.at(at + soon, What::Start(device));
                }
                90..170 => {
                    self.at(at, What::Cut(device, Cut::Both));
                    self.at(at + soon, What::Cut(device, Cut::No));
                }
                170..270 => {
                    let choice = self.dice.next();
                    self.at(at, What::ContainerEnds(device, choice));
                }
                270..275 => {
                    self.at(at, What::ClockLost(device));
                    self.at(at + minute, What::PowerCut(device));
                    self.at(at + 2 * minute, What::Start(device));
                    self.at(at + soon + 3 * minute, What::ClockMended(device));
                }
                275..278 => self.at(at, What::NewCard(device)),
                278..280 => {
                    self.at(at, What::CopyCard(device));
                    let later = self.dice.between(1, 20) * self.calendar.day_ms;
                    self.at(at + later, What::OldCard(device));
                }
                _ => {}
            }
        }
    }

    /// For weeks or months, switched off or only out of reach.
    fn goes_away(&mut self, device: usize, day: u64) -> bool {
        if !self.happens(6) {
            return false;
        }
        let back = day + self.dice.between(7, 100);
        let (leaves, returns) = (self.by_day(day), self.by_day(back));
        if self.happens(500) {
            self.at(leaves, What::PowerCut(device));
        } else {
            self.at(leaves, What::Cut(device, Cut::Both));
        }
        self.at(returns, What::Start(device));
        self.at(returns, What::Cut(device, Cut::No));
        self.away_until[device] = back + 1;
        true
    }

    fn hub(&mut self, day: u64) {
        let at = self.calendar.moment(&mut self.dice, day, 0, 22);
        let soon = self.calendar.moment(&mut self.dice, 0, 0, 1);
        match self.dice.below(1000) {
            0..40 => {
                self.at(at, What::HubCrash);
                self.at(at + soon, What::HubStart);
            }
            40..50 => {
                self.at(at, What::HubPowerCut);
                self.at(at + soon, What::HubStart);
            }
            _ => {}
        }
        // Once in a life, not in its last third: what is left of it then stays.
        if day == self.calendar.days() * 2 / 5 {
            self.at(at, What::HubBackup);
            let later = at + self.dice.between(1, 7) * self.calendar.day_ms;
            self.at(later, What::HubRestore);
            self.at(later + soon, What::HubStart);
        }
    }
}

impl World {
    /// A team brings a namespace with what it runs there: the names of it are new ones, and never come again.
    pub(crate) fn team_comes(&mut self, number: u64) {
        let Some(life) = self.hub.life() else { return };
        let name = format!("{TEAM}{number}");
        let mark = format!("{name}:1");
        let group = GROUPS[usize::try_from(number).unwrap_or(0) % GROUPS.len()];
        self.model().ever.insert(mark.clone(), group.to_owned());
        let (backend, trace) = (Arc::clone(&life.backend), self.trace.clone());
        self.trace.told("a team comes", "hub", &name);
        self.writes.spawn(async move {
            for wish in brought(&name, &mark, group) {
                if let Err(error) = backend.write(people::request(&wish, "operator")).await {
                    trace.told("a team is refused", "hub", format_args!("{}: {error}", wish.key));
                    return;
                }
            }
        });
    }

    /// All teams up to this one leave; what was theirs goes with their namespaces.
    pub(crate) fn teams_leave(&mut self, last: u64) {
        let Some(life) = self.hub.life() else { return };
        let (backend, trace) = (Arc::clone(&life.backend), self.trace.clone());
        self.writes.spawn(async move {
            let Ok(listing) = backend.list(&kind::NAMESPACE, None).await else { return };
            let number = |name: &str| name.strip_prefix(TEAM)?.parse::<u64>().ok();
            for one in listing.items.iter().filter(|one| number(one.name()).is_some_and(|number| number <= last)) {
                let wish = Wish { key: one.key(), mutation: Mutation::Delete(DeleteOptions::default()), mark: None };
                trace.told("a team leaves", "hub", one.name());
                if let Err(error) = backend.write(people::request(&wish, "operator")).await {
                    trace.told("a team stays", "hub", format_args!("{}: {error}", one.name()));
                }
            }
        });
    }
}

/// The token with which a board joins in the place of the one that had its name.
pub(crate) async fn token_to_replace(life: &HubLife, node: &str) -> anyhow::Result<Token> {
    let request = flotilla_hub::tokens::TokenRequest {
        node: Some(node.to_owned()),
        fleet: "default".to_owned(),
        ttl_ms: 3_600_000,
        uses: 1,
    };
    Ok(life.doors.token(&request).await?)
}

fn brought(name: &str, mark: &str, group: &str) -> Vec<Wish> {
    let created = |kind: KindRef, value: serde_json::Value| {
        let namespace = if kind == &kind::NAMESPACE { "" } else { name };
        match Object::parse(value) {
            Ok(body) => {
                let named = body.name().to_owned();
                let key = ObjectKey::of(kind, namespace, named.as_str());
                Wish { key, mutation: Mutation::Create { body }, mark: None }
            }
            Err(error) => unreachable!("the simulator's own manifest: {error}"),
        }
    };
    let metadata = |named: &str| json!({"name": named, "namespace": name});
    vec![
        created(&kind::NAMESPACE, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})),
        created(
            &kind::CONFIG_MAP,
            // Too large for a document: it travels beside it.
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata("settings"),
                "data": {"name": name, "large": name.repeat(1000)}}),
        ),
        created(
            &kind::SECRET,
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata("key"), "stringData": {"key": name}}),
        ),
        created(
            &kind::DAEMON_SET,
            json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": metadata(name),
                "spec": {"selector": {"matchLabels": {"app": name}},
                    "template": {"metadata": {"labels": {"app": name}}, "spec": {
                        "runtimeClassName": "process", "terminationGracePeriodSeconds": 1, "nodeSelector": {"group": group},
                        "containers": [{"name": "main", "image": "host", "command": ["/bin/sleep", "inf"],
                            "envFrom": [{"configMapRef": {"name": "settings"}}, {"secretRef": {"name": "key"}}],
                            "env": [{"name": "MARK", "value": mark}]}]}}}}),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_is_drawn_alike_each_time_and_measured_each_month() {
        let calendar = Calendar::years(2);
        let steps = draw_life(7, 3, &calendar);
        assert_eq!(steps, draw_life(7, 3, &calendar));
        assert!(steps.is_sorted_by_key(|step| step.at_ms));
        let measured = steps.iter().filter(|step| step.what == What::Measure).count();
        assert_eq!(u64::try_from(measured), Ok(calendar.months));
    }
}
