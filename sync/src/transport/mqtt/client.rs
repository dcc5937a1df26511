//! A client of a broker over rumqttc's codecs: one connection, messages with QoS 0, version 5 or 3.1.1, with or without TLS.
//!
//! Owns the socket, its keep-alive and the choice of the version. Refuses to come back by itself: a lost connection ends all streams
//! over it, so whoever lost it begins anew. Start at [`join`].

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::packet::{self, ALIASES_MAX, Alias, ConnAck, Connect, Keep, Malformed, Message, Packet, Publish, Version};
use super::topic::Filter;
use super::{BrokerUrl, frame, tls};
use crate::identity::Credentials;

/// How long a broker may take to let a client in, each step.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);
/// The client says to the broker that it lives at least this often, unless the broker asks for more.
const KEEP_ALIVE_S: u16 = 120;
/// A broker must answer that within this time.
const ANSWER: Duration = Duration::from_secs(20);
/// Larger packets of a broker of 3.1.1 end the connection; one of version 5 is told and drops them. A broker can be told to refuse
/// them anyway (mosquitto: `message_size_limit 65536`).
const PACKET_BYTES_MAX: usize = 1 << 20;
/// What the broker is told: no message of ours is larger, with its topic.
const PACKET_BYTES_TOLD: u32 = 16 * 1024;
/// A message that a broker could not deliver within this time is worth nothing: its stream has asked and ended. Seconds.
const EXPIRY_S: u32 = 60;
/// Messages kept that come before the subscriptions are granted.
const EARLY_LEN_MAX: usize = 64;
/// Bytes gathered for one write.
const OUTPUT_BYTES: usize = 32 * 1024;
const INPUT_BYTES: usize = 16 * 1024;

/// Who joins, and where.
#[derive(Debug)]
pub(super) struct Joining<'a> {
    pub(super) broker: &'a BrokerUrl,
    pub(super) client_id: String,
    /// Shown to a broker that asks for a certificate.
    pub(super) own: Option<&'a Credentials>,
    /// What the broker says when this client is gone without a word.
    pub(super) will: Publish,
    /// Said before the subscriptions.
    pub(super) news: Option<Publish>,
    pub(super) filters: Vec<Filter>,
    /// Messages that may wait to leave.
    pub(super) queue_len: usize,
}

/// Why a client cannot join.
#[derive(Debug, thiserror::Error)]
pub(super) enum JoinError {
    /// The broker does not speak that version, or fell silent at its sight.
    #[error("the broker does not speak MQTT {}: {why}", version.as_str())]
    Version { version: Version, why: String },
    /// It does not let this client in.
    #[error("the broker refuses this client: {0}")]
    Refused(String),
    /// The certificate it was shown is over.
    #[error("{}", Lost::CertificateExpired)]
    CertificateExpired,
    /// The way to it.
    #[error("{0}")]
    Io(String),
}

/// Sends. Clones share the connection, which ends in order when one says so.
#[derive(Debug, Clone)]
pub(super) struct Client {
    requests: mpsc::Sender<Request>,
}

/// The connection is gone, or its queue is full.
#[derive(Debug, thiserror::Error)]
#[error("the connection to the broker is gone")]
pub(super) struct Gone;

/// Why a connection to a broker ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Lost {
    #[error("the broker does not take this certificate: it has expired, says its clock")]
    CertificateExpired,
    #[error("{0}")]
    Other(String),
}

impl From<io::Error> for Lost {
    fn from(error: io::Error) -> Self {
        if tls::says_expired(&error) { Self::CertificateExpired } else { Self::Other(error.to_string()) }
    }
}

impl From<Malformed> for Lost {
    fn from(error: Malformed) -> Self {
        Self::Other(error.to_string())
    }
}

#[derive(Debug)]
enum Request {
    Publish(Publish),
    Unsubscribe(Filter),
    Leave,
}

