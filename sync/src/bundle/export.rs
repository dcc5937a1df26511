//! Writing a bundle: from a replica to a stream, section by section.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use super::envelope::{Seal, Sealer};
use super::section::{Introduction, OBSERVATIONS_PER_SECTION_MAX, PIECE_BYTES, Section, WANTS_MAX};
use super::{BundleError, Direction, Report};
use crate::blob::BlobRef;
use crate::channel::{ChannelName, Head, Positions, WriterId};
use crate::enrol::JoinMaterial;
use crate::identity::DeviceKeys;
use crate::identity::writer::WriterIdentity;
use crate::list::ChannelSnapshot;
use crate::observation::{Clock, Observation, Urgency};
use crate::record::cbor::Encoder;
use crate::replica::{Reading, Replica};
use crate::transport::PeerIdentity;

pub(super) const OPENING_DOMAIN: &str = "bundle/1";
/// Bytes asked of the store at a time.
const READ_BYTES: usize = 256 * 1024;
/// Most observations of one bundle; the rest waits for the next.
const OBSERVATIONS_MAX: usize = 65_536;
/// Most bytes of observations in one section.
const OBSERVATIONS_BYTES: usize = 512 * 1024;

/// What to write, and for whom.
#[derive(Debug)]
pub struct Export<'a> {
    /// Signs the bundle.
    pub signer: &'a WriterIdentity,
    /// For whom.
    pub seal: Seal,
    /// Which way it goes.
    pub direction: Direction,
    /// See [`Introduction::clock`].
    pub clock: Clock,
    /// Where the receiver is known to stand; empty: nothing is known, all is carried.
    pub positions: Positions,
    /// Up: of the logs only the device's own. It holds what hubs have signed as well, for a hub that lost it.
    pub own_log_only: bool,
    /// See [`Introduction::hub_sealing`].
    pub hub_sealing: Option<crate::identity::SealingPublicKey>,
    /// Down: the answer to the device's request to join.
    pub enrolled: Option<Bytes>,
    /// Down: what the hub has of the device's observations.
    pub acknowledged: Vec<(String, Clock)>,
    /// Blobs that the receiver will need and may lack.
    pub blobs: Vec<BlobRef>,
}

/// A request to join, and for whom.
#[derive(Debug)]
pub struct JoinExport<'a> {
    /// What waits for its answer.
    pub join: &'a JoinMaterial,
    /// The device's keys.
    pub keys: &'a DeviceKeys,
    /// Now, by the device's clock. Milliseconds.
    pub time_ms: u64,
}

/// Writes a bundle of what `peer` lacks. Nothing is changed by it: what it carries counts as told once the receiver's own
/// bundle says so.
///
/// # Errors
/// The store, the target, or something too large to carry.
pub async fn export<R: Replica>(
    replica: &R,
    peer: &PeerIdentity,
    export: Export<'_>,
    target: &mut (impl AsyncWrite + Unpin),
) -> Result<Report, BundleError> {
    let heads = replica.heads(peer).await?;
    let observations = match export.direction {
        Direction::Up => replica.outbox(Urgency::All, OBSERVATIONS_MAX).await?,
        Direction::Down | Direction::Join => Vec::new(),
    };
    let wants = match export.direction {
        Direction::Up => replica.missing_blobs(peer, WANTS_MAX).await?,
        Direction::Down | Direction::Join => Vec::new(),
    };
    let greeting = replica.greeting().await?;
    let introduction = Introduction {
        direction: export.direction,
        clock: export.clock,
        heads: heads.clone(),
        greeting: greeting.map(|greeting| greeting.encoded().clone()),
        hub_sealing: export.hub_sealing,
        observations: observations.len() as u64,
        blobs: export.blobs.len() as u64,
        wants,
    };
    let (mut out, binding) = Out::begin(&export.seal, target).await?;
    out.report.direction = Some(export.direction);
    out.report.from = export.signer.chain().subject.to_string();
    let introduction = Bytes::from(introduction.encode());
    let signature = export.signer.sign(OPENING_DOMAIN, &signed_opening(&binding, &introduction));
    let chain = Bytes::copy_from_slice(export.signer.chain().encode());
    out.put(Section::Opening { introduction, chain, signature: Bytes::copy_from_slice(&signature) }).await?;
    if let Some(answer) = export.enrolled {
        out.report.enrolment = true;
        out.put(Section::Enrolled { answer }).await?;
    }
    for entries in export.acknowledged.chunks(OBSERVATIONS_PER_SECTION_MAX) {
        out.report.acknowledgements += entries.len() as u64;
        out.put(Section::Acknowledged { entries: entries.to_vec() }).await?;
    }
    let mut introduced = BTreeSet::new();
    let own = export.signer.id();
    for (channel, logs) in &heads {
        let mut logs = logs.clone();
        logs.retain(|writer, _| !export.own_log_only || *writer == own);
        let known = export.positions.get(channel).cloned().unwrap_or_default();
        channel_logs(replica, channel, &logs, known, &mut introduced, &mut out).await?;
    }
    for name in &export.blobs {
        blob(replica, peer, name, &mut out).await?;
    }
    for observations in in_sections(observations) {
        out.report.observations += observations.len() as u64;
        out.put(Section::Observations { observations }).await?;
    }
    out.finish().await
}

