//! What is in the slots, whatever is asked for.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::ruleset::hash::{HASH_SEED, slot};

fn backend(index: u32) -> Backend {
    let [_, _, high, low] = index.to_be_bytes();
    Backend { address: [10, 180, high, low].into(), port: NonZeroU16::MIN }
}

fn targets(weights: &[u16]) -> Vec<Target> {
    let target = |(index, weight): (u32, &u16)| {
        let Backend { address, port } = backend(index);
        Target { address, port, local: false, weight: *weight }
    };
    (0..).zip(weights).map(target).collect()
}

/// A Service's HTTP port.
fn seed(service: &ObjectName) -> Seed<'_> {
    Seed { service, port: "http", protocol: Protocol::Tcp }
}

fn web() -> &'static ObjectName {
    static WEB: LazyLock<ObjectName> = LazyLock::new(|| ObjectName::new("shop", "web").expect("a name"));
    &WEB
}

fn spread(scheduler: Scheduler) -> Spread<'static> {
    Spread { scheduler, maglev_size: None, seed: seed(web()), shares: None, sticky: false }
}

fn counts(list: &[Backend]) -> BTreeMap<Backend, u32> {
    let mut counts = BTreeMap::new();
    list.iter().for_each(|backend| *counts.entry(*backend).or_default() += 1);
    counts
}

/// The endpoints by number, as letters.
fn letters(list: &[Backend]) -> String {
    let letter = |backend: &Backend| match backend.address {
        IpAddr::V4(address) => char::from(b'a' + address.octets()[3]),
        IpAddr::V6(_) => '?',
    };
    list.iter().map(letter).collect()
}

#[test]
fn turns_by_weights_are_spread() {
    let wrr = |weights: &[u16]| letters(&slots(&targets(weights), &spread(Scheduler::WeightedRoundRobin), &[]).0);
    assert_eq!(wrr(&[5, 1, 1]), "aabacaa");
    assert_eq!(wrr(&[1, 2, 3]), "cbacbc");
    assert_eq!(wrr(&[10, 20, 30]), "cbacbc", "what they have in common does not count");
    assert_eq!(wrr(&[7, 7, 7]), "abc");
    assert_eq!(wrr(&[4, 0, 2]), "aca", "a weight of 0 gets nothing");
    assert_eq!(wrr(&[0, 0]), "ab", "unless nobody has one");
}

#[test]
fn who_does_not_weigh_leaves_out_what_is_drained_only() {
    let rr = |weights: &[u16]| slots(&targets(weights), &spread(Scheduler::RoundRobin), &[]).0;
    assert_eq!(letters(&rr(&[5, 1, 0])), "ab");
    assert_eq!(rr(&[5, 1, 0]).by, By::Turn(0));
    assert_eq!(rr(&[5, 0, 0]).by, By::Random, "there is nothing to take turns for");
}

#[test]
fn weights_are_met_or_it_is_told() {
    assert_eq!(reduce(&[100, 50, 50]), (vec![2, 1, 1], None));
    assert_eq!(reduce(&[65_535, 65_535]), (vec![1, 1], None));
    assert_eq!(reduce(&[1; 500]), (vec![1; 500], None), "alike, whatever their number");
    assert_eq!(reduce(&[2; 500]), (vec![1; 500], None));
    assert_eq!(reduce(&[1_000, 1]), (vec![63, 1], Some(Misfit::Coarse(15))), "nobody is left out");
    let mut many = vec![1; 65];
    many[3] = 2;
    assert_eq!(reduce(&many), (vec![1; 65], Some(Misfit::TooMany(65))));
    let (counts, misfit) = reduce(&[100, 37, 11]);
    assert_eq!(misfit, None);
    assert!(counts.iter().sum::<u32>() <= WEIGHTED_SLOTS, "{counts:?}");
}

#[test]
fn what_does_not_fit_is_said_in_words() {
    let told = |misfit: Option<Misfit>| misfit.map(|misfit| misfit.to_string());
    assert_eq!(
        told(Some(Misfit::TooMany(65))).as_deref(),
        Some("the unlike weights of 65 endpoints do not fit into 64 slots, and all get alike")
    );
    assert_eq!(
        told(Some(Misfit::Coarse(15))).as_deref(),
        Some("the weights are met to within 1.5 % of the connections only, as an endpoint gets at least 1 of 64")
    );
}

/// The slots of a Service that goes by its connections, by these shares of its endpoints.
fn counted(weights: &[u16], shares: Option<&[u32]>, installed: &[Backend]) -> (Slots, Option<Misfit>) {
    let shares = shares.map(|shares| (0..).map(backend).zip(shares.iter().copied()).collect::<Shares>());
    slots(&targets(weights), &Spread { shares: shares.as_ref(), ..spread(Scheduler::LeastConnections) }, installed)
}

