//! One world: a hub, its devices, the lines between them, and the steps of a schedule carried out on them in virtual time.
//!
//! Owns when things happen. What must hold is in `oracle.rs`, what people do in `people.rs`, what goes wrong in `schedule.rs`. Everything
//! runs in one thread on tokio's paused clock: time passes only when nobody has anything left to do.

mod harm;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use flotilla_disk::{Disk, Failures};
use flotilla_hub::tokens::TokenRequest;
use flotilla_manifests::kind;
use flotilla_rest::Backend;
use flotilla_rest::backend::Listing;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::device::Node;
use crate::dice::Dice;
use crate::growth::Growth;
use crate::hub::SimHub;
use crate::lives;
use crate::model::{Model, mark_of};
use crate::network::{Cut, Network, Weather};
use crate::oracle::Oracles;
use crate::people::{self, GROUPS, SharedModel, Subject, Watcher};
use crate::schedule::{Step, What};
use crate::trace::Trace;
use crate::{Bug, Setup};

/// Worlds of this process so far.
static WORLDS: AtomicU64 = AtomicU64::new(0);

/// A node that could not start is started again after this.
const AGAIN: Duration = Duration::from_secs(5);
/// Every so many looks all devices are looked at, not only those of which something happened.
const SWEEP_LOOKS: u64 = 60;
/// The first look after a step; each further one comes after as long again, until what the setup says.
const LOOK_AFTER_STEP: Duration = Duration::from_secs(1);
/// On a good day a write is answered within this time. Milliseconds.
const ANSWERED_MS: u64 = 30_000;
/// More operations than any disk sees in a world.
const NEVER: u64 = u64::MAX;
/// Room on a device's disk when it is full, beyond what is there. Bytes.
const ROOM_LEFT: u64 = 4096;

/// Everything there is.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) trace: Trace,
    pub(crate) network: Network,
    pub(crate) hub: SimHub,
    pub(crate) nodes: Vec<Node>,
    pub(crate) model: SharedModel,
    pub(crate) watchers: Vec<Arc<Watcher>>,
    pub(crate) oracles: Oracles,
    pub(crate) growth: Growth,
    pub(crate) writes: JoinSet<()>,
    place: String,
    setup: Setup,
    watching: JoinSet<()>,
    backup: Option<Disk>,
    cards: BTreeMap<usize, Disk>,
    /// Boards that run from a copy of another's card.
    clones: BTreeMap<usize, Node>,
    /// Names disks that are copied.
    copies: u64,
    looks: u64,
    /// When the newest step was carried out.
    stepped: Instant,
    started: Instant,
}

impl World {
    /// A hub that runs and devices that have joined.
    ///
    /// # Errors
    /// When any of it does not come up though nothing has gone wrong yet.
    pub(crate) async fn begin(setup: &Setup, trace: Trace) -> Result<Self> {
        let dice = Dice::new(setup.seed);
        // Disks have names of their own in a process, in which worlds may run side by side.
        let place = format!("world{}", WORLDS.fetch_add(1, Ordering::Relaxed));
        let disk = Disk::new(&format!("{place}-hub"), dice.apart("hub").next())?;
        disk.lose_syncs(setup.bug == Some(Bug::HubLostSync));
        let mut hub = SimHub::new(disk, trace.clone(), setup.retention);
        hub.start().await.context("the hub does not start")?;
        let network = Network::new(trace.clone());
        let model = SharedModel::default();
        let mut nodes = Vec::with_capacity(setup.devices);
        let life = hub.life().context("the hub is gone")?;
        let token = TokenRequest { node: None, fleet: "default".to_owned(), ttl_ms: 3_600_000, uses: 1 };
        for number in 0..setup.devices {
            let name = format!("n{number}");
            let disk = Disk::new(&format!("{place}-{name}"), dice.apart(&name).next())?;
            disk.lose_syncs(setup.bug == Some(Bug::LostSync));
            let dialled = network.lay(&name, &name, dice.apart(&format!("line {name}")));
            let node = Node::new(&name, GROUPS[number % GROUPS.len()], disk, dialled, trace.clone());
            let token = life.doors.token(&token).await?;
            node.join(&token, &*life.doors.enroller()).await.with_context(|| format!("{name} does not join"))?;
            nodes.push(node);
        }
        let kinds = [&kind::CONFIG_MAP, &kind::DAEMON_SET, &kind::POD, &kind::NODE];
        let watchers = kinds.map(|kind| Arc::new(Watcher::new(kind, trace.clone()))).into();
        let oracles = Oracles::new(trace.clone(), Arc::clone(&model), setup.devices);
        let started = Instant::now();
        let mut world = Self {
            growth: Growth::new(trace.clone(), setup.devices),
            trace,
            network,
            hub,
            nodes,
            model,
            watchers,
            oracles,
            writes: JoinSet::new(),
            place,
            setup: setup.clone(),
            watching: JoinSet::new(),
            backup: None,
            cards: BTreeMap::new(),
            clones: BTreeMap::new(),
            copies: 0,
            looks: 0,
            stepped: started,
            started,
        };
        world.hub_is_up();
        for index in 0..world.nodes.len() {
            world.start_device(index).await;
        }
        Ok(world)
    }

