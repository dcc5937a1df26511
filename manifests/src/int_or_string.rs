//! `IntOrString`: a count, or a percentage of another count.
//!
//! Owns the reading of `maxUnavailable` and `maxSurge` and their rounding. Refuses to guess what the whole is: it is an
//! argument.

use serde_json::Value;

/// A count or a percentage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntOrPercent {
    Int(i64),
    /// `25%` is 25.
    Percent(u32),
}

/// Which way a percentage that gives no whole count is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    Up,
    Down,
}

/// Why a value is neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IntOrPercentError {
    #[error("must be an integer or a percentage (e.g '5%')")]
    NotIntOrPercent,
    #[error(
        "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')"
    )]
    NotPercent,
}

impl IntOrPercent {
    pub fn of_json(value: &Value) -> Result<Self, IntOrPercentError> {
        match value {
            Value::Number(number) => number.as_i64().map(Self::Int).ok_or(IntOrPercentError::NotIntOrPercent),
            Value::String(text) => {
                let digits = text.strip_suffix('%').ok_or(IntOrPercentError::NotPercent)?;
                if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
                    return Err(IntOrPercentError::NotPercent);
                }
                digits.parse().map(Self::Percent).map_err(|_| IntOrPercentError::NotPercent)
            }
            _ => Err(IntOrPercentError::NotIntOrPercent),
        }
    }

    /// The count, of a whole of `total`.
    pub fn of_total(self, total: u32, rounding: Rounding) -> i64 {
        match self {
            Self::Int(count) => count,
            Self::Percent(percent) => {
                let hundredths = u64::from(percent) * u64::from(total);
                let count = match rounding {
                    Rounding::Up => hundredths.div_ceil(100),
                    Rounding::Down => hundredths / 100,
                };
                i64::try_from(count).unwrap_or(i64::MAX)
            }
        }
    }
}

/// How many Pods a rolling update may have too many and too few.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fenceposts {
    pub surge: u32,
    pub unavailable: u32,
}

/// `maxSurge` rounds up, `maxUnavailable` down; when both give none, one may be unavailable, or nothing would ever move.
pub fn fenceposts(max_surge: &Value, max_unavailable: &Value, desired: u32) -> Result<Fenceposts, IntOrPercentError> {
    let count = |value: &Value, rounding| {
        let count = IntOrPercent::of_json(value)?.of_total(desired, rounding);
        Ok(u32::try_from(count.max(0)).unwrap_or(u32::MAX))
    };
    let surge = count(max_surge, Rounding::Up)?;
    let unavailable = count(max_unavailable, Rounding::Down)?;
    Ok(Fenceposts { surge, unavailable: if surge == 0 && unavailable == 0 { 1 } else { unavailable } })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use serde_json::json;

    use super::*;

    #[test]
    fn counts_and_percentages_resolve() {
        let table = [
            (json!(3), 10, 3, 3),
            (json!(-1), 10, -1, -1),
            (json!("25%"), 10, 3, 2),
            (json!("0%"), 10, 0, 0),
            (json!("100%"), 7, 7, 7),
            (json!("1%"), 1, 1, 0),
            (json!("34%"), 3, 2, 1),
            (json!("4294967295%"), u32::MAX, 184_467_440_651_196_171, 184_467_440_651_196_170),
        ];
        for (value, total, up, down) in table {
            let parsed = IntOrPercent::of_json(&value).unwrap();
            assert_eq!(parsed.of_total(total, Rounding::Up), up, "{value} of {total} up");
            assert_eq!(parsed.of_total(total, Rounding::Down), down, "{value} of {total} down");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for value in [json!("3"), json!("%"), json!("-1%"), json!("1.5%"), json!("99999999999%"), json!("")] {
            assert_eq!(IntOrPercent::of_json(&value), Err(IntOrPercentError::NotPercent), "{value}");
        }
        for value in [json!(1.5), json!(null), json!([1]), json!(true)] {
            assert_eq!(IntOrPercent::of_json(&value), Err(IntOrPercentError::NotIntOrPercent), "{value}");
        }
    }

    #[test]
    fn a_rollout_can_always_move() {
        let posts = |surge, unavailable, desired| fenceposts(&surge, &unavailable, desired).unwrap();
        assert_eq!(posts(json!("25%"), json!("25%"), 6), Fenceposts { surge: 2, unavailable: 1 });
        assert_eq!(posts(json!("25%"), json!("25%"), 1), Fenceposts { surge: 1, unavailable: 0 });
        assert_eq!(posts(json!(0), json!("10%"), 3), Fenceposts { surge: 0, unavailable: 1 });
        assert_eq!(posts(json!(0), json!(0), 0), Fenceposts { surge: 0, unavailable: 1 });
    }
}
