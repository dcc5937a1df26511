//! Bundles that are none, are for others, or were made to do harm.

use bytes::Bytes;
use proptest::prelude::*;

use super::super::envelope::{FileKey, Sealer};
use super::super::format::{Found, FrameReader, HEADER_BYTES_MAX, Header, SECTION_BYTES_MAX, frame_head};
use super::super::section::Section;
use super::super::{BundleError, Direction, Export, Incoming, Missing, Receiver, Side, inspect, peek};
use super::memory::{NODE, World, blocking, fleet, node, own, taken, written};
use crate::channel::Positions;
use crate::enrol::{JoinMaterial, Token, request_of};
use crate::identity::{NodeName, SealingKey, SigningKey};
use crate::observation::Clock;
use crate::transport::PeerIdentity;

/// A bundle of version 1 as the first release wrote it, for the keys of `golden_version_1`.
const GOLDEN: &[u8] = include_bytes!("golden-1.flotilla");

#[test]
fn golden_version_1() {
    let root = SigningKey::from_seed([1; 32]).unwrap();
    let key = SealingKey::from_bytes([7; 32]);
    let side = Side { root: root.public(), receiver: Receiver::Device(node()), key };
    let intake = blocking(Incoming::open(GOLDEN, &side)).unwrap();
    let Incoming::Bundle(intake) = intake else { panic!("a request to join") };
    let maker = intake.maker().clone();
    assert_eq!((maker.introduction.direction, maker.time_ms), (Direction::Down, 1_700_000_000_000));
    assert_eq!(maker.introduction.clock, Clock { incarnation: 4, boot: 5, seq: 6 });
    let world = World::new();
    let mut device = world.device;
    device.side = side;
    let report = blocking(intake.take(&device, &PeerIdentity::Hub, true)).unwrap();
    assert_eq!((report.records_new, report.acknowledgements, report.whole), (2, 1, true), "{report:?}");
    assert_eq!(device.shown(&fleet())["item/1"], b"one");
    assert_eq!(device.shown(&own())["grant/1"], b"two");
}

#[test]
fn for_another_device_another_installation_or_an_old_key() {
    let world = World::new();
    let down = world.down(false);
    let mut side = world.device.side.clone();
    side.receiver = Receiver::Device(NodeName::parse("n2").unwrap());
    let refused = blocking(Incoming::open(&down[..], &side)).unwrap_err();
    assert!(matches!(refused, BundleError::NotForHere { .. }));
    assert!(refused.to_string().contains(NODE) && refused.to_string().contains("n2"), "{refused}");
    let other = World::new();
    assert!(matches!(other.take_down(&down), Err(BundleError::NotForHere { .. })));
    assert!(matches!(world.take_up(&down), Err(BundleError::NotForHere { .. })));
    let mut side = world.device.side.clone();
    side.key = SealingKey::generate().unwrap();
    assert!(matches!(blocking(Incoming::open(&down[..], &side)), Err(BundleError::OtherKey { .. })));
}

#[test]
fn a_device_cannot_make_a_hubs_bundle() {
    let world = World::new();
    world.device.set(&own(), "override/o", b"2");
    let signer = world.device.identity();
    let forge = |direction| Export {
        signer: &signer,
        seal: world.seal_to(&world.device.side, 1),
        direction,
        clock: Clock { incarnation: 9, boot: 9, seq: 9 },
        positions: Positions::new(),
        own_log_only: true,
        hub_sealing: None,
        enrolled: None,
        acknowledged: Vec::new(),
        blobs: Vec::new(),
    };
    for direction in [Direction::Down, Direction::Up] {
        let bytes = written(&world.device, &PeerIdentity::Hub, forge(direction));
        assert!(matches!(world.take_down(&bytes), Err(BundleError::Forged { .. })), "{direction}");
    }
}

/// Whoever may open a bundle can seal other sections under its key; only the maker's own signature makes them count, and it covers
/// the key.
#[test]
fn a_new_key_needs_a_new_signature() {
    let world = World::new();
    world.hub.set(&fleet(), "a", b"1");
    let down = world.down(false);
    let mut reader = FrameReader::default();
    reader.push(&down);
    let Ok(Some(Found::Header(header))) = reader.next(true) else { panic!("no header") };
    let key = FileKey::open(&header, &world.device.side.key).unwrap();
    let Ok(Some(Found::Frame(first))) = reader.next(true) else { panic!("no frame") };
    let opening = Section::decode(&Bytes::from(key.section(&first).unwrap())).unwrap();
    let (mut sealer, mut forged, _) = Sealer::begin(&world.seal_to(&world.device.side, 5)).unwrap();
    forged.extend(sealer.seal(&opening, false).unwrap());
    forged.extend(sealer.seal(&Section::End, true).unwrap());
    assert!(matches!(world.take_down(&forged), Err(BundleError::Forged { .. })));
}

