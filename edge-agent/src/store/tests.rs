//! What belongs together is durable together.

use std::collections::BTreeMap;

use super::*;

fn end(pod: &str) -> OutboxRow {
    let subject = format!("pod/{pod}");
    OutboxRow { subject, incarnation: 1, boot: 1, seq: 1, time_ms: 1, urgent: true, body: None }
}

#[tokio::test]
async fn a_pod_is_not_forgotten_before_its_end_waits_for_the_hub() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(folder.path()).unwrap();
    store.set_histories(vec![("p".into(), Some("{}".into()))], Vec::new()).await.unwrap();

    // The outbox cannot be written: then the history stays, and the next plan ends the pod once more.
    let other = Connection::open(folder.path().join("device.db")).unwrap();
    other.execute_batch("ALTER TABLE outbox RENAME TO elsewhere").unwrap();
    store.set_histories(vec![("p".into(), None)], vec![end("p")]).await.unwrap_err();
    other.execute_batch("ALTER TABLE elsewhere RENAME TO outbox").unwrap();
    let (again, loaded) = Store::open(folder.path()).unwrap();
    assert_eq!((loaded.histories.len(), loaded.outbox.len()), (1, 0));

    again.set_histories(vec![("p".into(), None)], vec![end("p")]).await.unwrap();
    let (_, loaded) = Store::open(folder.path()).unwrap();
    assert_eq!((loaded.histories.len(), loaded.outbox), (0, vec![end("p")]));
}

#[tokio::test]
async fn a_row_of_the_wrong_shape_stops_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(folder.path()).unwrap();
    store.set_histories(vec![("p".into(), Some("{}".into()))], vec![end("p"), end("q")]).await.unwrap();
    let other = Connection::open(folder.path().join("device.db")).unwrap();
    other.execute("UPDATE outbox SET seq = 'many' WHERE subject = 'pod/q'", []).unwrap();
    let (_, loaded) = Store::open(folder.path()).unwrap();
    assert_eq!((loaded.histories.len(), loaded.outbox), (1, vec![end("p")]));
}

/// A database as a device has it after some time, closed by a kill: part of it is in the write-ahead log alone.
async fn lived(folder: &Path) -> Loaded {
    let (store, _) = Store::open(folder).unwrap();
    let row =
        |number: u32| ItemRow { channel: "fleet/default".into(), id: format!("grant/{number}"), bytes: item(number) };
    store.set_meta("keys", b"{\"a\":1}".to_vec()).await.unwrap();
    store.set_meta("memory", vec![b'm'; 30_000]).await.unwrap();
    store.ingest(Ingest { items: (0..300).map(row).collect(), ..Ingest::default() }).await.unwrap();
    for number in 0..40 {
        let pod = format!("pod-{number}");
        store.set_histories(vec![(pod.clone(), Some("{}".into()))], vec![end(&pod)]).await.unwrap();
    }
    let copy = folder.join("copy");
    std::fs::create_dir(&copy).unwrap();
    for ending in ["", "-wal"] {
        std::fs::copy(folder.join(format!("device.db{ending}")), copy.join(format!("device.db{ending}"))).unwrap();
    }
    drop(store);
    Store::open(&copy).unwrap().1
}

fn item(number: u32) -> Vec<u8> {
    use flotilla_sync::channel::{Applied, ChannelName, GENESIS, Item, ItemId, WriterId};
    use flotilla_sync::record::{Draft, Record};
    let value = vec![u8::try_from(number % 251).unwrap(); 20 + number as usize * 7 % 6000];
    let draft = Draft::register(ItemId::parse(&format!("grant/{number}")).unwrap(), value, "", 1);
    let channel = ChannelName::parse("fleet/default").unwrap();
    let record = Record { channel, writer: WriterId([1; 32]), seq: u64::from(number) + 1, prev: GENESIS, draft };
    let Applied::Changed(item) = Item::apply(None, &record, 1).unwrap() else { panic!("no item") };
    item.encode().to_vec()
}

/// A copy of the database in a folder of its own, damaged there; answers what the next start reads.
fn damaged(folder: &Path, name: &str, damage: impl Fn(&mut Vec<u8>, &mut Vec<u8>)) -> Loaded {
    let there = folder.join(name);
    std::fs::create_dir(&there).unwrap();
    std::fs::write(there.join(IDENTITY_COPY), b"{}").unwrap();
    let read = |ending: &str| std::fs::read(folder.join("copy").join(format!("device.db{ending}"))).unwrap_or_default();
    let (mut database, mut wal) = (read(""), read("-wal"));
    damage(&mut database, &mut wal);
    std::fs::write(there.join("device.db"), database).unwrap();
    std::fs::write(there.join("device.db-wal"), wal).unwrap();
    let (store, loaded) =
        Store::open(&there).unwrap_or_else(|error| panic!("{name}: {}", crate::enrolment::chain(&error)));
    drop(store);
    // And once more: what was mended is whole, and nothing is mended twice.
    let (_, again) = Store::open(&there).unwrap();
    assert_eq!(again.salvage, None, "{name}");
    assert_eq!(again.items.len(), loaded.items.len(), "{name}");
    loaded
}

