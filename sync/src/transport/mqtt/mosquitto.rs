//! What mosquitto is told so that a device reads and writes its own at the broker, and nothing else.
//!
//! Owns the words of `mosquitto.conf(5)` and of its access lists; what they allow is said by [`topic`](super::topic). Two listeners, because
//! mosquitto asks all or none of a listener's clients for a certificate:
//!
//! - **Devices and hub.** The certificate's common name is user name and client identifier, so that the lists hold for whoever has
//!   the key, and nobody can end another's connection by his identifier.
//! - **Strangers**: whoever has no certificate yet, or an expired one. A stranger reaches the topics of its own client identifier alone,
//!   which it makes up of 128 random bits. `clientid_prefixes` is judged by what a client says before mosquitto puts the common name in its
//!   place: strangers cannot say a device's.

use super::topic::{Access, CLIENT_PREFIX, Placeholders};
use crate::identity::{HUB_USER, InstallationId};

/// mosquitto's own notation (`acl_file`, "pattern").
const PLACEHOLDERS: Placeholders = Placeholders { user: "%u", client: "%c" };
/// Most strangers connected at one time.
const STRANGERS_MAX: u16 = 256;
/// Messages that may wait for one client. Beyond it mosquitto drops, and the streams that lost something begin anew.
const QUEUED_MAX: u16 = 8_192;
/// Larger messages are refused. Ours are about half as large.
const MESSAGE_BYTES_MAX: u32 = 16_384;
/// What mosquitto may allocate, TLS aside. Strangers can have it keep messages and sessions without end otherwise.
const MEMORY_BYTES_MAX: u32 = 256 << 20;

/// Names of the files, all in one folder.
pub const CONFIGURATION_FILE: &str = "flotilla.conf";
/// See [`Mosquitto::device_list`].
pub const DEVICE_LIST_FILE: &str = "devices.acl";
/// See [`Mosquitto::stranger_list`].
pub const STRANGER_LIST_FILE: &str = "strangers.acl";
/// The installation's authority.
pub const AUTHORITY_FILE: &str = "authority.pem";
/// The broker's certificate, followed by the authority.
pub const CERTIFICATE_FILE: &str = "broker.pem";
/// Its key: secret.
pub const KEY_FILE: &str = "broker.key";

/// A mosquitto for one installation.
#[derive(Debug)]
pub struct Mosquitto<'a> {
    /// Whose devices it serves.
    pub installation: &'a InstallationId,
    /// Where its files lie, for its configuration.
    pub folder: &'a str,
    /// Port for devices and hub.
    pub port: u16,
    /// Port for strangers; `None` when nobody enrols through it.
    pub enrol_port: Option<u16>,
}

impl Mosquitto<'_> {
    /// Its configuration, to be included from `mosquitto.conf`.
    pub fn configuration(&self) -> String {
        let folder = self.folder;
        let mut text = format!(
            "# Made by `flotilla hub broker` for mosquitto 2.0 or later; making it again overwrites it.\n\
             per_listener_settings true\n\
             # Holds for what a client says, before use_username_as_clientid: strangers cannot take a device's identifier.\n\
             clientid_prefixes {CLIENT_PREFIX}\n\
             # Nothing needs to survive a restart of the broker.\n\
             persistence false\n\
             persistent_client_expiration 1h\n\
             memory_limit {MEMORY_BYTES_MAX}\n\
             message_size_limit {MESSAGE_BYTES_MAX}\n\
             max_queued_messages {QUEUED_MAX}\n\
             \n\
             # The hub and the devices, by certificates of this installation.\n\
             listener {}\n\
             cafile {folder}/{AUTHORITY_FILE}\n\
             certfile {folder}/{CERTIFICATE_FILE}\n\
             keyfile {folder}/{KEY_FILE}\n\
             require_certificate true\n\
             use_identity_as_username true\n\
             use_username_as_clientid true\n\
             allow_anonymous false\n\
             acl_file {folder}/{DEVICE_LIST_FILE}\n",
            self.port
        );
        if let Some(port) = self.enrol_port {
            text.push_str(&format!(
                "\n\
                 # Whoever has no certificate yet, or an expired one: one attempt to enrol, with a token or the device's key.\n\
                 listener {port}\n\
                 certfile {folder}/{CERTIFICATE_FILE}\n\
                 keyfile {folder}/{KEY_FILE}\n\
                 allow_anonymous true\n\
                 max_connections {STRANGERS_MAX}\n\
                 acl_file {folder}/{STRANGER_LIST_FILE}\n"
            ));
        }
        text
    }

    /// What hub and devices may do: one list for any number of devices.
    pub fn device_list(&self) -> String {
        let hub = lines("topic", &Access::of_hub(self.installation));
        let device = lines("pattern", &Access::of_device(self.installation, PLACEHOLDERS));
        format!(
            "# The hub, by the name in its certificate.\nuser {HUB_USER}\n{hub}\n# Each device: %u is the name in its certificate.\n{device}"
        )
    }

    /// What somebody without a certificate may do.
    pub fn stranger_list(&self) -> String {
        let stranger = lines("pattern", &Access::of_stranger(self.installation, PLACEHOLDERS));
        format!("# One attempt to enrol: %c is its random name.\n{stranger}")
    }
}

fn lines(word: &str, access: &Access) -> String {
    let line = |what: &str, topic: &String| format!("{word} {what} {topic}\n");
    let reads = access.reads.iter().map(|topic| line("read", topic));
    reads.chain(access.writes.iter().map(|topic| line("write", topic))).collect()
}
