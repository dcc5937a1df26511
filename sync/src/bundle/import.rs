//! Reading a bundle: from a stream into a replica, section by section.
//!
//! Each section counts for itself. What is whole takes effect, in the order of the file; what is not is named in the report. The
//! logs' own chains and signatures are verified as in a session: the bundle's maker is not trusted for what others have written.

mod sections;
mod taking;

use std::collections::BTreeSet;

use bytes::Bytes;
use tokio::io::AsyncRead;

use super::envelope::FileKey;
use super::export::{OPENING_DOMAIN, signed_opening};
use super::format::Header;
use super::section::{Introduction, Section};
use super::{BundleError, Direction, Receiver, Report};
use crate::channel::{ChannelName, positions_of};
use crate::identity::writer::{WriterChain, WriterSubject};
use crate::identity::{InstallationId, PublicKey, SealingKey};
use crate::replica::Replica;
use crate::session::Greeting;
use crate::transport::PeerIdentity;
use sections::Sections;
use taking::Taking;

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
    Join(Box<Joining>),
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
                Ok(Self::Join(Box::new(Joining { request, binding, report: sections.report })))
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
        let mut taking = Taking::begin(replica, peer, self.root, channels).await?;
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

fn forged(why: &dyn std::fmt::Display) -> BundleError {
    BundleError::Forged { why: why.to_string() }
}
