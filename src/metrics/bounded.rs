//! Counters with labels that come and go, of which there are never too many.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use prometheus::proto::{Counter, LabelPair, Metric, MetricFamily, MetricType};

use super::table::Definition;

/// How many series a metric has of its own on a node. A Prometheus that watches 1,000 nodes holds a thousand times as many.
pub const MOST_SERIES: usize = 2_000;

/// How long a series stays when what it counts is gone: a few scrapes, so that its last count is seen.
pub const FORGOTTEN: Duration = Duration::from_secs(15 * 60);

/// The label that tells the series of all others, which has no other label.
pub const OTHER: &str = "other";

/// Counts by key, of N sorts each. Who comes when there are `most` already is counted among the others until there is room;
/// the sum of all series is right at any time, but for those that have been forgotten, which take their count along.
#[derive(Debug)]
pub(super) struct Bounded<K, const N: usize> {
    most: usize,
    own: BTreeMap<K, Counts<N>>,
    others: Option<[u64; N]>,
}

#[derive(Debug)]
struct Counts<const N: usize> {
    counts: [u64; N],
    seen: Instant,
}

impl<K: Ord, const N: usize> Bounded<K, N> {
    /// None yet.
    pub(super) fn new(most: usize) -> Bounded<K, N> {
        Bounded { most, own: BTreeMap::new(), others: None }
    }

    /// So much comes to a key, which is there at that time. Nothing may come: then it is only there.
    pub(super) fn add(&mut self, key: K, counts: [u64; N], now: Instant) {
        let sums = if let Some(own) = self.own.get_mut(&key) {
            own.seen = own.seen.max(now);
            &mut own.counts
        } else if self.own.len() < self.most {
            &mut self.own.entry(key).or_insert(Counts { counts: [0; N], seen: now }).counts
        } else {
            self.others.get_or_insert([0; N])
        };
        for (sum, count) in sums.iter_mut().zip(counts) {
            *sum = sum.saturating_add(count);
        }
    }

    /// Those that have a series of their own, sorted.
    pub(super) fn own(&self) -> impl Iterator<Item = (&K, &[u64; N])> {
        self.own.iter().map(|(key, own)| (key, &own.counts))
    }

    /// Forgets those that have not been there for a while.
    pub(super) fn forget(&mut self, now: Instant) {
        self.own.retain(|_, own| now.saturating_duration_since(own.seen) < FORGOTTEN);
    }

    /// The series of one metric; `None` if there is none. A key has a value for each label but for those at the end, of which
    /// `counts` makes one or several series.
    pub(super) fn families(
        &self,
        definition: &Definition,
        labels: impl Fn(&K) -> Vec<String>,
        counts: impl Fn(&[u64; N]) -> Vec<(Vec<&'static str>, u64)>,
    ) -> Option<MetricFamily> {
        let metric = |labels: Vec<(&str, String)>, count: u64| {
            let pair = |(name, value): (&str, String)| {
                let mut pair = LabelPair::default();
                pair.set_name(name.to_owned());
                pair.set_value(value);
                pair
            };
            let mut counter = Counter::default();
            // Exact up to 2^53.
            counter.set_value(count as f64);
            let mut metric = Metric::default();
            metric.set_label(labels.into_iter().map(pair).collect());
            metric.set_counter(counter);
            metric
        };
        let mut metrics = Vec::new();
        let own = self.own.iter().map(|(key, own)| (Some(key), &own.counts));
        for (key, sums) in own.chain(self.others.iter().map(|sums| (None, sums))) {
            for (last, count) in counts(sums) {
                let (of_key, of_counts) = definition.labels.split_at(definition.labels.len() - last.len());
                let mut all: Vec<(&str, String)> = match key {
                    Some(key) => of_key.iter().copied().zip(labels(key)).collect(),
                    None => of_key.last().map(|name| (*name, OTHER.to_owned())).into_iter().collect(),
                };
                all.extend(of_counts.iter().copied().zip(last.into_iter().map(str::to_owned)));
                metrics.push(metric(all, count));
            }
        }
        if metrics.is_empty() {
            return None;
        }
        let mut family = MetricFamily::default();
        family.set_name(definition.name.to_owned());
        family.set_help(definition.help());
        family.set_field_type(MetricType::COUNTER);
        family.set_metric(metrics);
        Some(family)
    }

    #[cfg(test)]
    pub(super) fn sum(&self) -> [u64; N] {
        let all = self.own.values().map(|own| &own.counts).chain(&self.others);
        all.fold([0; N], |sums, counts| std::array::from_fn(|sort| sums[sort] + counts[sort]))
    }

    #[cfg(test)]
    pub(super) fn get(&self, key: &K) -> Option<[u64; N]> {
        self.own.get(key).map(|own| own.counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_find_no_room_are_counted_together_and_the_sum_is_right() {
        let start = Instant::now();
        let mut all = Bounded::<u32, 1>::new(2);
        for (key, count) in [(1, 5), (2, 7), (3, 11), (4, 13), (1, 1), (3, 2)] {
            all.add(key, [count], start);
        }
        assert_eq!((all.get(&1), all.get(&2), all.get(&3)), (Some([6]), Some([7]), None));
        assert_eq!((all.others, all.sum()), (Some([26]), [39]));

        // One goes, with its count; the others do not get it. Who comes next has its room, and counts from there on.
        let later = start + FORGOTTEN / 2;
        all.add(1, [0], later);
        all.forget(start + FORGOTTEN);
        assert_eq!((all.get(&1), all.get(&2), all.others), (Some([6]), None, Some([26])));
        all.add(3, [4], later);
        assert_eq!((all.get(&3), all.others, all.sum()), (Some([4]), Some([26]), [36]));
    }

    #[test]
    fn what_has_no_series_has_no_family() {
        let labels = |key: &u32| vec![String::new(), String::new(), String::new(), key.to_string()];
        let mut all = Bounded::<u32, 1>::new(1);
        let definition = &super::super::table::SERVICE_CONNECTIONS;
        assert!(all.families(definition, labels, |[count]| vec![(Vec::new(), *count)]).is_none());
        all.add(9, [3], Instant::now());
        all.add(8, [4], Instant::now());
        let family = all.families(definition, labels, |[count]| vec![(Vec::new(), *count)]).expect("there are two");
        let text = super::super::encode(&[family]);
        let series: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let name = "nftproxyd_service_connections_total";
        let own = format!("{name}{{namespace=\"\",service=\"\",port=\"\",frontend=\"9\"}} 3");
        assert_eq!(series, [own, format!("{name}{{frontend=\"other\"}} 4")]);
    }
}
