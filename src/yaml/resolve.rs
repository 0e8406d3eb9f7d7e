//! What an unquoted text means: `resolve` of go.yaml.in/yaml/v2, and what becomes of it in JSON.

use super::tree::{Scalar, Tree};

/// The value of an unquoted scalar.
pub(super) fn plain(text: String) -> Tree {
    let value = match text.as_str() {
        "" | "~" | "null" | "Null" | "NULL" => return Tree::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => Some(Scalar::Bool(true)),
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            Some(Scalar::Bool(false))
        }
        _ => numeric(&text),
    };
    match value {
        Some(value) => Tree::Scalar(value, text.into()),
        None => Tree::String(text),
    }
}

fn numeric(text: &str) -> Option<Scalar> {
    let float = |text: &str| text.parse::<f64>().ok().filter(|value| value.is_finite()).map(Scalar::number);
    match text.as_bytes()[0] {
        b'.' => is_float(text).then(|| float(text)).flatten(),
        b'0'..=b'9' | b'+' | b'-' => {
            let text = text.replace('_', "");
            integer(&text).or_else(|| is_float(&text).then(|| float(&text)).flatten())
        }
        _ => None,
    }
}

/// Go's `strconv.ParseInt` with base 0: `0x`, `0o`, `0b`, and a `0` in front for octal.
fn integer(text: &str) -> Option<Scalar> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (base, digits) = match digits.get(..2) {
        Some("0x" | "0X") => (16, &digits[2..]),
        Some("0o" | "0O") => (8, &digits[2..]),
        Some("0b" | "0B") => (2, &digits[2..]),
        Some(two) if two.starts_with('0') => (8, &digits[1..]),
        _ => (10, digits),
    };
    if !digits.starts_with(|first: char| first.is_ascii_alphanumeric()) {
        return None;
    }
    let value = i128::from(u64::from_str_radix(digits, base).ok()?);
    let value = if negative { -value } else { value };
    match i64::try_from(value) {
        Ok(value) => Some(Scalar::Int(value)),
        Err(_) if negative => None,
        Err(_) => Some(Scalar::Float(value as f64)),
    }
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`
fn is_float(text: &str) -> bool {
    let unsigned = |text: &str| text.strip_prefix(['-', '+']).unwrap_or(text).to_owned();
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let text = unsigned(text);
    let (mantissa, exponent) = text.split_once(['e', 'E']).map_or((text.as_str(), None), |(a, b)| (a, Some(b)));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let mantissa = digits(whole) && digits(fraction) && !(whole.is_empty() && fraction.is_empty());
    mantissa
        && exponent.is_none_or(|exponent| {
            let exponent = unsigned(exponent);
            !exponent.is_empty() && digits(&exponent)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_go_yaml_reads_them() {
        let (truth, int, float) = (Scalar::Bool, Scalar::Int, Scalar::Float);
        let cases = [
            ("y", truth(true)),
            ("Yes", truth(true)),
            ("ON", truth(true)),
            ("true", truth(true)),
            ("n", truth(false)),
            ("NO", truth(false)),
            ("Off", truth(false)),
            ("0", int(0)),
            ("-0", int(0)),
            ("+5", int(5)),
            ("131_072", int(131_072)),
            ("131072.0", int(131_072)),
            ("131072.", int(131_072)),
            ("1e5", int(100_000)),
            ("1E+5", int(100_000)),
            ("0755", int(493)),
            ("0o755", int(493)),
            ("-0755", int(-493)),
            ("0x1F", int(31)),
            ("0b101", int(5)),
            ("-0b101", int(-5)),
            // No octal digits.
            ("08", int(8)),
            ("9223372036854775807", int(i64::MAX)),
            ("-9223372036854775808", int(i64::MIN)),
            ("9223372036854775808", float(9_223_372_036_854_775_808.0)),
            ("1.5", float(1.5)),
            (".5", float(0.5)),
            ("-1.5e-3", float(-0.0015)),
            ("1e21", float(1e21)),
        ];
        for (text, value) in cases {
            assert_eq!(plain(text.to_owned()), Tree::Scalar(value, text.into()), "{text}");
        }
        let texts = [
            "yEs",
            "oN",
            "t",
            "1e999",
            "0x",
            "0o8",
            "--5",
            "+-5",
            "-",
            "+",
            ".",
            "..",
            "1.2.3",
            "1:30",
            "2026-01-01",
            "5m",
            "1e",
            "e5",
            ".inf",
            ".nan",
            "inf",
            "nan",
            "0x-5",
            "-_",
            "1_a",
            "10.0.0.1",
        ];
        for text in texts {
            assert_eq!(plain(text.to_owned()), Tree::String(text.to_owned()), "{text}");
        }
        for text in ["", "~", "null", "NULL"] {
            assert_eq!(plain(text.to_owned()), Tree::Null, "{text}");
        }
    }
}
