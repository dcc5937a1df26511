//! MQTT 3.1.1 (rumqttc) through any broker: TLS 1.3 between device and hub inside a numbered byte stream.
//!
//! The broker is trusted with nothing: it can delay and drop, and end a stream by that, no more. Messages travel with QoS 0 because
//! no broker's QoS survives its restart or its full queue; a gap ends the session and a new one starts. A lost connection to the
//! broker, on either side, ends the streams over it for the same reason.
//!
//! Start at `frame` (the bytes), `stream` (the rules, pure), `link` (the two as a byte stream), then `hub` and `device`.

mod device;
mod frame;
mod hub;
mod link;
mod stream;
mod topic;
mod url;

use std::time::Duration;

use rumqttc::{MqttOptions, NetworkOptions};

pub(super) use device::{connect, connect_enrol};
pub(super) use hub::{Listening, listen};
pub use url::{BrokerUrl, BrokerUrlError};

/// Label of the value that binds an enrolment to its connection (RFC 5705).
const EXPORTER_LABEL: &[u8] = b"EXPORTER-flotilla-enrol";
/// How long a broker may take to answer a connection attempt.
const BROKER_TIMEOUT_S: u64 = 5;
/// The client says to the broker that it lives.
const BROKER_KEEP_ALIVE: Duration = Duration::from_secs(120);
/// Larger messages end the connection to the broker; a broker can be told to refuse them (mosquitto: `message_size_limit 65536`).
const PACKET_BYTES_MAX: usize = 1 << 20;

fn options(broker: &BrokerUrl, client_id: String) -> MqttOptions {
    let mut options = MqttOptions::new(client_id, broker.host(), broker.port());
    options
        .set_clean_session(true)
        .set_keep_alive(BROKER_KEEP_ALIVE)
        .set_max_packet_size(PACKET_BYTES_MAX, frame::FRAME_BYTES_MAX + 512);
    if let Some((user, password)) = broker.login() {
        options.set_credentials(user, password);
    }
    options
}

fn network_options() -> NetworkOptions {
    let mut options = NetworkOptions::new();
    options.set_connection_timeout(BROKER_TIMEOUT_S);
    options.set_tcp_nodelay(true);
    options
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
