#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flotilla_manifests::api_error::{ApiError, Reason};
use flotilla_manifests::kind;
use flotilla_manifests::object::{Object, ObjectKey};
use flotilla_manifests::time::Timestamp;
use flotilla_rest::backend::WatchEvent;
use serde_json::json;

use super::history::SHARED_MAX;
use super::lanes::BATCH_JOBS_MAX;
use super::{Batch, Store, StoreError};
use crate::clock::Clock;
use crate::config::Retention;

fn fixed_clock() -> Clock {
    Arc::new(|| Timestamp(1_700_000_000_000))
}

fn open(path: &Path, retention: Retention) -> Store {
    Store::open(path, retention, fixed_clock()).unwrap()
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::of(&kind::CONFIG_MAP, "default", name)
}

fn map(name: &str, text: &str) -> Object {
    let mut object = Object::empty(&kind::CONFIG_MAP, "default", name);
    object.value_mut()["data"] = json!({"text": text});
    object
}

async fn put(store: &Store, name: &str, text: &str) -> u64 {
    let (key, object, text) = (key(name), map(name, text), text.to_owned());
    store
        .write(move |batch| {
            let stored = match batch.get(&key) {
                Some(_) => batch.update(&key, |object| object.value_mut()["data"]["text"] = text.into())?.unwrap(),
                None => batch.create(object)?,
            };
            Ok(stored.resource_version())
        })
        .await
        .unwrap()
}

fn text(event: &WatchEvent) -> String {
    match event {
        WatchEvent::Added(object) => format!("+{}={}", object.name(), object.text("/data/text")),
        WatchEvent::Modified { previous, object } => {
            format!("~{}={}<{}", object.name(), object.text("/data/text"), previous.text("/data/text"))
        }
        WatchEvent::Deleted(object) => format!("-{}", object.name()),
        WatchEvent::Progress(_) => "progress".into(),
        WatchEvent::Expired => "expired".into(),
    }
}

#[tokio::test]
async fn versions_carry_the_incarnation_and_survive_a_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.sqlite");
    let store = open(&path, Retention::default());
    let first = put(&store, "a", "1").await;
    assert_eq!(first, (1 << 40) + 1);
    let second = put(&store, "a", "2").await;
    assert_eq!(put(&store, "a", "2").await, second, "a change that changes nothing has no version of its own");
    store.write(|batch| Ok(batch.remove(&key("a"))?.is_some())).await.unwrap();
    drop(store);
    let store = open(&path, Retention::default());
    assert_eq!(store.version(), second + 1, "a version is never given twice, even when its object is gone");
    assert!(store.read(&key("a")).is_none());
    assert_eq!(put(&store, "b", "1").await, second + 2);
}

#[tokio::test]
async fn a_failing_job_leaves_nothing_and_harms_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("hub.sqlite"), Retention::default());
    let version = store.version();
    let bad = store.write(|batch| -> Result<(), ApiError> {
        batch.create(map("bad", "x"))?;
        batch.set_grant("w", "n", Some("1-1"))?;
        Err(ApiError::of(Reason::BadRequest, "no"))
    });
    let fault = store.write(|batch| -> Result<(), ApiError> {
        batch.create(map("worse", "x"))?;
        panic!("a poison object")
    });
    let (bad, good, fault) = tokio::join!(bad, put(&store, "good", "x"), fault);
    assert_eq!(bad.unwrap_err().reason, Reason::BadRequest);
    assert_eq!(fault.unwrap_err().reason, Reason::InternalError);
    assert_eq!(good, version + 1, "no version is lost to an undone job");
    assert!(store.read(&key("bad")).is_none() && store.read(&key("worse")).is_none());
    assert!(store.view(|index| index.rollouts().is_empty()));
}

