//! Reading a bundle: from a stream into a replica, section by section.
//!
//! Each section counts for itself. What is whole takes effect, in the order of the file; what is not is named in the report. The
//! logs' own chains and signatures are verified as in a session: the bundle's maker is not trusted for what others have written.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::envelope::FileKey;
use super::export::{OPENING_DOMAIN, signed_opening};
use super::format::{Found, FrameReader, Header};
use super::section::{Introduction, Section};
use super::{BUNDLE_BYTES_MAX, BundleError, Direction, Missing, Receiver, Report};
use crate::blob::{BlobRef, BlobStored};
use crate::channel::{ChannelName, Hash, Head, Heads, WriterId, positions_of};
use crate::identity::writer::{WriterChain, WriterSubject};
use crate::identity::{InstallationId, PublicKey, SealingKey};
use crate::list::{ChannelSnapshot, SNAPSHOT_BYTES_MAX, STATE_BYTES_MAX, SignedList};
use crate::log::{Batch, Placement, VerifiedBatch, place};
use crate::replica::{Input, Replica};
use crate::session::Greeting;
use crate::transport::PeerIdentity;

/// Bytes read at a time.
const READ_BYTES: usize = 64 * 1024;
/// Most inputs of one commit, and their bytes.
const INPUTS_MAX: usize = 64;
const INPUT_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Most blobs of one bundle that are told apart.
const BLOBS_MAX: usize = 16_384;

/// Who reads a bundle.
#[derive(Debug, Clone)]
pub struct Side {
    /// Whose root signs here.
    pub root: PublicKey,
    /// Who this is.
    pub receiver: Receiver,
    /// What is sealed to it opens with this.
    pub key: SealingKey,
}

/// A bundle whose first section is verified.
#[derive(Debug)]
pub enum Incoming<S> {
    /// A device asks to join.
    Join(Joining),
    /// Everything else.
    Bundle(Box<Intake<S>>),
}

/// A request to join that a bundle carried; see [`crate::enrol::request_of`].
#[derive(Debug, Clone)]
pub struct Joining {
    /// The signed request.
    pub request: Bytes,
    /// What it must be bound to.
    pub binding: [u8; 32],
    /// About the file.
    pub report: Report,
}

/// Who made a bundle, and what it says.
#[derive(Debug, Clone)]
pub struct Maker {
    /// The writer that signed it.
    pub chain: WriterChain,
    /// What it says of itself.
    pub introduction: Introduction,
    /// When, by its clock. Milliseconds.
    pub time_ms: u64,
}

/// What can be told of a bundle without any key.
#[derive(Debug, Clone)]
pub struct Inspected {
    /// Its header.
    pub header: Header,
    /// What was found of it; [`Report::whole`] says whether its outside is whole.
    pub report: Report,
}

/// The rest of a bundle, to be taken.
#[derive(Debug)]
pub struct Intake<S> {
    sections: Sections<S>,
    maker: Maker,
    root: PublicKey,
    next: Option<Section>,
}

