#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn canonical(text: &str) -> String {
    Quantity::parse(text).unwrap().to_string()
}

#[test]
fn canonical_forms_are_those_of_kubernetes() {
    let table = [
        ("0", "0"),
        ("-0", "0"),
        ("1", "1"),
        ("+1", "1"),
        ("1000m", "1"),
        ("0.5", "500m"),
        (".5", "500m"),
        ("5.", "5"),
        ("1.5", "1500m"),
        ("100m", "100m"),
        ("1500", "1500"),
        ("1000", "1k"),
        ("100000", "100k"),
        ("128974848", "128974848"),
        ("129e6", "129e6"),
        ("129M", "129M"),
        ("123Mi", "123Mi"),
        ("1024Ki", "1Mi"),
        ("1536Ki", "1536Ki"),
        ("1.5Gi", "1536Mi"),
        ("0.5Mi", "512Ki"),
        ("0.5Ki", "512"),
        ("1Ki", "1Ki"),
        ("0.0001Ki", "102400u"),
        ("1E", "1E"),
        ("1E3", "1e3"),
        ("1e-3", "1e-3"),
        ("12e0", "12"),
        ("-1.5Gi", "-1536Mi"),
        ("-250m", "-250m"),
        ("1n", "1n"),
        ("0.1n", "1n"),
        ("1.0000000001", "1000000001n"),
        ("1e1000000", "9223372036854775807"),
        ("1e-1000000", "1e-9"),
        ("0e99", "0"),
        ("8Ei", "9223372036854775807"),
        ("-9Ei", "-9223372036854775807"),
        ("7Ei", "7Ei"),
        // 2^60 * 1e-21 = 1.152921504606846976e-3, rounded up to nano-units.
        ("0.000000000000000000001Ei", "1152922n"),
    ];
    for (text, expected) in table {
        assert_eq!(canonical(text), expected, "{text}");
    }
}

#[test]
fn faults_are_named() {
    for text in ["", "-", "+", ".", "1.2.3", "Mi", "a", "--1", "1,5"] {
        assert!(Quantity::parse(text).is_err(), "{text}");
    }
    for text in ["1Kb", "1 Mi", "1e", "1e+", "1ee3", "1mi", "1K", "1é", "1MiB", "1e1.5"] {
        assert_eq!(Quantity::parse(text), Err(QuantityError::Suffix), "{text}");
    }
    assert_eq!(Quantity::parse(&"9".repeat(129)), Err(QuantityError::TooLong));
    assert_eq!(Quantity::parse(&"9".repeat(128)).unwrap().units(), i64::MAX);
    assert_eq!(Quantity::of_json(&json!(true)), Err(QuantityError::NotText));
    assert_eq!(Quantity::of_json(&json!(0.5)).unwrap().milli(), 500);
    assert_eq!(Quantity::of_json(&json!(2)).unwrap().units(), 2);
}

#[test]
fn rounding_is_away_from_zero() {
    let table = [("1.1", 2, 1100), ("-1.1", -2, -1100), ("0.1m", 1, 1), ("-0.1m", -1, -1), ("2", 2, 2000)];
    for (text, units, milli) in table {
        let quantity = Quantity::parse(text).unwrap();
        assert_eq!((quantity.units(), quantity.milli()), (units, milli), "{text}");
    }
    assert_eq!(Quantity::parse("9E").unwrap().milli(), i64::MAX);
}

#[test]
fn values_compare_and_add_across_formats() {
    let parse = |text| Quantity::parse(text).unwrap();
    assert_eq!(parse("1000m"), parse("1"));
    assert_eq!(parse("1Ki"), parse("1024"));
    assert!(parse("1Ki") > parse("1k"));
    assert!(parse("-1") < parse("0"));
    assert_eq!(parse("500m").plus(parse("1.5")).to_string(), "2");
    assert_eq!(parse("1Gi").minus(parse("512Mi")).to_string(), "512Mi");
    assert_eq!(Quantity::ZERO.plus(parse("64Mi")).to_string(), "64Mi");
    assert_eq!(parse("7Ei").plus(parse("7Ei")).units(), i64::MAX);
    assert_eq!(Quantity::from_bytes(3 << 20).to_string(), "3Mi");
    assert_eq!(Quantity::from_milli(i64::MAX).milli(), i64::MAX);
}

proptest! {
    #[test]
    fn canonical_form_is_stable_and_keeps_the_value(number in -1_000_000_000_000i64..1_000_000_000_000, fraction in 0u32..1000,
        suffix in prop::sample::select(vec!["", "n", "u", "m", "k", "M", "Ki", "Mi", "e3", "E-2"])) {
        let first = Quantity::parse(&format!("{number}.{fraction}{suffix}")).unwrap();
        let again = Quantity::parse(&first.to_string()).unwrap();
        prop_assert_eq!(first, again);
        prop_assert_eq!(first.to_string(), again.to_string());
    }

    #[test]
    fn plus_then_minus_returns(left in -1_000_000_000_000i64..1_000_000_000_000, right in -1_000_000_000_000i64..1_000_000_000_000) {
        let (left, right) = (Quantity::from_milli(left), Quantity::from_milli(right));
        prop_assert_eq!(left.plus(right).minus(right), left);
        prop_assert_eq!(left.plus(right), right.plus(left));
    }

    #[test]
    fn no_text_panics(text in "[-+0-9.eEinumkKMGTP é]{0,130}") {
        if let Ok(quantity) = Quantity::parse(&text) {
            prop_assert_eq!(Quantity::parse(&quantity.to_string()), Ok(quantity));
        }
    }
}
