//! Which endpoint is in which slot of a frontend: a pure function of its endpoints, of the Service's scheduler, and, where
//! the scheduler leaves that open, of the slots as they are, so that as few as possible change.
//!
//! | scheduler | slots | chosen |
//! |---|---|---|
//! | `random` | each endpoint as often as its weight says | at random |
//! | `rr` | each endpoint once | in turns |
//! | `wrr` | each as often as its weight says, spread | in turns |
//! | `sh`, `dh` | each as often as its weight says, in an order that depends on the Service | by hash |
//! | `mh` | a Maglev table | by hash |
//! | `lc` and its kin | each as often as the connections that are open leave it room, see `balance` | in turns |
//!
//! What is chosen by hash has to be the same on all nodes, and after each restart. So nothing of what is installed enters
//! there, and nothing that differs from node to node.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;

use super::backend::Backend;
use super::hash::jhash;
use super::names::{By, Pick};
use crate::balance;
use crate::model::policy::Target;
use crate::model::{ObjectName, Protocol, Scheduler};

/// The most slots that weights are spread over. The shares of new connections are met to within half of one in so many, as
/// a rule: see [`Misfit::Coarse`].
pub const WEIGHTED_SLOTS: u32 = 64;

/// Up to so many endpoints a Maglev table has the size beside it, by default. The first is that of IPVS: where 1 of 10
/// endpoints goes, 1.3 % of the clients of others move on average, and 2.9 % with a table of 1,021. It takes a quarter to a
/// third of a megabyte of the kernel's memory for each address and port; whoever has many asks for less.
const MAGLEV_TABLES: [(usize, u32); 3] = [(800, 4_093), (3_200, 16_381), (65_521, 65_521)];

/// The endpoints of a frontend in the order of their slots, and how a slot is chosen. At most [`Pick::MOST_SLOTS`]; an endpoint may
/// have several.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Slots {
    /// How one is chosen. Which counter is used in turns is decided where it is known which are free: until then it is 0.
    pub by: By,
    /// The endpoints.
    pub list: Box<[Backend]>,
}

impl Deref for Slots {
    type Target = [Backend];

    fn deref(&self) -> &[Backend] {
        &self.list
    }
}

impl From<&[Backend]> for Slots {
    /// Slots of which one is chosen at random.
    fn from(backends: &[Backend]) -> Slots {
        Slots { by: By::Random, list: backends.into() }
    }
}

impl FromIterator<Backend> for Slots {
    /// Slots of which one is chosen at random.
    fn from_iter<T: IntoIterator<Item = Backend>>(backends: T) -> Slots {
        Slots { by: By::Random, list: backends.into_iter().collect() }
    }
}

/// How many slots of its own each endpoint has where connections are counted; nobody any where turns are better.
pub type Shares = BTreeMap<Backend, u32>;

/// How connections of a Service port are spread.
#[derive(Debug, Clone, Copy)]
pub struct Spread<'a> {
    /// By what.
    pub scheduler: Scheduler,
    /// The size of a Maglev table; `None`: by the number of endpoints.
    pub maglev_size: Option<u16>,
    /// Clients that are hashed get other endpoints of another Service port.
    pub seed: Seed<'a>,
    /// By the connections that are open, where they are counted and say anything.
    pub shares: Option<&'a Shares>,
    /// Whether clients are remembered: an endpoint that is in no slot is taken for gone, and its clients are forgotten.
    pub sticky: bool,
}

/// What tells a Service port from others, on all nodes alike.
#[derive(Debug, Clone, Copy)]
pub struct Seed<'a> {
    /// Its Service.
    pub service: &'a ObjectName,
    /// Its name.
    pub port: &'a str,
    /// Its protocol.
    pub protocol: Protocol,
}