/// Writes the request of a device that has not joined: readable to the hub alone, so that whoever finds the stick does not learn
/// the token.
///
/// # Errors
/// A token that cannot be used by stick, or the target.
pub async fn export_join(
    export: &JoinExport<'_>,
    target: &mut (impl AsyncWrite + Unpin),
) -> Result<Report, BundleError> {
    let (installation, key) = export.join.receiver()?;
    let seal = Seal { installation, receiver: super::Receiver::Hub, key, time_ms: export.time_ms };
    let (mut out, binding) = Out::begin(&seal, target).await?;
    out.report.direction = Some(Direction::Join);
    out.report.from = super::Receiver::Device(export.join.node.clone()).to_string();
    out.report.enrolment = true;
    let request = Bytes::from(export.join.request(export.keys, &binding)?);
    out.put(Section::Join { request }).await?;
    out.finish().await
}

/// What the maker of a bundle signs.
pub(super) fn signed_opening(binding: &[u8; 32], introduction: &[u8]) -> Vec<u8> {
    let mut encoder = Encoder::new();
    encoder.array(2).bytes(binding).bytes(introduction);
    encoder.finish()
}

/// Everything of one channel after `known`, as batches or as a snapshot.
async fn channel_logs<R: Replica>(
    replica: &R,
    channel: &ChannelName,
    logs: &BTreeMap<WriterId, Head>,
    mut known: BTreeMap<WriterId, u64>,
    introduced: &mut BTreeSet<WriterId>,
    out: &mut Out<'_, impl AsyncWrite + Unpin>,
) -> Result<(), BundleError> {
    for (writer, head) in logs {
        let mut after = known.get(writer).copied().unwrap_or(0);
        while after < head.seq {
            match replica.read(channel, writer, after, READ_BYTES).await? {
                Reading::NotKept | Reading::Later => break,
                Reading::Batches(batches) if batches.is_empty() => break,
                Reading::Batches(batches) => {
                    out.introduce(replica, writer, introduced).await?;
                    for batch in batches {
                        let log = out.report.log(channel, writer, after);
                        log.to = log.to.max(batch.last_seq);
                        out.report.records += batch.last_seq - batch.first_seq + 1;
                        after = batch.last_seq;
                        out.put(Section::Batch { batch: Bytes::from(batch.encode()) }).await?;
                    }
                }
                Reading::Snapshot(snapshot) => {
                    let lister = snapshot.list.writer;
                    out.introduce(replica, &lister, introduced).await?;
                    for (covered, head) in &snapshot.list.covers {
                        let before = known.get(covered).copied().unwrap_or(0);
                        let log = out.report.log(channel, covered, before);
                        log.to = log.to.max(head.seq);
                        known.insert(*covered, before.max(head.seq));
                    }
                    let reached = snapshot.list.covers.get(writer).map_or(0, |head| head.seq);
                    out.snapshot(snapshot).await?;
                    if reached <= after {
                        break;
                    }
                    after = reached;
                }
            }
        }
    }
    Ok(())
}

