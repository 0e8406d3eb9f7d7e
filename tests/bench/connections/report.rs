//! Figures of many rounds, and how they compare.

use std::fmt;
use std::time::Duration;

/// What flows by the other schedulers are compared with.
const AT_RANDOM: &str = "Service by random";

/// What the daemon is called whose frontends count, and the one that it is compared with.
pub(crate) const COUNTING: &str = "nftproxyd, counters";
const NOT_COUNTING: &str = "nftproxyd";

/// What one path did in one round.
pub(crate) struct Turn {
    /// Of one connection.
    pub(crate) connections: Duration,
    /// Of each call of `connect`.
    pub(crate) latencies: Vec<Duration>,
    /// Of one round trip.
    pub(crate) round_trips: Duration,
}

/// All paths, the first of which is what the others are compared with.
pub(crate) struct Report<'a> {
    names: Vec<(&'a str, String)>,
    turns: Vec<Vec<Turn>>,
}

/// Median of the ratios of the rounds, and its standard error, from the quartiles.
struct Ratio {
    median: f64,
    error: f64,
}

impl<'a> Report<'a> {
    /// For paths called so: whose rules, and where to.
    pub(crate) fn new(names: Vec<(&'a str, String)>) -> Report<'a> {
        let turns = names.iter().map(|_| Vec::new()).collect();
        Report { names, turns }
    }

    /// Appends a turn of the path of this number; every path has one turn a round.
    pub(crate) fn add(&mut self, path: usize, turn: Turn) {
        self.turns[path].push(turn);
    }

    /// How many times as many a second as on the path `base`.
    fn ratio(&self, path: usize, base: usize, figure: impl Fn(&Turn) -> Duration) -> Ratio {
        let rounds = self.turns[path].iter().zip(&self.turns[base]);
        Ratio::of(rounds.map(|(turn, base)| figure(base).as_secs_f64() / figure(turn).as_secs_f64()))
    }

    /// The path of the same rules that leads straight to a pod: the first of them.
    fn straight(&self, path: usize) -> usize {
        self.names.iter().position(|(rules, _)| *rules == self.names[path].0).unwrap_or(path)
    }

    /// The path of another one's rules to the same destination.
    fn same_destination(&self, path: usize, rules: &str) -> Option<usize> {
        self.names.iter().position(|(whose, to)| *whose == rules && *to == self.names[path].1)
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| rules | to | new connections/s | / first row | / same rules, straight | connect p50, p99 | \
             round trips/s | / first row |\n|---|---|---|---|---|---|---|---|"
        )?;
        for (path, (rules, to)) in self.names.iter().enumerate() {
            let turns = &self.turns[path];
            let median = |figure: fn(&Turn) -> Duration| 1.0 / median(turns.iter().map(figure)).as_secs_f64();
            let mut latencies: Vec<Duration> = turns.iter().flat_map(|turn| turn.latencies.iter().copied()).collect();
            latencies.sort_unstable();
            let quantile = |part: usize| latencies[(latencies.len() - 1) * part / 100].as_secs_f64() * 1e6;
            writeln!(
                f,
                "| {rules} | {to} | {:.0} | {} | {} | {:.2} us, {:.2} us | {:.0} | {} |",
                median(|turn| turn.connections),
                self.ratio(path, 0, |turn| turn.connections),
                self.ratio(path, self.straight(path), |turn| turn.connections),
                quantile(50),
                quantile(99),
                median(|turn| turn.round_trips),
                self.ratio(path, 0, |turn| turn.round_trips),
            )?;
        }
        for other in [COUNTING, "kube-proxy", "other nftproxyd"] {
            if !self.names.iter().any(|(rules, _)| *rules == other) {
                continue;
            }
            writeln!(f, "\n| nftproxyd / {other} | new connections | round trips |\n|---|---|---|")?;
            for (path, (rules, to)) in self.names.iter().enumerate() {
                if let (NOT_COUNTING, Some(base)) = (*rules, self.same_destination(path, other)) {
                    let connections = self.ratio(path, base, |turn| turn.connections);
                    let round_trips = self.ratio(path, base, |turn| turn.round_trips);
                    writeln!(f, "| {to} | {connections} | {round_trips} |")?;
                }
            }
        }
        Ok(())
    }
}

/// One-packet flows of all rules.
pub(crate) struct FlowReport<'a> {
    names: Vec<(&'a str, String)>,
    /// Of each of these, of each address, in each round.
    turns: Vec<[Vec<Duration>; 3]>,
}

impl<'a> FlowReport<'a> {
    /// For these: whose rules, and where to.
    pub(crate) fn new(names: Vec<(&'a str, String)>) -> FlowReport<'a> {
        let turns = names.iter().map(|_| Default::default()).collect();
        FlowReport { names, turns }
    }

    /// Appends a turn: to one of three addresses of what has this number.
    pub(crate) fn add(&mut self, number: usize, address: usize, taken: Duration) {
        self.turns[number][address].push(taken);
    }

    /// What the same rules do at random, or the first row.
    fn base(&self, number: usize) -> usize {
        let rules = self.names[number].0;
        self.names.iter().position(|(whose, to)| *whose == rules && to == AT_RANDOM).unwrap_or(0)
    }
}

impl fmt::Display for FlowReport<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses = ["IPv4", "IPv4, external IP", "IPv6"].map(|address| format!("{address} | × | "));
        writeln!(
            f,
            "| one-packet flow: rules | to | {}\n|---|---{}|",
            addresses.concat().trim_end(),
            "|---:|---:".repeat(3)
        )?;
        for (number, (rules, to)) in self.names.iter().enumerate() {
            write!(f, "| {rules} | {to} |")?;
            for (turns, bases) in self.turns[number].iter().zip(&self.turns[self.base(number)]) {
                if turns.is_empty() {
                    write!(f, " | |")?;
                    continue;
                }
                let ratio =
                    Ratio::of(turns.iter().zip(bases).map(|(turn, base)| turn.as_secs_f64() / base.as_secs_f64()));
                write!(f, " {} ns |", median(turns.iter().copied()).as_nanos())?;
                if bases.is_empty() { write!(f, " |")? } else { write!(f, " {ratio} |")? }
            }
            writeln!(f)?;
        }
        writeln!(
            f,
            "\n| one-packet flow: {COUNTING} / {NOT_COUNTING} | IPv4 | IPv4, external IP | IPv6 |\n|---|---:|---:|---:|"
        )?;
        for (number, (rules, to)) in self.names.iter().enumerate() {
            let base = self.names.iter().position(|(whose, other)| *whose == NOT_COUNTING && other == to);
            let (COUNTING, Some(base)) = (*rules, base) else { continue };
            write!(f, "| {to} |")?;
            for (turns, bases) in self.turns[number].iter().zip(&self.turns[base]) {
                if turns.is_empty() || bases.is_empty() {
                    write!(f, " |")?;
                    continue;
                }
                let rounds = turns.iter().zip(bases);
                write!(f, " {} |", Ratio::of(rounds.map(|(turn, base)| turn.as_secs_f64() / base.as_secs_f64())))?;
            }
            writeln!(f)?;
        }
        writeln!(f, "\n×: times as long as to {AT_RANDOM} of the same rules, or else as the first row")
    }
}

fn median(all: impl Iterator<Item = Duration>) -> Duration {
    let mut all: Vec<Duration> = all.collect();
    all.sort_unstable();
    all[all.len() / 2]
}

impl Ratio {
    fn of(ratios: impl Iterator<Item = f64>) -> Ratio {
        let mut ratios: Vec<f64> = ratios.collect();
        ratios.sort_by(f64::total_cmp);
        let [low, median, high] = [1, 2, 3].map(|quarter| ratios[(ratios.len() - 1) * quarter / 4]);
        // Of a normal distribution: the quartiles are 1.349 deviations apart, and a median errs by 1.253 of a mean.
        Ratio { median, error: 1.253 * (high - low) / 1.349 / (ratios.len() as f64).sqrt() }
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} ±{:.3}", self.median, self.error)
    }
}
