use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn seen(open: u32, new: u32) -> Seen {
    Seen { open, new }
}

/// Looks a second apart, at connections that all stay and of which none is new, until slots are given.
fn settled(endpoints: &[(u8, u16)], open: &[u32], rule: Rule) -> (Balance<u8>, Vec<u32>) {
    let mut balance = Balance::default();
    let seen: Vec<Seen> = open.iter().map(|open| seen(*open, 0)).collect();
    for _ in 0..20 {
        if let Shares::Slots(slots) = balance.look(SECOND, endpoints, &seen, rule) {
            return (balance, slots);
        }
    }
    panic!("no slots");
}

fn given(endpoints: &[(u8, u16)], open: &[u32], rule: Rule) -> Vec<u32> {
    settled(endpoints, open, rule).1
}

#[test]
fn who_has_fewer_gets_more() {
    let endpoints = [(1, 1), (2, 1), (3, 1), (4, 1)];
    assert_eq!(given(&endpoints, &[10, 10, 10, 10], Rule::Lc), [8; 4]);
    // None at all where there is too much to be made up for.
    assert_eq!(given(&endpoints, &[10, 50, 50, 10], Rule::Lc), [16, 0, 0, 16]);
    // After a quiet time, few are expected, and none are left without.
    assert_eq!(given(&[(1, 1), (2, 1)], &[9, 10], Rule::Lc), [24, 8]);
    // And no more than three times the share.
    assert_eq!(given(&endpoints, &[50, 50, 50, 10], Rule::Lc), [3, 3, 2, 24]);
}

#[test]
fn what_is_expected_makes_all_equal() {
    let endpoints = [(1, 1), (2, 1)];
    let mut balance = Balance::default();
    let mut last = Shares::Turns;
    for _ in 0..30 {
        // 64 come in each second, 64 of 200 go: two thirds stay.
        last = balance.look(SECOND, &endpoints, &[seen(104, 32), seen(96, 32)], Rule::Lc);
    }
    // Of these (72 + 64) and (64 + 64) stay, or 5.2 fewer; so the second gets as many more of the next 64.
    let Shares::Slots(slots) = last else { panic!("{last:?}") };
    assert_eq!(slots, [15, 17]);
}

#[test]
fn weights_count_where_the_rule_has_them() {
    let endpoints = [(1, 3), (2, 1), (3, 0)];
    assert_eq!(given(&endpoints, &[30, 10, 99], Rule::Wlc), [24, 8, 0]);
    assert_eq!(given(&endpoints, &[20, 20, 99], Rule::Lc), [16, 16, 0]);
    assert_eq!(given(&endpoints, &[29, 10, 99], Rule::Wlc), [28, 4, 0]);
    // With one more they would have (2 + 1) / 3 and (1 + 1) / 1, or (5 + 1) / 3 and (1 + 1) / 1.
    assert_eq!(given(&endpoints, &[2, 1, 99], Rule::Sed), [32, 0, 0]);
    assert_eq!(given(&endpoints, &[5, 1, 99], Rule::Sed), [24, 8, 0]);
    // Whoever has none is first, although its weight is small.
    assert_eq!(given(&endpoints, &[9, 0, 99], Rule::Sed), [8, 24, 0]);
    assert_eq!(given(&endpoints, &[1, 0, 99], Rule::Sed), [28, 4, 0]);
    assert_eq!(given(&endpoints, &[1, 0, 99], Rule::Nq), [16, 16, 0]);
}

#[test]
fn where_all_weights_are_zero_all_serve() {
    let endpoints = [(1, 0), (2, 0)];
    for rule in [Rule::Lc, Rule::Wlc, Rule::Sed, Rule::Nq] {
        assert_eq!(given(&endpoints, &[20, 20], rule), [16, 16], "{rule:?}");
    }
}

