//! A bare client of a broker, MQTT 3.1.1 over TCP: hears and says what a test wants, and knows nothing of what the messages mean.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

/// How long a broker may take for anything.
const LIMIT: Duration = Duration::from_secs(30);

/// A connection.
#[derive(Debug)]
pub struct MqttClient {
    stream: TcpStream,
    /// Messages that came while something else was waited for.
    waiting: Vec<Message>,
}

/// What a subscription brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub topic: String,
    pub payload: Vec<u8>,
    pub retain: bool,
}

impl MqttClient {
    pub fn connect(port: u16, client_id: &str) -> Self {
        Self::attempt(port, client_id).expect("the broker lets the test in")
    }

    /// # Errors
    /// What the broker does instead of letting it in.
    pub fn attempt(port: u16, client_id: &str) -> Result<Self, String> {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        let mut client = Self { stream, waiting: Vec::new() };
        let body = [&text("MQTT")[..], &[4, 2, 0, 0], &text(client_id)].concat();
        client.send(0x10, &body);
        let mut answer = [0; 4];
        client.stream.read_exact(&mut answer).map_err(|error| error.to_string())?;
        if answer == [0x20, 2, 0, 0] { Ok(client) } else { Err(format!("{answer:?}")) }
    }

    /// Subscribes with QoS 0, and waits until it is granted.
    pub fn subscribe(&mut self, filter: &str) {
        let body = [&[0, 1][..], &text(filter), &[0]].concat();
        self.send(0x82, &body);
        self.wait_for(0x90);
    }

    /// Says something with QoS 0.
    pub fn publish(&mut self, topic: &str, payload: &[u8]) {
        let body = [&text(topic)[..], payload].concat();
        self.send(0x30, &body);
    }

    /// Waits until the broker has taken all that was said.
    pub fn ping(&mut self) {
        self.send(0xc0, &[]);
        self.wait_for(0xd0);
    }

    /// What has come so far; nothing that the broker sent before is missing.
    pub fn heard(&mut self) -> Vec<Message> {
        self.ping();
        std::mem::take(&mut self.waiting)
    }

    /// Waits for the next message.
    pub fn hear(&mut self) -> Message {
        if !self.waiting.is_empty() {
            return self.waiting.remove(0);
        }
        loop {
            let (kind, body) = self.packet();
            if let Some(message) = message(kind, &body) {
                return message;
            }
        }
    }

    fn wait_for(&mut self, wanted: u8) {
        loop {
            let (kind, body) = self.packet();
            if kind == wanted {
                return;
            }
            self.waiting.extend(message(kind, &body));
        }
    }

    fn send(&mut self, kind: u8, body: &[u8]) {
        let mut packet = vec![kind];
        let mut rest = body.len();
        loop {
            let byte = u8::try_from(rest % 128).unwrap();
            rest /= 128;
            packet.push(if rest > 0 { byte | 0x80 } else { byte });
            if rest == 0 {
                break;
            }
        }
        packet.extend(body);
        self.stream.write_all(&packet).unwrap();
    }

    fn packet(&mut self) -> (u8, Vec<u8>) {
        let kind = self.byte();
        let (mut length, mut shift) = (0, 0);
        loop {
            let byte = self.byte();
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).expect("the broker went on");
        (kind, body)
    }

    fn byte(&mut self) -> u8 {
        let mut byte = [0];
        self.stream.read_exact(&mut byte).expect("the broker went on");
        byte[0]
    }
}

fn message(kind: u8, body: &[u8]) -> Option<Message> {
    if kind & 0xf0 != 0x30 {
        return None;
    }
    let (length, rest) = body.split_at(2);
    let (topic, payload) = rest.split_at(usize::from(u16::from_be_bytes([length[0], length[1]])));
    let topic = String::from_utf8(topic.to_vec()).unwrap();
    Some(Message { topic, payload: payload.to_vec(), retain: kind & 1 == 1 })
}

fn text(text: &str) -> Vec<u8> {
    [&u16::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat()
}