#[tokio::test]
async fn a_damaged_database_gives_what_it_can_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let whole = lived(folder.path()).await;
    assert_eq!((whole.items.len(), whole.histories.len(), whole.outbox.len(), whole.salvage), (300, 40, 40, None));
    let names = |loaded: &Loaded| {
        loaded.items.iter().map(|row| (row.id.clone(), row.bytes.clone())).collect::<BTreeMap<_, _>>()
    };
    let all = names(&Loaded { items: whole.items.clone(), ..Loaded::default() });

    // Everything is there without a header: its pages are.
    let found = damaged(folder.path(), "header", |database, _| database[..100].fill(0xa5));
    assert!(found.salvage.as_ref().unwrap().why.contains("not a database"), "{:?}", found.salvage);
    assert_eq!(names(&found), all);
    assert_eq!((found.histories.len(), found.outbox.len()), (40, 40));
    assert_eq!(found.meta["keys"], whole.meta["keys"]);
    assert_eq!(found.meta["memory"], whole.meta["memory"]);
    assert!(found.meta.contains_key("salvaged"));

    // Half of it: rows of the half, each as it was, and a word about the rest.
    let found = damaged(folder.path(), "half", |database, _| database.truncate(database.len() / 2));
    let salvage = found.salvage.clone().unwrap();
    let half = names(&found);
    assert!(half.len() > 50 && half.len() <= 300, "{} of 300: {salvage:?}", half.len());
    assert!(half.iter().all(|(id, bytes)| all.get(id) == Some(bytes)), "a row came back other than it was");
    assert!(Path::new(&salvage.file).exists());

    // Zeroed pages in the middle, a torn write, an empty file.
    let found = damaged(folder.path(), "zeroed", |database, _| {
        let middle = database.len() / 8192 * 4096;
        database[middle..middle + 16_384].fill(0);
    });
    assert!(found.salvage.as_ref().is_some_and(|salvage| salvage.unreadable > 0), "{:?}", found.salvage);
    assert!(names(&found).len() > 200);
    let found = damaged(folder.path(), "emptied", |database, wal| {
        database.clear();
        wal.clear();
    });
    assert_eq!((found.items.len(), found.salvage.unwrap().why.as_str()), (0, "the file is empty"));
    let found = damaged(folder.path(), "noise", |database, wal| {
        database.iter_mut().for_each(|byte| *byte ^= 0x5a);
        wal.clear();
    });
    assert_eq!((found.items.len(), found.salvage.is_some()), (0, true));
}

#[tokio::test]
async fn what_a_kill_leaves_behind_is_no_damage() {
    let folder = tempfile::tempdir().unwrap();
    let whole = lived(folder.path()).await;
    // A write-ahead log that was cut off loses what was not acknowledged, here the last of all.
    let found = damaged(folder.path(), "torn", |_, wal| wal.truncate(wal.len() - 5000));
    assert_eq!((found.salvage, found.items.len()), (None, whole.items.len()));
    // Noise at its end, an index of another life.
    let found = damaged(folder.path(), "tail", |_, wal| wal.extend([7; 9000]));
    assert_eq!((found.salvage, found.outbox.len()), (None, 40));
    let there = folder.path().join("index");
    std::fs::create_dir(&there).unwrap();
    for ending in ["", "-wal"] {
        let name = format!("device.db{ending}");
        drop(std::fs::copy(folder.path().join("copy").join(&name), there.join(&name)));
    }
    std::fs::write(there.join("device.db-shm"), vec![0xee; 32_768]).unwrap();
    let (_, found) = Store::open(&there).unwrap();
    assert_eq!((found.salvage, found.items.len()), (None, 300));
}

#[tokio::test]
async fn mending_is_taken_up_where_a_kill_stopped_it() {
    let folder = tempfile::tempdir().unwrap();
    lived(folder.path()).await;
    let there = folder.path().join("there");
    let fresh = || {
        drop(std::fs::remove_dir_all(&there));
        std::fs::create_dir(&there).unwrap();
        for ending in ["", "-wal"] {
            let name = format!("device.db{ending}");
            drop(std::fs::copy(folder.path().join("copy").join(&name), there.join(&name)));
        }
        let mut bytes = std::fs::read(there.join("device.db")).unwrap();
        bytes[..100].fill(0);
        std::fs::write(there.join("device.db"), bytes).unwrap();
    };
    // Killed while the new file was written.
    fresh();
    std::fs::write(there.join("device.db.mending"), b"half a file").unwrap();
    assert_eq!(Store::open(&there).unwrap().1.items.len(), 300);
    // Killed between the renames: the new file is whole, the old one is on its way out.
    for moved in [&[][..], &["-wal"], &["-wal", ""]] {
        fresh();
        Store::open(&there).unwrap();
        let mended = std::fs::read(there.join("device.db")).unwrap();
        fresh();
        std::fs::write(there.join("device.db.mended"), mended).unwrap();
        for ending in moved {
            drop(std::fs::rename(
                there.join(format!("device.db{ending}")),
                there.join(format!("device.db.damaged-1{ending}")),
            ));
        }
        assert_eq!(Store::open(&there).unwrap().1.items.len(), 300, "{moved:?}");
    }
}