/// What a Service asks for and cannot have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misfit {
    /// So many endpoints with unlike weights, more than [`WEIGHTED_SLOTS`]: all get alike.
    TooMany(usize),
    /// The kernel cannot choose endpoints by a hash, as this scheduler does: they are chosen at random.
    Unhashed(Scheduler),
    /// So many endpoints are more than connections are counted for: they take turns.
    Uncounted(usize),
    /// Some endpoint's share is wrong by so many thousandths of all connections, more than half of a slot.
    Coarse(u32),
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Misfit::TooMany(endpoints) => write!(
                f,
                "the unlike weights of {endpoints} endpoints do not fit into {WEIGHTED_SLOTS} slots, and all get alike"
            ),
            Misfit::Unhashed(scheduler) => write!(
                f,
                "the kernel has no hashes for the scheduler {scheduler} (CONFIG_NFT_HASH, the module nft_hash), and endpoints \
                 are chosen at random; load it, and start nftproxyd anew"
            ),
            Misfit::Uncounted(endpoints) => write!(
                f,
                "the connections of {endpoints} endpoints are not counted, as there are {WEIGHTED_SLOTS} slots at most, and \
                 all take turns"
            ),
            Misfit::Coarse(thousandths) => write!(
                f,
                "the weights are met to within {}.{} % of the connections only, as an endpoint gets at least 1 of \
                 {WEIGHTED_SLOTS}",
                thousandths / 10,
                thousandths % 10
            ),
        }
    }
}

/// The slots of these endpoints, which are sorted. `installed` is what there is.
pub fn slots(targets: &[Target], spread: &Spread<'_>, installed: &[Backend]) -> (Slots, Option<Misfit>) {
    let (backends, weights) = drained(targets);
    let Spread { scheduler, maglev_size, seed, .. } = *spread;
    let by = match scheduler {
        _ if backends.len() <= 1 => By::Random,
        Scheduler::Random => By::Random,
        Scheduler::SourceHash => By::Source,
        Scheduler::SourceHashWithPort => By::SourceAndPort,
        Scheduler::DestinationHash => By::Destination,
        Scheduler::Maglev => By::Maglev,
        Scheduler::MaglevWithPort => By::MaglevAndPort,
        Scheduler::RoundRobin
        | Scheduler::WeightedRoundRobin
        | Scheduler::LeastConnections
        | Scheduler::WeightedLeastConnections
        | Scheduler::ShortestExpectedDelay
        | Scheduler::NeverQueue => By::Turn(0),
    };
    let with = |list, misfit| (Slots { by, list }, misfit);
    if matches!(by, By::Maglev | By::MaglevAndPort) {
        return with(maglev(&backends, weights.as_deref(), seed, maglev_size), None);
    }
    if scheduler.counts() && backends.len() > 1 {
        let Some(total) = balance::slots(backends.len()) else {
            // As if nobody asked.
            let (slots, _) = slots(targets, &Spread { scheduler: Scheduler::RoundRobin, ..*spread }, installed);
            return (slots, Some(Misfit::Uncounted(backends.len())));
        };
        if let Some(list) = by_counts(&backends, spread, total, installed) {
            return with(list, None);
        }
    }
    let (counts, misfit) = match weights.filter(|_| scheduler.weighs()).map(|weights| reduce(&weights)) {
        Some((counts, misfit)) => (Some(counts), misfit),
        None => (None, None),
    };
    let list = match (by, &counts) {
        (By::Turn(_), Some(counts)) => smooth(&backends, counts),
        (By::Random | By::Turn(_), None) => arrange(installed, &backends),
        (By::Random, Some(counts)) => arrange(installed, &repeated(&backends, counts)),
        (_, None) => shuffled(&backends, seed),
        (_, Some(counts)) => shuffled(&repeated(&backends, counts), seed),
    };
    with(list, misfit)
}

/// The slots of endpoints by how many connections each has, `total` in all; `None` where that says nothing.
fn by_counts(backends: &[Backend], spread: &Spread<'_>, total: u32, installed: &[Backend]) -> Option<Box<[Backend]>> {
    let Some(shares) = spread.shares else {
        // Nothing has been counted since the start: what there is may be of counts that an earlier run has made.
        let is_it = installed.len() == total as usize && installed.iter().all(|it| backends.binary_search(it).is_ok());
        return is_it.then(|| installed.into());
    };
    if shares.is_empty() {
        return None;
    }
    // One that came since the count gets what the others have on average.
    let known: Vec<Option<u32>> = backends.iter().map(|backend| shares.get(backend).copied()).collect();
    let (sum, number) = (known.iter().flatten().sum::<u32>(), known.iter().flatten().count());
    let average = if number == 0 { 1 } else { (sum / number as u32).max(1) };
    let mut counts: Vec<u32> = known.iter().map(|count| count.unwrap_or(average)).collect();
    let all: u64 = counts.iter().map(|count| u64::from(*count)).sum();
    if all != u64::from(total) || (spread.sticky && counts.contains(&0)) {
        // At least one for each.
        counts = if all == 0 {
            apportion(&vec![1; counts.len()], counts.len() as u64, total)
        } else {
            apportion(&counts, all, total)
        };
    }
    let wanted: Vec<(Backend, u32)> = backends.iter().copied().zip(counts).collect();
    Some(balance::keep(installed, &wanted).into())
}

