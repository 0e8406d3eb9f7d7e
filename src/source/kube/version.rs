//! Versions of what an API server holds, as far as they can be compared.

/// Whether the version `one` is older than the version `other`.
///
/// A `resourceVersion` is a decimal integer of any length where it is an API server of Kubernetes that gives it, and
/// comparable since 1.35 (KEP-5504); before, it was the same number of etcd without the promise. Of anything else it is
/// not known which is older: `false`.
pub(super) fn is_before(one: &str, other: &str) -> bool {
    is_comparable(one) && is_comparable(other) && (one.len(), one) < (other.len(), other)
}

/// Whether a version can be compared with others.
pub(super) fn is_comparable(version: &str) -> bool {
    version.bytes().all(|byte| byte.is_ascii_digit()) && !version.is_empty() && !version.starts_with('0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_compared_and_nothing_else() {
        for (one, other) in [("1", "2"), ("9", "10"), ("99", "100"), ("18446744073709551615", "18446744073709551616")] {
            assert!(is_before(one, other) && !is_before(other, one) && !is_before(one, one), "{one} {other}");
        }
        for odd in ["", "0", "07", "-1", "+1", "1.0", "1e3", "a", "v12", " 1", "1 ", "\u{661}"] {
            for version in ["1", "10", "a", ""] {
                assert!(!is_before(odd, version) && !is_before(version, odd), "{odd:?} {version:?}");
            }
        }
    }
}
