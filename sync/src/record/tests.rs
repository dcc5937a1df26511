use super::*;
use crate::identity::NodeName;

fn channel() -> ChannelName {
    ChannelName::Device(NodeName::parse("cam-1").unwrap())
}

fn full() -> Draft {
    let need = Need { item: ItemId::parse("placement/x").unwrap(), epoch: 3, heads: vec![[7; 32]] };
    let uuid = ItemId::parse("0f8fad5b-d9cb-469f-a165-70867728950e").unwrap();
    Draft::change(uuid, 2, &b"change"[..], "admin", 1_700_000_000_000).needing(vec![need])
}

fn encoded(draft: &Draft) -> Vec<u8> {
    let mut encoder = Encoder::new();
    draft.encode(&mut encoder);
    encoder.finish()
}

/// Version 1, as shipped: a change here breaks every log on every disk.
#[test]
fn golden_version_1() {
    let change = "8702500f8fad5bd9cb469fa16570867728950e0281836b706c6163656d656e742f7803815820070707070707070707070707\
                  0707070707070707070707070707070707070707466368616e67656561646d696e1b0000018bcfe56800";
    let golden = [
        (full(), change.to_owned()),
        (Draft::remove(ItemId::parse("evict/a").unwrap(), "", 0), "87046765766963742f610080f66000".to_owned()),
        (
            Draft::register(ItemId::parse("grant/a").unwrap(), &b"{}"[..], "hub", 24),
            "8703676772616e742f610080427b7d63687562".to_owned() + "1818",
        ),
    ];
    for (draft, expected) in golden {
        let bytes = encoded(&draft);
        assert_eq!(crate::identity::hex(&bytes), expected, "{draft:?}");
        let mut decoder = Decoder::new(&bytes);
        assert_eq!(Draft::decode(&mut decoder).unwrap(), draft);
        decoder.end().unwrap();
    }
    let hash = record_hash(&channel(), &WriterId([1; 32]), 5, &[2; 32], &encoded(&full()));
    assert_eq!(crate::identity::hex(&hash), GOLDEN_HASH);
}

const GOLDEN_HASH: &str = "675020fac500cf8527368fa469cd65b71cf232689a4454104ad1c38530e75400";

#[test]
fn a_value_has_one_encoding() {
    for (bytes, why) in [
        (&[0x18, 0x17][..], "shortest"),
        (&[0x19, 0x00, 0xff][..], "shortest"),
        (&[0x5f][..], "byte string"),
        (&[0x1f][..], "indefinite"),
        (&[][..], "ends too early"),
    ] {
        let error = Decoder::new(bytes).uint().unwrap_err();
        assert!(error.to_string().contains(why) || why == "byte string", "{error}");
    }
    // A UUID as text is not the one encoding of that id.
    let mut encoder = Encoder::new();
    encoder.text("0f8fad5b-d9cb-469f-a165-70867728950e");
    assert!(decode_item(&mut Decoder::new(&encoder.finish())).is_err());
    assert!(Decoder::new(&[0x5b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).bytes(usize::MAX).is_err());
}

proptest::proptest! {
    #[test]
    fn hostile_bytes_are_an_error(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        // Whatever is taken must encode to what was read.
        let mut decoder = Decoder::new(&bytes);
        if let Ok(draft) = Draft::decode(&mut decoder) {
            proptest::prop_assert_eq!(encoded(&draft), &bytes[..decoder.position()]);
        }
    }

    #[test]
    fn damaged_records_are_an_error_or_another_record(at in 0usize..110, bit in 0u8..8) {
        let mut bytes = encoded(&full());
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        let mut decoder = Decoder::new(&bytes);
        if let Ok(draft) = Draft::decode(&mut decoder) {
            proptest::prop_assert_ne!(&draft, &full());
            proptest::prop_assert_eq!(encoded(&draft), &bytes[..decoder.position()]);
        }
    }
}