/// The endpoints that get connections, with their weights unless all are alike: those with a weight, or all if none has
/// one.
fn drained(targets: &[Target]) -> (Vec<Backend>, Option<Vec<u32>>) {
    let most = Pick::MOST_SLOTS as usize;
    if targets.iter().all(|target| target.weight == targets[0].weight) {
        return (targets.iter().take(most).map(Backend::from).collect(), None);
    }
    let kept = || targets.iter().filter(|target| target.weight > 0).take(most);
    let weights: Vec<u32> = kept().map(|target| target.weight.into()).collect();
    let alike = weights.iter().all(|weight| *weight == weights[0]);
    (kept().map(Backend::from).collect(), (!alike).then_some(weights))
}

/// Each endpoint as often as it is counted.
fn repeated(backends: &[Backend], counts: &[u32]) -> Vec<Backend> {
    backends.iter().zip(counts).flat_map(|(backend, count)| std::iter::repeat_n(*backend, *count as usize)).collect()
}

/// How many slots each of these weights gets, at least one: as they are, divided by what they have in common, or else as near
/// to them as [`WEIGHTED_SLOTS`] allow.
pub fn reduce(weights: &[u32]) -> (Vec<u32>, Option<Misfit>) {
    let divisor = common_divisor(weights);
    let exact: Vec<u32> = weights.iter().map(|weight| weight / divisor).collect();
    let all: u64 = exact.iter().map(|weight| u64::from(*weight)).sum();
    if all <= u64::from(WEIGHTED_SLOTS) || all == exact.len() as u64 {
        return (exact, None);
    }
    let alike = || (vec![1; weights.len()], Some(Misfit::TooMany(weights.len())));
    let least = u32::try_from(weights.len()).unwrap_or(u32::MAX);
    // The error of a count is in units of one connection in `all * slots`, so that it can be compared exactly.
    let error = |counts: &[u32], slots: u32| {
        let off = |(count, weight): (&u32, &u32)| {
            (u64::from(*count) * all).abs_diff(u64::from(*weight) * u64::from(slots)) as f64
                / (all as f64 * f64::from(slots))
        };
        counts.iter().zip(&exact).map(off).fold(0.0, f64::max)
    };
    let tried = (least..=WEIGHTED_SLOTS).map(|slots| {
        let counts = apportion(&exact, all, slots);
        let error = error(&counts, slots);
        (counts, error)
    });
    let Some((counts, error)) = tried.min_by(|(_, a), (_, b)| a.total_cmp(b)) else { return alike() };
    let coarse = error > 0.5 / f64::from(WEIGHTED_SLOTS);
    (counts, coarse.then_some(Misfit::Coarse((error * 1_000.0).round() as u32)))
}

/// So many slots by weights, at least one each, the rest by the largest remainders.
fn apportion(weights: &[u32], all: u64, slots: u32) -> Vec<u32> {
    let quota = |weight: u32| u64::from(weight) * u64::from(slots);
    let mut counts: Vec<u32> = weights.iter().map(|weight| ((quota(*weight) / all) as u32).max(1)).collect();
    let missing = |counts: &[u32], at: usize| quota(weights[at]) as i64 - i64::from(counts[at]) * all as i64;
    loop {
        let given: u32 = counts.iter().sum();
        let places = 0..counts.len();
        // The first of those that are alike, so that the result is one and the same everywhere.
        let place = match given.cmp(&slots) {
            std::cmp::Ordering::Equal => return counts,
            std::cmp::Ordering::Less => places.rev().max_by_key(|at| missing(&counts, *at)),
            std::cmp::Ordering::Greater => places.filter(|at| counts[*at] > 1).min_by_key(|at| missing(&counts, *at)),
        };
        match place {
            Some(at) if given < slots => counts[at] += 1,
            Some(at) => counts[at] -= 1,
            None => return counts,
        }
    }
}