    /// Carries a schedule out; ends at the first broken promise.
    pub(crate) async fn follow(&mut self, steps: &[Step], length_ms: u64) {
        for step in steps {
            self.wait_until(step.at_ms).await;
            if self.trace.failure().is_some() {
                return;
            }
            self.carry_out(step.what).await;
            self.stepped = Instant::now();
            self.look().await;
        }
        self.wait_until(length_ms).await;
    }

    /// Lets virtual time pass, looking at everything as it goes: often after a step, and then ever more rarely.
    pub(crate) async fn wait_until(&mut self, at_ms: u64) {
        let end = self.started + Duration::from_millis(at_ms);
        while Instant::now() < end && self.trace.failure().is_none() {
            let pause = self.stepped.elapsed().max(LOOK_AFTER_STEP).min(self.setup.look_every);
            let next = Instant::now() + pause;
            tokio::time::sleep_until(next.min(end)).await;
            self.look().await;
        }
    }

    /// All faults end, and everything that is down starts.
    pub(crate) async fn heal(&mut self) {
        self.trace.told("heals", "world", "");
        if let Some(life) = self.hub.life() {
            self.oracles.look_at_hub_disk(life, &self.hub.disk, &self.hub.retention);
        }
        self.hub.disk.set_failures(Failures::None);
        self.hub.disk.cut_after(NEVER);
        for (_, mut clone) in std::mem::take(&mut self.clones) {
            clone.power_cut().await;
        }
        for node in &mut self.nodes {
            node.in_trouble = false;
            node.disk.set_failures(Failures::None);
            node.disk.cut_after(NEVER);
            node.disk.set_room(None);
            node.mend_clock();
            let name = node.name.clone();
            self.network.set_weather(&name, Weather::FAIR);
            self.network.set_cut(&name, Cut::No);
        }
        self.start_hub().await;
        for index in 0..self.nodes.len() {
            self.start_device(index).await;
        }
    }

    async fn carry_out(&mut self, what: What) {
        match what {
            What::Operator(choice) => self.operator(choice),
            What::Technician(index, choice) => self.technician(index, choice),
            What::Cut(index, cut) => {
                if let Some(name) = self.name(index) {
                    self.trace.told("line", &name, format_args!("{cut:?}"));
                    self.network.set_cut(&name, cut);
                }
            }
            What::Weather(index, weather) => {
                if let Some(name) = self.name(index) {
                    self.network.set_weather(&name, weather);
                }
            }
            What::BreakOff(index) => {
                if let Some(name) = self.name(index) {
                    self.trace.told("connection breaks", &name, "");
                    self.network.break_off(&name);
                }
            }
            What::Speaks { device, old } => self.speaks(device, old).await,
            What::Start(index) => self.start_device(index).await,
            What::NewCard(index) => self.new_card(index).await,
            What::TeamComes(number) => self.team_comes(number),
            What::TeamsLeave(last) => self.teams_leave(last),
            What::Measure => self.growth.measure(&self.hub.disk, &self.nodes),
            What::HubStart => self.start_hub().await,
            What::HubCrash
            | What::HubPowerCut
            | What::HubTornWrite(_)
            | What::HubDiskErrors(_)
            | What::HubBackup
            | What::HubRestore => {
                self.harm_hub(what).await;
            }
            other => self.harm_device(other).await,
        }
    }

    /// Another program on a device: what runs goes on meanwhile, and is adopted.
    async fn speaks(&mut self, index: usize, old: bool) {
        let Some(node) = self.nodes.get_mut(index) else { return };
        self.trace.told("device", &node.name, if old { "has an old program" } else { "is updated" });
        self.network.set_old(&node.name, old);
        if node.is_up() {
            node.kill().await;
            self.start_device(index).await;
        }
    }