impl<S: AsyncRead + Unpin> Incoming<S> {
    /// Reads and verifies the beginning. Nothing has taken effect yet.
    ///
    /// # Errors
    /// No bundle, a damaged beginning, for somebody else, or not made by whom it must be.
    pub async fn open(source: S, side: &Side) -> Result<Self, BundleError> {
        let mut sections = Sections::of(source);
        let header = sections.header().await?;
        let own = InstallationId::of(&side.root);
        if header.installation != own || header.receiver != side.receiver {
            return Err(BundleError::NotForHere {
                meant: header.receiver,
                installation: header.installation,
                here: side.receiver.clone(),
                own,
            });
        }
        let key = FileKey::open(&header, &side.key)?;
        let binding = key.binding;
        sections.about(&header);
        sections.key = Some(key);
        let damaged = || BundleError::Damaged { why: "its first section is not whole".to_owned() };
        let first = sections.next().await?.filter(|_| sections.expected == 1).ok_or_else(damaged)?;
        match first {
            Section::Join { request } => {
                sections.report.direction = Some(Direction::Join);
                sections.report.enrolment = true;
                sections.drain().await?;
                Ok(Self::Join(Joining { request, binding, report: sections.report }))
            }
            Section::Opening { introduction, chain, signature } => {
                let signed = signed_opening(&binding, &introduction);
                let chain = WriterChain::verify(&chain, &side.root)?;
                chain.key.verify(OPENING_DOMAIN, &signed, &signature).map_err(|bad| forged(&bad))?;
                let introduction = Introduction::decode(&introduction).map_err(|error| forged(&error))?;
                let lawful = match (&chain.subject, introduction.direction) {
                    (WriterSubject::Hub, Direction::Down) => side.receiver != Receiver::Hub,
                    (WriterSubject::Device(_), Direction::Up) => side.receiver == Receiver::Hub,
                    _ => false,
                };
                if !lawful {
                    return Err(forged(&format!("{} may not send this here", chain.subject)));
                }
                sections.report.direction = Some(introduction.direction);
                sections.report.from = chain.subject.to_string();
                let maker = Maker { chain, introduction, time_ms: header.time_ms };
                Ok(Self::Bundle(Box::new(Intake { sections, maker, root: side.root, next: None })))
            }
            _ => Err(forged(&"its first section says nothing of its maker")),
        }
    }
}

impl<S: AsyncRead + Unpin> Intake<S> {
    /// Who made it.
    pub fn maker(&self) -> &Maker {
        &self.maker
    }

    /// The answer to this device's request to join, if it comes next. Asked before anything else is taken.
    ///
    /// # Errors
    /// The source.
    pub async fn enrolled(&mut self) -> Result<Option<Bytes>, BundleError> {
        if self.next.is_none() {
            self.next = self.sections.next().await?;
        }
        match &self.next {
            Some(Section::Enrolled { answer }) => {
                self.sections.report.enrolment = true;
                Ok(Some(answer.clone()))
            }
            _ => Ok(None),
        }
    }

    /// Takes everything that is whole into effect. `newest`: no later bundle of this maker was taken before; an older one gives
    /// its records all the same, but says nothing of what to read. A device judges it by the greeting itself.
    ///
    /// # Errors
    /// The store, or the source: what was taken until then stays, and the whole can be taken again.
    pub async fn take<R: Replica>(
        mut self,
        replica: &R,
        peer: &PeerIdentity,
        newest: bool,
    ) -> Result<Report, BundleError> {
        let channels = match self.maker.chain.subject.clone() {
            WriterSubject::Hub => self.greet(replica, peer).await?,
            WriterSubject::Device(_) => self.hear(replica, peer, newest).await?,
        };
        let mut taking = Taking {
            replica,
            peer,
            root: self.root,
            channels,
            heads: replica.heads(peer).await?,
            chains: BTreeMap::new(),
            branching: BTreeSet::new(),
            inputs: Vec::new(),
            input_bytes: 0,
            coming: None,
            observed: 0,
            lacking: None,
            blobs: BTreeMap::new(),
        };
        taking.compare(&self.maker.introduction.heads).await?;
        loop {
            let section = match self.next.take() {
                Some(section) => Some(section),
                None => self.sections.next().await?,
            };
            let Some(section) = section else { break };
            if std::mem::take(&mut self.sections.hole) {
                taking.abandon(&mut self.sections.report);
            }
            taking.take(section, &self.maker, &mut self.sections.report).await?;
        }
        taking.abandon(&mut self.sections.report);
        taking.flush(&mut self.sections.report).await?;
        taking.account(&self.maker, &mut self.sections.report);
        Ok(self.sections.report)
    }