#[test]
fn slots_are_those_of_the_counts() {
    let of = |weights: &[u16], shares: Option<&[u32]>| {
        counts(&counted(weights, shares, &[]).0).into_values().collect::<Vec<_>>()
    };
    assert_eq!(of(&[1, 1, 1], Some(&[2, 10, 20])), [2, 10, 20]);
    assert_eq!(of(&[1, 1, 1], Some(&[0, 12, 20])), [12, 20], "nobody has to get any");
    assert_eq!(of(&[1, 1, 1], None), [1, 1, 1], "nothing is known");
    assert_eq!(of(&[1, 1, 1], Some(&[])), [1, 1, 1], "turns are better");
    // One came since, one goes, one is drained: as many slots as ever.
    assert_eq!(of(&[1, 1, 1], Some(&[8, 24])), [5, 16, 11]);
    assert_eq!(of(&[1, 1], Some(&[2, 10, 20])).iter().sum::<u32>(), 32);
    assert_eq!(of(&[1, 0, 1], Some(&[2, 10, 20])).iter().sum::<u32>(), 32);
    assert_eq!(counted(&[1, 1], Some(&[16, 16]), &[]).0.by, By::Turn(0));
    // Few change.
    let before = counted(&[1, 1, 1], Some(&[10, 11, 11]), &[]).0;
    let after = counted(&[1, 1, 1], Some(&[12, 10, 10]), &before).0;
    assert_eq!(before.iter().zip(after.iter()).filter(|(was, is)| was != is).count(), 2);
    // What an earlier run has left stays until something is known.
    assert_eq!(counted(&[1, 1, 1], None, &after).0, after);
    assert_eq!(counted(&[1, 1], None, &after).0.len(), 2, "but for endpoints that are gone");
    let (many, misfit) = counted(&[1; 65], Some(&[1; 65]), &[]);
    assert_eq!((many.len(), misfit), (65, Some(Misfit::Uncounted(65))));
}

/// Which endpoint each of many clients gets.
fn choices(list: &[Backend], clients: u32) -> Vec<Backend> {
    let of = |client: u32| {
        let hash = jhash(&(0x0a00_0000 + client * 7).to_be_bytes(), HASH_SEED);
        list[slot(hash, list.len() as u32) as usize]
    };
    (0..clients).map(of).collect()
}

/// Removes each endpoint in turn, or adds one: the part of the clients of others that get another one, the most.
fn moved(number: u16, service: &ObjectName) -> (f64, f64) {
    let table =
        |targets: &[Target]| slots(targets, &Spread { seed: seed(service), ..spread(Scheduler::Maglev) }, &[]).0;
    let all = targets(&vec![1; number.into()]);
    let before = choices(&table(&all), 20_000);
    let part = |gone: Option<Backend>, after: &[Backend], came: Option<Backend>| {
        let others: Vec<_> = before.iter().zip(after).filter(|(was, _)| Some(**was) != gone).collect();
        let moved = others.iter().filter(|(was, is)| was != is && Some(**is) != came).count();
        moved as f64 / others.len() as f64
    };
    let without = |at: usize| {
        let mut fewer = all.clone();
        let gone = Backend::from(&fewer.remove(at));
        part(Some(gone), &choices(&table(&fewer), 20_000), None)
    };
    let more = targets(&vec![1; usize::from(number) + 1]);
    let came = Backend::from(&more[usize::from(number)]);
    let added = part(None, &choices(&table(&more), 20_000), Some(came));
    ((0..all.len()).map(without).fold(0.0, f64::max), added)
}

#[test]
fn few_clients_of_others_move_with_maglev() {
    // With the steps of the original scheme, 1 in 40 moves more: those of two endpoints may be alike.
    for name in ["web", "api", "db", "kube-dns", "a", "b", "c", "d"] {
        let (removed, added) = moved(10, &ObjectName::new("shop", name).expect("a name"));
        assert!(removed <= 0.03, "{name}: {removed}");
        assert!(added <= 0.03, "{name}: {added}");
    }
}

#[test]
fn a_maglev_table_is_even_and_of_its_size() {
    for (endpoints, size) in [(2, 4_093), (10, 4_093), (800, 4_093), (801, 16_381)] {
        let list = slots(&targets(&vec![1; endpoints]), &spread(Scheduler::Maglev), &[]).0;
        assert_eq!(list.len(), size);
        let counts = counts(&list);
        assert_eq!(counts.len(), endpoints);
        let (least, most) = (counts.values().min(), counts.values().max());
        assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 1), "{least:?} {most:?}");
    }
    let sized = |size| Spread { maglev_size: Some(size), ..spread(Scheduler::MaglevWithPort) };
    assert_eq!(slots(&targets(&[1, 1, 1]), &sized(251), &[]).0.len(), 251);
    assert_eq!(slots(&targets(&[1; 300]), &sized(251), &[]).0.len(), 4_093, "it is too small");
    let weighted = slots(&targets(&[3, 1, 0]), &sized(1_021), &[]).0;
    assert_eq!(weighted.by, By::MaglevAndPort);
    assert_eq!(counts(&weighted).into_values().collect::<Vec<_>>(), [766, 255]);
}

#[test]
fn the_number_of_slots_is_expected() {
    for (scheduler, _) in Scheduler::ALL {
        for endpoints in [0, 1, 2, 10, 22, 70, 900] {
            let shares = (0..).map(backend).map(|backend| (backend, 1)).take(endpoints).collect();
            let spread = Spread { shares: Some(&shares), ..spread(scheduler) };
            let (slots, _) = slots(&targets(&vec![1; endpoints]), &spread, &[]);
            assert_eq!(slots.len(), expected(endpoints, scheduler, None), "{scheduler} {endpoints}");
        }
    }
}

