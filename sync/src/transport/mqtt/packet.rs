//! The packets of MQTT 3.1.1 and 5 that a client with QoS 0 needs, one shape for both: the codecs are rumqttc's. No I/O.
//!
//! What a broker sends is measured before it is kept, and cut out before it is read: the codecs see whole packets alone. Start at
//! [`Connect::encode`] and [`decode`].

use bytes::{Bytes, BytesMut};
use rumqttc::mqttbytes::{QoS, v4};
use rumqttc::v5::mqttbytes::{QoS as QoS5, v5};

/// Most topics of one connection that are sent as a number, when a broker of version 5 allows it.
pub(super) const ALIASES_MAX: u16 = 16;
/// Ours are bounded by their makers; the codecs ask for a bound of their own.
const OUTGOING_BYTES_MAX: u32 = 1 << 20;

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
    pub(super) will: &'a Publish,
    /// Largest packet the broker may send; told to a broker of version 5.
    pub(super) packet_bytes_max: u32,
}

/// What is published, with QoS 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Publish {
    pub(super) topic: String,
    pub(super) payload: Bytes,
    pub(super) keep: Keep,
}

/// Whether the broker keeps a message for those who subscribe later ("retain"). An empty one takes away what is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    No,
    Retained,
}

/// A packet of the broker's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Packet {
    ConnAck(ConnAck),
    SubAck {
        /// Why the first filter that was not granted was not.
        refused: Option<String>,
    },
    Message(Message),
    PingResp,
    Disconnect {
        why: String,
    },
}

/// The broker's answer to a connection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct ConnAck {
    /// Why not, if it refuses.
    pub(super) refused: Option<String>,
    /// It does not speak this version.
    pub(super) is_other_version: bool,
    pub(super) keep_alive_s: Option<u16>,
    pub(super) aliases_max: u16,
    pub(super) packet_bytes_max: Option<u32>,
    /// Subscriptions can be shared.
    pub(super) shares: bool,
}

/// A message of a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) topic: String,
    pub(super) payload: Bytes,
    pub(super) retain: bool,
}

/// Whether the broker knows which topic a number stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alias {
    New,
    Known,
}

/// Bytes that are no packet of the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the broker sent what is no MQTT: {0}")]
pub(super) struct Malformed(String);

impl Malformed {
    fn of(error: &dyn std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

impl Version {
    /// `3.1.1` or `5`.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::V311 => "3.1.1",
            Self::V5 => "5",
        }
    }
}

/// A packet on its way out.
enum Outgoing {
    V4(v4::Packet),
    V5(Box<v5::Packet>),
}

impl Outgoing {
    fn encode(&self, out: &mut BytesMut) -> Result<(), Malformed> {
        match self {
            Self::V4(packet) => packet.write(out, OUTGOING_BYTES_MAX as usize).map_err(|error| Malformed::of(&error)),
            Self::V5(packet) => packet.write(out, Some(OUTGOING_BYTES_MAX)).map_err(|error| Malformed::of(&error)),
        }
        .map(|_length| ())
    }
}

impl Connect<'_> {
    pub(super) fn encode(&self, out: &mut BytesMut) -> Result<(), Malformed> {
        let Publish { topic, payload, keep } = self.will;
        let (topic, retain) = (topic.as_str(), *keep == Keep::Retained);
        let packet = match self.version {
            Version::V311 => {
                let mut connect = v4::Connect::new(self.client_id);
                connect.keep_alive = self.keep_alive_s;
                connect.last_will = Some(v4::LastWill::new(topic, payload.to_vec(), QoS::AtMostOnce, retain));
                connect.login = self.login.map(|(user, password)| v4::Login::new(user, password));
                Outgoing::V4(v4::Packet::Connect(connect))
            }
            Version::V5 => {
                // Session expiry 0: nothing is kept. Maximum packet size: the broker drops what is larger.
                let mut properties = v5::ConnectProperties::new();
                properties.session_expiry_interval = Some(0);
                properties.max_packet_size = Some(self.packet_bytes_max);
                let connect = v5::Connect {
                    keep_alive: self.keep_alive_s,
                    client_id: self.client_id.to_owned(),
                    clean_start: true,
                    properties: Some(properties),
                };
                let will = v5::LastWill::new(topic, payload.to_vec(), QoS5::AtMostOnce, retain, None);
                let login = self.login.map(|(user, password)| v5::Login::new(user, password));
                Outgoing::V5(Box::new(v5::Packet::Connect(connect, Some(will), login)))
            }
        };
        packet.encode(out)
    }
}

