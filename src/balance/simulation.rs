//! A Service whose connections come and go by chance: how even they are with each way to share them.
//!
//! Virtual time, and numbers from a generator of its own: always the same. Evenness is measured by the standard deviation
//! of open connections over endpoints, as a part of their mean, averaged over time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::*;

/// A generator of numbers (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Above 0, at most 1.
    #[expect(clippy::cast_precision_loss, reason = "it has 53 bits")]
    fn part(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).expect("below the limit")
    }

    /// Time to the next of what comes `rate` times a second (a Poisson process).
    fn pause(&mut self, rate: f64) -> f64 {
        -self.part().ln() / rate
    }

    fn normal(&mut self) -> f64 {
        (-2.0 * self.part().ln()).sqrt() * (std::f64::consts::TAU * self.part()).cos()
    }
}

/// How long connections last, by their mean.
#[derive(Debug, Clone, Copy)]
enum Lasting {
    Exponential(f64),
    /// With the exponent 1.5: the variance is without bounds.
    Pareto(f64),
    /// With the deviation 1.
    LogNormal(f64),
    /// With the deviation 2: most are short, and most of those that are open are long.
    Mixed(f64),
}

impl Lasting {
    fn draw(self, numbers: &mut Numbers) -> f64 {
        match self {
            Lasting::Exponential(mean) => numbers.pause(1.0 / mean),
            Lasting::Pareto(mean) => mean / 3.0 * numbers.part().powf(-1.0 / 1.5),
            Lasting::LogNormal(mean) => mean * (numbers.normal() - 0.5).exp(),
            Lasting::Mixed(mean) => mean * (2.0 * numbers.normal() - 2.0).exp(),
        }
    }

    fn mean(self) -> f64 {
        match self {
            Lasting::Exponential(mean) | Lasting::Pareto(mean) | Lasting::LogNormal(mean) | Lasting::Mixed(mean) => {
                mean
            }
        }
    }
}

/// How endpoints are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Choice {
    Random,
    Turns,
    /// The one with the fewest, at each connection: what IPVS does.
    Fewest,
    /// As here, with a look each so many seconds.
    Looks(f64, Rule),
}

/// What is simulated.
#[derive(Debug, Clone)]
struct Setting {
    weights: Vec<u16>,
    rate: f64,
    lasting: Lasting,
    seconds: f64,
    /// Whether nine of ten connections come in every other five seconds.
    bursts: bool,
    /// When the last endpoint joins the others.
    joins: f64,
    seed: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Outcome {
    /// Standard deviation by mean.
    uneven: f64,
    /// Slots that were written, by the second.
    writes: f64,
    /// The part of the connections of ten periods that the last endpoint got after it joined, as a multiple of its share.
    joined: f64,
    /// Looks after which turns were taken, as a part of all.
    turns: f64,
}

struct Simulation<'a> {
    setting: &'a Setting,
    numbers: Numbers,
    open: Vec<u32>,
    /// Of each endpoint: when which connection began, which is its name.
    seen: Vec<Seen>,
    ends: BinaryHeap<Reverse<(u64, usize, u64)>>,
    slots: Vec<usize>,
    cursor: usize,
    balance: Balance<usize>,
    turns: bool,
    writes: usize,
}

const NANOS: f64 = 1e9;

