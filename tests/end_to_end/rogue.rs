//! A device with a valid certificate that says whatever a test wishes, frame by frame.

use std::sync::Arc;
use std::time::Duration;

use flotilla_sync::channel::ChannelName;
use flotilla_sync::enrol::{self, Enrolment, Introduction, Proof, Token};
use flotilla_sync::identity::writer::WriterIdentity;
use flotilla_sync::identity::{DeviceKeys, FlooredClock, NodeName, TrustTime};
use flotilla_sync::log::{Batch, LogWriter};
use flotilla_sync::record::Draft;
use flotilla_sync::transport::{Connector, EnrolConnector, Pipe, Target};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// How long the hub may take to answer a frame.
const LIMIT: Duration = Duration::from_secs(20);

/// The numbers of the frames used here (`sync/src/session/frame.rs`).
const HELLO: u64 = 0;
const CHANNEL: u64 = 2;
const WRITER: u64 = 3;
const BATCH: u64 = 4;
pub(crate) const ACK: u64 = 5;
const OBSERVATIONS: u64 = 10;
pub(crate) const OBSERVATIONS_ACK: u64 = 11;
const GOODBYE: u64 = 14;

pub(crate) struct Rogue {
    runtime: tokio::runtime::Runtime,
    keys: DeviceKeys,
    pub(crate) enrolment: Enrolment,
}

impl Rogue {
    /// Enrols with a token, as any device does.
    pub(crate) fn enrol(token: &str, name: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let token = Token::parse(token).unwrap();
        let keys = DeviceKeys::generate().unwrap();
        let introduction = Introduction {
            proof: Proof::Token(token.proof()),
            node: NodeName::parse(name).unwrap(),
            labels: std::collections::BTreeMap::new(),
            pin: token.pin,
            root: token.root,
        };
        let enrolment = runtime.block_on(async {
            let connector = EnrolConnector::new(token.pin, &token.root, &time(0)).unwrap();
            let stream = connector.connect(&Target::Quic(token.quic[0].clone())).await.unwrap();
            enrol::enrol(stream, &introduction, &keys).await.unwrap()
        });
        Self { runtime, keys, enrolment }
    }

    /// A writer of its own logs.
    pub(crate) fn writer(&self, seed: u8) -> WriterIdentity {
        let enrolment = &self.enrolment;
        WriterIdentity::for_device([seed; 32], enrolment.incarnation, &self.keys.signing, &enrolment.certificate)
            .unwrap()
    }

    /// Says hello and then `frames`; answers the reason with which the hub ends the session.
    pub(crate) fn goodbye_to(&self, frames: &[Vec<u8>]) -> String {
        let answer = self.talk(frames, GOODBYE);
        let reason = answer.get(2..).unwrap_or_default();
        // Behind the head of a text: one byte up to 23, then one or two bytes of length.
        let skipped = match reason.first() {
            Some(0x60..=0x77) => 1,
            Some(0x78) => 2,
            _ => 3,
        };
        String::from_utf8_lossy(reason.get(skipped..).unwrap_or_default()).into_owned()
    }

    /// Says hello and then `frames`; answers the first frame of this kind.
    pub(crate) fn talk(&self, frames: &[Vec<u8>], until: u64) -> Vec<u8> {
        let hello = Cbor::array(7).uint(HELLO).list(1).uint(1).uint(self.enrolment.incarnation).uint(1);
        let hello = hello.list(0).list(0).null().done();
        let talk = async {
            let mut pipe = self.connect().await;
            for frame in std::iter::once(&hello).chain(frames) {
                pipe.writer.write_u32(u32::try_from(frame.len()).unwrap()).await.unwrap();
                pipe.writer.write_all(frame).await.unwrap();
            }
            pipe.writer.flush().await.unwrap();
            loop {
                let length = pipe.reader.read_u32().await.expect("the hub ended the session without a word");
                let mut frame = vec![0; usize::try_from(length).unwrap()];
                pipe.reader.read_exact(&mut frame).await.unwrap();
                let kind = u64::from(frame[1]);
                if kind == until {
                    return frame;
                }
                assert_ne!(kind, GOODBYE, "the hub ended the session: {}", String::from_utf8_lossy(&frame));
            }
        };
        self.runtime.block_on(async { tokio::time::timeout(LIMIT, talk).await.expect("the hub never answered") })
    }

