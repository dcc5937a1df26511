//! Events of this device: what plans notice about pods, told once each time it begins.
//!
//! Owns the newest Events, for the local API and for the hub. Refuses to decide what is worth telling: a plan's notices are. Nothing
//! here is stored: what still holds after a restart of the agent is told again, under the same name. Start reading at [`Events::take_in`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flotilla_manifests::object::Object;
use flotilla_manifests::time::Timestamp;
use flotilla_manifests::{derive, digest, kind};
use serde_json::{Value, json};

use crate::reconcile::{Notice, Severity};

/// Events kept for the local API; the oldest of what no longer holds go first.
const EVENTS_LEN_MAX: usize = 256;
/// How long one is shown after it was last seen (the default of Kubernetes' `--event-ttl`).
const SHOWN_MS: u64 = 60 * 60 * 1000;
/// One that comes and goes is told to the hub at most this often.
const TOLD_AGAIN_MS: u64 = 60 * 1000;
/// As at the hub.
const MESSAGE_BYTES_MAX: usize = 1024;
const COMPONENT: &str = "flotilla-agent";

/// The newest Events of one device.
#[derive(Debug, Default)]
pub struct Events {
    /// By name of the Event.
    known: BTreeMap<String, Known>,
    /// See [`Events::generation`].
    generation: u64,
}

#[derive(Debug)]
struct Known {
    /// With the pod's uid on this device.
    object: Arc<Object>,
    /// Uid by which the hub knows the pod.
    subject: String,
    last: Timestamp,
    count: u64,
    /// Whether the newest plan still says so.
    holds: bool,
    /// When it was last put into the outbox, and the count told then.
    told: Option<(Timestamp, u64)>,
}

/// A pod as an Event names it.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    pub pod: &'a Object,
    /// The uid the hub knows it by.
    pub uid_at_hub: &'a str,
}

impl Events {
    /// Takes in what holds now. What did not hold before becomes an Event, or is counted in the one there is.
    pub fn take_in<'a>(
        &mut self,
        node: &str,
        notices: &BTreeMap<String, BTreeSet<Notice>>,
        subject: impl Fn(&str) -> Option<Subject<'a>>,
        now: Timestamp,
    ) {
        let mut holding = BTreeSet::new();
        for (uid, notices) in notices {
            let Some(subject) = subject(uid) else { continue };
            for notice in notices {
                let name = name(subject.pod, notice);
                holding.insert(name.clone());
                match self.known.get_mut(&name) {
                    Some(known) if known.holds => {}
                    Some(known) => {
                        known.again(now);
                        self.generation += 1;
                    }
                    None => {
                        self.generation += 1;
                        let object = Arc::new(event(node, &name, subject.pod, notice, now));
                        let subject = subject.uid_at_hub.to_owned();
                        let known = Known { object, subject, last: now, count: 1, holds: true, told: None };
                        self.known.insert(name, known);
                    }
                }
            }
        }
        for (name, known) in &mut self.known {
            known.holds = holding.contains(name);
        }
        self.forget(now);
    }

    /// It changes whenever [`Events::objects`] do.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// For the local API.
    pub fn objects(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.known.values().map(|known| &known.object)
    }

    /// What the hub has to be told, by name: subject and body of an observation.
    pub fn untold(&self, now: Timestamp) -> Vec<(String, String, Value)> {
        let due = self.known.iter().filter(|(_, known)| match known.told {
            None => true,
            Some((at, count)) => count < known.count && now.0.saturating_sub(at.0) >= TOLD_AGAIN_MS,
        });
        due.map(|(name, known)| {
            let mut body = known.object.value().clone();
            body["involvedObject"]["uid"] = known.subject.clone().into();
            (name.clone(), format!("event/{}", known.object.uid()), body)
        })
        .collect()
    }

    /// These are in the outbox.
    pub fn told(&mut self, names: &[String], now: Timestamp) {
        for name in names {
            if let Some(known) = self.known.get_mut(name) {
                known.told = Some((now, known.count));
            }
        }
    }

    fn forget(&mut self, now: Timestamp) {
        let before = self.known.len();
        self.known.retain(|_, known| known.holds || now.0.saturating_sub(known.last.0) < SHOWN_MS);
        while self.known.len() > EVENTS_LEN_MAX {
            let oldest = self.known.iter().min_by_key(|(_, known)| (known.holds, known.last));
            let Some(name) = oldest.map(|(name, _)| name.clone()) else { break };
            self.known.remove(&name);
        }
        if self.known.len() != before {
            self.generation += 1;
        }
    }
}

impl Known {
    fn again(&mut self, now: Timestamp) {
        self.count = self.count.saturating_add(1);
        self.last = now;
        let value = Arc::make_mut(&mut self.object).value_mut();
        value["count"] = self.count.into();
        value["lastTimestamp"] = now.to_rfc3339().into();
    }
}

/// The same for the same thing happening to the same pod.
fn name(pod: &Object, notice: &Notice) -> String {
    let hash: String = uid(pod, notice).chars().filter(|letter| *letter != '-').take(16).collect();
    let start = derive::prefix(pod.name(), 253 - 17).trim_end_matches(['-', '.']);
    format!("{start}.{hash}")
}