impl Simulation<'_> {
    fn present(&self, now: f64) -> usize {
        self.setting.weights.len() - usize::from(now < self.setting.joins)
    }

    fn weighted(&self, present: usize) -> Vec<usize> {
        // In turns by weight: as many rounds as the largest weight.
        let weights = &self.setting.weights[..present];
        let most = weights.iter().copied().max().unwrap_or(1);
        (0..most).flat_map(|round| (0..present).filter(move |index| weights[*index] > round)).collect()
    }

    fn choose(&mut self, choice: Choice, now: f64) -> usize {
        let present = self.present(now);
        match choice {
            Choice::Random => {
                let all = self.weighted(present);
                all[self.numbers.below(all.len())]
            }
            Choice::Fewest => {
                let weight = |index: usize| f64::from(self.setting.weights[index]);
                let load = |index: usize| f64::from(self.open[index]) / weight(index);
                (0..present).min_by(|a, b| load(*a).total_cmp(&load(*b))).expect("there is one")
            }
            Choice::Turns | Choice::Looks(..) => {
                self.cursor = (self.cursor + 1) % self.slots.len();
                self.slots[self.cursor]
            }
        }
    }

    fn look(&mut self, period: f64, rule: Rule, now: f64) {
        let present = self.present(now);
        let endpoints: Vec<(usize, u16)> = self.setting.weights.iter().copied().enumerate().take(present).collect();
        // Which connections are new is told by when they began.
        let since = nanos(now - period);
        let mut seen = vec![Seen::default(); present];
        for Reverse((_, endpoint, began)) in &self.ends {
            seen[*endpoint].open += 1;
            seen[*endpoint].new += u32::from(*began > since);
        }
        let shares = self.balance.look(Duration::from_secs_f64(period), &endpoints, &seen, rule);
        let wanted = match &shares {
            Shares::Turns => self.weighted(present),
            Shares::Slots(counts) => {
                assert_eq!(counts.iter().sum::<u32>(), slots(present).expect("few"));
                let wanted: Vec<(usize, u32)> = counts.iter().copied().enumerate().collect();
                keep(&self.slots, &wanted)
            }
        };
        self.turns = shares == Shares::Turns;
        let same = wanted.iter().zip(&self.slots).filter(|(new, old)| new == old).count();
        self.writes += wanted.len() - same;
        self.slots = wanted;
        self.seen = seen;
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "time goes forward, for hours")]
fn nanos(seconds: f64) -> u64 {
    (seconds.max(0.0) * NANOS) as u64
}

fn simulate(setting: &Setting, choice: Choice) -> Outcome {
    let count = setting.weights.len();
    let mut simulation = Simulation {
        setting,
        numbers: Numbers(setting.seed),
        open: vec![0; count],
        seen: Vec::new(),
        ends: BinaryHeap::new(),
        slots: Vec::new(),
        cursor: 0,
        balance: Balance::default(),
        turns: true,
        writes: 0,
    };
    simulation.slots = simulation.weighted(simulation.present(0.0));
    let period = if let Choice::Looks(period, _) = choice { period } else { 1.0 };
    let (mut arrival, mut look, mut sample) = (0.0, period, 0.05);
    let warm = setting.seconds / 3.0;
    let (mut uneven, mut samples, mut turns, mut looks) = (0.0, 0.0, 0.0, 0.0);
    let (mut joined, mut others) = (0.0, 0.0);
    let mut last_present = simulation.present(0.0);
    loop {
        let now = f64::min(arrival, f64::min(look, sample));
        if now > setting.seconds {
            break;
        }
        while let Some(Reverse((end, endpoint, _))) = simulation.ends.peek().copied()
            && end <= nanos(now)
        {
            simulation.ends.pop();
            simulation.open[endpoint] -= 1;
        }
        let present = simulation.present(now);
        if present != last_present {
            last_present = present;
            // The slots of those that are there are arranged at once.
            if let Choice::Looks(period, rule) = choice {
                simulation.look(period, rule, now);
            } else {
                simulation.slots = simulation.weighted(present);
            }
        }
        if now >= look {
            if let Choice::Looks(period, rule) = choice {
                simulation.look(period, rule, now);
                if now > warm {
                    looks += 1.0;
                    turns += f64::from(simulation.turns);
                }
            }
            look += period;
        } else if now >= sample {
            if now > warm {
                let loads: Vec<f64> = (0..present)
                    .map(|index| f64::from(simulation.open[index]) / f64::from(setting.weights[index]))
                    .collect();
                uneven += deviation(&loads);
                samples += 1.0;
            }
            sample += 0.1;
        } else {
            let endpoint = simulation.choose(choice, now);
            simulation.open[endpoint] += 1;
            let lasts = setting.lasting.draw(&mut simulation.numbers);
            simulation.ends.push(Reverse((nanos(now + lasts), endpoint, nanos(now))));
            if now >= setting.joins && now < setting.joins + 10.0 * period {
                others += 1.0;
                joined += f64::from(endpoint == count - 1);
            }
            let is_calm = setting.bursts && now % 10.0 > 5.0;
            let part = if is_calm {
                0.2
            } else if setting.bursts {
                1.8
            } else {
                1.0
            };
            arrival = now + simulation.numbers.pause(setting.rate * part);
        }
    }
    let sum: f64 = setting.weights.iter().map(|weight| f64::from(*weight)).sum();
    let share = f64::from(setting.weights[count - 1]) / sum;
    #[expect(clippy::cast_precision_loss, reason = "they are few")]
    let writes = simulation.writes as f64 / setting.seconds;
    Outcome {
        uneven: uneven / samples,
        writes,
        joined: joined / f64::max(others, 1.0) / share,
        turns: turns / f64::max(looks, 1.0),
    }
}

