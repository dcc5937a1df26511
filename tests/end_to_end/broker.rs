//! A fleet that lives by a broker: one that trusts nobody, as `flotilla hub broker` has it, and one that drops what it can.

use flotilla_sync::channel::ChannelName;
use flotilla_sync::enrol::Token;
use flotilla_sync::position::SignedPosition;
use flotilla_tests::fleet::{Containers, Fleet, Road};
use flotilla_tests::mqtt::MqttClient;
use flotilla_tests::process::Process;
use flotilla_tests::{say, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::BINARY;
use crate::story::{self, WEB, by_node, env, pod_pids};

/// More than any socket of the loopback holds on to.
const FLOOD_BYTES_MAX: usize = 256 << 20;
/// As large as our own: larger ones than they ask for are not sent to hub and device at all.
const FLOOD_MESSAGE: [u8; 8 << 10] = [0xff; 8 << 10];
const FLOOD_ROUND: usize = 384;

fn wait_for_colour(fleet: &Fleet, node: &str, value: &str) {
    wait::until(&format!("{node} runs COLOUR={value}"), || {
        story::process_has(fleet, node, "COLOUR", value)?;
        let pods = fleet.local_kubectl(node).json("get pods -A -l app=web")?;
        let pods = pods["items"].as_array().unwrap();
        let right = pods.iter().any(|pod| env(pod, "COLOUR") == value && flotilla_tests::fleet::is_ready(pod));
        if right { Ok(()) } else { Err(format!("{pods:?}")) }
    });
}

#[test]
fn a_fleet_lives_behind_a_broker_that_trusts_nobody() {
    if !story::ready_to_run() || !story::broker_is_here() {
        return;
    }
    let mut fleet = Fleet::start(BINARY, Road::Mqtt, &[]);
    fleet.secure_broker();
    fleet.stop_hub();
    fleet.start_hub();
    // They join where strangers are let in, and come back with their certificates.
    for node in ["n1", "n2"] {
        fleet.join(node, &[]);
        fleet.wait_for_node(node, "Ready");
    }
    fleet.apply(WEB);
    let before = by_node(&fleet, "app=web", 2);
    let road = fleet.kubectl().json("get node n1").unwrap()["metadata"]["annotations"]["flotilla.dev/road"].clone();
    assert!(road.as_str().unwrap().starts_with("mqtt mqtts://localhost"), "{road}");
    fleet.kubectl().run("set env ds/web COLOUR=green");
    for node in ["n1", "n2"] {
        wait_for_colour(&fleet, node, "green");
    }
    wait::until("the hub sees the new pods", || {
        let after = by_node(&fleet, "app=web", 2);
        if after.iter().all(|(node, pod)| *pod != before[node]) { Ok(()) } else { Err(format!("{after:?}")) }
    });

    // The broker dies and returns, and nothing that runs takes notice.
    let pids = pod_pids(&fleet, "n1");
    fleet.kill_broker();
    fleet.start_broker();
    fleet.kubectl().run("label daemonset web note=after --overwrite");
    wait::until("the change is at the device", || {
        let web = fleet.local_kubectl("n1").json("get daemonset web")?;
        if web["metadata"]["labels"]["note"] == "after" { Ok(()) } else { Err(web["metadata"].to_string()) }
    });
    assert_eq!(pod_pids(&fleet, "n1"), pids);

    // Its door is shut to whoever has no certificate.
    let entered = MqttClient::attempt(fleet.broker_port(), "flotilla-anybody");
    assert!(entered.is_err(), "a client without TLS was let in");
}

/// Stopped, and going on when dropped, also when a test fails.
struct Stopped(Pid);

impl Stopped {
    fn new(process: &Process) -> Self {
        let pid = Pid::from_raw(process.pid());
        kill(pid, Signal::SIGSTOP).unwrap();
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may have been killed meanwhile.
        kill(self.0, Signal::SIGCONT).unwrap_or_default();
    }
}

/// How many messages the broker says it has dropped; it counts once a second, and says so when the number has changed.
fn dropped(port: u16) -> u64 {
    let mut client = MqttClient::connect(port, "flotilla-counter");
    client.subscribe("$SYS/broker/publish/messages/dropped");
    let kept = client.heard();
    kept.last().map_or(0, |message| String::from_utf8_lossy(&message.payload).parse().unwrap())
}

/// Says junk on a topic whose one reader stands still, until the broker drops.
fn flood(port: u16, topic: &str) {
    let before = dropped(port);
    let mut bare = MqttClient::connect(port, "flotilla-flood");
    let mut said = 0;
    let now = wait::until("the broker drops", || {
        if said < FLOOD_BYTES_MAX {
            for _ in 0..FLOOD_ROUND {
                bare.publish(topic, &FLOOD_MESSAGE);
            }
            bare.ping();
            said += FLOOD_ROUND * FLOOD_MESSAGE.len();
        }
        let now = dropped(port);
        if now > before + 16 { Ok(now) } else { Err(format!("{before}, then {now}")) }
    });
    say(&format!("the broker dropped {} messages on {topic} after {said} bytes", now - before));
}

/// Where the device's stream to the hub goes: `flotilla/v2/INSTALLATION/d/USER/up/HUB`.
fn stream_topic(listener: &mut MqttClient) -> String {
    loop {
        let message = listener.hear();
        if message.topic.contains("/d/system:node:n1/up/") {
            return message.topic;
        }
    }
}

#[test]
fn a_broker_that_drops_messages_loses_nothing_of_ours() {
    if !story::ready_to_run() || !story::broker_is_here() {
        return;
    }
    let mut fleet = Fleet::with_agents(BINARY, Road::Mqtt, Containers::Processes, 1);
    fleet.apply(WEB);
    by_node(&fleet, "app=web", 1);
    // The smallest it can be told: one message waits for a client, one is on its way.
    fleet.restart_broker_with("max_queued_messages 1\nmax_inflight_messages 1\nsys_interval 1\n");
    let port = fleet.broker_port();
    let mut listener = MqttClient::connect(port, "flotilla-listener");
    listener.subscribe("flotilla/v2/+/d/+/up/+");
    fleet.kubectl().run("set env ds/web COLOUR=green");
    wait_for_colour(&fleet, "n1", "green");
    let up = stream_topic(&mut listener);
    position_is_kept(&fleet);

    // Towards a hub that stands still: what the device has to tell is dropped.
    let stopped = Stopped::new(fleet.hub());
    // Where every hub listens, and the listener does not.
    flood(port, &up.replace("/up/1", "/gone"));
    listener.heard();
    let before = restarts_there(&fleet);
    let pid = pod_pids(&fleet, "n1")[0];
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    wait::until("the device has started its container again", || {
        let restarts = restarts_there(&fleet);
        if restarts > before { Ok(()) } else { Err(restarts.to_string()) }
    });
    let told = stream_topic(&mut listener);
    assert_eq!(told, up, "the device has told it to the broker");
    drop(stopped);
    wait::until("the hub knows of the restart", || {
        let pods = fleet.kubectl().json("get pods -l app=web")?;
        let restarts = pods["items"][0]["status"]["containerStatuses"][0]["restartCount"].as_i64();
        if restarts > Some(before) { Ok(()) } else { Err(format!("{restarts:?}")) }
    });

    // Towards a device that stands still: what the hub wants of it is dropped.
    let down = up.replace("/up/", "/down/");
    let stopped = Stopped::new(fleet.agent("n1"));
    flood(port, &down);
    for colour in ["yellow", "orange", "red"] {
        fleet.kubectl().run(&format!("set env ds/web COLOUR={colour}"));
    }
    drop(stopped);
    wait_for_colour(&fleet, "n1", "red");
    wait::until("the hub sees the last of it", || {
        let pods = fleet.kubectl().json("get pods -l app=web")?;
        let items = pods["items"].as_array().unwrap();
        let right = items.len() == 1 && env(&items[0], "COLOUR") == "red" && flotilla_tests::fleet::is_ready(&items[0]);
        if right { Ok(()) } else { Err(pods.to_string()) }
    });
}

/// Whoever comes finds at the broker how far the fleet's channel is, signed by the hub.
fn position_is_kept(fleet: &Fleet) {
    let root = Token::parse(&fleet.token(&["--node", "n9"])).unwrap().root;
    let channel = ChannelName::parse("fleet/default").unwrap();
    let found = wait::until("a position is kept", || {
        let mut late = MqttClient::connect(fleet.broker_port(), "flotilla-late");
        late.subscribe("flotilla/v2/+/fleet/+");
        late.heard().into_iter().find(|message| message.retain).ok_or_else(|| "nothing".to_owned())
    });
    let position = SignedPosition::verify(&found.payload.into(), &root, &channel).unwrap();
    assert!(position.seq > 0, "{position:?}");
}

/// How often the device says that its container was started again.
fn restarts_there(fleet: &Fleet) -> i64 {
    let pods = fleet.local_kubectl("n1").json("get pods -A -l app=web").unwrap();
    pods["items"][0]["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap()
}