    /// Sends these bytes after the transport's own hello; waits until the hub has closed the stream.
    pub(crate) fn noise(&self, bytes: &[u8]) {
        let talk = async {
            let mut pipe = self.connect().await;
            pipe.writer.write_all(bytes).await.unwrap();
            pipe.writer.flush().await.unwrap();
            let mut rest = Vec::new();
            // A reset is an end too.
            pipe.reader.read_to_end(&mut rest).await.unwrap_or_default();
        };
        self.runtime
            .block_on(async { tokio::time::timeout(LIMIT, talk).await.expect("the hub goes on listening to noise") });
    }

    async fn connect(&self) -> Pipe {
        let enrolment = &self.enrolment;
        let node = enrolment.certificate.node.clone();
        let time = time(enrolment.hub_time_ms);
        let connector =
            Connector::new(&enrolment.credentials, &enrolment.authority, &enrolment.root, node, &time).unwrap();
        connector.connect(&Target::Quic(enrolment.quic[0].clone())).await.unwrap()
    }
}

/// A board without a clock battery: the floor is all it has.
fn time(floor_ms: u64) -> Arc<dyn TrustTime> {
    FlooredClock::new(|| 0, floor_ms)
}

/// Introduces a channel and a writer, and sends a batch of that log from its beginning.
pub(crate) fn log_frames(
    writer: &WriterIdentity,
    channel: &str,
    drafts: Vec<Draft>,
    bend: impl Fn(&mut Vec<u8>),
) -> Vec<Vec<u8>> {
    let channel = ChannelName::parse(channel).unwrap();
    let mut log = LogWriter::new(writer.clone(), std::collections::BTreeMap::new());
    let verified = log.append(&channel, drafts).unwrap();
    let Batch { first_seq, prev, payload, .. } = verified.batch().clone();
    let mut payload = payload.to_vec();
    bend(&mut payload);
    vec![
        Cbor::array(3).uint(CHANNEL).uint(0).text(&channel.to_string()).done(),
        Cbor::array(3).uint(WRITER).uint(0).bytes(writer.chain().encode()).done(),
        Cbor::array(6).uint(BATCH).uint(0).uint(0).bytes(&payload).uint(first_seq).bytes(&prev).done(),
    ]
}

/// One observation.
pub(crate) fn observation_frame(incarnation: u64, subject: &str, body: &[u8]) -> Vec<u8> {
    let frame = Cbor::array(3).uint(OBSERVATIONS).uint(1).list(1);
    frame.list(6).text(subject).uint(incarnation).uint(1).uint(1).uint(1).bytes(body).done()
}

/// The little of CBOR (RFC 8949) that frames are made of.
struct Cbor(Vec<u8>);

impl Cbor {
    fn array(len: u64) -> Self {
        Self(Vec::new()).list(len)
    }

    fn list(self, len: u64) -> Self {
        self.head(0x80, len)
    }

    fn uint(self, value: u64) -> Self {
        self.head(0x00, value)
    }

    fn bytes(self, value: &[u8]) -> Self {
        let mut cbor = self.head(0x40, value.len() as u64);
        cbor.0.extend_from_slice(value);
        cbor
    }

    fn text(self, value: &str) -> Self {
        let mut cbor = self.head(0x60, value.len() as u64);
        cbor.0.extend_from_slice(value.as_bytes());
        cbor
    }

    fn null(mut self) -> Self {
        self.0.push(0xf6);
        self
    }

    fn head(mut self, kind: u8, value: u64) -> Self {
        let bytes = value.to_be_bytes();
        match value {
            0..=23 => self.0.push(kind | bytes[7]),
            24..=0xff => self.0.extend([kind | 24, bytes[7]]),
            0x100..=0xffff => self.0.extend([kind | 25, bytes[6], bytes[7]]),
            0x1_0000..=0xffff_ffff => {
                self.0.push(kind | 26);
                self.0.extend_from_slice(&bytes[4..]);
            }
            _ => {
                self.0.push(kind | 27);
                self.0.extend_from_slice(&bytes);
            }
        }
        self
    }

    fn done(self) -> Vec<u8> {
        self.0
    }
}