fn uid(pod: &Object, notice: &Notice) -> String {
    let same = json!([pod.uid(), severity(notice), notice.reason, notice.message]);
    derive::uuid_v8(&digest::of_value(&same))
}

fn severity(notice: &Notice) -> &'static str {
    match notice.severity {
        Severity::Normal => "Normal",
        Severity::Warning => "Warning",
    }
}

fn event(node: &str, name: &str, pod: &Object, notice: &Notice, now: Timestamp) -> Object {
    let mut event = Object::empty(&kind::EVENT, pod.namespace(), name);
    let since = now.to_rfc3339();
    event.metadata_mut().insert("uid".into(), uid(pod, notice).into());
    event.metadata_mut().insert("creationTimestamp".into(), since.clone().into());
    let fields = json!({
        "involvedObject": {
            "apiVersion": "v1", "kind": "Pod", "namespace": pod.namespace(), "name": pod.name(), "uid": pod.uid(),
        },
        "type": severity(notice), "reason": notice.reason,
        "message": derive::prefix(&notice.message, MESSAGE_BYTES_MAX),
        "count": 1, "firstTimestamp": since, "lastTimestamp": since,
        "source": {"component": COMPONENT, "host": node},
        "reportingComponent": COMPONENT, "reportingInstance": node,
    });
    if let (Value::Object(event), Value::Object(fields)) = (event.value_mut(), fields) {
        event.extend(fields);
    }
    event
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn pod() -> Object {
        let mut pod = Object::empty(&kind::POD, "shop", "web");
        pod.metadata_mut().insert("uid".into(), "here".into());
        pod
    }

    fn notices(messages: &[&str]) -> BTreeMap<String, BTreeSet<Notice>> {
        let notice = |message: &&str| Notice {
            severity: Severity::Warning,
            reason: "FailedMount".into(),
            message: (*message).to_owned(),
        };
        BTreeMap::from([("here".to_owned(), messages.iter().map(notice).collect())])
    }

    fn take_in(events: &mut Events, messages: &[&str], now: u64) {
        let pod = pod();
        let subject = |_: &str| Some(Subject { pod: &pod, uid_at_hub: "there" });
        events.take_in("edge-1", &notices(messages), subject, Timestamp(now));
    }

    fn tell(events: &mut Events, now: u64) -> Vec<Value> {
        let untold = events.untold(Timestamp(now));
        let names: Vec<String> = untold.iter().map(|(name, ..)| name.clone()).collect();
        events.told(&names, Timestamp(now));
        untold.into_iter().map(|(_, _, body)| body).collect()
    }

    #[test]
    fn what_holds_is_told_once_and_counted_when_it_returns() {
        let mut events = Events::default();
        take_in(&mut events, &["no map"], 1_000);
        let told = tell(&mut events, 1_000);
        assert_eq!(told.len(), 1);
        assert_eq!(told[0]["involvedObject"]["uid"], "there");
        assert_eq!(events.objects().next().unwrap().text("/involvedObject/uid"), "here");
        for now in 2..50 {
            take_in(&mut events, &["no map"], now * 1_000);
            assert_eq!(tell(&mut events, now * 1_000), Vec::<Value>::new(), "it goes on holding");
        }
        take_in(&mut events, &[], 50_000);
        take_in(&mut events, &["no map"], 51_000);
        assert_eq!(tell(&mut events, 51_000), Vec::<Value>::new(), "too soon");
        let again = tell(&mut events, 61_000);
        assert_eq!(
            (again[0]["count"].clone(), again[0]["lastTimestamp"].clone()),
            (json!(2), json!("1970-01-01T00:00:51Z"))
        );
        assert_eq!(again[0]["metadata"]["name"], told[0]["metadata"]["name"]);
    }

    #[test]
    fn what_is_over_is_forgotten_in_time_and_there_are_never_too_many() {
        let mut events = Events::default();
        take_in(&mut events, &["over", "stays"], 0);
        take_in(&mut events, &["stays"], 1_000);
        take_in(&mut events, &["stays"], SHOWN_MS + 1_000);
        let left: Vec<&str> = events.objects().map(|event| event.text("/message")).collect();
        assert_eq!(left, ["stays"]);
        for round in 0..EVENTS_LEN_MAX as u64 + 50 {
            take_in(&mut events, &["stays", &format!("fault {round}")], SHOWN_MS + 2_000 + round);
        }
        assert_eq!(events.objects().count(), EVENTS_LEN_MAX);
        assert!(events.objects().any(|event| event.text("/message") == "stays"));
    }

    #[test]
    fn an_event_is_one_that_clients_can_read() {
        let mut events = Events::default();
        take_in(&mut events, &[&"ü".repeat(2_000)], 0);
        let event = events.objects().next().unwrap();
        assert_eq!(flotilla_manifests::schema::type_errors(event), []);
        assert!(event.text("/message").len() <= MESSAGE_BYTES_MAX && event.name().len() <= 253);
    }
}
