//! The packets of MQTT 3.1.1 and 5.0 that a client with QoS 0 needs, as bytes. Pure.
//!
//! OASIS MQTT 3.1.1 and 5.0, section 3. What a broker sends is checked against a size before it is kept and read without trust:
//! properties that are not known here are skipped by their type, anything else that does not fit ends the connection.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Most topics of one connection that are sent as a number, when a broker of version 5 allows it.
pub(super) const ALIASES_MAX: u16 = 16;

/// Version of the protocol between client and broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Version {
    /// 3.1.1.
    V311,
    /// 5.0.
    V5,
}

/// What opens a connection. The session ends with it.
#[derive(Debug)]
pub(super) struct Connect<'a> {
    pub(super) version: Version,
    pub(super) client_id: &'a str,
    pub(super) keep_alive_s: u16,
    pub(super) login: Option<(&'a str, &'a str)>,
    pub(super) will: (&'a str, &'a [u8]),
    /// Largest packet the broker may send; told to a broker of version 5.
    pub(super) packet_bytes_max: u32,
}

/// A packet of the broker's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Packet {
    ConnAck(ConnAck),
    SubAck {
        /// The first reason code that is no grant.
        refused: Option<u8>,
    },
    Message(Message),
    PingResp,
    Disconnect {
        code: u8,
        reason: Option<String>,
    },
}

/// The broker's answer to a connection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct ConnAck {
    /// 0: accepted.
    pub(super) code: u8,
    /// Why not, in the broker's words.
    pub(super) reason: Option<String>,
    pub(super) keep_alive_s: Option<u16>,
    pub(super) aliases_max: u16,
    pub(super) packet_bytes_max: Option<u32>,
    /// It was said as only a broker of 3.1.1 says it.
    pub(super) is_old: bool,
}

/// A message of a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) topic: String,
    pub(super) payload: Bytes,
    pub(super) retain: bool,
}

/// Bytes that are no packet of the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the broker sent what is no MQTT: {0}")]
pub(super) struct Malformed(pub(super) &'static str);

impl Version {
    fn level(self) -> u8 {
        match self {
            Self::V311 => 4,
            Self::V5 => 5,
        }
    }

    /// `3.1.1` or `5`.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::V311 => "3.1.1",
            Self::V5 => "5",
        }
    }
}

impl Connect<'_> {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        const CLEAN: u8 = 0b10;
        const WILL: u8 = 0b100;
        let login = if self.login.is_some() { 0b1100_0000 } else { 0 };
        let mut body = BytesMut::new();
        text(&mut body, "MQTT");
        body.put_u8(self.version.level());
        body.put_u8(CLEAN | WILL | login);
        body.put_u16(self.keep_alive_s);
        if self.version == Version::V5 {
            // Session expiry 0: nothing is kept. Maximum packet size: the broker drops what is larger.
            let mut properties = BytesMut::new();
            properties.put_u8(17);
            properties.put_u32(0);
            properties.put_u8(39);
            properties.put_u32(self.packet_bytes_max);
            length(&mut body, properties.len());
            body.put_slice(&properties);
        }
        text(&mut body, self.client_id);
        if self.version == Version::V5 {
            body.put_u8(0);
        }
        text(&mut body, self.will.0);
        binary(&mut body, self.will.1);
        if let Some((user, password)) = self.login {
            text(&mut body, user);
            text(&mut body, password);
        }
        packet(out, 0x10, &body);
    }
}

/// Subscribes to filters with QoS 0, as packet 1.
pub(super) fn subscribe(version: Version, filters: &[String], out: &mut BytesMut) {
    let mut body = BytesMut::new();
    body.put_u16(1);
    if version == Version::V5 {
        body.put_u8(0);
    }
    for filter in filters {
        text(&mut body, filter);
        body.put_u8(0);
    }
    packet(out, 0x82, &body);
}

/// A message with QoS 0. `alias`: the number of the topic, and whether the broker is told it with this message. `expiry_s`: how long
/// the message is worth delivering.
pub(super) fn publish(
    version: Version,
    topic: &str,
    alias: Option<(u16, Alias)>,
    expiry_s: u32,
    payload: &[u8],
    out: &mut BytesMut,
) {
    let topic = if matches!(alias, Some((_, Alias::Known))) { "" } else { topic };
    let mut head = BytesMut::new();
    text(&mut head, topic);
    if version == Version::V5 {
        head.put_u8(if alias.is_some() { 8 } else { 5 });
        head.put_u8(2);
        head.put_u32(expiry_s);
        if let Some((number, _)) = alias {
            head.put_u8(35);
            head.put_u16(number);
        }
    }
    out.put_u8(0x30);
    length(out, head.len() + payload.len());
    out.put_slice(&head);
    out.put_slice(payload);
}