#[test]
fn a_request_to_join_is_bound_to_its_bundle_and_hides_its_token() {
    let world = World::new();
    let installation = &world.installation;
    let pins = (installation.pin(), installation.root().public());
    let addresses = (vec!["hub:1".to_owned()], Vec::new());
    let (token, _) = Token::generate(addresses, pins, u64::MAX, None, 1).unwrap();
    let none = JoinMaterial::prepare(&token, node(), Default::default()).unwrap();
    assert!(none.receiver().unwrap_err().to_string().contains("earlier version"));
    let token = token.with_sealing(installation.sealing().public().unwrap());
    let join = JoinMaterial::prepare(&token, node(), Default::default()).unwrap();
    let export = super::super::JoinExport { join: &join, keys: &world.keys, time_ms: 7 };
    let mut bytes = Vec::new();
    blocking(super::super::export_join(&export, &mut bytes)).unwrap();
    assert!(!bytes.windows(32).any(|window| window == token.secret), "the token's secret lies open");
    assert!(!bytes.windows(NODE.len()).any(|window| window == NODE.as_bytes()), "who joins lies open");
    let Incoming::Join(joining) = blocking(Incoming::open(&bytes[..], &world.hub.side)).unwrap() else { panic!() };
    let root = installation.root().public();
    let request = request_of(&joining.request, &joining.binding, &root).unwrap();
    assert_eq!(request.node, node());
    let refused = request_of(&joining.request, &[0; 32], &root).unwrap_err();
    assert!(refused.message.contains("not signed"), "{refused}");
}

#[test]
fn huge_lengths_are_refused_before_anything_is_allocated() {
    let mut bytes = b"FLOTILLA\x01\xff\xff".to_vec();
    bytes.extend([0; 64]);
    assert!(matches!(blocking(peek(&bytes[..])), Err(BundleError::Damaged { .. })));
    bytes[8] = 2;
    assert!(matches!(blocking(peek(&bytes[..])), Err(BundleError::Version { found: 2 })));
    assert!(matches!(blocking(peek(&b"FLOTI"[..])), Err(BundleError::NoBundle)));
    assert!(matches!(blocking(peek(&b"PK\x03\x04 and more"[..])), Err(BundleError::NoBundle)));
    assert!(frame_head(0, SECTION_BYTES_MAX + 1, false).is_err());
    let bare = vec![0; HEADER_BYTES_MAX];
    assert!(matches!(Header::encode(&bare, &[]), Err(BundleError::TooLarge { .. })));
}

#[test]
fn a_bad_spot_costs_what_it_touches() {
    let world = World::new();
    for number in 0..6_u8 {
        world.hub.set(&fleet(), &format!("item/{number}"), &[number]);
        world.hub.set(&own(), &format!("grant/{number}"), &[number]);
    }
    let whole = world.down(false);
    let mut frames = FrameReader::default();
    frames.push(&whole);
    let mut bytes = whole.clone();
    // In the middle of the fleet's log: its second batch.
    let mut at = None;
    let mut position = 0;
    while let Ok(Some(found)) = frames.next(true) {
        if let Found::Frame(frame) = found {
            let start = whole.windows(16).position(|window| window == frame.head).unwrap();
            position += 1;
            if position == 4 {
                at = Some(start + 20);
            }
        }
    }
    bytes[at.unwrap()] ^= 1;
    assert!(!blocking(inspect(&bytes[..])).unwrap().report.whole);
    let report = world.take_down(&bytes).unwrap();
    assert!(!report.whole);
    assert!(report.missing.iter().any(|missing| matches!(missing, Missing::Damaged { .. })), "{:?}", report.missing);
    assert!(report.missing.iter().any(|missing| matches!(missing, Missing::Records { after: 1, .. })));
    assert_eq!(world.device.shown(&fleet()).len(), 1);
    assert_eq!(world.device.shown(&own()).len(), 6, "the other log was whole");
    assert_eq!(world.take_down(&whole).unwrap().missing, []);
    assert_eq!(world.device.shown(&fleet()).len(), 6);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), prefix in 0usize..3) {
        let world = World::new();
        let mut file = match prefix {
            0 => Vec::new(),
            1 => b"FLOTILLA\x01".to_vec(),
            _ => world.down(false),
        };
        file.extend(&bytes);
        drop(blocking(inspect(&file[..])));
        drop(taken(&world.device, &PeerIdentity::Hub, &file));
    }

    #[test]
    fn sections_decode_or_refuse(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        drop(Section::decode(&Bytes::from(bytes)));
    }
}
