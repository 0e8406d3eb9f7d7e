//! What the numbers should be at most on a machine with two cores.

use crate::size::Size;

const SMALL: Size = Size { services: 1_000, endpoints: 10 };
const LARGE: Size = Size { services: 10_000, endpoints: 10 };
const LARGEST: Size = Size { services: 44_000, endpoints: 1 };
const HUGE: Size = Size { services: 100_000, endpoints: 1 };

/// In the row's unit, where there is one.
pub(crate) fn target(size: Size, what: &str) -> Option<f64> {
    let of = |large: f64, largest: f64, huge: f64| match size {
        LARGE => Some(large),
        LARGEST => Some(largest),
        HUGE => Some(huge),
        _ => None,
    };
    let changed = ["endpoint replaced", "endpoint added", "endpoint removed", "Service created"];
    let changed = changed.iter().any(|change| what.starts_with(change));
    match what {
        "cold start, to packets" => of(1_500.0, 4_000.0, 3_000.0),
        "resident after the cold start" => of(32.0, 64.0, 128.0),
        "peak after the cold start" if size == LARGE => Some(48.0),
        "repair after a flush: p50 to packets" if size == SMALL => Some(50.0),
        "repair after a flush: p50 to packets" if size == LARGE => Some(300.0),
        "restart after a kill, to \"in sync\"" | "restart after a stop, to \"in sync\"" if size == HUGE => {
            Some(3_000.0)
        }
        "longest transaction" => Some(50.0),
        "churn: processor" if size.services <= LARGE.services => Some(15.0),
        "churn: lag at the end" if size.services <= LARGE.services => Some(50.0),
        _ if changed && what.ends_with("p50 to packets") => of(0.5, 0.6, 1.0),
        _ if changed && what.ends_with("p99 to packets") && size == LARGE => Some(20.0),
        _ => None,
    }
}