#[tokio::test]
async fn a_watch_gives_every_change_once_in_order_from_any_version() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("hub.sqlite"), Retention::default());
    let start = store.version();
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for step in 0..50 {
                    put(&store, &format!("m{}", step % 5), &format!("{writer}.{step}")).await;
                }
            })
        })
        .collect();
    // Watchers join while the writing goes on, each where its own list stands.
    let mut watchers = Vec::new();
    for _ in 0..4 {
        let store = store.clone();
        watchers.push(tokio::spawn(async move {
            let listing = store.list(&kind::CONFIG_MAP, Some("default"));
            let mut state: BTreeMap<String, String> = listing
                .items
                .iter()
                .map(|object| (object.name().to_owned(), object.text("/data/text").to_owned()))
                .collect();
            let mut newest = listing.resource_version;
            let mut events = store.watch(&kind::CONFIG_MAP, Some("default"), newest).unwrap();
            while newest < start + 400 {
                let object = match events.recv().await.unwrap() {
                    WatchEvent::Added(object) => object,
                    WatchEvent::Modified { previous, object } => {
                        assert_eq!(state[object.name()], previous.text("/data/text"));
                        object
                    }
                    WatchEvent::Progress(_) => continue,
                    other => panic!("{other:?}"),
                };
                assert_eq!(object.resource_version(), newest + 1, "each change once, in order");
                newest = object.resource_version();
                state.insert(object.name().to_owned(), object.text("/data/text").to_owned());
            }
            state
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let end: BTreeMap<String, String> = store
        .list(&kind::CONFIG_MAP, None)
        .items
        .iter()
        .map(|object| (object.name().to_owned(), object.text("/data/text").to_owned()))
        .collect();
    for watcher in watchers {
        assert_eq!(watcher.await.unwrap(), end);
    }
}

#[tokio::test]
async fn a_failing_job_leaves_rollouts_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.sqlite");
    let store = open(&path, Retention::default());
    let set = |batch: &mut Batch<'_>, number: &str| -> Result<(), ApiError> {
        batch.set_threshold("web", number, Some(7))?;
        batch.set_grant("web", "a", Some(number))?;
        batch.set_grant("web", number, Some(number))?;
        Ok(())
    };
    store.write(move |batch| set(batch, "1-1")).await.unwrap();
    let before = store.view(|index| index.rollout("web"));
    assert_eq!((before.thresholds.len(), before.grants.len()), (1, 2));
    let failing = store.write(move |batch| {
        set(batch, "1-2")?;
        batch.set_threshold("web", "1-1", None)?;
        batch.set_grant("web", "a", None)?;
        batch.forget_rollout("web")?;
        set(batch, "1-3")?;
        Err::<(), _>(ApiError::of(Reason::Conflict, "no"))
    });
    failing.await.unwrap_err();
    store.write(move |batch| Ok(batch.set_grant("web", "b", Some("1-1"))?)).await.unwrap();
    let mut after = store.view(|index| index.rollout("web"));
    assert_eq!(after.grants.remove("b").as_deref(), Some("1-1"));
    assert_eq!(after, before);
    drop(store);
    let mut again = open(&path, Retention::default()).view(|index| index.rollout("web"));
    again.grants.remove("b");
    assert_eq!(again, before);
}

#[tokio::test]
async fn what_is_kept_as_json_is_told_and_rewound_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.sqlite");
    let store = open(&path, Retention::default());
    let start = store.version();
    // More than are shared as objects.
    for step in 0..700 {
        put(&store, "a", &step.to_string()).await;
    }
    store.write(|batch| Ok(batch.remove(&key("a")).map(drop)?)).await.unwrap();
    let mut told = Vec::new();
    let mut all = store.watch(&kind::CONFIG_MAP, None, start).unwrap();
    while told.len() < 701 {
        told.extend(Some(text(&all.recv().await.unwrap())).filter(|told| told != "progress"));
    }
    let values = |store: &Store, at: u64| {
        let listing = store.list_at(&kind::CONFIG_MAP, None, at).unwrap();
        listing.items.iter().map(|item| item.text("/data/text").to_owned()).collect::<Vec<_>>()
    };
    let early = [start, start + 1, start + 100, start + 650, start + 701];
    let then = early.map(|at| values(&store, at));
    assert_eq!(then, [vec![], vec!["0".to_owned()], vec!["99".to_owned()], vec!["649".to_owned()], vec![]]);
    drop((all, store));
    // The same after a start, when everything is JSON.
    let store = open(&path, Retention::default());
    assert_eq!(early.map(|at| values(&store, at)), then);
    let mut again = store.watch(&kind::CONFIG_MAP, None, start).unwrap();
    for before in told {
        assert_eq!(text(&again.recv().await.unwrap()), before);
    }
}

#[tokio::test]
async fn a_watch_goes_on_over_a_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.sqlite");
    let store = open(&path, Retention::default());
    let start = store.version();
    put(&store, "a", "1").await;
    put(&store, "a", "2").await;
    put(&store, "b", "1").await;
    store.write(|batch| Ok(batch.remove(&key("a"))?.is_some())).await.unwrap();
    put(&store, "a", "3").await;
    drop(store);
    let store = open(&path, Retention::default());
    let mut events = store.watch(&kind::CONFIG_MAP, None, start).unwrap();
    let mut seen = Vec::new();
    while seen.len() < 5 {
        seen.push(text(&events.recv().await.unwrap()));
    }
    assert_eq!(seen, ["+a=1", "~a=2<1", "+b=1", "-a", "+a=3"]);
}