    pub(crate) async fn start_device(&mut self, index: usize) {
        let Some(node) = self.nodes.get_mut(index) else { return };
        if node.is_up() {
            return;
        }
        if node.disk.is_dead() {
            node.disk.power_cut();
        }
        match node.start().await {
            Ok(()) => {
                self.trace.event("device starts", &node.name, &[]);
                self.oracles.device_started(index, node);
            }
            Err(error) => self.trace.told("device does not start", &node.name, format_args!("{error:#}")),
        }
    }

    pub(crate) async fn start_hub(&mut self) {
        if self.hub.life().is_some() {
            return;
        }
        if self.hub.disk.is_dead() {
            self.hub.disk.power_cut();
        }
        match self.hub.start().await {
            Ok(()) => self.hub_is_up(),
            Err(error) => self.trace.told("hub does not start", "hub", format_args!("{error:#}")),
        }
    }

    fn hub_is_up(&mut self) {
        let Some(life) = self.hub.life() else { return };
        self.trace.told("hub starts", "hub", life.mind.store().incarnation());
        self.network.set_hub(Some(life.door.clone()));
        for watcher in &self.watchers {
            self.watching.spawn(Arc::clone(watcher).run(Arc::clone(&life.backend)));
        }
    }

    async fn hub_is_down(&mut self) {
        self.watching.shutdown().await;
    }

    /// What died by itself is seen to be dead; then the oracles look.
    async fn look(&mut self) {
        if self.hub.disk.is_dead() && self.hub.life().is_some() {
            self.trace.told("hub", "hub", "its power fails in a write");
            self.network.set_hub(None);
            self.hub.power_cut().await;
            self.hub_is_down().await;
        }
        for index in 0..self.nodes.len() {
            let node = &mut self.nodes[index];
            if node.disk.is_dead() && node.is_up() {
                self.trace.told("device", &node.name, "its power fails in a write");
                node.power_cut().await;
            }
        }
        while self.writes.try_join_next().is_some() {}
        let due = self.due();
        for index in &due {
            if let Some(node) = self.nodes.get(*index) {
                self.oracles.note_wishes(*index, node).await;
            }
        }
        self.oracles.look(self.hub.life(), &self.nodes, &due);
        for index in due {
            let Some(node) = self.nodes.get(index) else { continue };
            let alone = !self.clones.contains_key(&index);
            if !self.oracles.look_at_card(index, node, self.hub.life().filter(|_| alone)) {
                self.oracles.look_at_overrides(index, node, self.hub.life()).await;
            }
        }
    }

    /// The devices to look at now: those of which something happened, those in trouble, and now and then all of them.
    fn due(&mut self) -> Vec<usize> {
        let touched = self.trace.touched();
        self.looks += 1;
        let all = self.looks.is_multiple_of(SWEEP_LOOKS);
        let is_due = |node: &Node| all || node.in_trouble || !touched.is_empty() && touched.contains(&node.name);
        self.nodes.iter().enumerate().filter(|(_, node)| is_due(node)).map(|(index, _)| index).collect()
    }

    fn name(&self, index: usize) -> Option<String> {
        self.nodes.get(index).map(|node| node.name.clone())
    }

    pub(crate) fn model(&self) -> std::sync::MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn operator(&mut self, choice: u64) {
        let Some(life) = self.hub.life() else { return };
        let wish = {
            let mut model = self.model();
            let wish = people::operator(&mut model, choice);
            let cell = model.object(&wish.key);
            if !cell.maybe.is_empty()
                && cell.maybe.iter().any(|mark| *mark != cell.sure)
                && !self.trace.now_ms().is_multiple_of(3)
            {
                // Mostly one write of an object at a time.
                return;
            }
            cell.asks(wish.mark);
            wish
        };
        let (backend, model, trace) = (Arc::clone(&life.backend), Arc::clone(&self.model), self.trace.clone());
        self.trace.told("operator asks", "hub", format_args!("{} {:?}", wish.key, wish.mark));
        self.writes.spawn(async move {
            let result = backend.write(people::request(&wish, "operator")).await;
            let mut model = model.lock().unwrap_or_else(PoisonError::into_inner);
            let cell = model.object(&wish.key);
            match result {
                Ok(_) => {
                    trace.told("operator told", "hub", format_args!("{} {:?}", wish.key, wish.mark));
                    cell.answered(wish.mark);
                }
                Err(error) if people::is_refusal(&error) => cell.refused(wish.mark),
                Err(error) => {
                    trace.told("operator untold", "hub", format_args!("{} {:?}: {error}", wish.key, wish.mark))
                }
            }
        });
    }

