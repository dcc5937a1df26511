//! The network between the hub and each device: late, partitioned, broken off, and carrying frames that are lost, doubled, out of
//! order or damaged.
//!
//! A session's bytes are taken apart into frames (four bytes of length, then the frame), and each meets its fate by the link's dice. Only
//! frames of signed records are lost, doubled, moved or damaged within a connection: what carries sessions in a real fleet is TLS, under
//! which everything else arrives in order or not at all. "Not at all" happens at any byte. A connection that has lost a frame is broken: it
//! goes on for a while, until those who carry it find out, as QUIC does of a path and a window of MQTT of a message.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flotilla_sync::transport::{
    EnrolStream, Incoming, Listener, MemoryDoor, MemoryFault, PeerIdentity, Pipe, Reader, Transport, Writer,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex, split};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use crate::dice::Dice;
use crate::trace::Trace;

/// Bytes in flight each way.
const BUFFER_BYTES: usize = 64 * 1024;
/// A connection in which nothing can flow breaks after this, as QUIC's does.
const BROKEN_AFTER: Duration = Duration::from_secs(90);
/// Frames in flight one way; beyond that the sender waits.
const FLYING_MAX: usize = 256;

/// A question whether somebody is there, and its answer: four bytes of length and an array of the kind alone. Bytes.
const KEEPALIVE_BYTES_MAX: usize = 6;

/// How one link behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weather {
    pub latency_ms: (u64, u64),
    /// In a thousand frames of records.
    pub lost: u64,
    pub doubled: u64,
    pub moved: u64,
    pub damaged: u64,
}

impl Weather {
    /// A good line.
    pub const FAIR: Self = Self { latency_ms: (2, 20), lost: 0, doubled: 0, moved: 0, damaged: 0 };
}

/// Which way nothing gets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    No,
    Both,
    Up,
    Down,
}

/// One device's line to the hub.
#[derive(Debug)]
struct Link {
    weather: Weather,
    cut: Cut,
    /// Each way of each connection is told by itself: of several that wait for one value tokio wakes them in an order by chance.
    told: Vec<watch::Sender<Cut>>,
    connections: Vec<AbortHandle>,
    dice: Dice,
    /// See [`Network::set_old`].
    old: bool,
    /// What the device dials; the network listens there.
    dialled: MemoryDoor,
}

impl Link {
    /// Which way nothing gets through, for one who carries.
    fn cuts(&mut self) -> watch::Receiver<Cut> {
        let (cut, cuts) = watch::channel(self.cut);
        self.told.retain(|one| !one.is_closed());
        self.told.push(cut);
        cuts
    }
}

/// All lines. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    trace: Trace,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    links: BTreeMap<String, Link>,
    /// The hub's door while it runs.
    hub: Option<MemoryDoor>,
}

/// Which end a stream goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

impl Network {
    pub(crate) fn new(trace: Trace) -> Self {
        Self { trace, inner: Arc::default() }
    }

    /// A line by its own name for whoever says it is `node`; answers what the device dials. It is served until the runtime ends.
    pub(crate) fn lay(&self, line: &str, node: &str, dice: Dice) -> MemoryDoor {
        let (listener, dialled) = Listener::memory();
        let link = Link {
            weather: Weather::FAIR,
            cut: Cut::No,
            told: Vec::new(),
            connections: Vec::new(),
            dice,
            old: false,
            dialled: dialled.clone(),
        };
        self.lock().links.insert(line.to_owned(), link);
        drop(tokio::spawn(self.clone().accept(line.to_owned(), node.to_owned(), listener)));
        dialled
    }

    /// The hub listens, or is gone; what was connected is broken.
    pub(crate) fn set_hub(&self, door: Option<MemoryDoor>) {
        let mut inner = self.lock();
        inner.hub = door;
        for link in inner.links.values_mut() {
            link.connections.drain(..).for_each(|connection| connection.abort());
        }
        drop(inner);
        self.tell_reach();
    }

    pub(crate) fn set_weather(&self, node: &str, weather: Weather) {
        if let Some(link) = self.lock().links.get_mut(node) {
            link.weather = weather;
        }
    }

