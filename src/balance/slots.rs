//! Slots: how many there are, and whose each is.

/// Up to how many endpoints there are how many slots. So many that each gets one and a half or more, and always the same
/// number for a number of endpoints. With more endpoints, connections are shared by turns alone.
const SIZES: [(usize, u32); 2] = [(21, 32), (64, 64)];

/// How many slots a Service has with so many endpoints that get any; `None` if there are too many of them.
pub fn slots(endpoints: usize) -> Option<u32> {
    SIZES.into_iter().find(|(most, _)| endpoints <= *most).map(|(_, slots)| slots)
}

/// Makes whole slots of parts, `total` in all, none above its part of `most` if it can be helped.
pub(super) fn whole(parts: &[f64], most: &[f64], total: u32) -> Vec<u32> {
    let of_total = |part: f64| part * f64::from(total);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the few slots")]
    let floor = |part: f64| of_total(part).max(0.0).min(f64::from(total)).floor() as u32;
    let mut given: Vec<u32> = parts.iter().map(|part| floor(*part)).collect();
    let mut left = total.saturating_sub(given.iter().sum());
    // The largest rest first, and of equal ones the first endpoint.
    let rest = |index: usize| of_total(parts[index]) - f64::from(floor(parts[index]));
    let mut order: Vec<usize> = (0..parts.len()).filter(|index| most[*index] > 0.0).collect();
    order.sort_by(|a, b| rest(*b).total_cmp(&rest(*a)));
    // Everybody may have one slot, however small its share is.
    let limit = |index: usize| floor(most[index] + 1e-9).max(1);
    for is_limited in [true, false] {
        while left > 0 {
            let before = left;
            for &index in &order {
                if left > 0 && (!is_limited || given[index] < limit(index)) {
                    given[index] += 1;
                    left -= 1;
                }
            }
            if left == before {
                break;
            }
        }
    }
    given
}

/// Arranges slots: so many for each of `wanted` (each named once), as few different from `installed` as can be, and those
/// that change far from others of the same endpoint. Slots are taken in turns, the first after the last.
pub fn keep<E: Ord + Copy>(installed: &[E], wanted: &[(E, u32)]) -> Vec<E> {
    let total: usize = wanted.iter().map(|(_, count)| *count as usize).sum();
    let mut wanted: Vec<(E, u32)> = wanted.to_vec();
    wanted.sort_unstable();
    let find = |wanted: &[(E, u32)], endpoint: &E| wanted.binary_search_by(|(known, _)| known.cmp(endpoint)).ok();
    let mut arranged: Vec<Option<E>> = installed.iter().take(total).copied().map(Some).collect();
    arranged.resize(total, None);
    // Who has too many gives away, each time the one whose neighbours of the same endpoint are closest.
    for slot in &mut arranged {
        if slot.as_ref().is_some_and(|endpoint| find(&wanted, endpoint).is_none()) {
            *slot = None;
        }
    }
    let mut missing = vec![0_usize; wanted.len()];
    for ((endpoint, count), missing) in wanted.iter().zip(&mut missing) {
        let mut own: Vec<usize> = (0..total).filter(|index| arranged[*index] == Some(*endpoint)).collect();
        while own.len() > *count as usize {
            let crowded = (0..own.len()).min_by_key(|at| room(&own, *at, total)).expect("there are too many");
            arranged[own.remove(crowded)] = None;
        }
        *missing = *count as usize - own.len();
    }
    // Around the ring, everybody is due to have more and more slots. A free one goes to whoever lacks most there.
    let mut due = vec![0_usize; wanted.len()];
    let mut had = vec![0_usize; wanted.len()];
    for slot in &mut arranged {
        for (due, (_, count)) in due.iter_mut().zip(&wanted) {
            *due += *count as usize;
        }
        let lack = |index: &usize| (due[*index].cast_signed() - (had[*index] * total).cast_signed(), wanted[*index].1);
        let owner = match slot {
            Some(endpoint) => find(&wanted, endpoint),
            None => (0..wanted.len()).filter(|index| missing[*index] > 0).max_by_key(lack),
        };
        let Some(owner) = owner else { continue };
        had[owner] += 1;
        if slot.is_none() {
            missing[owner] -= 1;
            *slot = Some(wanted[owner].0);
        }
    }
    arranged.into_iter().flatten().collect()
}

/// How far it is from the one before to the one after this one of an endpoint's own slots, which are in order.
fn room(own: &[usize], at: usize, total: usize) -> usize {
    let (before, after) = (own[(at + own.len() - 1) % own.len()], own[(at + 1) % own.len()]);
    (after + 2 * total - before - 1) % total
}