#[tokio::test]
async fn history_is_bounded_and_an_old_or_foreign_version_is_expired() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.sqlite");
    let retention = Retention { events_count_max: 10, ..Retention::default() };
    let store = open(&path, retention);
    let start = store.version();
    // Its channel holds 16 events, the history 10: a watcher that does not read falls out and is told.
    let mut slow = store.watch(&kind::CONFIG_MAP, None, start).unwrap();
    for step in 0..600 {
        put(&store, "a", &step.to_string()).await;
    }
    let expired = |from| store.watch(&kind::CONFIG_MAP, None, from).unwrap_err().reason;
    assert_eq!(expired(start), Reason::Expired);
    assert_eq!(expired((2 << 40) + 5), Reason::Expired);
    assert_eq!(expired(5), Reason::Expired);
    assert!(store.watch(&kind::CONFIG_MAP, None, store.version()).is_ok());
    let mut last = String::new();
    while let Some(event) = slow.recv().await {
        last = text(&event);
    }
    assert_eq!(last, "expired");
    drop(store);
    let store = open(&path, retention);
    assert!(store.watch(&kind::CONFIG_MAP, None, store.version() - 10).is_ok());
    assert!(store.watch(&kind::CONFIG_MAP, None, store.version() - 13).is_err());
}

#[tokio::test]
async fn what_is_old_is_kept_as_json_and_told_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.sqlite");
    let store = open(&path, Retention::default());
    let start = store.version();
    let count = SHARED_MAX + 60;
    for step in 0..count {
        put(&store, "a", &step.to_string()).await;
    }
    let kept = |store: &Store| store.handle.shared.committed.read().unwrap().history.counts();
    assert_eq!(kept(&store), (count, SHARED_MAX));
    let told = async |store: &Store| {
        let mut events = store.watch(&kind::CONFIG_MAP, None, start).unwrap();
        for step in 0..count {
            let expected = if step == 0 { "+a=0".to_owned() } else { format!("~a={step}<{}", step - 1) };
            assert_eq!(text(&events.recv().await.unwrap()), expected);
        }
    };
    told(&store).await;
    drop(store);
    let store = open(&path, Retention::default());
    assert_eq!(kept(&store), (count, 0), "what was read from the disk is JSON");
    told(&store).await;
    for step in count..count + 3 {
        put(&store, "a", &step.to_string()).await;
    }
    assert_eq!(kept(&store), (count + 3, 3));
}

#[tokio::test]
async fn a_poison_row_is_set_aside_and_the_rest_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.sqlite");
    let store = open(&path, Retention::default());
    put(&store, "good", "1").await;
    put(&store, "bad", "1").await;
    drop(store);
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.execute("UPDATE object SET body = 'rubbish' WHERE name = 'bad'", []).unwrap();
    drop(connection);
    let store = open(&path, Retention::default());
    assert!(store.read(&key("good")).is_some());
    assert!(store.read(&key("bad")).is_none());
    assert_eq!(store.set_aside().await.unwrap().len(), 1);
    put(&store, "bad", "2").await;
}

#[tokio::test]
async fn many_writes_share_a_commit() {
    let folder = tempfile::tempdir().unwrap();
    // No two readings are alike, and all writes of one transaction are told one of them.
    let readings = AtomicU64::new(0);
    let clock: Clock = Arc::new(move || Timestamp(readings.fetch_add(1, Ordering::SeqCst)));
    let store = Store::open(&folder.path().join("hub.sqlite"), Retention::default(), clock).unwrap();
    let (open_gate, gate) = std::sync::mpsc::channel::<()>();
    let (entered, inside) = tokio::sync::oneshot::channel();
    let blocked = {
        let store = store.clone();
        tokio::spawn(async move {
            let hold = move |_: &mut Batch<'_>| Ok(entered.send(()).is_ok() && gate.recv().is_ok());
            store.write(hold).await
        })
    };
    // Only then is it alone in its commit, and all that follow wait together.
    inside.await.unwrap();
    let waiting: Vec<_> = (0..100)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.write(|batch| Ok(batch.now())).await.unwrap() })
        })
        .collect();
    while store.queued() < 100 {
        tokio::task::yield_now().await;
    }
    open_gate.send(()).unwrap();
    assert!(blocked.await.unwrap().unwrap());
    let mut commits = BTreeSet::new();
    for write in waiting {
        commits.insert(write.await.unwrap());
    }
    assert_eq!(commits.len(), 100usize.div_ceil(BATCH_JOBS_MAX));
}