    pub(crate) fn set_cut(&self, node: &str, cut: Cut) {
        if let Some(link) = self.lock().links.get_mut(node) {
            link.cut = cut;
            link.told.retain(|one| !one.is_closed());
            for one in &link.told {
                one.send_replace(cut);
            }
        }
        self.tell_reach();
    }

    /// One end of the line has a program that speaks only the first version of the protocol: its greeting says so. From the next
    /// connection on.
    pub(crate) fn set_old(&self, node: &str, old: bool) {
        if let Some(link) = self.lock().links.get_mut(node) {
            link.old = old;
        }
    }

    /// Breaks what a device has connected, in the middle of whatever is on its way.
    pub(crate) fn break_off(&self, node: &str) {
        if let Some(link) = self.lock().links.get_mut(node) {
            link.connections.drain(..).for_each(|connection| connection.abort());
        }
    }

    /// A device learns at once that nobody answers, where the network can tell.
    fn tell_reach(&self) {
        let inner = self.lock();
        for link in inner.links.values() {
            let unreachable = inner.hub.is_none() || link.cut == Cut::Both;
            link.dialled.set_fault(unreachable.then_some(MemoryFault::Unreachable));
        }
    }

    async fn accept(self, line: String, node: String, mut listener: Listener) {
        while let Some(incoming) = listener.accept().await {
            let pipe = match incoming {
                Incoming::Session(pipe) => pipe,
                // A few messages, as on a good line: it works or it does not.
                Incoming::Enrol(stream) => {
                    self.hand_enrolment(&line, stream).await;
                    continue;
                }
            };
            let Some(hub) = self.lock().hub.clone() else { continue };
            let (ours, theirs) = duplex(BUFFER_BYTES);
            let (hub_reader, hub_writer) = split(theirs);
            let Ok(name) = flotilla_sync::identity::NodeName::parse(&node) else { continue };
            let arrival = Pipe {
                reader: Box::new(hub_reader),
                writer: Box::new(hub_writer),
                peer: PeerIdentity::Device { node: name },
                transport: Transport::Memory,
                remote: format!("simulated/{line}"),
                stalled: None,
            };
            if hub.hand(Incoming::Session(arrival)).await.is_err() {
                continue;
            }
            self.trace.event("connect", &line, &[]);
            let (near, far) = split(ours);
            let up = self.clone().pump(line.clone(), Way::Up, pipe.reader, Box::new(far));
            let down = self.clone().pump(line.clone(), Way::Down, Box::new(near), pipe.writer);
            let both = async move {
                let mut ways = JoinSet::new();
                ways.spawn(up);
                ways.spawn(down);
                // When one way has ended the other ends with it.
                drop(ways.join_next().await);
            };
            let task = tokio::spawn(both).abort_handle();
            if let Some(link) = self.lock().links.get_mut(&line) {
                link.connections.retain(|one| !one.is_finished());
                link.connections.push(task);
            }
        }
    }

    /// A device whose certificate is old shows its key.
    async fn hand_enrolment(&self, line: &str, stream: EnrolStream) {
        let hub = {
            let inner = self.lock();
            let open = inner.links.get(line).is_some_and(|link| link.cut == Cut::No);
            inner.hub.clone().filter(|_| open)
        };
        if let Some(hub) = hub
            && hub.hand(Incoming::Enrol(stream)).await.is_ok()
        {
            self.trace.event("enrols again", line, &[]);
        }
    }

