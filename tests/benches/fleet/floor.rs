//! The floor: the same bytes to as many receivers through a bare mosquitto, which signs, stores and waits for nothing.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flotilla_tests::process::Process;
use flotilla_tests::wait;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};

use super::crowd::now_us;
use super::hub;
use crate::report::Report;
use crate::say;

/// What a one-field change is, in about.
const PAYLOAD_BYTES: usize = 280;
const TOPIC: &[u8] = b"fleet/default";
const MESSAGES: usize = 20;
/// Connections opened at one time.
const CONNECTING_MAX: usize = 64;

/// A broker of one's own.
pub(crate) struct Broker {
    pub(crate) address: SocketAddr,
    process: Process,
}

impl Broker {
    pub(crate) fn start(folder: &Path) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let configuration = folder.join("mosquitto.conf");
        let text = format!(
            "listener {} 127.0.0.1\nallow_anonymous true\npersistence false\nmax_queued_messages 0\nlog_type error\nuser root\n",
            address.port()
        );
        std::fs::write(&configuration, text).unwrap();
        let program = flotilla_tests::process_path("mosquitto").expect("this phase needs mosquitto");
        let arguments = ["-c".to_owned(), configuration.to_string_lossy().into_owned()];
        let process = Process::start(&program, &arguments, &folder.join("mosquitto.log"));
        wait::until_true("mosquitto listens", || std::net::TcpStream::connect(address).is_ok());
        Self { address, process }
    }

    pub(crate) fn url(&self) -> String {
        format!("mqtt://{}", self.address)
    }

    pub(crate) fn pid(&self) -> i32 {
        self.process.pid()
    }
}

/// One message to `devices` subscribers, again and again.
pub(crate) fn measure(folder: &Path, devices: usize, report: &mut Report) {
    say("floor: a bare broker ...");
    let broker = Broker::start(folder);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (each, last, cpu_ms) = runtime.block_on(fan_out(&broker, devices));
    report.spread("floor: mosquitto, QoS 0: publish -> received by each", &each, "ms", None);
    report.spread("floor: mosquitto, QoS 0: publish -> received by the last", &last, "ms", None);
    report.add("floor: mosquitto's processor per delivery", cpu_ms * 1000.0 / (MESSAGES * devices) as f64, "us");
}

async fn fan_out(broker: &Broker, devices: usize) -> (Vec<f64>, Vec<f64>, f64) {
    let (sender, mut received) = mpsc::channel(devices);
    let connecting = Arc::new(Semaphore::new(CONNECTING_MAX));
    for number in 0..devices {
        let permit = Arc::clone(&connecting).acquire_owned().await.unwrap();
        let mut stream = open(broker.address, number).await;
        let sender = sender.clone();
        tokio::spawn(async move {
            let topic_len = u8::try_from(TOPIC.len()).unwrap();
            stream.write_all(&[&[0x82, topic_len + 5, 0, 1, 0, topic_len], TOPIC, &[0]].concat()).await.unwrap();
            stream.read_exact(&mut [0; 5]).await.unwrap();
            drop(permit);
            let mut message = vec![0; message().len()];
            while stream.read_exact(&mut message).await.is_ok() {
                sender.send(now_us()).await.unwrap();
            }
        });
    }
    // All permits back: all have subscribed.
    drop(connecting.acquire_many(u32::try_from(CONNECTING_MAX).unwrap()).await.unwrap());
    let mut publisher = open(broker.address, devices).await;
    let before = hub::usage(broker.pid()).cpu_ms;
    let (mut each, mut last) = (Vec::new(), Vec::new());
    for _ in 0..MESSAGES {
        let sent = now_us();
        publisher.write_all(&message()).await.unwrap();
        let mut latest: f64 = 0.0;
        for _ in 0..devices {
            let came = tokio::time::timeout(Duration::from_secs(60), received.recv()).await.unwrap().unwrap();
            let ms = came.saturating_sub(sent) as f64 / 1000.0;
            latest = latest.max(ms);
            each.push(ms);
        }
        last.push(latest);
    }
    (each, last, hub::usage(broker.pid()).cpu_ms - before)
}

/// A connection of MQTT 3.1.1 without keep-alive.
async fn open(address: SocketAddr, number: usize) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let id = format!("floor-{number:06}");
    let body = [&[0, 4][..], b"MQTT", &[4, 2, 0, 0, 0, u8::try_from(id.len()).unwrap()], id.as_bytes()].concat();
    stream.write_all(&[&[0x10, u8::try_from(body.len()).unwrap()], &body[..]].concat()).await.unwrap();
    stream.read_exact(&mut [0; 4]).await.unwrap();
    stream
}

/// A PUBLISH with QoS 0.
fn message() -> Vec<u8> {
    let length = 2 + TOPIC.len() + PAYLOAD_BYTES;
    let low = u8::try_from(length % 128).unwrap() | 0x80;
    let high = u8::try_from(length / 128).unwrap();
    let topic_len = u8::try_from(TOPIC.len()).unwrap();
    [&[0x30, low, high, 0, topic_len], TOPIC, &[7; PAYLOAD_BYTES]].concat()
}