/// Receives, and moves everything: it must be polled for anything to leave.
pub(super) struct Connection {
    reader: Box<dyn AsyncRead + Send + Unpin>,
    writer: Box<dyn AsyncWrite + Send + Unpin>,
    version: Version,
    input: BytesMut,
    output: BytesMut,
    unflushed: bool,
    requests: mpsc::Receiver<Request>,
    aliases: BTreeMap<String, u16>,
    aliases_max: u16,
    /// The broker shares subscriptions.
    shares: bool,
    /// Messages that came before the subscriptions were granted.
    early: VecDeque<Message>,
    packet_bytes_max: usize,
    keep_alive: Duration,
    ping_at: Instant,
    answer_by: Option<Instant>,
    leaving: bool,
}

/// Connects, with the version the address asks for, or with 5 and then with 3.1.1, and subscribes.
pub(super) async fn join(joining: &Joining<'_>) -> Result<(Client, Connection), JoinError> {
    let error = match joining.broker.version() {
        Some(version) => return join_with(joining, version).await,
        None => match join_with(joining, Version::V5).await {
            Err(JoinError::Version { why, .. }) => why,
            joined => return joined,
        },
    };
    tracing::debug!(broker = %joining.broker, error, "the broker does not speak MQTT 5: 3.1.1 is tried");
    join_with(joining, Version::V311).await
}

async fn join_with(joining: &Joining<'_>, version: Version) -> Result<(Client, Connection), JoinError> {
    let timeout = |what: &str| JoinError::Io(format!("no {what} within {} s", JOIN_TIMEOUT.as_secs()));
    let stream = tokio::time::timeout(JOIN_TIMEOUT, dial(joining)).await;
    let (reader, writer) = stream.map_err(|_elapsed| timeout("connection"))?.map_err(JoinError::Io)?;
    let (sender, requests) = mpsc::channel(joining.queue_len);
    let mut connection = Connection {
        reader,
        writer,
        version,
        input: BytesMut::new(),
        output: BytesMut::new(),
        unflushed: false,
        requests,
        aliases: BTreeMap::new(),
        aliases_max: 0,
        shares: false,
        early: VecDeque::new(),
        packet_bytes_max: PACKET_BYTES_MAX,
        keep_alive: Duration::from_secs(KEEP_ALIVE_S.into()),
        ping_at: Instant::now() + Duration::from_secs(KEEP_ALIVE_S.into()),
        answer_by: None,
        leaving: false,
    };
    let entered = tokio::time::timeout(JOIN_TIMEOUT, connection.enter(joining)).await;
    entered.map_err(|_elapsed| timeout("answer"))??;
    Ok((Client { requests: sender }, connection))
}

type Halves = (Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>);

async fn dial(joining: &Joining<'_>) -> Result<Halves, String> {
    let broker = joining.broker;
    let cannot = |error: io::Error| format!("cannot connect: {error}");
    let stream = TcpStream::connect((broker.host(), broker.port())).await.map_err(cannot)?;
    stream.set_nodelay(true).map_err(cannot)?;
    match broker.trust() {
        None => {
            let (reader, writer) = stream.into_split();
            Ok((Box::new(reader), Box::new(writer)))
        }
        Some(trust) => {
            let stream = tls::connect(stream, broker.host(), trust, joining.own).await?;
            let (reader, writer) = tokio::io::split(stream);
            Ok((Box::new(reader), Box::new(writer)))
        }
    }
}

impl Client {
    /// Sends; waits for room in the queue.
    pub(super) async fn publish(&self, topic: String, payload: Bytes) -> Result<(), Gone> {
        self.send(Publish { topic, payload, keep: Keep::No }).await
    }

    /// Sends any message; waits for room in the queue.
    pub(super) async fn send(&self, message: Publish) -> Result<(), Gone> {
        self.requests.send(Request::Publish(message)).await.map_err(|_gone| Gone)
    }

    /// Sends, if there is room.
    pub(super) fn try_publish(&self, topic: String, payload: Bytes) -> Result<(), Gone> {
        let request = Request::Publish(Publish { topic, payload, keep: Keep::No });
        self.requests.try_send(request).map_err(|_full_or_gone| Gone)
    }