    /// Device: the hub's greeting and what this device is to read, if this is news. Answers the channels to take from.
    async fn greet<R: Replica>(
        &mut self,
        replica: &R,
        peer: &PeerIdentity,
    ) -> Result<BTreeSet<ChannelName>, BundleError> {
        let encoded = self.maker.introduction.greeting.clone().ok_or_else(|| forged(&"it has no greeting"))?;
        let greeting = Greeting::verify(&encoded, &self.root).map_err(|error| forged(&error))?;
        let known = replica.greeting().await?;
        let heads = &self.maker.introduction.heads;
        if known.is_some_and(|known| known.is_newer_than(&greeting)) {
            let note =
                "the hub has been heard since this bundle was made: its records are taken, and nothing is undone";
            self.sections.report.notes.push(note.to_owned());
            let held = replica.heads(peer).await?;
            return Ok(heads.keys().filter(|channel| held.contains_key(*channel)).cloned().collect());
        }
        replica.greeted(peer, greeting).await?;
        replica.subscribed(peer, positions_of(heads)).await?;
        Ok(heads.keys().cloned().collect())
    }

    /// Hub: how far the device is, if this is news.
    async fn hear<R: Replica>(
        &mut self,
        replica: &R,
        peer: &PeerIdentity,
        newest: bool,
    ) -> Result<BTreeSet<ChannelName>, BundleError> {
        let introduction = &self.maker.introduction;
        if let Some(encoded) = &introduction.greeting {
            let greeting = Greeting::verify(encoded, &self.root).map_err(|error| forged(&error))?;
            replica.greeted(peer, greeting).await?;
        }
        if newest {
            replica.acknowledged(peer, positions_of(&introduction.heads)).await?;
        } else {
            let note =
                "a later bundle of this device was imported before: what is new in this one is taken all the same";
            self.sections.report.notes.push(note.to_owned());
        }
        Ok(replica.heads(peer).await?.into_keys().collect())
    }
}

/// Reads what can be told without keys: header, and whether the outside is whole.
///
/// # Errors
/// No bundle, or a damaged beginning.
pub async fn inspect(source: impl AsyncRead + Unpin) -> Result<Inspected, BundleError> {
    let mut sections = Sections::of(source);
    let header = sections.header().await?;
    sections.about(&header);
    sections.drain().await?;
    Ok(Inspected { header, report: sections.report })
}

/// Reads the header alone.
///
/// # Errors
/// No bundle, or a damaged beginning.
pub async fn peek(source: impl AsyncRead + Unpin) -> Result<Header, BundleError> {
    Sections::of(source).header().await
}

/// What is taken, and what was.
struct Taking<'a, R> {
    replica: &'a R,
    peer: &'a PeerIdentity,
    root: PublicKey,
    channels: BTreeSet<ChannelName>,
    /// Where the logs stand, inputs that wait included.
    heads: Heads,
    chains: BTreeMap<WriterId, WriterChain>,
    branching: BTreeSet<(ChannelName, WriterId)>,
    inputs: Vec<Input>,
    input_bytes: usize,
    coming: Option<Coming>,
    observed: u64,
    /// Blobs that are wanted here, with what is here of each; asked for when the first one comes.
    lacking: Option<BTreeMap<Hash, u64>>,
    /// Bytes that came of each blob.
    blobs: BTreeMap<Hash, (u64, u64)>,
}

/// A snapshot whose states come.
struct Coming {
    chain: WriterChain,
    list: SignedList,
    states: Vec<Bytes>,
    state: BytesMut,
    bytes: usize,
    /// All it covers is here already.
    known: bool,
}

