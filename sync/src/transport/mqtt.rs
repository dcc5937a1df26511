//! MQTT 5 or 3.1.1 through any broker: TLS 1.3 between device and hub inside a numbered byte stream.
//!
//! The broker is trusted with nothing: it can delay and drop, and end a stream by that, no more. Messages travel with QoS 0 because
//! no broker's QoS survives its restart or its full queue; a gap ends the session and a new one starts. A lost connection to the
//! broker, on either side, ends the streams over it for the same reason.
//!
//! Start at `frame` (the bytes), `stream` (the rules, pure), `link` (the two as a byte stream), then `hub` and `device`. The
//! client of the broker is ours, over rumqttc's codecs: `packet` (pure) and `client`. `topic` says who may say what where, `mosquitto` says it
//! to a broker.

mod announce;
mod client;
mod device;
mod frame;
mod hub;
mod link;
pub mod mosquitto;
mod packet;
mod stream;
mod tls;
mod topic;
mod url;

pub(super) use announce::Announcer;
pub(super) use device::{connect, connect_enrol};
pub(super) use hub::{Listening, listen};
pub use url::{BrokerUrl, BrokerUrlError};

/// Label of the value that binds an enrolment to its connection (RFC 5705).
const EXPORTER_LABEL: &[u8] = b"EXPORTER-flotilla-enrol";

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