/// Subscribes to filters with QoS 0.
pub(super) fn subscribe(version: Version, filters: &[String], out: &mut BytesMut) -> Result<(), Malformed> {
    let packet = match version {
        Version::V311 => {
            let filters = filters.iter().map(|filter| v4::SubscribeFilter::new(filter.clone(), QoS::AtMostOnce));
            let subscribe = v4::Subscribe { pkid: 1, ..v4::Subscribe::new_many(filters) };
            Outgoing::V4(v4::Packet::Subscribe(subscribe))
        }
        Version::V5 => {
            let filters = filters.iter().map(|filter| v5::Filter::new(filter.clone(), QoS5::AtMostOnce));
            let subscribe = v5::Subscribe { pkid: 1, ..v5::Subscribe::new_many(filters, None) };
            Outgoing::V5(Box::new(v5::Packet::Subscribe(subscribe)))
        }
    };
    packet.encode(out)
}

/// Ends a subscription.
pub(super) fn unsubscribe(version: Version, filter: String, out: &mut BytesMut) -> Result<(), Malformed> {
    // The broker's answer is of no interest, so the number may be that of the subscription.
    match version {
        Version::V311 => {
            Outgoing::V4(v4::Packet::Unsubscribe(v4::Unsubscribe { pkid: 1, ..v4::Unsubscribe::new(filter) }))
        }
        Version::V5 => {
            let unsubscribe = v5::Unsubscribe { pkid: 1, ..v5::Unsubscribe::new(filter, None) };
            Outgoing::V5(Box::new(v5::Packet::Unsubscribe(unsubscribe)))
        }
    }
    .encode(out)
}

/// `alias`: the number of the topic, and whether the broker is told it with this message. `expiry_s`: how long a message that is not kept is
/// worth delivering. Both are of version 5.
pub(super) fn publish(
    version: Version,
    message: Publish,
    alias: Option<(u16, Alias)>,
    expiry_s: u32,
    out: &mut BytesMut,
) -> Result<(), Malformed> {
    let Publish { topic, payload, keep } = message;
    let retain = keep == Keep::Retained;
    let packet = match version {
        Version::V311 => {
            let publish = v4::Publish::from_bytes(topic, QoS::AtMostOnce, payload);
            Outgoing::V4(v4::Packet::Publish(v4::Publish { retain, ..publish }))
        }
        Version::V5 => {
            let topic = if matches!(alias, Some((_, Alias::Known))) { String::new() } else { topic };
            let properties = v5::PublishProperties {
                message_expiry_interval: (!retain).then_some(expiry_s),
                topic_alias: alias.map(|(number, _)| number),
                ..v5::PublishProperties::default()
            };
            let publish = v5::Publish::new(topic, QoS5::AtMostOnce, payload, Some(properties));
            Outgoing::V5(Box::new(v5::Packet::Publish(v5::Publish { retain, ..publish })))
        }
    };
    packet.encode(out)
}

/// Asks whether the broker lives.
pub(super) fn ping(version: Version, out: &mut BytesMut) -> Result<(), Malformed> {
    match version {
        Version::V311 => Outgoing::V4(v4::Packet::PingReq),
        Version::V5 => Outgoing::V5(Box::new(v5::Packet::PingReq(v5::PingReq))),
    }
    .encode(out)
}

/// Leaves in order: the will is not published.
pub(super) fn disconnect(version: Version, out: &mut BytesMut) -> Result<(), Malformed> {
    let normal = v5::DisconnectReasonCode::NormalDisconnection;
    match version {
        Version::V311 => Outgoing::V4(v4::Packet::Disconnect),
        Version::V5 => Outgoing::V5(Box::new(v5::Packet::Disconnect(v5::Disconnect::new(normal)))),
    }
    .encode(out)
}

/// Takes the next packet off the buffer; `None` when more bytes must come first. Packets of no meaning here are passed over.
pub(super) fn decode(
    version: Version,
    buffer: &mut BytesMut,
    packet_bytes_max: usize,
) -> Result<Option<Packet>, Malformed> {
    while let Some(length) = framed(buffer, packet_bytes_max)? {
        let mut whole = buffer.split_to(length);
        let packet = match version {
            Version::V311 => packet_of_4(v4::Packet::read(&mut whole, length).map_err(|error| Malformed::of(&error))?)?,
            // A broker of 3.1.1 refuses in its own words, which have no properties.
            Version::V5 if length == 4 && whole[0] == 0x20 => Some(Packet::ConnAck(ConnAck {
                refused: Some("it answers as one of an earlier version".to_owned()),
                is_other_version: true,
                ..ConnAck::default()
            })),
            Version::V5 => {
                if let [0xe0, _, code @ ..] = &whole[..]
                    && code.len() < 2
                {
                    // A short farewell is lawful (MQTT 5, 3.14.2); the codec wants all of its fields.
                    whole = BytesMut::from(&[0xe0, 2, code.first().copied().unwrap_or(0), 0][..]);
                }
                packet_of_5(v5::Packet::read(&mut whole, None).map_err(|error| Malformed::of(&error))?)?
            }
        };
        if packet.is_some() {
            return Ok(packet);
        }
    }
    Ok(None)
}