impl<R: Replica> Taking<'_, R> {
    /// Logs that stand at the same number with another hash are forked.
    async fn compare(&self, theirs: &Heads) -> Result<(), BundleError> {
        for (channel, logs) in theirs {
            for (writer, head) in logs {
                let own = self.heads.get(channel).and_then(|logs| logs.get(writer));
                if own.is_some_and(|own| own.seq == head.seq && own.hash != head.hash) {
                    self.replica.forked(self.peer, channel, writer, head.seq).await?;
                }
            }
        }
        Ok(())
    }

    async fn take(&mut self, section: Section, maker: &Maker, report: &mut Report) -> Result<(), BundleError> {
        let down = maker.introduction.direction == Direction::Down;
        match section {
            Section::Writer { chain } => match WriterChain::verify(&chain, &self.root) {
                Ok(chain) => drop(self.chains.insert(chain.id, chain)),
                Err(error) => report.set_aside(vec![error.to_string()]),
            },
            Section::Batch { batch } => self.batch(&batch, report).await?,
            Section::List { list } => self.list(list, report).await?,
            Section::State { ends, piece } => self.state(ends, &piece, report)?,
            Section::Observations { observations } if !down => {
                let (lawful, large): (Vec<_>, Vec<_>) =
                    observations.into_iter().partition(|observation| observation.is_within_limits());
                let lines = large.iter().map(|one| format!("observation of {:?} is over a limit", one.subject));
                report.set_aside(lines.collect());
                self.flush(report).await?;
                self.observed += (lawful.len() + large.len()) as u64;
                report.observations += lawful.len() as u64;
                self.replica.observe(self.peer, lawful).await?;
            }
            Section::Acknowledged { entries } if down => {
                report.acknowledgements += entries.len() as u64;
                self.replica.outbox_acknowledged(entries).await?;
            }
            Section::Enrolled { .. } if down => {}
            Section::Blob { name, offset, piece } => self.blob(name, offset, piece, report).await?,
            Section::End => self.flush(report).await?,
            Section::Opening { .. }
            | Section::Join { .. }
            | Section::Enrolled { .. }
            | Section::Observations { .. }
            | Section::Acknowledged { .. } => {
                report.set_aside(vec!["a section that has no place in a bundle of this direction".to_owned()]);
            }
        }
        if self.inputs.len() >= INPUTS_MAX || self.input_bytes >= INPUT_BYTES_MAX {
            self.flush(report).await?;
        }
        Ok(())
    }

    /// Makes durable what waits.
    async fn flush(&mut self, report: &mut Report) -> Result<(), BundleError> {
        if self.inputs.is_empty() {
            return Ok(());
        }
        self.input_bytes = 0;
        let ingested = self.replica.ingest(self.peer, std::mem::take(&mut self.inputs)).await?;
        report.set_aside(ingested.set_aside);
        Ok(())
    }

    /// The chain of a writer, from this bundle or from an earlier one.
    async fn chain(
        &mut self,
        channel: &ChannelName,
        writer: &WriterId,
        report: &mut Report,
    ) -> Result<Option<WriterChain>, BundleError> {
        if let Some(chain) = self.chains.get(writer) {
            return Ok(Some(chain.clone()));
        }
        let known = self.replica.writer(writer).await?;
        if known.is_none() {
            report.miss(Missing::Writer { channel: channel.to_string(), writer: writer.to_string() });
        }
        Ok(known)
    }

    async fn batch(&mut self, encoded: &Bytes, report: &mut Report) -> Result<(), BundleError> {
        let batch = match Batch::decode(encoded) {
            Ok(batch) => batch,
            Err(error) => {
                report.set_aside(vec![error.to_string()]);
                return Ok(());
            }
        };
        let records = batch.last_seq - batch.first_seq + 1;
        report.records = report.records.saturating_add(records);
        let (channel, writer) = (batch.channel.clone(), batch.writer);
        if !self.channels.contains(&channel) {
            return Ok(());
        }
        let have = self.heads.get(&channel).and_then(|logs| logs.get(&writer)).copied();
        let at = have.map_or(0, |head| head.seq);
        report.log(&channel, &writer, at);
        let branches = self.branching.contains(&(channel.clone(), writer));
        let placement = place(have, batch.first_seq, batch.last_seq, &batch.prev, None);
        if let (Placement::Gap { after }, false) = (placement, branches) {
            let before = batch.first_seq;
            report.miss(Missing::Records { channel: channel.to_string(), writer: writer.to_string(), after, before });
            return Ok(());
        }
        if placement == Placement::Duplicate && batch.last_seq < at && !branches {
            return Ok(());
        }
        let Some(chain) = self.chain(&channel, &writer, report).await? else { return Ok(()) };
        let size = batch.payload.len();
        let verified = match batch.verify(&chain) {
            Ok(verified) => verified,
            Err(error) => {
                report.set_aside(vec![error.to_string()]);
                return Ok(());
            }
        };
        self.place(verified, chain, have, report).await?;
        self.input_bytes += size;
        Ok(())
    }

    async fn place(
        &mut self,
        verified: VerifiedBatch,
        chain: WriterChain,
        have: Option<Head>,
        report: &mut Report,
    ) -> Result<(), BundleError> {
        let key = (verified.batch().channel.clone(), verified.batch().writer);
        let placement = verified.place(have);
        if self.branching.contains(&key) || matches!(placement, Placement::Fork { .. }) {
            if let Placement::Fork { seq } = placement
                && self.branching.insert(key.clone())
            {
                self.flush(report).await?;
                self.replica.forked(self.peer, &key.0, &key.1, seq).await?;
                report.notes.push(format!("log {} in {} was forked by a restored or cloned database", key.1, key.0));
            }
            self.inputs.extend([Input::Writer(chain), Input::Branch(verified)]);
            return Ok(());
        }
        if placement == Placement::Next {
            let head = verified.head();
            report.records_new += verified.records().len() as u64;
            report.log(&key.0, &key.1, have.map_or(0, |head| head.seq)).to = head.seq;
            self.heads.entry(key.0).or_default().insert(key.1, head);
            self.inputs.extend([Input::Writer(chain), Input::Batch(verified)]);
        }
        Ok(())
    }

    async fn list(&mut self, encoded: Bytes, report: &mut Report) -> Result<(), BundleError> {
        self.abandon(report);
        let list = match SignedList::decode(encoded) {
            Ok(list) => list,
            Err(error) => {
                report.set_aside(vec![error.to_string()]);
                return Ok(());
            }
        };
        report.snapshots += 1;
        if !self.channels.contains(&list.channel) {
            return Ok(());
        }
        let Some(chain) = self.chain(&list.channel, &list.writer, report).await? else { return Ok(()) };
        let logs = self.heads.get(&list.channel);
        // An older list says nothing new, and what was made after it is not in it.
        let known = logs.and_then(|logs| logs.get(&list.writer)).is_some_and(|own| own.seq >= list.head.seq);
        let empty = list.items.is_empty();
        self.coming = Some(Coming { chain, list, states: Vec::new(), state: BytesMut::new(), bytes: 0, known });
        if empty {
            self.snapshot_came(report);
        }
        Ok(())
    }

    fn state(&mut self, ends: bool, piece: &Bytes, report: &mut Report) -> Result<(), BundleError> {
        let Some(coming) = &mut self.coming else { return Ok(()) };
        coming.bytes += piece.len();
        if coming.state.len() + piece.len() > STATE_BYTES_MAX || coming.bytes > SNAPSHOT_BYTES_MAX {
            return Err(BundleError::TooLarge { what: "a snapshot", max: SNAPSHOT_BYTES_MAX });
        }
        if !coming.known {
            coming.state.extend_from_slice(piece);
        }
        if ends {
            coming.states.push(coming.state.split().freeze());
        }
        if coming.states.len() == coming.list.items.len() {
            self.snapshot_came(report);
        }
        Ok(())
    }

    fn snapshot_came(&mut self, report: &mut Report) {
        let Some(Coming { chain, list, states, known, bytes, .. }) = self.coming.take() else { return };
        let branches = |writer: &WriterId| self.branching.contains(&(list.channel.clone(), *writer));
        if known || list.covers.keys().any(branches) {
            return;
        }
        let verified = match (ChannelSnapshot { list, states }).verify(&chain) {
            Ok(verified) => verified,
            Err(error) => {
                report.set_aside(vec![error.to_string()]);
                return;
            }
        };
        let list = &verified.snapshot().list;
        let logs = self.heads.entry(list.channel.clone()).or_default();
        for (writer, head) in &list.covers {
            let stands_at = logs.entry(*writer).or_insert(Head::START);
            let line = report.log(&list.channel, writer, stands_at.seq);
            line.to = line.to.max(head.seq);
            if head.seq > stands_at.seq {
                *stands_at = *head;
            }
        }
        report.snapshots_new += 1;
        self.input_bytes += bytes;
        self.inputs.extend([Input::Writer(chain), Input::Snapshot(verified)]);
    }

    /// A piece of a blob: only as far as it is wanted, and from where what is here ends.
    async fn blob(&mut self, name: BlobRef, offset: u64, piece: Bytes, report: &mut Report) -> Result<(), BundleError> {
        self.flush(report).await?;
        let end = offset.saturating_add(piece.len() as u64);
        if self.blobs.len() < BLOBS_MAX || self.blobs.contains_key(&name.hash) {
            let (came, _) = self.blobs.entry(name.hash).or_insert((0, name.len));
            *came = if *came == offset { end } else { *came };
        }
        let lacking = match &mut self.lacking {
            Some(lacking) => lacking,
            none => {
                let wants = self.replica.missing_blobs(self.peer, BLOBS_MAX).await?;
                none.insert(wants.into_iter().map(|want| (want.name.hash, want.offset)).collect())
            }
        };
        let Some(here) = lacking.get_mut(&name.hash).filter(|here| (offset..end).contains(*here)) else {
            return Ok(());
        };
        let Ok(skip) = usize::try_from(*here - offset) else { return Ok(()) };
        let stored = self.replica.store_blob(self.peer, &name, *here, piece.slice(skip..)).await?;
        match stored {
            BlobStored::Partly => *here = end,
            BlobStored::Whole => report.blobs += 1,
            BlobStored::Damaged => report.set_aside(vec!["a blob that is not what its name says".to_owned()]),
            BlobStored::Unwanted => {}
        }
        if stored != BlobStored::Partly {
            lacking.remove(&name.hash);
        }
        Ok(())
    }

    /// A snapshot that goes no further.
    fn abandon(&mut self, report: &mut Report) {
        if let Some(coming) = self.coming.take().filter(|coming| !coming.known) {
            report.miss(Missing::Snapshot { channel: coming.list.channel.to_string() });
        }
    }

    /// Compares what was to come with what came.
    fn account(&self, maker: &Maker, report: &mut Report) {
        let introduction = &maker.introduction;
        for (channel, logs) in introduction.heads.iter().filter(|(channel, _)| self.channels.contains(*channel)) {
            for (writer, goal) in logs {
                // Of an upward bundle only the maker's own log is meant to come.
                let meant = introduction.direction == Direction::Down || *writer == maker.chain.id;
                let at = self.heads.get(channel).and_then(|logs| logs.get(writer)).map_or(0, |head| head.seq);
                let named = report.missing.iter().any(|missing| {
                    matches!(missing, Missing::Records { channel: one, writer: other, .. }
                        if *one == channel.to_string() && *other == writer.to_string())
                });
                if meant && at < goal.seq && !named {
                    let (channel, writer) = (channel.to_string(), writer.to_string());
                    report.miss(Missing::Behind { channel, writer, at, meant: goal.seq });
                }
            }
        }
        let whole = self.blobs.values().filter(|(came, len)| came == len).count() as u64;
        if let Some(count) = introduction.blobs.checked_sub(whole).filter(|count| *count > 0) {
            report.miss(Missing::Blobs { count });
        }
        if let Some(count) = introduction.observations.checked_sub(self.observed).filter(|count| *count > 0) {
            report.miss(Missing::Observations { count });
        }
    }
}