fn deviation(loads: &[f64]) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "they are few")]
    let count = loads.len() as f64;
    let mean = loads.iter().sum::<f64>() / count;
    let square = loads.iter().map(|load| (load - mean).powi(2)).sum::<f64>() / count;
    if mean > 0.0 { square.sqrt() / mean } else { 0.0 }
}

/// The mean of several seeds.
fn mean(setting: &Setting, choice: Choice, seeds: u64) -> Outcome {
    let outcomes = (1..=seeds).map(|seed| simulate(&Setting { seed, ..setting.clone() }, choice));
    let sum = outcomes.fold(Outcome::default(), |sum, one| Outcome {
        uneven: sum.uneven + one.uneven,
        writes: sum.writes + one.writes,
        joined: sum.joined + one.joined,
        turns: sum.turns + one.turns,
    });
    #[expect(clippy::cast_precision_loss, reason = "they are few")]
    let count = seeds as f64;
    Outcome {
        uneven: sum.uneven / count,
        writes: sum.writes / count,
        joined: sum.joined / count,
        turns: sum.turns / count,
    }
}

fn setting(endpoints: usize, lasting: Lasting, rate: f64) -> Setting {
    // Long enough for connections to be as many as there will be.
    let seconds = (lasting.mean() * 12.0).clamp(60.0, 600.0);
    Setting { weights: vec![1; endpoints], rate, lasting, seconds, bursts: false, joins: 0.0, seed: 0 }
}

/// What is fewer than this many connections off is chance, where turns are taken as well.
const NOISE: f64 = 1.05;

#[test]
fn where_connections_last_endpoints_are_far_more_even_than_by_chance() {
    for lasting in [Lasting::Exponential(10.0), Lasting::Pareto(10.0), Lasting::LogNormal(10.0), Lasting::Mixed(10.0)] {
        for endpoints in [4, 10, 30] {
            let setting = setting(endpoints, lasting, 100.0);
            let [random, turns, fewest] =
                [Choice::Random, Choice::Turns, Choice::Fewest].map(|choice| mean(&setting, choice, 1).uneven);
            let ours = mean(&setting, Choice::Looks(1.0, Rule::Lc), 1).uneven;
            assert!(ours <= 0.45 * random, "{endpoints} endpoints, {lasting:?}: {ours} of {random}");
            assert!(ours < turns && fewest < ours, "{endpoints} endpoints, {lasting:?}: {fewest} {ours} {turns}");
        }
    }
}

#[test]
fn a_longer_period_is_not_as_good_and_never_worse_than_turns() {
    for lasting in [Lasting::Exponential(10.0), Lasting::Pareto(10.0)] {
        let setting = setting(10, lasting, 100.0);
        let turns = mean(&setting, Choice::Turns, 2).uneven;
        let mut last = 0.0;
        for period in [0.5, 1.0, 2.0, 5.0, 20.0] {
            let ours = mean(&setting, Choice::Looks(period, Rule::Lc), 2).uneven;
            assert!(last < ours * NOISE && ours < turns * NOISE, "{period}: {last} {ours} {turns}");
            last = ours;
        }
    }
}

