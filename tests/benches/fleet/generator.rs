//! A generator: one process with some of the devices, told what to do by the bench, a line of JSON at a time.

use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flotilla_sync::transport::{BrokerUrl, SharedSocket, Target};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::crowd::Crowd;
use super::device::Device;

/// Devices that share one UDP socket: a burst for all of them fits its buffer.
const DEVICES_PER_SOCKET: usize = 250;
/// Devices opened, or joining, at one time.
const OPENING_MAX: usize = 16;

/// Handshakes at one time.
const SHAKING_MAX: usize = 8;

/// What the bench says a generator is.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) folder: PathBuf,
    pub(crate) first: usize,
    pub(crate) count: usize,
    /// The hub's UDP address, or a broker's URL.
    pub(crate) road: String,
    /// Devices of this generator that dial at one time.
    pub(crate) dialling: usize,
}

impl Part {
    pub(crate) fn arguments(&self) -> Vec<String> {
        let folder = self.folder.to_string_lossy().into_owned();
        let [first, count, dialling] = [self.first, self.count, self.dialling].map(|number| number.to_string());
        vec!["generate".to_owned(), folder, first, count, self.road.clone(), dialling]
    }

    pub(crate) fn parse(arguments: &[String]) -> Self {
        let [folder, first, count, road, dialling] = arguments else { panic!("a generator needs five arguments") };
        let number = |text: &String| text.parse().unwrap();
        let road = road.clone();
        Self { folder: folder.into(), first: number(first), count: number(count), road, dialling: number(dialling) }
    }

    fn target(&self) -> Target {
        if self.road.starts_with("mqtt") {
            Target::Mqtt(BrokerUrl::parse(&self.road).unwrap())
        } else {
            Target::Quic(self.road.clone())
        }
    }
}

pub(crate) fn name_of(number: usize) -> String {
    format!("d{number:05}")
}

/// Runs until the bench closes standard input.
pub(crate) fn run(part: &Part) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (sender, commands) = mpsc::channel::<Value>(16);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if sender.blocking_send(serde_json::from_str(&line).unwrap()).is_err() {
                return;
            }
        }
    });
    runtime.block_on(obey(part, commands));
    // Threads that close twenty thousand databases in order are not waited for.
    std::process::exit(0);
}

struct Generator {
    part: Part,
    crowd: Arc<Crowd>,
    devices: Vec<Arc<Device>>,
    lives: JoinSet<()>,
}

async fn obey(part: &Part, mut commands: mpsc::Receiver<Value>) {
    let crowd = Arc::new(Crowd::of(part.count, part.dialling));
    let mut generator = Generator { part: part.clone(), crowd, devices: Vec::new(), lives: JoinSet::new() };
    while let Some(command) = commands.recv().await {
        let answer = generator.answer(&command).await;
        say(&answer);
    }
}

impl Generator {
    async fn answer(&mut self, command: &Value) -> Value {
        let number = |field: &str| command[field].as_u64().unwrap();
        match command["do"].as_str().unwrap() {
            "open" => self.open(command).await,
            "connect" => {
                let within_ms = number("within_ms");
                let count = self.devices.len() as u64;
                for (index, device) in self.devices.iter().enumerate() {
                    let after = Duration::from_micros(index as u64 * within_ms * 1000 / count);
                    self.lives.spawn(Arc::clone(device).live(self.part.target(), after));
                }
                json!({})
            }
            "cut" => {
                self.lives.shutdown().await;
                self.crowd.cut();
                json!({})
            }
            "shake" => {
                let fresh = command["fresh"].as_bool().unwrap();
                let mut shaking = JoinSet::new();
                for device in &self.devices {
                    if shaking.len() >= SHAKING_MAX {
                        shaking.join_next().await.unwrap().unwrap();
                    }
                    let (device, target) = (Arc::clone(device), self.part.target());
                    shaking.spawn(async move { device.shake_hands(&target, fresh).await });
                }
                shaking.join_all().await;
                json!({})
            }
            "expect" => {
                self.crowd.expect(number("seq"));
                json!({})
            }
            "arrival" => {
                let arrival = self.crowd.arrival().await;
                let (came, durable): (Vec<u64>, Vec<u64>) = arrival.into_iter().unzip();
                json!({"came": came, "durable": durable})
            }
            "census" => {
                let (lacking, connected, seq) = self.crowd.census();
                json!({"lacking": lacking, "connected": connected, "seq": seq})
            }
            "counts" => {
                let (counts, troubles) = self.crowd.take_counts();
                json!({"counts": counts, "troubles": troubles})
            }
            "report" => {
                let mut pods = 0;
                for device in &self.devices {
                    pods += device.report().await.unwrap();
                    tokio::task::yield_now().await;
                }
                json!({"pods": pods})
            }
            "check" => {
                let wanted = command["value"].as_str().unwrap();
                let right = self.devices.iter().filter(|device| device.value().as_deref() == Some(wanted)).count();
                json!({"right": right})
            }
            other => panic!("an unknown command {other}"),
        }
    }

    /// Opens all devices; those without an identity join with the tokens given.
    async fn open(&mut self, command: &Value) -> Value {
        let tokens: Vec<String> = serde_json::from_value(command["tokens"].clone()).unwrap();
        let mut opening = JoinSet::new();
        let mut opened: Vec<Option<Arc<Device>>> = vec![None; self.part.count];
        let mut sockets = Vec::new();
        if !self.part.road.starts_with("mqtt") {
            for _ in 0..self.part.count.div_ceil(DEVICES_PER_SOCKET) {
                sockets.push(SharedSocket::towards(self.part.road.parse().unwrap()).unwrap());
            }
        }
        for index in 0..self.part.count {
            while opening.len() >= OPENING_MAX {
                take(&mut opened, opening.join_next().await.unwrap());
            }
            let name = name_of(self.part.first + index);
            let folder = self.part.folder.join(&name);
            let token = tokens.get(index % tokens.len().max(1)).cloned();
            let socket = sockets.get(index / DEVICES_PER_SOCKET).cloned();
            let crowd = Arc::clone(&self.crowd);
            opening.spawn(async move { (index, open(&folder, &name, token, (crowd, index), socket).await) });
        }
        while let Some(joined) = opening.join_next().await {
            take(&mut opened, joined);
        }
        self.devices = opened.into_iter().map(Option::unwrap).collect();
        json!({"devices": self.devices.len()})
    }
}

fn take(opened: &mut [Option<Arc<Device>>], joined: Result<(usize, Device), tokio::task::JoinError>) {
    let (index, device) = joined.unwrap();
    opened[index] = Some(Arc::new(device));
}

/// Opens a device; a hub that is busy with others is asked again.
async fn open(
    folder: &Path,
    name: &str,
    token: Option<String>,
    place: (Arc<Crowd>, usize),
    socket: Option<SharedSocket>,
) -> Device {
    let mut last = String::new();
    for attempt in 1..50_u64 {
        match Device::open(folder, name, token.clone(), place.clone(), socket.clone()).await {
            Ok(device) => return device,
            Err(error) => last = error,
        }
        tokio::time::sleep(Duration::from_millis(100 * attempt)).await;
    }
    panic!("{name} cannot be opened: {last}");
}

#[expect(clippy::print_stdout, reason = "this is how a generator answers the bench")]
fn say(answer: &Value) {
    println!("{answer}");
}