    /// Ends a subscription; what is on its way still comes.
    pub(super) async fn unsubscribe(&self, filter: Filter) -> Result<(), Gone> {
        self.requests.send(Request::Unsubscribe(filter)).await.map_err(|_gone| Gone)
    }

    /// Leaves in order, after all that waits.
    pub(super) async fn leave(&self) -> Result<(), Gone> {
        self.requests.send(Request::Leave).await.map_err(|_gone| Gone)
    }
}

impl Connection {
    /// The next message; `None` after this side has left. Cancel-safe.
    ///
    /// # Errors
    /// Why the connection ended.
    pub(super) async fn next(&mut self) -> Result<Option<Message>, Lost> {
        if let Some(message) = self.early.pop_front() {
            return Ok(Some(message));
        }
        loop {
            while let Some(packet) = self.decode()? {
                match packet {
                    Packet::Message(message) => return Ok(Some(message)),
                    Packet::PingResp => self.answer_by = None,
                    Packet::Disconnect { why } => return Err(Lost::Other(ended_by_broker(&why))),
                    Packet::ConnAck(_) | Packet::SubAck { .. } => {}
                }
            }
            if self.leaving && self.output.is_empty() && !self.unflushed {
                // The broker closes; nothing more is expected of it.
                self.writer.shutdown().await.unwrap_or_default();
                return Ok(None);
            }
            self.step().await?;
        }
    }

    /// Which version was agreed on.
    pub(super) fn version(&self) -> Version {
        self.version
    }

    /// Moves some bytes or takes one request.
    async fn step(&mut self) -> Result<(), Lost> {
        self.input.reserve(INPUT_BYTES);
        let due = self.answer_by.map_or(self.ping_at, |by| by.min(self.ping_at));
        let has_room = self.output.len() < OUTPUT_BYTES && !self.leaving;
        let dirty = !self.output.is_empty() || self.unflushed;
        tokio::select! {
            read = self.reader.read_buf(&mut self.input) => if read? == 0 {
                return Err(Lost::Other("the broker closed the connection".to_owned()));
            },
            written = write(&mut self.writer, &mut self.output, &mut self.unflushed), if dirty => written?,
            Some(request) = self.requests.recv(), if has_room => self.take(request)?,
            () = tokio::time::sleep_until(due) => self.wait_is_over(due)?,
        }
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
        Ok(())
    }

    fn wait_is_over(&mut self, now: Instant) -> Result<(), Lost> {
        if self.answer_by.is_some_and(|by| now >= by) {
            return Err(Lost::Other("the broker does not answer".to_owned()));
        }
        packet::ping(self.version, &mut self.output)?;
        self.ping_at = now + self.keep_alive;
        self.answer_by = Some(now + ANSWER);
        Ok(())
    }

    fn take(&mut self, request: Request) -> Result<(), Malformed> {
        match request {
            Request::Publish(message) => self.publish(message),
            Request::Unsubscribe(filter) => {
                packet::unsubscribe(self.version, filter.said(self.shares), &mut self.output)
            }
            Request::Leave => {
                self.leaving = true;
                packet::disconnect(self.version, &mut self.output)
            }
        }
    }

    fn publish(&mut self, message: Publish) -> Result<(), Malformed> {
        let alias = match self.aliases.get(&message.topic) {
            Some(number) => Some((*number, Alias::Known)),
            None if self.aliases.len() < usize::from(self.aliases_max.min(ALIASES_MAX)) => {
                let number = u16::try_from(self.aliases.len() + 1).unwrap_or(ALIASES_MAX);
                self.aliases.insert(message.topic.clone(), number);
                Some((number, Alias::New))
            }
            None => None,
        };
        self.ping_at = Instant::now() + self.keep_alive;
        packet::publish(self.version, message, alias, EXPIRY_S, &mut self.output)
    }

