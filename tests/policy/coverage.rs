//! What a test has met, so that it can say what it has not.

use std::collections::BTreeSet;
use std::fmt;

/// Which values of some dimensions met which.
pub(crate) struct Pairs {
    /// The names of each dimension's values.
    dimensions: Vec<Vec<String>>,
    /// Where the values of each dimension begin among all values.
    starts: Vec<usize>,
    total: usize,
    /// For each pair of values whether they met.
    met: Vec<bool>,
}

impl Pairs {
    /// Dimensions with all their values.
    pub(crate) fn new(dimensions: Vec<Vec<String>>) -> Pairs {
        let mut starts = Vec::new();
        let mut total = 0;
        for values in &dimensions {
            starts.push(total);
            total += values.len();
        }
        Pairs { dimensions, starts, total, met: vec![false; total * total] }
    }

    /// A case, by the position of its value in each dimension.
    pub(crate) fn meet(&mut self, values: &[usize]) {
        assert_eq!(values.len(), self.starts.len(), "a value for each dimension");
        for (first, value) in values.iter().enumerate() {
            let row = (self.starts[first] + value) * self.total;
            for (second, other) in values.iter().enumerate().skip(first + 1) {
                self.met[row + self.starts[second] + other] = true;
            }
        }
    }

    /// What another part of the test has met.
    pub(crate) fn add(&mut self, other: &Pairs) {
        for (met, also) in self.met.iter_mut().zip(&other.met) {
            *met |= also;
        }
    }

    /// The pairs that never met, except those that cannot.
    pub(crate) fn gaps(&self, impossible: impl Fn(&str, &str) -> bool) -> Vec<String> {
        let mut gaps = Vec::new();
        for (first, values) in self.dimensions.iter().enumerate() {
            for (i, value) in values.iter().enumerate() {
                for (second, others) in self.dimensions.iter().enumerate().skip(first + 1) {
                    for (j, other) in others.iter().enumerate() {
                        let met = self.met[(self.starts[first] + i) * self.total + self.starts[second] + j];
                        match (met, impossible(value, other)) {
                            (false, false) => gaps.push(format!("{value} never met {other}")),
                            (true, true) => gaps.push(format!("{value} met {other}, which was held for impossible")),
                            _ => {}
                        }
                    }
                }
            }
        }
        gaps
    }
}

/// The names of all values of a dimension.
pub(crate) fn names<T: fmt::Debug>(dimension: &str, values: &[T]) -> Vec<String> {
    values.iter().map(|value| format!("{dimension} {value:?}")).collect()
}

/// What of `wanted` is not in `seen`.
pub(crate) fn missing<T: Ord + fmt::Debug>(wanted: impl IntoIterator<Item = T>, seen: &BTreeSet<T>) -> Vec<String> {
    wanted.into_iter().filter(|one| !seen.contains(one)).map(|one| format!("{one:?} was never seen")).collect()
}
