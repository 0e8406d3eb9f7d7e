//! Levels connections as water does: what comes goes to where there is least, until all are equal.
//!
//! All functions return the part of each, 1 in all. What is expected is more than nothing.

/// How often the interval of the level is halved.
const STEPS: u32 = 40;

/// Gives `expected` connections to those that have the fewest for their `weights`, none more than its part of `most`.
pub(super) fn level(have: &[f64], weights: &[f64], expected: f64, most: &[f64]) -> Vec<f64> {
    let gets = |level: f64, index: usize| (weights[index] * level - have[index]).clamp(0.0, most[index] * expected);
    let all = || 0..have.len();
    let in_proportion = |index: usize| if weights[index] > 0.0 { have[index] / weights[index] } else { 0.0 };
    let lightest = weights.iter().copied().filter(|weight| *weight > 0.0).fold(f64::INFINITY, f64::min);
    let mut low = 0.0;
    let mut high = all().map(in_proportion).fold(0.0, f64::max) + expected / lightest;
    for _ in 0..STEPS {
        let middle = f64::midpoint(low, high);
        if all().map(|index| gets(middle, index)).sum::<f64>() < expected { low = middle } else { high = middle }
    }
    let given: Vec<f64> = all().map(|index| gets(high, index)).collect();
    let sum: f64 = given.iter().sum();
    given.into_iter().map(|given| given / sum).collect()
}

/// The same where each is measured by what it would have with one more.
pub(super) fn level_with_one(have: &[f64], weights: &[f64], expected: f64, most: &[f64]) -> Vec<f64> {
    let have: Vec<f64> = have.iter().map(|have| have + 1.0).collect();
    level(&have, weights, expected, most)
}

/// The same after each of the `idle` got one connection, as far as they go.
pub(super) fn idle_first(have: &[f64], idle: &[bool], weights: &[f64], expected: f64, most: &[f64]) -> Vec<f64> {
    let first: Vec<f64> = idle.iter().zip(weights).map(|(idle, weight)| f64::from(*idle && *weight > 0.0)).collect();
    let count: f64 = first.iter().sum();
    let part = if count == 0.0 { 0.0 } else { (expected / count).min(1.0) };
    let first: Vec<f64> = first.iter().zip(most).map(|(first, most)| (first * part).min(most * expected)).collect();
    let given: f64 = first.iter().sum();
    let rest = expected - given;
    if rest < expected * 0.001 {
        return first.iter().map(|first| first / given).collect();
    }
    let have: Vec<f64> = have.iter().zip(&first).map(|(have, first)| have + first).collect();
    let most: Vec<f64> =
        most.iter().zip(&first).map(|(most, first)| (most * expected - first).max(0.0) / rest).collect();
    let others = level_with_one(&have, weights, rest, &most);
    first.iter().zip(others).map(|(first, other)| (first + other * rest) / expected).collect()
}