#[tokio::test]
async fn a_writer_without_room_asks_people_to_come_back_and_lets_sessions_wait() {
    const EACH: usize = crate::store::lanes::QUEUE_LEN_MAX;
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("hub.sqlite"), Retention::default());
    let (open_gate, gate) = std::sync::mpsc::sync_channel::<()>(1);
    let (tell_begun, begun) = tokio::sync::oneshot::channel();
    let blocking = store.clone();
    let blocked = tokio::spawn(async move {
        let hold = move |_: &mut Batch<'_>| Ok(tell_begun.send(()).is_ok() && gate.recv().is_ok());
        blocking.write(hold).await
    });
    begun.await.unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    for number in 0..=EACH {
        let store = store.clone();
        waiting.spawn(async move { store.write(move |_| Ok(number)).await });
    }
    while store.queued() < EACH {
        tokio::task::yield_now().await;
    }
    // What the fleet writes takes no room of the people's.
    for number in 0..EACH {
        let store = store.clone();
        waiting.spawn(async move { store.write_soon(move |_| Ok(number)).await });
    }
    while store.queued() < 2 * EACH {
        tokio::task::yield_now().await;
    }
    let refused = store.write_soon(|_| Ok(())).await.unwrap_err();
    assert_eq!((refused.reason, refused.retry_after_seconds), (Reason::TooManyRequests, Some(1)));
    open_gate.send(()).unwrap();
    assert!(blocked.await.unwrap().unwrap());
    while let Some(written) = waiting.join_next().await {
        written.unwrap().unwrap();
    }
    store.write_soon(|_| Ok(())).await.unwrap();
}

/// Run as a child by the test below: writes until it is killed, saying each write that was answered.
#[test]
fn writes_until_killed() {
    let Some(path) = std::env::var_os("FLOTILLA_TEST_WRITE_UNTIL_KILLED") else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let store = open(&PathBuf::from(path), Retention { events_count_max: 50, ..Retention::default() });
        for number in 0.. {
            let name = format!("m{}", number % 20);
            put(&store, &name, &number.to_string()).await;
            use std::io::Write;
            // In one call: it may be killed between any two.
            std::io::stderr().write_all(format!("acknowledged {number}\n").as_bytes()).unwrap();
        }
    });
}

#[test]
fn every_acknowledged_write_survives_a_kill() {
    use std::io::BufRead;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.sqlite");
    let mut newest: Option<u64> = None;
    for round in 0..5_usize {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::tests::writes_until_killed", "--nocapture"])
            .env("FLOTILLA_TEST_WRITE_UNTIL_KILLED", &path)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let lines = std::io::BufReader::new(child.stderr.take().unwrap()).lines();
        let mut acknowledged = None;
        for line in lines.map_while(Result::ok) {
            let Some(number) = line.strip_prefix("acknowledged ") else { continue };
            acknowledged = number.parse::<u64>().ok();
            if acknowledged > Some(30 + 7 * round as u64) {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        newest = newest.max(acknowledged);
        let store = open(&path, Retention::default());
        let last = acknowledged.unwrap();
        for number in last - 19..=last {
            let object = store.read(&key(&format!("m{}", number % 20))).unwrap();
            let found: u64 = object.text("/data/text").parse().unwrap();
            assert!(found >= number, "write {number} was acknowledged and {found} is stored");
        }
    }
}

/// As of one that begins anew each day and tells little in each life.
#[tokio::test]
async fn what_was_observed_longest_ago_is_forgotten_however_the_device_counts() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("hub.sqlite"), Retention::default());
    let clock = |boot: u64| flotilla_sync::observation::Clock { incarnation: 1, boot, seq: 1 };
    let (most, told) = (4096 + 256, 4096 + 300_usize);
    store
        .write(move |batch| {
            for boot in 0..told as u64 {
                assert!(batch.is_news("a", &format!("pod/{boot}"), clock(boot), 0)?);
            }
            assert!(batch.is_news("b", "pod/0", clock(0), 0)?);
            let known = |batch: &Batch<'_>, boot: u64| batch.observation_clock("a", &format!("pod/{boot}"));
            let kept = (0..told as u64)
                .map(|boot| Ok(known(batch, boot)?.is_some()))
                .collect::<Result<Vec<bool>, StoreError>>()?;
            assert!(kept.iter().filter(|kept| **kept).count() <= most);
            assert_eq!(kept[..told - most], vec![false; told - most], "the oldest go");
            assert!(kept[told - 4096..].iter().all(|kept| *kept), "and no others");
            assert!(batch.observation_clock("b", "pod/0")?.is_some(), "nor those of others");
            Ok(())
        })
        .await
        .unwrap();
}