#[test]
fn short_connections_are_as_even_as_with_turns() {
    for mean_time in [0.2, 0.5, 1.0] {
        for lasting in [Lasting::Exponential(mean_time), Lasting::Pareto(mean_time), Lasting::Mixed(mean_time)] {
            let setting = setting(10, lasting, 100.0);
            let [ours, turns] = [Choice::Looks(1.0, Rule::Lc), Choice::Turns].map(|choice| mean(&setting, choice, 3));
            assert!(ours.uneven <= NOISE * turns.uneven, "{lasting:?}: {ours:?} {turns:?}");
        }
        let [ours, turns] = [Choice::Looks(1.0, Rule::Lc), Choice::Turns]
            .map(|choice| mean(&setting(10, Lasting::Exponential(mean_time), 100.0), choice, 3));
        assert_eq!((ours.turns, ours.uneven), (1.0, turns.uneven), "{mean_time}: it is the same");
    }
}

#[test]
fn few_connections_and_bursts_of_them_are_no_worse_than_with_turns() {
    let rare =
        [(60.0, 2.0), (60.0, 0.2), (10.0, 2.0)].map(|(time, rate)| setting(10, Lasting::Exponential(time), rate));
    let bursts = Setting { bursts: true, ..setting(10, Lasting::Pareto(10.0), 100.0) };
    for setting in rare.into_iter().chain([bursts]) {
        let [ours, turns] =
            [Choice::Looks(1.0, Rule::Lc), Choice::Turns].map(|choice| mean(&setting, choice, 3).uneven);
        assert!(ours < 0.95 * turns, "{setting:?}: {ours} {turns}");
    }
}

#[test]
fn who_joins_catches_up_without_a_rush() {
    let setting = Setting { joins: 100.0, seconds: 150.0, ..setting(10, Lasting::Exponential(60.0), 100.0) };
    let [ours, fewest] = [Choice::Looks(1.0, Rule::Lc), Choice::Fewest].map(|choice| mean(&setting, choice, 2).joined);
    // The part is of connections that came by chance: a few more are.
    assert!((2.0..=3.1).contains(&ours), "{ours}");
    assert!(fewest > 5.0, "{fewest}");
}

#[test]
fn connections_are_in_proportion_to_weights() {
    for lasting in [Lasting::Exponential(10.0), Lasting::Pareto(10.0)] {
        let setting = Setting { weights: vec![3, 2, 1, 3, 2, 1], ..setting(6, lasting, 100.0) };
        let random = mean(&setting, Choice::Random, 1).uneven;
        for rule in [Rule::Wlc, Rule::Sed, Rule::Nq] {
            let ours = mean(&setting, Choice::Looks(1.0, rule), 1).uneven;
            assert!(ours <= 0.45 * random, "{rule:?}, {lasting:?}: {ours} of {random}");
        }
    }
}