#[test]
fn where_there_is_nothing_to_go_by_turns_are_taken() {
    let mut balance = Balance::default();
    for _ in 0..20 {
        assert_eq!(balance.look(SECOND, &[], &[], Rule::Lc), Shares::Turns);
        assert_eq!(balance.look(SECOND, &[(1, 1)], &[seen(9, 0)], Rule::Lc), Shares::Turns);
        assert_eq!(balance.look(SECOND, &[(1, 1), (2, 0)], &[seen(9, 0); 2], Rule::Wlc), Shares::Turns);
    }
    // No connections, or too many endpoints.
    let mut balance = Balance::default();
    for _ in 0..20 {
        assert_eq!(balance.look(SECOND, &[(1, 1), (2, 1)], &[seen(0, 0); 2], Rule::Lc), Shares::Turns);
    }
    let many: Vec<(u8, u16)> = (0..65).map(|index| (index, 1)).collect();
    for _ in 0..20 {
        assert_eq!(balance.look(SECOND, &many, &[seen(9, 0); 65], Rule::Lc), Shares::Turns);
    }
    // The first look says nothing of how long they stay, however many they are.
    let mut balance = Balance::default();
    assert_eq!(balance.look(SECOND, &[(1, 1), (2, 1)], &[seen(99, 99), seen(9, 9)], Rule::Lc), Shares::Turns);
    assert_ne!(balance.look(SECOND, &[(1, 1), (2, 1)], &[seen(99, 0), seen(9, 0)], Rule::Lc), Shares::Turns);
}

#[test]
fn short_connections_are_shared_in_turns_without_flapping() {
    let endpoints = [(1, 1), (2, 1)];
    let (mut balance, _) = settled(&endpoints, &[50, 50], Rule::Lc);
    let mut changes = 0;
    let mut is_turns = false;
    // Of 100 go on average 52, more or less: between the two borders.
    for round in 0..200_u32 {
        let new = 52 + (round * 7) % 11 - 5;
        let shares = balance.look(SECOND, &endpoints, &[seen(100, new), seen(100, new)], Rule::Lc);
        changes += u32::from(is_turns != (shares == Shares::Turns));
        is_turns = shares == Shares::Turns;
    }
    assert!(changes <= 1, "{changes}");
    for _ in 0..40 {
        is_turns = balance.look(SECOND, &endpoints, &[seen(100, 70); 2], Rule::Lc) == Shares::Turns;
    }
    assert!(is_turns);
    for _ in 0..40 {
        is_turns = balance.look(SECOND, &endpoints, &[seen(100, 20); 2], Rule::Lc) == Shares::Turns;
    }
    assert!(!is_turns);
}

#[test]
fn a_late_look_changes_nothing_for_long() {
    let endpoints = [(1, 1), (2, 1)];
    let (mut balance, _) = settled(&endpoints, &[100, 100], Rule::Lc);
    for _ in 0..30 {
        balance.look(SECOND, &endpoints, &[seen(100, 10); 2], Rule::Lc);
    }
    // In a minute all are others. What is expected is for a second still.
    let late = balance.look(SECOND * 60, &endpoints, &[seen(100, 100), seen(90, 90)], Rule::Lc);
    let next = balance.look(SECOND, &endpoints, &[seen(100, 10), seen(90, 10)], Rule::Lc);
    for shares in [late, next] {
        let Shares::Slots(slots) = shares else { panic!("turns") };
        assert!((8..=10).contains(&slots[0]), "{slots:?}");
    }
    // No time at all is no reason to fail either.
    balance.look(Duration::ZERO, &endpoints, &[seen(100, 10); 2], Rule::Lc);
    balance.look(Duration::MAX, &endpoints, &[seen(100, 10); 2], Rule::Lc);
    assert!(matches!(balance.look(SECOND, &endpoints, &[seen(100, 10); 2], Rule::Lc), Shares::Slots(_)));
}

#[test]
fn endpoints_come_and_go() {
    let (mut balance, _) = settled(&[(1, 1), (2, 1), (3, 1), (4, 1)], &[40; 4], Rule::Lc);
    // Connections of those that are gone did not end.
    let three = balance.look(SECOND, &[(3, 1), (1, 1), (9, 1)], &[seen(40, 0), seen(40, 0), seen(40, 40)], Rule::Lc);
    assert_eq!(three, Shares::Slots(vec![11, 11, 10]));
    // Who comes has none: three times its share of a quarter.
    let newcomer = [(1, 1), (9, 1), (3, 1), (5, 1)];
    let four = balance.look(SECOND, &newcomer, &[seen(40, 0), seen(40, 0), seen(40, 0), seen(0, 0)], Rule::Lc);
    assert_eq!(four, Shares::Slots(vec![3, 3, 2, 24]));
}

fn rules() -> impl Strategy<Value = Rule> {
    prop::sample::select(vec![Rule::Lc, Rule::Wlc, Rule::Sed, Rule::Nq])
}

/// A time, and of each endpoint: who it is, its weight, and how many connections are open and new.
type Look = (u64, Vec<(u8, u16, u32, u32)>);