/// The sections of a stream, in order.
struct Sections<S> {
    source: S,
    frames: FrameReader,
    key: Option<FileKey>,
    report: Report,
    /// Number of the next section.
    expected: u32,
    /// Something before the section given last is missing.
    hole: bool,
    /// Something was missing.
    torn: bool,
    ended: bool,
    last_seen: bool,
    buffer: Box<[u8]>,
}

impl<S: AsyncRead + Unpin> Sections<S> {
    fn of(source: S) -> Self {
        Self {
            source,
            frames: FrameReader::default(),
            key: None,
            report: Report::default(),
            expected: 0,
            hole: false,
            torn: false,
            ended: false,
            last_seen: false,
            buffer: vec![0; READ_BYTES].into(),
        }
    }

    fn about(&mut self, header: &Header) {
        let bytes = self.report.bytes;
        let report = Report::of(&header.installation, &header.receiver, header.time_ms, &header.id);
        self.report = Report { bytes, ..report };
    }

    async fn header(&mut self) -> Result<Header, BundleError> {
        match self.found().await? {
            Some(Found::Header(header)) => Ok(header),
            _ => Err(BundleError::NoBundle),
        }
    }

    /// The next section that is whole; `None` at the end.
    async fn next(&mut self) -> Result<Option<Section>, BundleError> {
        loop {
            match self.found().await? {
                None => {
                    self.close();
                    return Ok(None);
                }
                Some(Found::Header(_)) => {}
                Some(Found::Damaged { bytes }) => self.damaged(bytes),
                Some(Found::Frame(frame)) => {
                    let bytes = frame.sealed.len() as u64;
                    if frame.index < self.expected {
                        // Again, or in another place than its own.
                        self.damaged(bytes);
                        continue;
                    }
                    let opened = match &self.key {
                        Some(key) => key.section(&frame).map(Bytes::from),
                        None => Some(Bytes::new()),
                    };
                    let Some(opened) = opened else {
                        self.damaged(bytes);
                        continue;
                    };
                    let jumped = frame.index != self.expected;
                    self.hole |= jumped;
                    self.torn |= jumped;
                    self.expected = frame.index.saturating_add(1);
                    self.report.sections += 1;
                    self.last_seen |= frame.last;
                    if self.key.is_none() {
                        continue;
                    }
                    match Section::decode(&opened) {
                        Ok(section) => return Ok(Some(section)),
                        Err(error) => self.report.set_aside(vec![format!("section {}: {error}", frame.index)]),
                    }
                }
            }
        }
    }