/// `cargo test --lib balance::simulation::table -- --ignored --nocapture`
#[test]
#[ignore = "prints a table"]
fn table() {
    use Lasting::{Exponential, LogNormal, Mixed, Pareto};
    let settings = [
        ("10 endpoints, 10 s, exponential", setting(10, Exponential(10.0), 100.0)),
        ("10 endpoints, 10 s, Pareto 1.5", setting(10, Pareto(10.0), 100.0)),
        ("10 endpoints, 10 s, lognormal 1", setting(10, LogNormal(10.0), 100.0)),
        ("10 endpoints, 10 s, lognormal 2", setting(10, Mixed(10.0), 100.0)),
        ("4 endpoints, 10 s, exponential", setting(4, Exponential(10.0), 100.0)),
        ("4 endpoints, 10 s, Pareto 1.5", setting(4, Pareto(10.0), 100.0)),
        ("30 endpoints, 10 s, exponential", setting(30, Exponential(10.0), 100.0)),
        ("30 endpoints, 10 s, Pareto 1.5", setting(30, Pareto(10.0), 100.0)),
        ("60 endpoints, 10 s, exponential", setting(60, Exponential(10.0), 100.0)),
        ("10 endpoints, 60 s, exponential", setting(10, Exponential(60.0), 100.0)),
        ("10 endpoints, 60 s, Pareto 1.5", setting(10, Pareto(60.0), 100.0)),
        ("10 endpoints, 60 s, 2/s, exponential", setting(10, Exponential(60.0), 2.0)),
        ("10 endpoints, 60 s, 0.2/s, exponential", setting(10, Exponential(60.0), 0.2)),
        ("10 endpoints, 10 s, 2/s, exponential", setting(10, Exponential(10.0), 2.0)),
        ("10 endpoints, 10 s, 0.5/s, exponential", setting(10, Exponential(10.0), 0.5)),
        ("10 endpoints, 10 s, in bursts", Setting { bursts: true, ..setting(10, Exponential(10.0), 100.0) }),
        ("10 endpoints, 4 s, exponential", setting(10, Exponential(4.0), 100.0)),
        ("10 endpoints, 3 s, exponential", setting(10, Exponential(3.0), 100.0)),
        ("10 endpoints, 2 s, exponential", setting(10, Exponential(2.0), 100.0)),
        ("10 endpoints, 1 s, exponential", setting(10, Exponential(1.0), 100.0)),
        ("10 endpoints, 1 s, Pareto 1.5", setting(10, Pareto(1.0), 100.0)),
        ("10 endpoints, 1 s, lognormal 2", setting(10, Mixed(1.0), 100.0)),
        ("10 endpoints, 0.2 s, exponential", setting(10, Exponential(0.2), 100.0)),
        ("10 endpoints, 0.2 s, Pareto 1.5", setting(10, Pareto(0.2), 100.0)),
        ("10 endpoints, 0.2 s, lognormal 2", setting(10, Mixed(0.2), 100.0)),
    ];
    println!(
        "| | random | rr | true lc | ours, 1 s | of random's | slots/s | by turns | 2 s | 3 s | 5 s |\n|{}",
        "---|".repeat(11)
    );
    for (name, setting) in settings {
        let of = |choice| mean(&setting, choice, 4);
        let (random, turns, fewest) = (of(Choice::Random), of(Choice::Turns), of(Choice::Fewest));
        let ours = of(Choice::Looks(1.0, Rule::Lc));
        let [two, three, five] = [2.0, 3.0, 5.0].map(|period| of(Choice::Looks(period, Rule::Lc)));
        println!(
            "| {name} | {:.3} | {:.3} | {:.3} | {:.3} | {:.2} | {:.0} | {:.2} | {:.3} | {:.3} | {:.3} |",
            random.uneven,
            turns.uneven,
            fewest.uneven,
            ours.uneven,
            ours.uneven / random.uneven,
            ours.writes,
            ours.turns,
            two.uneven,
            three.uneven,
            five.uneven
        );
    }
    println!("\n| weights 3, 2, 1 | random | wrr | true wlc | wlc | sed | nq |\n|{}", "---|".repeat(7));
    for (name, lasting) in [("exponential", Exponential(10.0)), ("Pareto 1.5", Pareto(10.0))] {
        let setting = Setting { weights: vec![3, 2, 1, 3, 2, 1], ..setting(6, lasting, 100.0) };
        let looks = [Rule::Wlc, Rule::Sed, Rule::Nq].map(|rule| Choice::Looks(1.0, rule));
        let all = [Choice::Random, Choice::Turns, Choice::Fewest, looks[0], looks[1], looks[2]];
        let columns = all.map(|choice| format!(" {:.3} |", mean(&setting, choice, 4).uneven));
        println!("| {name} |{}", columns.concat());
    }
    println!(
        "\n| an endpoint joins: of new connections in 10 periods, its share times | true lc | 1 s | 5 s |\n|{}",
        "---|".repeat(4)
    );
    for (name, lasting) in [("10 s", Exponential(10.0)), ("60 s", Exponential(60.0))] {
        let setting = Setting { joins: 200.0, seconds: 300.0, ..setting(10, lasting, 100.0) };
        let all = [Choice::Fewest, Choice::Looks(1.0, Rule::Lc), Choice::Looks(5.0, Rule::Lc)];
        let columns = all.map(|choice| format!(" {:.2} |", mean(&setting, choice, 4).joined));
        println!("| {name} |{}", columns.concat());
    }
}