fn looks() -> impl Strategy<Value = Vec<Look>> {
    let number = prop_oneof![0..20_u32, 0..2_000_u32, any::<u32>()];
    let endpoint = (0..80_u8, prop_oneof![0..4_u16, any::<u16>()], number.clone(), number);
    prop::collection::vec((any::<u64>(), prop::collection::vec(endpoint, 0..70)), 1..12)
}

proptest! {
    #![proptest_config(crate::testing::replayed(ProptestConfig::default(), file!()))]

    #[test]
    fn whatever_is_seen_slots_are_given_within_bounds(looks in looks(), rule in rules()) {
        let mut balance = Balance::default();
        for (time, look) in looks {
            let endpoints: Vec<(u8, u16)> = look.iter().map(|(endpoint, weight, ..)| (*endpoint, *weight)).collect();
            let all: Vec<Seen> = look.iter().map(|(_, _, open, new)| seen(*open, *new)).collect();
            let elapsed = Duration::from_millis(time % 5_000);
            let Shares::Slots(given) = balance.look(elapsed, &endpoints, &all, rule) else { continue };
            prop_assert_eq!(given.len(), endpoints.len());
            let weight = |index: usize| if rule == Rule::Lc { endpoints[index].1.min(1) } else { endpoints[index].1 };
            let sum: u32 = (0..endpoints.len()).map(|index| u32::from(weight(index))).sum();
            let serving = (0..endpoints.len()).filter(|index| weight(*index) > 0 || sum == 0).count();
            let total = slots(serving).expect("not too many");
            prop_assert_eq!(given.iter().sum::<u32>(), total);
            for (index, given) in given.into_iter().enumerate().filter(|_| sum > 0) {
                let share = f64::from(weight(index)) / f64::from(sum);
                let most = (3.0 * share * f64::from(total)).max(f64::from(share > 0.0));
                prop_assert!(f64::from(given) <= most + 0.001, "{} of {}", given, most);
            }
        }
    }

    #[test]
    fn parts_become_slots_close_to_them(parts in prop::collection::vec(0.0..1.0_f64, 1..30)) {
        let sum: f64 = parts.iter().sum();
        prop_assume!(sum > 0.01);
        let parts: Vec<f64> = parts.iter().map(|part| part / sum).collect();
        let given = super::slots::whole(&parts, &vec![1.0; parts.len()], 64);
        prop_assert_eq!(given.iter().sum::<u32>(), 64);
        for (part, given) in parts.iter().zip(given) {
            prop_assert!((part * 64.0 - f64::from(given)).abs() < 1.0 + 1e-6);
        }
    }

    #[test]
    fn as_few_slots_change_as_can_be(
        installed in prop::collection::vec(0..12_u8, 0..70),
        wanted in prop::collection::btree_map(0..12_u8, 0..20_u32, 0..12),
        turn in 0..12_usize,
    ) {
        let mut wanted: Vec<(u8, u32)> = wanted.into_iter().collect();
        let turn = turn % wanted.len().max(1);
        wanted.rotate_left(turn);
        let arranged = keep(&installed, &wanted);
        let count = |slots: &[u8], endpoint: u8| slots.iter().filter(|slot| **slot == endpoint).count();
        let total: usize = wanted.iter().map(|(_, count)| *count as usize).sum();
        prop_assert_eq!(arranged.len(), total);
        let old = &installed[..total.min(installed.len())];
        let mut kept = 0;
        for (endpoint, wanted) in &wanted {
            prop_assert_eq!(count(&arranged, *endpoint), *wanted as usize);
            kept += count(old, *endpoint).min(*wanted as usize);
        }
        let same = arranged.iter().zip(old).filter(|(new, old)| new == old).count();
        prop_assert_eq!(same, kept);
        prop_assert_eq!(keep(&arranged, &wanted), arranged);
    }

    #[test]
    fn what_is_arranged_anew_is_spread(counts in prop::collection::vec(1..16_u32, 2..8)) {
        let wanted: Vec<(usize, u32)> = counts.iter().copied().enumerate().collect();
        let arranged = keep(&[], &wanted);
        for (endpoint, count) in wanted {
            let own: Vec<usize> = (0..arranged.len()).filter(|index| arranged[*index] == endpoint).collect();
            let gaps = (0..own.len()).map(|at| {
                let next = own.get(at + 1).copied().unwrap_or(own[0] + arranged.len());
                next - own[at]
            });
            let widest = gaps.max().expect("it has one");
            let even = arranged.len().div_ceil(count as usize);
            prop_assert!(widest <= 2 * even + 1, "{} where {} is even: {:?}", widest, even, arranged);
        }
    }
}