#[test]
fn services_have_orders_of_their_own() {
    let of = |seed| slots(&targets(&[1; 8]), &Spread { seed, ..spread(Scheduler::SourceHash) }, &[]).0;
    let of_port = |port| of(Seed { port, ..seed(web()) });
    assert_ne!(of_port("http"), of_port("https"));
    assert_ne!(of_port("http"), of(Seed { protocol: Protocol::Udp, ..seed(web()) }));
    assert_ne!(of_port("http"), of(seed(&ObjectName::new("shop", "api").expect("a name"))));
}

fn scheduler() -> impl Strategy<Value = Scheduler> {
    prop::sample::select(Scheduler::ALL.map(|(scheduler, _)| scheduler).to_vec())
}

proptest! {
    #![proptest_config(crate::testing::replayed(ProptestConfig::with_cases(200), file!()))]

    /// Whatever there was: each endpoint that is to have connections is there as often as it has to be, and no other is.
    #[test]
    fn slots_hold_the_endpoints_in_the_right_numbers(
        steps in prop::collection::vec((scheduler(), prop::collection::vec(0u16..5, 1..9)), 1..8),
    ) {
        let mut installed = Slots::default();
        for (scheduler, weights) in steps {
            let all = targets(&weights);
            let (new, misfit) = slots(&all, &spread(scheduler), &installed);
            prop_assert_eq!(misfit, None);
            let (backends, weights) = drained(&all);
            let alike = vec![1; backends.len()];
            let weights = weights.unwrap_or_else(|| alike.clone());
            let expected = match new.by {
                By::Maglev | By::MaglevAndPort => turns(&weights),
                _ if backends.len() == 1 => alike.clone(),
                _ if scheduler.weighs() => reduce(&weights).0,
                _ => alike.clone(),
            };
            let sum: u32 = expected.iter().sum();
            let counts = counts(&new);
            prop_assert_eq!(counts.len(), backends.len());
            for (backend, expected) in backends.iter().zip(&expected) {
                let exact = f64::from(*expected) / f64::from(sum) * new.len() as f64;
                prop_assert!((f64::from(counts[backend]) - exact).abs() <= f64::from(*expected), "{counts:?}");
            }
            if !matches!(new.by, By::Maglev | By::MaglevAndPort) {
                prop_assert_eq!(counts.into_values().collect::<Vec<_>>(), expected);
            }
            // What is hashed does not depend on what there was.
            if !matches!(new.by, By::Random | By::Turn(_)) {
                prop_assert_eq!(&new, &slots(&all, &spread(scheduler), &[]).0);
            }
            installed = new;
        }
    }

    /// No share is further from its weight than half of a slot, or it is told by how much it is.
    #[test]
    fn shares_are_near_to_their_weights(weights in prop::collection::vec(1u32..=65_535, 1..20)) {
        let (counts, misfit) = reduce(&weights);
        let all: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
        let slots: f64 = counts.iter().map(|count| f64::from(*count)).sum();
        prop_assert!(counts.iter().all(|count| *count > 0) && slots <= f64::from(WEIGHTED_SLOTS));
        let most = match misfit {
            None => 0.5 / f64::from(WEIGHTED_SLOTS),
            Some(Misfit::Coarse(thousandths)) => (f64::from(thousandths) + 0.5) / 1_000.0,
            Some(Misfit::TooMany(_) | Misfit::Uncounted(_) | Misfit::Unhashed(_)) => 0.0,
        };
        for (weight, count) in weights.iter().zip(&counts) {
            prop_assert!((f64::from(*weight) / all - f64::from(*count) / slots).abs() <= most + 1e-9);
        }
    }

    /// As few slots change as can be: no more than endpoints came, went or moved from beyond the new end.
    #[test]
    fn arranged_slots_change_as_little_as_can_be(
        installed in prop::collection::vec(0u32..6, 0..12),
        wanted in prop::collection::vec(0u32..6, 1..12),
    ) {
        let installed: Vec<Backend> = installed.into_iter().map(backend).collect();
        let mut wanted: Vec<Backend> = wanted.into_iter().map(backend).collect();
        wanted.sort_unstable();
        let arranged = arrange(&installed, &wanted);
        prop_assert_eq!(counts(&arranged), counts(&wanted));
        let kept = installed.iter().zip(&arranged).filter(|(was, is)| was == is).count();
        // Of each endpoint, as many stay in place as are wanted and were in a slot that is left.
        let left = counts(&installed[..installed.len().min(wanted.len())]);
        let wanted = counts(&wanted);
        let most: u32 = left.iter().map(|(backend, count)| *count.min(wanted.get(backend).unwrap_or(&0))).sum();
        let beyond = installed.len().saturating_sub(arranged.len());
        prop_assert!(kept + beyond >= most as usize && kept <= most as usize, "{kept} of {most}, {beyond} beyond");
    }
}