    /// Carries one way of a connection to its end.
    async fn pump(self, node: String, way: Way, mut reader: Reader, mut writer: Writer) {
        let Some(mut cut) = self.lock().links.get_mut(&node).map(Link::cuts) else { return };
        let mut flying: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
        let mut coming = Vec::new();
        let mut buffer = vec![0; 16 * 1024];
        let mut ended = false;
        let mut breaks = None;
        loop {
            let blocked = blocks(*cut.borrow_and_update(), way);
            let next = flying.front().map(|(at, _)| *at);
            tokio::select! {
                biased;
                changed = cut.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(BROKEN_AFTER), if blocked => return,
                () = until(breaks), if breaks.is_some() => return,
                () = until(next), if !blocked && next.is_some() => {
                    let Some((_, frame)) = flying.pop_front() else { continue };
                    let digest = frame.iter().fold(0_u64, |sum, byte| sum.wrapping_mul(131).wrapping_add(u64::from(*byte)));
                    let (what, numbers) = (if way == Way::Up { "up" } else { "down" }, [frame.len() as u64, digest]);
                    if frame.len() <= KEEPALIVE_BYTES_MAX {
                        self.trace.passed(what, &node, &numbers);
                    } else {
                        self.trace.event(what, &node, &numbers);
                    }
                    tracing::debug!(target: "simulation", at_ms = self.trace.now_ms(), node, ?way, kind = frame.get(5), bytes = frame.len(), "arrives");
                    if writer.write_all(&frame).await.is_err() || writer.flush().await.is_err() {
                        return;
                    }
                }
                read = reader.read(&mut buffer), if !ended && flying.len() < FLYING_MAX => match read {
                    Ok(length) if length > 0 => {
                        coming.extend_from_slice(&buffer[..length]);
                        if self.take_frames(&node, &mut coming, &mut flying) {
                            breaks.get_or_insert_with(|| Instant::now() + BROKEN_AFTER);
                        }
                    }
                    // A goodbye still arrives.
                    _ => ended = true,
                },
            }
            if ended && flying.is_empty() {
                return;
            }
        }
    }

    /// Moves whole frames from what came to what flies, each by its fate; `true`: one was lost.
    fn take_frames(&self, node: &str, coming: &mut Vec<u8>, flying: &mut VecDeque<(Instant, Vec<u8>)>) -> bool {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let Some(link) = inner.links.get_mut(node) else { return false };
        let mut one_lost = false;
        while let Some(length) = coming.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes) as usize) {
            if coming.len() < 4 + length {
                break;
            }
            let rest = coming.split_off(4 + length);
            let mut frame = std::mem::replace(coming, rest);
            if link.old {
                speak_first_version(&mut frame);
            }
            let (low, high) = link.weather.latency_ms;
            let latest = flying.back().map(|(at, _)| *at);
            let arrives = Instant::now() + Duration::from_millis(link.dice.between(low, high));
            let at = latest.map_or(arrives, |latest| latest.max(arrives));
            if carries_records(&frame) {
                let Weather { lost, doubled, moved, damaged, .. } = link.weather;
                let fate = if lost + doubled + moved + damaged == 0 { 1000 } else { link.dice.below(1000) };
                if fate < lost {
                    one_lost = true;
                    continue;
                } else if fate < lost + doubled {
                    flying.push_back((at, frame.clone()));
                } else if fate < lost + doubled + moved
                    && let Some((_, before)) = flying.back_mut()
                {
                    std::mem::swap(before, &mut frame);
                } else if fate < lost + doubled + moved + damaged {
                    let at = usize::try_from(link.dice.below(length as u64)).unwrap_or(0);
                    frame[4 + at] ^= 1 << link.dice.below(8);
                }
            }
            flying.push_back((at, frame));
        }
        one_lost
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes of a hello that names all versions one that names the first: after four bytes of length an array of seven, kind 0, and the
/// versions (RFC 8949, 3).
fn speak_first_version(frame: &mut Vec<u8>) {
    const ALL: [u8; 6] = [0x87, 0, 0x83, 1, 2, 3];
    const FIRST: [u8; 4] = [0x87, 0, 0x81, 1];
    if frame.get(4..4 + ALL.len()) == Some(ALL.as_slice()) {
        frame.splice(4..4 + ALL.len(), FIRST);
        let length = u32::try_from(frame.len() - 4).unwrap_or(u32::MAX);
        frame[..4].copy_from_slice(&length.to_be_bytes());
    }
}

/// Whether a frame carries signed records, whole or as a difference: after four bytes of length an array of at most 23 items, and in it
/// the kind, 4 or 24 (RFC 8949, 3).
fn carries_records(frame: &[u8]) -> bool {
    frame.get(5) == Some(&4) || frame.get(5..7) == Some(&[0x18, 24])
}

fn blocks(cut: Cut, way: Way) -> bool {
    match cut {
        Cut::No => false,
        Cut::Both => true,
        Cut::Up => way == Way::Up,
        Cut::Down => way == Way::Down,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