/// The greatest divisor that all weights have in common.
fn common_divisor(weights: &[u32]) -> u32 {
    weights.iter().fold(0, |divisor, weight| greatest_common_divisor(divisor, *weight)).max(1)
}

fn greatest_common_divisor(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// Each endpoint as often as it is counted, spread as evenly as can be: 5, 1 and 1 give a a b a c a a. (The scheme of nginx: each
/// turn all gain their weight, the first of those that have most gets it, and loses the sum of all weights.)
pub fn smooth(backends: &[Backend], counts: &[u32]) -> Box<[Backend]> {
    let all: i64 = counts.iter().map(|count| i64::from(*count)).sum();
    let mut gained = vec![0_i64; counts.len()];
    let turn = |_| {
        gained.iter_mut().zip(counts).for_each(|(gained, count)| *gained += i64::from(*count));
        let first = (0..gained.len()).rev().max_by_key(|at| gained[*at])?;
        gained[first] -= all;
        Some(backends[first])
    };
    (0..all).filter_map(turn).collect()
}

/// In an order that depends on the Service port and the endpoints alone. `all` is sorted.
fn shuffled(all: &[Backend], seed: Seed<'_>) -> Box<[Backend]> {
    let mut name = Name::new(seed);
    let mut ordered: Vec<(u32, Backend)> = Vec::with_capacity(all.len());
    for same in all.chunk_by(|one, other| one == other) {
        ordered.extend((0..).zip(same).map(|(copy, backend)| (name.hash(backend, copy), *backend)));
    }
    ordered.sort_unstable();
    ordered.into_iter().map(|(_, backend)| backend).collect()
}

/// A Maglev table (Eisenbud and others, "Maglev: A Fast and Reliable Software Network Load Balancer", 2016, 3.4): each endpoint
/// has an order of its own over all slots, and they take turns in taking the next one that is free; those with more weight
/// more often.
///
/// The order is not that of the paper, equal steps: the steps of two endpoints may have so much in common that they are in each
/// other's way all the time, and with one of 40 tables of 10 endpoints more than 3 % of the slots of others change hands where
/// one comes or goes. Here it is `a / (k + b)` for k = 0, 1, ... in the numbers modulo the size, which is prime: also each slot
/// once, and of two endpoints no two long parts are alike.
pub fn maglev(backends: &[Backend], weights: Option<&[u32]>, seed: Seed<'_>, size: Option<u16>) -> Box<[Backend]> {
    if backends.len() <= 1 {
        return backends.into();
    }
    let size = maglev_size(backends.len(), size);
    let inverses = inverses(size);
    let mut name = Name::new(seed);
    // `a`, and `k + b` of the next slot that each would have.
    let mut orders: Vec<(u32, u32)> = backends
        .iter()
        .map(|backend| (name.hash(backend, u32::MAX) % (size - 1) + 1, name.hash(backend, u32::MAX - 1) % size))
        .collect();
    let turns = weights.map_or_else(|| vec![1; backends.len()], turns);
    let mut table: Vec<Option<Backend>> = vec![None; size as usize];
    let mut free = size;
    'full: loop {
        for (at, (factor, next)) in orders.iter_mut().enumerate() {
            for _ in 0..turns[at] {
                let slot = loop {
                    let slot = u64::from(*factor) * u64::from(inverses[*next as usize]) % u64::from(size);
                    *next = (*next + 1) % size;
                    if table[slot as usize].is_none() {
                        break slot as usize;
                    }
                };
                table[slot] = Some(backends[at]);
                free -= 1;
                if free == 0 {
                    break 'full;
                }
            }
        }
    }
    table.into_iter().flatten().collect()
}