/// Whether the broker knows which topic a number stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alias {
    New,
    Known,
}

pub(super) fn ping(out: &mut BytesMut) {
    out.put_slice(&[0xc0, 0]);
}

/// Leaves in order: the will is not published.
pub(super) fn disconnect(out: &mut BytesMut) {
    out.put_slice(&[0xe0, 0]);
}

/// Takes the next packet off the buffer; `None` when more bytes must come first. Packets of no meaning here are passed over.
pub(super) fn decode(
    version: Version,
    buffer: &mut BytesMut,
    packet_bytes_max: usize,
) -> Result<Option<Packet>, Malformed> {
    loop {
        let Some((head, body)) = framed(buffer, packet_bytes_max)? else { return Ok(None) };
        let mut whole = buffer.split_to(head + body).freeze();
        let first = whole[0];
        whole.advance(head);
        let packet = match first >> 4 {
            2 => Some(Packet::ConnAck(conn_ack(version, whole)?)),
            3 => Some(Packet::Message(message(version, first, whole)?)),
            9 => Some(sub_ack(version, whole)?),
            13 => Some(Packet::PingResp),
            14 => Some(disconnected(version, whole)?),
            _ => None,
        };
        if packet.is_some() {
            return Ok(packet);
        }
    }
}

/// Lengths of the next packet's head and body, once all of it is there.
fn framed(buffer: &[u8], packet_bytes_max: usize) -> Result<Option<(usize, usize)>, Malformed> {
    let (mut body, mut head) = (0, 1);
    loop {
        let Some(byte) = buffer.get(head) else { return Ok(None) };
        body |= usize::from(byte & 0x7f) << (7 * (head - 1));
        head += 1;
        if byte & 0x80 == 0 {
            break;
        }
        if head > 4 {
            return Err(Malformed("a length of more than four bytes"));
        }
    }
    if head + body > packet_bytes_max {
        return Err(Malformed("a packet larger than was allowed"));
    }
    Ok((buffer.len() >= head + body).then_some((head, body)))
}

fn conn_ack(version: Version, mut body: Bytes) -> Result<ConnAck, Malformed> {
    if body.len() < 2 {
        return Err(Malformed("a short answer to the connection"));
    }
    body.advance(1);
    let mut answer = ConnAck { code: body.get_u8(), is_old: body.is_empty(), ..ConnAck::default() };
    if version == Version::V5 && !answer.is_old {
        properties(&mut body, |kind, value| {
            match (kind, value) {
                (19, Value::Two(seconds)) => answer.keep_alive_s = Some(seconds),
                (31, Value::Text(text)) => answer.reason = Some(shown(&text)),
                (34, Value::Two(most)) => answer.aliases_max = most.min(ALIASES_MAX),
                (39, Value::Four(bytes)) => answer.packet_bytes_max = Some(bytes),
                _ => {}
            };
        })?;
    }
    Ok(answer)
}

fn sub_ack(version: Version, mut body: Bytes) -> Result<Packet, Malformed> {
    take(&mut body, 2)?;
    if version == Version::V5 {
        properties(&mut body, |_kind, _value| {})?;
    }
    Ok(Packet::SubAck { refused: body.iter().copied().find(|code| *code >= 0x80) })
}

fn message(version: Version, first: u8, mut body: Bytes) -> Result<Message, Malformed> {
    if first & 0b110 != 0 {
        return Err(Malformed("a message with a quality of service that was not asked for"));
    }
    let length = usize::from(two(&mut body)?);
    let topic = take(&mut body, length)?;
    let topic = std::str::from_utf8(&topic).map_err(|_bytes| Malformed("a topic that is no text"))?.to_owned();
    if version == Version::V5 {
        properties(&mut body, |_kind, _value| {})?;
    }
    Ok(Message { topic, payload: body, retain: first & 1 == 1 })
}

fn disconnected(version: Version, mut body: Bytes) -> Result<Packet, Malformed> {
    let (mut code, mut reason) = (0, None);
    if version == Version::V5 && !body.is_empty() {
        code = body.get_u8();
        if !body.is_empty() {
            properties(&mut body, |kind, value| {
                if let (31, Value::Text(text)) = (kind, value) {
                    reason = Some(shown(&text));
                }
            })?;
        }
    }
    Ok(Packet::Disconnect { code, reason })
}