    /// Opens the connection and subscribes.
    async fn enter(&mut self, joining: &Joining<'_>) -> Result<(), JoinError> {
        let connect = Connect {
            version: self.version,
            client_id: &joining.client_id,
            keep_alive_s: KEEP_ALIVE_S,
            login: joining.broker.login(),
            will: &joining.will,
            packet_bytes_max: PACKET_BYTES_TOLD,
        };
        let unsayable = |error: Malformed| JoinError::Io(error.to_string());
        connect.encode(&mut self.output).map_err(unsayable)?;
        let answer = loop {
            match self.answer().await {
                Ok(Packet::ConnAck(answer)) => break answer,
                Ok(_) => {}
                Err(Lost::Other(why)) if self.version == Version::V5 => {
                    return Err(JoinError::Version { version: self.version, why });
                }
                Err(lost) => return Err(lost.into()),
            }
        };
        self.admitted(&answer)?;
        if let Some(news) = &joining.news {
            self.publish(news.clone()).map_err(unsayable)?;
        }
        let filters: Vec<String> = joining.filters.iter().map(|filter| filter.said(self.shares)).collect();
        packet::subscribe(self.version, &filters, &mut self.output).map_err(unsayable)?;
        loop {
            match self.answer().await? {
                Packet::SubAck { refused: None } => return Ok(()),
                Packet::SubAck { refused: Some(why) } => {
                    return Err(JoinError::Refused(format!("it may not subscribe to its topics: {why}")));
                }
                Packet::Disconnect { why } => return Err(JoinError::Refused(ended_by_broker(&why))),
                // What was kept may come before the answer (MQTT 5, 3.8.4); streams begin later.
                Packet::Message(message) if self.early.len() < EARLY_LEN_MAX => self.early.push_back(message),
                Packet::Message(_) => {}
                Packet::ConnAck(_) | Packet::PingResp => {}
            }
        }
    }

    fn admitted(&mut self, answer: &ConnAck) -> Result<(), JoinError> {
        if let Some(why) = &answer.refused {
            let version = self.version;
            return Err(match (version, answer.is_other_version) {
                (Version::V5, true) => JoinError::Version { version, why: why.clone() },
                _ => JoinError::Refused(why.clone()),
            });
        }
        self.aliases_max = answer.aliases_max;
        self.shares = answer.shares;
        if let Some(seconds) = answer.keep_alive_s.filter(|seconds| *seconds > 0) {
            self.keep_alive = Duration::from_secs(seconds.min(KEEP_ALIVE_S).into());
            self.ping_at = Instant::now() + self.keep_alive;
        }
        let needed = u32::try_from(frame::FRAME_BYTES_MAX + 512).unwrap_or(u32::MAX);
        match answer.packet_bytes_max.filter(|most| *most < needed) {
            Some(most) => Err(JoinError::Refused(format!(
                "it takes packets of at most {most} bytes; {needed} are needed (mosquitto: max_packet_size)"
            ))),
            None => Ok(()),
        }
    }

    /// The next packet while joining.
    async fn answer(&mut self) -> Result<Packet, Lost> {
        loop {
            if let Some(packet) = self.decode()? {
                return Ok(packet);
            }
            self.step().await?;
        }
    }

    fn decode(&mut self) -> Result<Option<Packet>, Malformed> {
        packet::decode(self.version, &mut self.input, self.packet_bytes_max)
    }
}

impl From<Lost> for JoinError {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::CertificateExpired => Self::CertificateExpired,
            Lost::Other(why) => Self::Io(why),
        }
    }
}

fn ended_by_broker(why: &str) -> String {
    format!("the broker ended the connection: {why}")
}

/// Writes once, or flushes once everything is written. Cancel-safe.
async fn write(
    writer: &mut (dyn AsyncWrite + Send + Unpin),
    output: &mut BytesMut,
    unflushed: &mut bool,
) -> io::Result<()> {
    if output.is_empty() {
        writer.flush().await?;
        *unflushed = false;
        return Ok(());
    }
    let written = writer.write(output).await?;
    if written == 0 {
        return Err(io::ErrorKind::WriteZero.into());
    }
    *unflushed = true;
    output.advance(written);
    if output.is_empty() {
        *output = BytesMut::new();
    }
    Ok(())
}
