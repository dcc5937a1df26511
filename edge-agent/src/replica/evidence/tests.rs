use flotilla_sync::channel::{ChannelState, ItemId};
use flotilla_sync::identity::SigningKey;
use flotilla_sync::identity::writer::WriterIdentity;
use flotilla_sync::log::LogWriter;
use flotilla_sync::record::Draft;

use super::*;
use crate::store::{Ingest, Store};

struct World {
    folder: tempfile::TempDir,
    store: Store,
    evidence: Evidence,
    log: LogWriter,
    state: ChannelState,
}

fn channel() -> ChannelName {
    ChannelName::parse("fleet/default").unwrap()
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (store, loaded) = Store::open(folder.path()).unwrap();
        let root = SigningKey::generate().unwrap();
        let identity = WriterIdentity::for_hub([7; 32], 1, &root).unwrap();
        let log = LogWriter::new(identity, BTreeMap::new());
        let evidence = Evidence::of(&loaded.evidence);
        Self { folder, store, evidence, log, state: ChannelState::new(channel()) }
    }

    fn writer(&self) -> WriterId {
        self.log.identity().id()
    }

    /// The hub writes a batch of one register.
    fn batch(&mut self, id: &str) -> VerifiedBatch {
        let draft = Draft::register(ItemId::parse(id).unwrap(), b"value".to_vec(), "", 0);
        let verified = self.log.append(&channel(), vec![draft]).unwrap();
        self.state.apply_batch(&verified).unwrap();
        verified
    }

    fn list(&self) -> VerifiedSnapshot {
        let identity = self.log.identity();
        self.state.snapshot(identity, BTreeMap::new()).unwrap().verify(identity.chain()).unwrap()
    }

    async fn take(&mut self, take: impl FnOnce(&mut Evidence, &mut EvidenceRows)) {
        let mut rows = EvidenceRows::default();
        take(&mut self.evidence, &mut rows);
        self.store.ingest(Ingest { evidence: rows, ..Ingest::default() }).await.unwrap();
    }

    async fn kept(&self, after: u64) -> Kept {
        self.store.evidence(channel().to_string(), self.writer().0.to_vec(), after, 1 << 20).await.unwrap()
    }

    fn end(&self) -> u64 {
        self.evidence.logs.get(&(channel(), self.writer())).map_or(0, Span::end)
    }
}

fn seqs(kept: Kept) -> Vec<u64> {
    let Kept::Batches(batches) = kept else { return Vec::new() };
    batches.into_iter().map(|bytes| Batch::decode(&Bytes::from(bytes)).unwrap().last_seq).collect()
}

#[tokio::test]
async fn batches_are_kept_in_order_until_a_list_speaks_for_them() {
    let mut world = World::new();
    assert_eq!(world.kept(0).await, Kept::Nothing);
    for id in ["grant/a", "grant/b", "grant/c"] {
        let batch = world.batch(id);
        world.take(|evidence, rows| evidence.batch(&batch, rows)).await;
        // Again: nothing more.
        world.take(|evidence, rows| evidence.batch(&batch, rows)).await;
    }
    assert_eq!(seqs(world.kept(0).await), [1, 2, 3]);
    assert_eq!(seqs(world.kept(2).await), [3]);
    assert_eq!(world.kept(3).await, Kept::Nothing);

    let list = world.list();
    let after = world.batch("grant/d");
    world
        .take(|evidence, rows| {
            evidence.list(&list, rows);
            evidence.batch(&after, rows);
        })
        .await;
    let Kept::List { list: bytes, states } = world.kept(0).await else { panic!("the list speaks for what is gone") };
    assert_eq!((bytes, states.len()), (list.snapshot().list.encoded().to_vec(), 3));
    assert_eq!(seqs(world.kept(3).await), [4], "what came after the list is there one by one");

    // A later list takes the place of the earlier, and of the batches.
    let list = world.list();
    world.take(|evidence, rows| evidence.list(&list, rows)).await;
    let Kept::List { states, .. } = world.kept(0).await else { panic!("a list") };
    assert_eq!((states.len(), world.kept(4).await), (4, Kept::Nothing));

    let (_store, loaded) = Store::open(world.folder.path()).unwrap();
    let again = Evidence::of(&loaded.evidence);
    assert_eq!(again.logs[&(channel(), world.writer())].end(), world.end());
}

/// A hub that was restored and went on stands within a batch that it wrote before: it is shown that one, and sees the fork.
#[tokio::test]
async fn who_stands_within_a_batch_is_told_all_of_it() {
    let mut world = World::new();
    let draft = |id: &str| Draft::register(ItemId::parse(id).unwrap(), b"value".to_vec(), "", 0);
    let two = world.log.append(&channel(), vec![draft("grant/a"), draft("grant/b")]).unwrap();
    world.take(|evidence, rows| evidence.batch(&two, rows)).await;
    let third = world.log.append(&channel(), vec![draft("grant/c")]).unwrap();
    world.take(|evidence, rows| evidence.batch(&third, rows)).await;
    assert_eq!(seqs(world.kept(1).await), [2, 3]);
    assert_eq!(seqs(world.kept(2).await), [3]);
}

#[tokio::test]
async fn what_does_not_follow_proves_nothing() {
    let mut world = World::new();
    let (_missed, second) = (world.batch("grant/a"), world.batch("grant/b"));
    world.take(|evidence, rows| evidence.batch(&second, rows)).await;
    assert_eq!((world.end(), world.kept(0).await), (0, Kept::Nothing));
}

#[tokio::test]
async fn a_log_asked_for_anew_stands_where_its_proof_ends() {
    let mut world = World::new();
    let (first, second) = (world.batch("grant/a"), world.batch("grant/b"));
    let key = (channel(), world.writer());
    let heads = || Heads::from([(channel(), BTreeMap::from([(key.1, second.head())]))]);
    assert_eq!(world.evidence.heads(heads()), heads(), "nobody asks");
    world.evidence.asking.insert(key.clone());
    assert_eq!(world.evidence.heads(heads())[&channel()].get(&key.1), None);
    world.take(|evidence, rows| evidence.batch(&first, rows)).await;
    assert_eq!(world.evidence.heads(heads())[&channel()][&key.1], first.head());
    let dropped = vec![(channel().to_string(), key.1.0.to_vec())];
    let rows = EvidenceRows { dropped, ..EvidenceRows::default() };
    world.store.ingest(Ingest { evidence: rows, ..Ingest::default() }).await.unwrap();
    assert_eq!(world.kept(0).await, Kept::Nothing);
}

#[tokio::test]
async fn what_was_kept_of_a_branch_goes_with_the_list_that_settles_it() {
    let mut world = World::new();
    for id in ["one", "two"] {
        let batch = world.batch(id);
        world.take(|evidence, rows| evidence.batch(&batch, rows)).await;
    }
    let list = world.list();
    for id in ["three", "four"] {
        let batch = world.batch(id);
        world.take(|evidence, rows| evidence.batch(&batch, rows)).await;
    }
    assert_eq!(seqs(world.kept(2).await), [3, 4]);
    let settled = BTreeSet::from([world.writer()]);
    world.take(|evidence, rows| evidence.list(&list.settling(settled), rows)).await;
    assert_eq!(world.end(), 2, "it stands where the list does");
    assert_eq!(world.kept(2).await, Kept::Nothing);
    assert!(matches!(world.kept(0).await, Kept::List { .. }));
}
