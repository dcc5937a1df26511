//! What a device says under a new writer, whatever ends in between.

use std::sync::Arc;

use flotilla_sync::identity::{DeviceKeys, FlooredClock, Installation, NodeName};
use flotilla_sync::record::Draft;
use flotilla_sync::replica::{Reading, Replica as _};
use flotilla_sync::transport::PeerIdentity;

use super::super::Life;
use super::*;
use crate::clock::Clock;
use crate::store::Store;

const KEPT: &str = "override/5117a3f7-e3af-8473-a942-8959f331e2bf";
const ENDED: &str = "override/7991e59d-a3aa-8904-8249-f66f13bf8825";

struct World {
    folder: tempfile::TempDir,
    life: Life,
}

impl World {
    fn new() -> Self {
        let installation = Installation::create(0).unwrap();
        let (keys, node) = (DeviceKeys::generate().unwrap(), NodeName::parse("tank").unwrap());
        let sealing = keys.sealing.public().unwrap();
        let certificate = installation.certify_device(&node, "uid", keys.signing.public(), sealing, 1).unwrap();
        let seed = [7; 32];
        let chain = WriterIdentity::for_device(seed, 1, &keys.signing, &certificate).unwrap().chain().encode().to_vec();
        let writer = WriterMaterial { seed, chain };
        let root = installation.root().public();
        let life = Life { node, root, writer, signing: keys.signing, certificate, incarnation: 1, boot: 1 };
        Self { folder: tempfile::tempdir().unwrap(), life }
    }

    /// The agent begins, with what is on the disk.
    fn begin(&self) -> DeviceReplica {
        let (store, loaded) = Store::open(self.folder.path()).unwrap();
        let mut life = self.life.clone();
        if let Some(bytes) = loaded.meta.get("writer") {
            let (seed, chain) = serde_json::from_slice(bytes).unwrap();
            life.writer = WriterMaterial { seed, chain };
        }
        let trust = FlooredClock::new(|| 0, 0);
        DeviceReplica::take_up(store, &loaded, life, Arc::new(Clock::default()), trust).unwrap().0
    }
}

fn id(text: &str) -> ItemId {
    ItemId::parse(text).unwrap()
}

fn set(name: &str) -> Draft {
    Draft::register(id(name), b"{}".to_vec(), "technician", 0)
}

fn kind_of(replica: &DeviceReplica, name: &str) -> ItemKind {
    replica.state().channel(&replica.own_channel).items[&id(name)].kind.clone()
}

/// Positions of a hub that has all of the device's logs but this.
fn hub_without(replica: &DeviceReplica, writer: Option<WriterId>) -> Positions {
    let heads = replica.state().channel(&replica.own_channel).heads;
    let known = heads.iter().filter(|(one, _)| Some(**one) != writer).map(|(one, head)| (*one, head.seq));
    Positions::from([(replica.own_channel.clone(), known.collect())])
}

async fn subscribe(replica: &DeviceReplica, hub: Positions) {
    replica.subscribed(&PeerIdentity::Hub, hub).await.unwrap();
}

#[tokio::test]
async fn a_takeover_that_was_broken_off_goes_on_in_the_next_life_and_outranks_what_was_before() {
    let world = World::new();
    let replica = world.begin();
    for _ in 0..3 {
        replica.append(vec![set(KEPT), set(ENDED)]).await.unwrap();
    }
    replica.append(vec![Draft::remove(id(ENDED), "technician", 0)]).await.unwrap();
    let first = replica.identity().id();
    let start = replica.newest_of_own();
    replica.replace_writer(Takeover { start, unstated: true }).await.unwrap();
    drop(replica);

    let replica = world.begin();
    let second = replica.identity().id();
    assert_ne!(first, second);
    // The hub has all that the first writer said: nothing else makes the device state it.
    subscribe(&replica, hub_without(&replica, None)).await;
    let (ItemKind::Register(kept), ItemKind::Removed(ended)) = (kind_of(&replica, KEPT), kind_of(&replica, ENDED))
    else {
        panic!("{:?}", (kind_of(&replica, KEPT), kind_of(&replica, ENDED)))
    };
    assert_eq!([kept.version.writer, ended.writer], [second; 2]);
    let stated = replica.newest_of_own();
    subscribe(&replica, hub_without(&replica, None)).await;
    assert_eq!(replica.newest_of_own(), stated, "once is enough");
    replica.append(vec![Draft::remove(id(KEPT), "technician", 0)]).await.unwrap();
    assert!(matches!(kind_of(&replica, KEPT), ItemKind::Removed(_)), "it outranks what was before");
}

#[tokio::test]
async fn a_new_writer_that_has_said_nothing_yet_numbers_on_in_the_next_life() {
    let world = World::new();
    let replica = world.begin();
    replica.append(vec![set(KEPT)]).await.unwrap();
    replica.replace_writer(Takeover { start: 40, unstated: false }).await.unwrap();
    drop(replica);
    let replica = world.begin();
    replica.append(vec![Draft::remove(id(KEPT), "technician", 0)]).await.unwrap();
    let ItemKind::Removed(version) = kind_of(&replica, KEPT) else { panic!("it is in force still") };
    assert_eq!(version.seq, 41);
}

#[tokio::test]
async fn what_a_restored_hub_lost_of_an_earlier_log_is_stated_again_also_what_was_ended() {
    let world = World::new();
    let replica = world.begin();
    replica.append(vec![set(KEPT), set(ENDED)]).await.unwrap();
    replica.append(vec![Draft::remove(id(ENDED), "technician", 0)]).await.unwrap();
    let first = replica.identity().id();
    let start = replica.newest_of_own();
    replica.replace_writer(Takeover { start, unstated: false }).await.unwrap();
    subscribe(&replica, hub_without(&replica, None)).await;
    assert_eq!(replica.newest_of_own(), start, "this hub has lost nothing");
    subscribe(&replica, hub_without(&replica, Some(first))).await;
    assert_eq!(replica.newest_of_own(), start + 2);
    subscribe(&replica, hub_without(&replica, Some(first))).await;
    assert_eq!(replica.newest_of_own(), start + 2, "it is the present log's now");
}

/// More than one batch takes.
#[tokio::test]
async fn however_much_is_stated_again_it_fits() {
    let world = World::new();
    let replica = world.begin();
    let names: Vec<String> = (0..STATED_RECORDS_MAX * 2 + 1).map(|number| format!("override/{number}")).collect();
    for some in names.chunks(STATED_RECORDS_MAX) {
        replica.append(some.iter().map(|name| set(name)).collect()).await.unwrap();
    }
    let before = replica.newest_of_own();
    replica.take_new_writer().await.unwrap();
    assert_eq!(replica.newest_of_own(), before + names.len() as u64);
    assert_eq!(replica.state().own_batches.len(), 3);
}

/// A list cannot be passed on by the hub to another board with a copy of this card.
#[tokio::test]
async fn the_log_of_a_writer_that_took_over_goes_to_the_hub_as_records() {
    let world = World::new();
    let replica = world.begin();
    replica.append(vec![set(KEPT), set(ENDED)]).await.unwrap();
    replica.take_new_writer().await.unwrap();
    let own = replica.state().log.identity().id();
    let Reading::Batches(batches) = replica.read(&replica.own_channel, &own, 0, 1 << 20).await.unwrap() else {
        panic!("a list, though nothing is missing before the first record")
    };
    assert_eq!((batches[0].first_seq, batches[0].prev), (3, flotilla_sync::channel::GENESIS));
}
