//! Durations as Go writes them.

use std::fmt;
use std::time::Duration;

/// Nanoseconds; may be negative, as in Go.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct GoDuration(pub(super) i64);

impl fmt::Debug for GoDuration {
    /// In seconds, as it could be written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}s", self.0 as f64 / 1e9)
    }
}

impl GoDuration {
    /// Reads Go's `time.ParseDuration`: numbers with units in any order, such as `1h30m`, `1.5s`, `-100ms` or `0`.
    pub(super) fn parse(text: &str) -> Option<GoDuration> {
        let (negative, mut rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        if rest == "0" {
            return Some(GoDuration(0));
        }
        if rest.is_empty() {
            return None;
        }
        let mut total: i128 = 0;
        while !rest.is_empty() {
            let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
            let (number, after) = rest.split_at(number_end);
            let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
            let (unit, after) = after.split_at(unit_end);
            total = total.checked_add(nanoseconds(number, unit_nanoseconds(unit)?)?)?;
            rest = after;
        }
        i64::try_from(if negative { -total } else { total }).ok().map(GoDuration)
    }

    /// The duration, if it is not negative.
    pub(super) fn get(self) -> Option<Duration> {
        u64::try_from(self.0).ok().map(Duration::from_nanos)
    }
}

fn unit_nanoseconds(unit: &str) -> Option<i128> {
    Some(match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

/// `number` is digits with at most one dot and at least one digit.
fn nanoseconds(number: &str, unit: i128) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    // More digits than a nanosecond of an hour has change nothing.
    let fraction = &fraction[..fraction.len().min(18)];
    let part = match fraction {
        "" => 0,
        digits => digits.parse::<i128>().ok()? * unit / 10_i128.pow(digits.len().try_into().ok()?),
    };
    whole.checked_mul(unit)?.checked_add(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_go_reads_them() {
        const SECOND: i64 = 1_000_000_000;
        let cases = [
            ("0", Some(0)),
            ("0s", Some(0)),
            ("30s", Some(30 * SECOND)),
            ("1h0m0s", Some(3600 * SECOND)),
            ("1.5h", Some(5400 * SECOND)),
            ("100ms", Some(SECOND / 10)),
            (".5s", Some(SECOND / 2)),
            ("1.s", Some(SECOND)),
            ("-1s", Some(-SECOND)),
            ("+1us1µs1μs1ns", Some(3001)),
            ("0.3333333333333333333333h", Some(1_199_999_999_999)),
            ("2562047h47m16.854775807s", Some(i64::MAX)),
            ("2562047h47m16.854775808s", None),
            ("99999999999999999999999999999999999999999999h", None),
            ("", None),
            ("-", None),
            ("30", None),
            ("s", None),
            (".s", None),
            ("1..5s", None),
            ("1 s", None),
            ("1d", None),
            (" 1s", None),
        ];
        for (text, expected) in cases {
            assert_eq!(GoDuration::parse(text).map(|duration| duration.0), expected, "{text:?}");
        }
    }
}