    fn technician(&mut self, index: usize, choice: u64) {
        let Some(node) = self.nodes.get(index) else { return };
        let Some(backend) = node.backend() else { return };
        let (model, trace, name) = (Arc::clone(&self.model), self.trace.clone(), node.name.clone());
        let of = move |listing: Listing| {
            let there: Vec<_> = listing.items.into_iter().filter(|one| one.name().starts_with("set")).collect();
            let at = (choice >> 8).checked_rem(there.len() as u64).and_then(|at| usize::try_from(at).ok());
            at.and_then(|at| there.get(at).cloned())
        };
        if people::restarts(choice) {
            self.writes.spawn(async move {
                let Some(pod) = backend.list(&kind::POD, None).await.ok().and_then(of) else { return };
                let wish = people::restart(&mut model.lock().unwrap_or_else(PoisonError::into_inner), index, &pod);
                let done = backend.write(people::request(&wish, "technician")).await.is_ok();
                trace.told("technician restarts", &name, format_args!("{} {done}", wish.key));
            });
            return;
        }
        self.writes.spawn(async move {
            let Some(base) = backend.list(&kind::DAEMON_SET, None).await.ok().and_then(of) else { return };
            if mark_of(Some(&base)).is_none() {
                return;
            }
            let key = base.key();
            let wish = {
                let mut model = model.lock().unwrap_or_else(PoisonError::into_inner);
                let wish = people::technician(&mut model, index, key.clone(), choice);
                model.asks_change(index, &key, base.uid(), wish.mark);
                wish
            };
            trace.told("technician asks", &name, format_args!("{key} {:?}", wish.mark));
            let result = backend.write(people::request(&wish, "technician")).await;
            let mut model = model.lock().unwrap_or_else(PoisonError::into_inner);
            match result {
                Ok(_) => {
                    trace.told("technician told", &name, format_args!("{key} {:?}", wish.mark));
                    model.change(index, &key).answered(wish.mark);
                }
                Err(error) if people::is_refusal(&error) => model.change(index, &key).refused(wish.mark),
                Err(error) => trace.told("technician untold", &name, format_args!("{key}: {error}")),
            }
        });
    }

    /// Waits until nothing is on its way: everyone agrees, or what is still different.
    pub(crate) async fn settle(&mut self, within: Duration) -> Result<(), String> {
        let end = Instant::now() + within;
        loop {
            let disagreement = match self.hub.life() {
                None => Err("the hub does not run".to_owned()),
                Some(life) => self.oracles.agree(life, &self.nodes, &self.watchers).await,
            };
            let Err(why) = disagreement else { return Ok(()) };
            if self.trace.failure().is_some() || Instant::now() >= end {
                for (life, node) in
                    self.hub.life().into_iter().flat_map(|life| self.nodes.iter().map(move |node| (life, node)))
                {
                    self.oracles.tell_positions(life, node);
                }
                return Err(why);
            }
            tokio::time::sleep(AGAIN).await;
            self.start_hub().await;
            for index in 0..self.nodes.len() {
                self.start_device(index).await;
            }
            self.look().await;
        }
    }

    /// Whatever happened before, people can work: a write at the hub and at each device is answered, and heeded everywhere.
    pub(crate) async fn goes_on(&mut self, within: Duration) -> Result<(), String> {
        self.settle_what_was_never_answered();
        for subject in [Subject::Set(3), Subject::Deployment(0)] {
            // Without a verb that deletes.
            self.operator(people::choice(subject, 0));
        }
        self.wait_until(self.passed_ms() + ANSWERED_MS).await;
        for index in 0..self.nodes.len() {
            self.technician(index, 0);
        }
        self.wait_until(self.passed_ms() + ANSWERED_MS).await;
        if let Some(what) = self.model().unanswered() {
            return Err(format!("{what} was asked for and not answered"));
        }
        self.settle(within).await
    }

    /// Whether it happened or not can be seen by now.
    fn settle_what_was_never_answered(&mut self) {
        let Some(life) = self.hub.life() else { return };
        let mut model = self.model();
        for (key, cell) in model.objects.iter_mut().filter(|(_, cell)| !cell.maybe.is_empty()) {
            cell.answered(mark_of(life.mind.store().read(key).as_deref()));
        }
        model.overrides.retain(|_, cell| cell.maybe.is_empty());
    }

    /// Virtual milliseconds since the devices had joined.
    pub(crate) fn passed_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Ends every node, so that nothing of this world runs on.
    pub(crate) async fn end(mut self) {
        self.writes.shutdown().await;
        self.watching.shutdown().await;
        self.hub.stop_tasks().await;
        for node in self.nodes.iter_mut().chain(self.clones.values_mut()) {
            node.stop_tasks().await;
        }
    }
}