    async fn drain(&mut self) -> Result<(), BundleError> {
        while self.next().await?.is_some() {}
        Ok(())
    }

    fn damaged(&mut self, bytes: u64) {
        self.hole = true;
        self.torn = true;
        self.report.miss(Missing::Damaged { bytes, after_section: u64::from(self.expected) });
    }

    fn close(&mut self) {
        let sections = self.report.sections;
        if !self.last_seen {
            self.report.miss(Missing::End { sections });
        }
        self.report.whole = self.last_seen && !self.torn;
    }

    async fn found(&mut self) -> Result<Option<Found>, BundleError> {
        loop {
            if let Some(found) = self.frames.next(self.ended)? {
                return Ok(Some(found));
            }
            if self.ended {
                return Ok(None);
            }
            let read = self.source.read(&mut self.buffer).await?;
            self.report.bytes += read as u64;
            if self.report.bytes > BUNDLE_BYTES_MAX {
                return Err(BundleError::TooLarge { what: "the bundle", max: usize::MAX });
            }
            self.ended = read == 0;
            self.frames.push(&self.buffer[..read]);
        }
    }
}

impl<S> std::fmt::Debug for Sections<S> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Sections").field("expected", &self.expected).finish_non_exhaustive()
    }
}

fn forged(why: &dyn std::fmt::Display) -> BundleError {
    BundleError::Forged { why: why.to_string() }
}