/// A blob in pieces. One that went in the meantime is named by nothing any more.
async fn blob<R: Replica>(
    replica: &R,
    peer: &PeerIdentity,
    name: &BlobRef,
    out: &mut Out<'_, impl AsyncWrite + Unpin>,
) -> Result<(), BundleError> {
    let mut offset = 0;
    while offset < name.len {
        let piece = replica.read_blob(peer, &name.hash, offset, PIECE_BYTES).await?;
        let Some(piece) = piece.filter(|piece| !piece.is_empty()) else { return Ok(()) };
        let next = offset + piece.len() as u64;
        out.put(Section::Blob { name: *name, offset, piece }).await?;
        offset = next;
    }
    out.report.blobs += 1;
    Ok(())
}

/// Sections that each fit, oldest first.
fn in_sections(observations: Vec<Observation>) -> Vec<Vec<Observation>> {
    let mut sections: Vec<Vec<Observation>> = Vec::new();
    let mut bytes = 0;
    for observation in observations.into_iter().filter(Observation::is_within_limits) {
        let size = observation.subject.len() + observation.body.as_ref().map_or(0, Bytes::len) + 64;
        let full = bytes + size > OBSERVATIONS_BYTES
            || sections.last().is_none_or(|section| section.len() == OBSERVATIONS_PER_SECTION_MAX);
        if full {
            sections.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        if let Some(section) = sections.last_mut() {
            section.push(observation);
        }
    }
    sections
}

/// The file as it grows.
struct Out<'a, W> {
    sealer: Sealer,
    target: &'a mut W,
    report: Report,
}

impl<'a, W: AsyncWrite + Unpin> Out<'a, W> {
    async fn begin(seal: &Seal, target: &'a mut W) -> Result<(Self, [u8; 32]), BundleError> {
        let (sealer, encoded, header) = Sealer::begin(seal)?;
        let binding = *sealer.binding();
        let mut report = Report::of(&header.installation, &header.receiver, header.time_ms, &header.id);
        target.write_all(&encoded).await?;
        report.bytes = encoded.len() as u64;
        Ok((Self { sealer, target, report }, binding))
    }

    async fn put(&mut self, section: Section) -> Result<(), BundleError> {
        self.write(&section, false).await
    }

    async fn write(&mut self, section: &Section, last: bool) -> Result<(), BundleError> {
        let frame = self.sealer.seal(section, last)?;
        self.target.write_all(&frame).await?;
        self.report.bytes += frame.len() as u64;
        self.report.sections = u64::from(self.sealer.sections());
        Ok(())
    }

    async fn introduce<R: Replica>(
        &mut self,
        replica: &R,
        writer: &WriterId,
        introduced: &mut BTreeSet<WriterId>,
    ) -> Result<(), BundleError> {
        if introduced.insert(*writer)
            && let Some(chain) = replica.writer(writer).await?
        {
            self.put(Section::Writer { chain: Bytes::copy_from_slice(chain.encode()) }).await?;
        }
        Ok(())
    }

    async fn snapshot(&mut self, snapshot: ChannelSnapshot) -> Result<(), BundleError> {
        self.report.snapshots += 1;
        self.put(Section::List { list: snapshot.list.encoded().clone() }).await?;
        for state in snapshot.states {
            let mut rest = state;
            loop {
                let piece = rest.split_to(rest.len().min(PIECE_BYTES));
                let ends = rest.is_empty();
                self.put(Section::State { ends, piece }).await?;
                if ends {
                    break;
                }
            }
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<Report, BundleError> {
        self.write(&Section::End, true).await?;
        self.target.flush().await?;
        self.report.whole = true;
        Ok(self.report)
    }
}