/// The size of the Maglev table of so many endpoints, where this one is asked for.
fn maglev_size(endpoints: usize, size: Option<u16>) -> u32 {
    let by_number = MAGLEV_TABLES.into_iter().find(|(most, _)| endpoints <= *most).map_or(65_521, |(_, size)| size);
    size.map(u32::from).filter(|size| *size as usize >= endpoints).unwrap_or(by_number)
}

/// About how many slots so many endpoints have, if they are all alike.
pub fn expected(endpoints: usize, scheduler: Scheduler, size: Option<u16>) -> usize {
    match scheduler {
        Scheduler::Maglev | Scheduler::MaglevWithPort if endpoints > 1 => maglev_size(endpoints, size) as usize,
        scheduler if scheduler.counts() && endpoints > 1 => {
            balance::slots(endpoints).map_or(endpoints, |slots| slots as usize)
        }
        _ => endpoints,
    }
}

/// What each number has to be multiplied with to give 1 modulo this prime; 0 for 0.
fn inverses(prime: u32) -> Vec<u32> {
    let mut inverses = vec![0; prime as usize];
    inverses[1] = 1;
    for number in 2..prime {
        // prime = (prime / number) * number + prime % number, and that is 0.
        let rest = u64::from(inverses[(prime % number) as usize]);
        inverses[number as usize] = prime - (u64::from(prime / number) * rest % u64::from(prime)) as u32;
    }
    inverses
}

/// How many slots of a Maglev table an endpoint takes in its turn.
fn turns(weights: &[u32]) -> Vec<u32> {
    let divisor = common_divisor(weights);
    let most = weights.iter().max().map_or(1, |most| most / divisor);
    let scale = |weight: u32| match weight / divisor {
        weight if most <= WEIGHTED_SLOTS => weight,
        weight => (weight * WEIGHTED_SLOTS + most / 2) / most,
    };
    weights.iter().map(|weight| scale(*weight).max(1)).collect()
}

/// The name of an endpoint of a Service port, as bytes.
struct Name {
    bytes: Vec<u8>,
    seed: usize,
}

impl Name {
    fn new(seed: Seed<'_>) -> Name {
        let bytes = format!("{}:{}/{}", seed.service, seed.port, seed.protocol).into_bytes();
        Name { seed: bytes.len(), bytes }
    }

    fn hash(&mut self, backend: &Backend, seed: u32) -> u32 {
        self.bytes.truncate(self.seed);
        // No name holds it.
        self.bytes.push(0);
        match backend.address {
            std::net::IpAddr::V4(address) => self.bytes.extend(address.octets()),
            std::net::IpAddr::V6(address) => self.bytes.extend(address.octets()),
        }
        self.bytes.extend(backend.port.get().to_be_bytes());
        jhash(&self.bytes, seed)
    }
}

/// Puts the wanted endpoints into slots so that as few slots as possible differ from the installed ones: an endpoint that
/// stays keeps its slot; one beyond the new count moves into a gap; new ones fill what is left. So removing one of N
/// changes two slots, whatever N. `wanted` must be sorted; an endpoint may be in it several times. The cost is O(N log N).
pub fn arrange(installed: &[Backend], wanted: &[Backend]) -> Box<[Backend]> {
    let mut slots: Vec<Option<Backend>> = vec![None; wanted.len()];
    // Of each endpoint, at the place of its first copy: how many of its copies have a slot.
    let mut placed = vec![0_usize; wanted.len()];
    let mut moving = Vec::new();
    for (slot, backend) in installed.iter().enumerate() {
        let first = wanted.partition_point(|other| other < backend);
        let Some(taken) = placed.get(first).copied() else { continue };
        if wanted.get(first + taken) != Some(backend) {
            continue;
        }
        placed[first] += 1;
        match slots.get_mut(slot) {
            Some(free) => *free = Some(*backend),
            None => moving.push(*backend),
        }
    }
    let mut new = Vec::new();
    let mut first = 0;
    for (at, backend) in wanted.iter().enumerate() {
        if wanted[first] != *backend {
            first = at;
        }
        if at - first >= placed[first] {
            new.push(*backend);
        }
    }
    let mut rest = moving.into_iter().chain(new);
    slots.into_iter().map(|slot| slot.or_else(|| rest.next()).expect("as many endpoints as slots")).collect()
}

#[cfg(test)]
mod tests;
