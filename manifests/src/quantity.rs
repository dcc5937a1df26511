//! `resource.Quantity`: amounts of CPU, memory and anything counted, exactly.
//!
//! Owns parsing, arithmetic and the canonical form of Kubernetes' quantities. Refuses floating point: a value is a whole
//! number of nano-units, bounded to the magnitude of a 64-bit integer of units, as Kubernetes documents. Start at
//! [`Quantity::parse`].

use std::cmp::Ordering;
use std::fmt;

use serde_json::Value;

/// Longest text read as a quantity.
const TEXT_BYTES_MAX: usize = 128;

const NANOS_PER_UNIT: i128 = 1_000_000_000;

/// 2^63 - 1 units; larger magnitudes are capped here, as Kubernetes does.
const NANOS_MAX: i128 = 9_223_372_036_854_775_807 * NANOS_PER_UNIT;

/// The family of suffixes a quantity was written in; its canonical form keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// `12e6`
    DecimalExponent,
    /// `12Mi`
    Binary,
    /// `12M`, `100m`
    #[default]
    Decimal,
}

/// An amount. Compared by value alone: `1000m` equals `1`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quantity {
    /// Invariant: magnitude at most [`NANOS_MAX`].
    nanos: i128,
    format: Format,
}

/// Why a text is no quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$' (such as 500m, 1.5, 64Mi)"
    )]
    Syntax,
    #[error(
        "unable to parse quantity's suffix (one of n, u, m, k, M, G, T, P, E, Ki, Mi, Gi, Ti, Pi, Ei, or an exponent e3)"
    )]
    Suffix,
    #[error("a quantity is at most 128 bytes long")]
    TooLong,
    #[error("a quantity is a string or a number")]
    NotText,
}

impl Quantity {
    pub const ZERO: Self = Self { nanos: 0, format: Format::Decimal };

    /// Reads `1`, `0.5`, `100m`, `64Mi`, `1e3`. Precision beyond nano-units rounds away from zero, magnitudes beyond
    /// 2^63 - 1 are capped: both as Kubernetes does.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(QuantityError::TooLong);
        }
        let (negative, unsigned) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let number_end =
            unsigned.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(number_end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(QuantityError::Syntax);
        }
        let (format, scale) = parse_suffix(suffix)?;
        let magnitude = match scale {
            Scale::Binary(power) => multiply(whole, fraction, NANOS_PER_UNIT << power),
            Scale::Decimal(exponent) => {
                let (whole, fraction) = shift_point(whole, fraction, exponent);
                multiply(&whole, &fraction, NANOS_PER_UNIT)
            }
        };
        let below_one = magnitude < NANOS_PER_UNIT;
        let format = if format == Format::Binary && below_one { Format::Decimal } else { format };
        Ok(Self { nanos: if negative { -magnitude } else { magnitude }, format })
    }

    /// Reads a JSON string or number.
    pub fn of_json(value: &Value) -> Result<Self, QuantityError> {
        match value {
            Value::String(text) => Self::parse(text),
            Value::Number(number) => Self::parse(&number.to_string()),
            _ => Err(QuantityError::NotText),
        }
    }

    pub fn from_units(units: i64) -> Self {
        Self::capped(i128::from(units) * NANOS_PER_UNIT, Format::Decimal)
    }

    /// Thousandths, the usual measure of CPU.
    pub fn from_milli(milli: i64) -> Self {
        Self::capped(i128::from(milli) * (NANOS_PER_UNIT / 1000), Format::Decimal)
    }

    /// Bytes, shown with binary suffixes.
    pub fn from_bytes(bytes: i64) -> Self {
        Self::capped(i128::from(bytes) * NANOS_PER_UNIT, Format::Binary)
    }

    pub fn format(self) -> Format {
        self.format
    }

    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// Whether the amount is a whole number of units (a container count, a byte count).
    pub fn is_whole(self) -> bool {
        self.nanos % NANOS_PER_UNIT == 0
    }

    /// Units, rounded away from zero.
    pub fn units(self) -> i64 {
        clamp_i64(divide_away_from_zero(self.nanos, NANOS_PER_UNIT))
    }

    /// Thousandths, rounded away from zero; capped at the ends of `i64`.
    pub fn milli(self) -> i64 {
        clamp_i64(divide_away_from_zero(self.nanos, NANOS_PER_UNIT / 1000))
    }

    /// The sum in this quantity's format, capped. (A zero takes the other's format.)
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self::capped(self.nanos + other.nanos, format)
    }

    /// The difference in this quantity's format, capped.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self::capped(self.nanos - other.nanos, format)
    }

    fn capped(nanos: i128, format: Format) -> Self {
        Self { nanos: nanos.clamp(-NANOS_MAX, NANOS_MAX), format }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl fmt::Display for Quantity {
    /// The canonical form: the largest suffix that needs no fraction.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at_least_1024 = self.nanos.abs() >= 1024 * NANOS_PER_UNIT;
        if self.format == Format::Binary && self.is_whole() && at_least_1024 {
            let mut units = self.nanos / NANOS_PER_UNIT;
            let mut power = 0;
            while units % 1024 == 0 && power + 1 < BINARY_SUFFIXES.len() {
                units /= 1024;
                power += 1;
            }
            return write!(formatter, "{units}{}", BINARY_SUFFIXES[power]);
        }
        if self.nanos == 0 {
            return formatter.write_str("0");
        }
        let mut mantissa = self.nanos;
        let mut step = 0;
        while mantissa % 1000 == 0 && step + 1 < DECIMAL_SUFFIXES.len() {
            mantissa /= 1000;
            step += 1;
        }
        let (suffix, exponent) = DECIMAL_SUFFIXES[step];
        match (self.format, exponent) {
            (Format::DecimalExponent, 0) => write!(formatter, "{mantissa}"),
            (Format::DecimalExponent, _) => write!(formatter, "{mantissa}e{exponent}"),
            _ => write!(formatter, "{mantissa}{suffix}"),
        }
    }
}