/// Value of a property of version 5.
enum Value {
    One,
    Two(u16),
    Four(u32),
    Number,
    Text(Bytes),
    Pair,
}

/// Reads a list of properties (MQTT 5.0, 2.2.2).
fn properties(body: &mut Bytes, mut visit: impl FnMut(u8, Value)) -> Result<(), Malformed> {
    let length = number(body)?;
    let mut list = take(body, length)?;
    while !list.is_empty() {
        let kind = list.get_u8();
        let value = match kind {
            1 | 23 | 25 | 36 | 37 | 40 | 41 | 42 => {
                take(&mut list, 1)?;
                Value::One
            }
            19 | 33 | 34 | 35 => Value::Two(two(&mut list)?),
            2 | 17 | 24 | 39 => Value::Four(take(&mut list, 4)?.get_u32()),
            11 => {
                number(&mut list)?;
                Value::Number
            }
            3 | 8 | 9 | 18 | 21 | 22 | 26 | 28 | 31 => {
                let length = usize::from(two(&mut list)?);
                Value::Text(take(&mut list, length)?)
            }
            38 => {
                for _ in 0..2 {
                    let length = usize::from(two(&mut list)?);
                    take(&mut list, length)?;
                }
                Value::Pair
            }
            _ => return Err(Malformed("a property that does not exist")),
        };
        visit(kind, value);
    }
    Ok(())
}

fn take(bytes: &mut Bytes, length: usize) -> Result<Bytes, Malformed> {
    if bytes.len() < length {
        return Err(Malformed("a packet that ends too early"));
    }
    Ok(bytes.split_to(length))
}

fn two(bytes: &mut Bytes) -> Result<u16, Malformed> {
    take(bytes, 2).map(|mut bytes| bytes.get_u16())
}

fn number(bytes: &mut Bytes) -> Result<usize, Malformed> {
    let mut value = 0;
    for place in 0..4 {
        let byte = take(bytes, 1)?[0];
        value |= usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Malformed("a number of more than four bytes"))
}

/// A reason in the broker's words, bounded for a log line.
fn shown(text: &[u8]) -> String {
    String::from_utf8_lossy(text).chars().filter(|letter| !letter.is_control()).take(200).collect()
}

fn text(out: &mut BytesMut, text: &str) {
    binary(out, text.as_bytes());
}

fn binary(out: &mut BytesMut, bytes: &[u8]) {
    // Topics, names and logins are bounded far below this.
    let length = bytes.len().min(usize::from(u16::MAX));
    out.put_u16(u16::try_from(length).unwrap_or(u16::MAX));
    out.put_slice(&bytes[..length]);
}

fn length(out: &mut BytesMut, mut length: usize) {
    loop {
        let low = u8::try_from(length & 0x7f).unwrap_or_default();
        length >>= 7;
        out.put_u8(if length > 0 { low | 0x80 } else { low });
        if length == 0 {
            break;
        }
    }
}

fn packet(out: &mut BytesMut, first: u8, body: &[u8]) {
    out.put_u8(first);
    length(out, body.len());
    out.put_slice(body);
}

/// What a reason code means (MQTT 5.0, 2.4; 3.1.1, 3.2.2.3).
pub(super) fn meaning(version: Version, code: u8) -> &'static str {
    match (version, code) {
        (_, 1) | (Version::V5, 0x84) => "it does not speak this version of MQTT",
        (_, 2) | (Version::V5, 0x85) => "it does not accept the client's name",
        (_, 3) | (Version::V5, 0x88) => "its server is unavailable",
        (_, 4) | (Version::V5, 0x86) => "user name or password is wrong",
        (_, 5) | (Version::V5, 0x87) => "this client is not authorized",
        (Version::V5, 0x89) => "it is busy",
        (Version::V5, 0x8a) => "this client is banned",
        (Version::V5, 0x8b) => "it is shutting down",
        (Version::V5, 0x8d) => "it heard nothing for too long",
        (Version::V5, 0x8e) => "another client with the same name took over: two devices with one identity?",
        (Version::V5, 0x8f) => "it does not accept the topic filter",
        (Version::V5, 0x90) => "it does not accept the topic",
        (Version::V5, 0x93..=0x97) => "a limit of the broker was passed",
        (Version::V5, 0x98) => "an administrator ended the connection",
        (Version::V5, 0x9c | 0x9d) => "it refers to another server",
        (Version::V5, 0x9f) => "too many connections at this moment",
        (_, 0) => "it gave no reason",
        _ => "an error of the protocol",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
