//! What a schedule does to hub and devices: crashes, power cuts, failing and full disks, clocks, old, new and copied cards.

use super::*;

impl World {
    pub(super) async fn harm_hub(&mut self, what: What) {
        self.trace.told("hub", "hub", format_args!("{what:?}"));
        match what {
            What::HubCrash => {
                self.network.set_hub(None);
                self.hub.kill().await;
                self.hub_is_down().await;
            }
            What::HubPowerCut => {
                self.network.set_hub(None);
                self.hub.power_cut().await;
                self.hub_is_down().await;
            }
            What::HubTornWrite(operations) => self.hub.disk.cut_after(operations),
            What::HubDiskErrors(0) => self.hub.disk.set_failures(Failures::None),
            What::HubDiskErrors(operations) => {
                self.hub.disk.set_failures(Failures::OneIn { operations, reads: false });
            }
            What::HubBackup => {
                let (name, seed) = self.next_copy("backup");
                self.backup = self.hub.disk.copy(&name, seed).ok();
            }
            What::HubRestore => {
                // It may be put back again.
                let (name, seed) = self.next_copy("restored");
                let Some(backup) = self.backup.as_ref().and_then(|kept| kept.copy(&name, seed).ok()) else { return };
                self.oracles.note_what_devices_hold(&self.nodes).await;
                self.network.set_hub(None);
                self.hub.kill().await;
                self.hub_is_down().await;
                self.hub.put_disk(backup);
                self.model().restored = true;
                self.oracles.hub_restored();
            }
            _ => {}
        }
    }

    pub(super) async fn harm_device(&mut self, what: What) {
        let index = match what {
            What::AgentCrash(index)
            | What::PowerCut(index)
            | What::TornWrite(index, _)
            | What::DiskErrors(index, _)
            | What::DiskFull(index, _)
            | What::ClockStep(index, _)
            | What::ClockDrift(index, _)
            | What::ClockLost(index)
            | What::ClockMended(index)
            | What::CopyCard(index)
            | What::OldCard(index)
            | What::Clone(index)
            | What::CloneEnds(index)
            | What::ContainerEnds(index, _) => index,
            _ => return,
        };
        let Some(node) = self.nodes.get_mut(index) else { return };
        self.trace.told("device", &node.name, format_args!("{what:?}"));
        match what {
            What::AgentCrash(_) => node.kill().await,
            What::PowerCut(_) => node.power_cut().await,
            What::TornWrite(_, operations) => node.disk.cut_after(operations),
            What::DiskErrors(_, 0) => {
                node.disk.set_failures(Failures::None);
                node.in_trouble = false;
            }
            What::DiskErrors(_, operations) => {
                node.in_trouble = true;
                node.disk.set_failures(Failures::OneIn { operations, reads: false });
            }
            What::DiskFull(_, full) => {
                node.in_trouble = full;
                let used: u64 = node
                    .disk
                    .files()
                    .iter()
                    .filter_map(|file| node.disk.read(file))
                    .map(|file| file.len() as u64)
                    .sum();
                node.disk.set_room(full.then_some(used + ROOM_LEFT));
            }
            What::ClockStep(_, by) => node.step_clock(by),
            What::ClockDrift(_, millionths) => node.set_drift(millionths),
            What::ClockLost(_) => node.lose_clock(true),
            What::ClockMended(_) => node.mend_clock(),
            What::ContainerEnds(_, choice) => {
                node.containers.end_one(choice, i32::from(choice & 1 == 1));
            }
            What::CopyCard(_) => {
                let (name, seed) = self.next_copy("card");
                let card = self.nodes.get(index).and_then(|node| node.disk.copy(&name, seed).ok());
                self.cards.extend(card.map(|card| (index, card)));
            }
            What::CloneEnds(_) => {
                if let Some(mut clone) = self.clones.remove(&index) {
                    clone.power_cut().await;
                }
            }
            What::Clone(_) => self.clone_device(index).await,
            What::OldCard(_) => {
                let Some(card) = self.cards.remove(&index) else { return };
                node.power_cut().await;
                node.put_disk(card);
                self.model().rolled_back.insert(index);
                self.oracles.card_changed(index);
                self.start_device(index).await;
            }
            _ => {}
        }
    }

    /// Another board under the same name: to the hub they are one device that contradicts itself.
    pub(super) async fn clone_device(&mut self, index: usize) {
        let Some(node) = self.nodes.get(index).filter(|_| !self.clones.contains_key(&index)) else { return };
        let line = format!("{}'{}", node.name, self.copies + 1);
        let (name, seed) = self.next_copy("clone");
        let Some(node) = self.nodes.get(index) else { return };
        let Ok(card) = node.disk.copy(&name, seed) else { return };
        let dice = Dice::new(self.setup.seed).apart(&line);
        let dialled = self.network.lay(&line, &node.name, dice);
        let mut clone = Node::new(&node.name, &node.group, card, dialled, self.trace.clone());
        if clone.start().await.is_ok() {
            self.model().rolled_back.insert(index);
            self.oracles.card_changed(index);
            self.clones.insert(index, clone);
        }
    }

    /// The board gets a card with nothing on it, and joins under its name.
    pub(super) async fn new_card(&mut self, index: usize) {
        let (name, seed) = self.next_copy("new-card");
        let (Some(life), Some(node)) = (self.hub.life(), self.nodes.get_mut(index)) else { return };
        self.trace.told("device", &node.name, "gets a new card");
        let joined = async {
            let card = Disk::new(&name, seed)?;
            card.lose_syncs(self.setup.bug == Some(Bug::LostSync));
            let token = lives::token_to_replace(life, &node.name).await?;
            node.power_cut().await;
            node.put_disk(card);
            node.join(&token, &*life.doors.enroller()).await
        };
        if let Err(error) = joined.await {
            self.trace.told("device does not join", &node.name, format_args!("{error:#}"));
        }
        let replaced = node.name.clone();
        self.model().replaced.insert(replaced);
        self.model().rolled_back.insert(index);
        self.oracles.card_changed(index);
        self.start_device(index).await;
    }

    /// Name and seed of the next disk that is copied. What happens on it follows from the world's seed; the name alone says which of the
    /// worlds of this process it is in.
    fn next_copy(&mut self, what: &str) -> (String, u64) {
        self.copies += 1;
        let which = format!("{what}{}", self.copies);
        (format!("{}-{which}", self.place), Dice::new(self.setup.seed).apart(&which).next())
    }
}