impl std::str::FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

const BINARY_SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

/// In steps of a thousand from the nano-unit.
const DECIMAL_SUFFIXES: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];

enum Scale {
    /// Times two to this power.
    Binary(usize),
    /// Times ten to this power.
    Decimal(i32),
}

fn parse_suffix(suffix: &str) -> Result<(Format, Scale), QuantityError> {
    if let Some((_, exponent)) = DECIMAL_SUFFIXES.iter().find(|(name, _)| *name == suffix) {
        return Ok((Format::Decimal, Scale::Decimal(*exponent)));
    }
    if let Some(index) = BINARY_SUFFIXES.iter().position(|name| *name == suffix) {
        return Ok((Format::Binary, Scale::Binary(index * 10)));
    }
    let digits = suffix.strip_prefix(['e', 'E']).ok_or(QuantityError::Suffix)?;
    let (sign, digits) = match digits.as_bytes().first() {
        Some(b'-') => (-1, &digits[1..]),
        Some(b'+') => (1, &digits[1..]),
        _ => (1, digits),
    };
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(QuantityError::Suffix);
    }
    // Any exponent outside the digits of the longest text and of the largest value gives zero, the smallest or the
    // largest value; so one beyond 1000 may stand for all.
    let exponent = digits.parse().unwrap_or(1000).min(1000);
    Ok((Format::DecimalExponent, Scale::Decimal(sign * exponent)))
}

/// Moves the decimal point `exponent` digits to the right. At most 1000 digits are added.
fn shift_point(whole: &str, fraction: &str, exponent: i32) -> (String, String) {
    let distance = exponent.unsigned_abs() as usize;
    if exponent >= 0 {
        let moved = distance.min(fraction.len());
        let zeros = "0".repeat(distance - moved);
        (format!("{whole}{}{zeros}", &fraction[..moved]), fraction[moved..].to_owned())
    } else {
        let moved = distance.min(whole.len());
        let zeros = "0".repeat(distance - moved);
        let (kept, shifted) = whole.split_at(whole.len() - moved);
        (kept.to_owned(), format!("{zeros}{shifted}{fraction}"))
    }
}

/// `whole.fraction` times `factor`, rounded up, capped at [`NANOS_MAX`]. `factor` is below 2^90, so nothing overflows:
/// the fraction is folded digit by digit from its end, and the whole stops growing at the cap.
fn multiply(whole: &str, fraction: &str, factor: i128) -> i128 {
    let mut inexact = false;
    let mut below_one: i128 = 0;
    for digit in fraction.bytes().rev() {
        let sum = i128::from(digit - b'0') * factor + below_one;
        inexact |= sum % 10 != 0;
        below_one = sum / 10;
    }
    let mut units: i128 = 0;
    for digit in whole.bytes() {
        units = (units * 10 + i128::from(digit - b'0')).min(NANOS_MAX);
    }
    let product = units.checked_mul(factor).unwrap_or(NANOS_MAX).min(NANOS_MAX);
    (product + below_one + i128::from(inexact)).min(NANOS_MAX)
}

fn divide_away_from_zero(value: i128, divisor: i128) -> i128 {
    let quotient = value / divisor;
    if value % divisor == 0 { quotient } else { quotient + value.signum() }
}

fn clamp_i64(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

#[cfg(test)]
mod tests;