/// Length of the next packet, once all of it is there.
fn framed(buffer: &[u8], packet_bytes_max: usize) -> Result<Option<usize>, Malformed> {
    let (mut body, mut head) = (0, 1);
    loop {
        let Some(byte) = buffer.get(head) else { return Ok(None) };
        body |= usize::from(byte & 0x7f) << (7 * (head - 1));
        head += 1;
        if byte & 0x80 == 0 {
            break;
        }
        if head > 4 {
            return Err(Malformed("a length of more than four bytes".to_owned()));
        }
    }
    if head + body > packet_bytes_max {
        return Err(Malformed(format!("a packet of {} bytes; {packet_bytes_max} are the most", head + body)));
    }
    Ok((buffer.len() >= head + body).then_some(head + body))
}

fn packet_of_4(packet: v4::Packet) -> Result<Option<Packet>, Malformed> {
    Ok(Some(match packet {
        v4::Packet::ConnAck(answer) => Packet::ConnAck(ConnAck {
            refused: (answer.code != v4::ConnectReturnCode::Success).then(|| spaced(&answer.code)),
            is_other_version: answer.code == v4::ConnectReturnCode::RefusedProtocolVersion,
            ..ConnAck::default()
        }),
        v4::Packet::SubAck(answer) => Packet::SubAck {
            refused: answer
                .return_codes
                .contains(&v4::SubscribeReasonCode::Failure)
                .then(|| "it says no more".to_owned()),
        },
        v4::Packet::Publish(message) if message.qos == QoS::AtMostOnce => {
            Packet::Message(Message { topic: message.topic, payload: message.payload, retain: message.retain })
        }
        v4::Packet::Publish(_) => return Err(Malformed("a quality of service that was not asked for".to_owned())),
        v4::Packet::PingResp => Packet::PingResp,
        v4::Packet::Disconnect => Packet::Disconnect { why: "it gave no reason".to_owned() },
        _ => return Ok(None),
    }))
}

fn packet_of_5(packet: v5::Packet) -> Result<Option<Packet>, Malformed> {
    use v5::{ConnectReturnCode as Code, SubscribeReasonCode as Granted};
    Ok(Some(match packet {
        v5::Packet::ConnAck(answer) => {
            let told = answer.properties.as_ref();
            let reason = told.and_then(|told| told.reason_string.as_deref());
            Packet::ConnAck(ConnAck {
                refused: (answer.code != Code::Success).then(|| with_reason(spaced(&answer.code), reason)),
                is_other_version: matches!(
                    answer.code,
                    Code::UnsupportedProtocolVersion | Code::RefusedProtocolVersion
                ),
                keep_alive_s: told.and_then(|told| told.server_keep_alive),
                aliases_max: told.and_then(|told| told.topic_alias_max).unwrap_or(0).min(ALIASES_MAX),
                packet_bytes_max: told.and_then(|told| told.max_packet_size),
                // Silence means yes (MQTT 5, 3.2.2.3.13).
                shares: told.and_then(|told| told.shared_subscription_available) != Some(0),
            })
        }
        v5::Packet::SubAck(answer) => {
            let reason = answer.properties.as_ref().and_then(|told| told.reason_string.as_deref());
            let refused = answer.return_codes.iter().find(|code| !matches!(code, Granted::Success(_)));
            Packet::SubAck { refused: refused.map(|code| with_reason(spaced(code), reason)) }
        }
        v5::Packet::Publish(message) if message.qos == QoS5::AtMostOnce => Packet::Message(Message {
            topic: String::from_utf8(message.topic.into()).map_err(|error| Malformed::of(&error))?,
            payload: message.payload,
            retain: message.retain,
        }),
        v5::Packet::Publish(_) => return Err(Malformed("a quality of service that was not asked for".to_owned())),
        v5::Packet::PingResp(_) => Packet::PingResp,
        v5::Packet::Disconnect(ended) => {
            let reason = ended.properties.as_ref().and_then(|told| told.reason_string.as_deref());
            let taken = ended.reason_code == v5::DisconnectReasonCode::SessionTakenOver;
            let hint = if taken { ": two devices with one identity?" } else { "" };
            Packet::Disconnect { why: with_reason(format!("{}{hint}", spaced(&ended.reason_code)), reason) }
        }
        _ => return Ok(None),
    }))
}

/// The name of a reason code as words: `NotAuthorized` is "not authorized".
fn spaced(code: &impl std::fmt::Debug) -> String {
    let mut words = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.extend(letter.to_lowercase());
    }
    words
}

/// A meaning with the broker's own words, bounded for a log line.
fn with_reason(meaning: String, reason: Option<&str>) -> String {
    let reason: String = reason.unwrap_or("").chars().filter(|letter| !letter.is_control()).take(200).collect();
    if reason.is_empty() { meaning } else { format!("{meaning} ({reason})") }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
