//! The rule, by its sentences, and against sums made anew.

use super::*;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

fn group(number: u8) -> GroupId {
    GroupId::new([number + 1; 16]).unwrap()
}

fn budget(total: u64, groups: u8) -> Budget {
    let mut budget = Budget::new(total);
    (0..groups).for_each(|number| budget.set(group(number), 1).unwrap());
    budget
}

#[test]
fn a_lone_busy_group_may_have_all_but_the_reserves_of_the_others() {
    let mut budget = budget(1024 * MIB, 4);
    assert_eq!(budget.portion(group(0)).unwrap().share, 256 * MIB);
    assert!(budget.take(group(0), (1024 - 3 * 64) * MIB));
    assert!(!budget.take(group(0), 1));
    for other in 1..4 {
        assert!(budget.take(group(other), 64 * MIB), "a reserve is there at once");
        assert!(!budget.take(group(other), 1), "more is not, until it is given back");
    }
    assert_eq!(budget.taken(), budget.total());
}

#[test]
fn what_a_noisy_group_gives_back_goes_to_the_hungry_ones_up_to_their_shares() {
    let mut budget = budget(1024 * MIB, 4);
    let mut used = (1024 - 3 * 64) * MIB;
    let most = (0..20).fold(0, |most, _| budget.lend(group(0), used.min(most)));
    assert_eq!(most, used);
    // Now all are busy: whatever they get they use.
    let mut others = [0; 3];
    for round in 0.. {
        for (other, used) in (1..).zip(&mut others) {
            *used = budget.lend(group(other), *used);
        }
        let bound = budget.lend(group(0), used);
        assert!(bound >= used, "nobody is made to forget what he has");
        assert!(bound == used || bound <= 256 * MIB, "above its share it gets nothing: {bound} for {used}");
        if used <= 200 * MIB {
            break;
        }
        used -= 16 * MIB;
        assert!(round < 100);
    }
    (0..20).for_each(|_| (1..).zip(&mut others).for_each(|(other, used)| *used = budget.lend(group(other), *used)));
    assert!(others.iter().all(|used| *used >= 256 * MIB), "{others:?}");
}

#[test]
fn weights_divide_and_what_is_too_small_is_refused() {
    let mut budget = Budget::new(64 * MIB);
    budget.set(group(0), 3).unwrap();
    budget.set(group(1), 1).unwrap();
    assert_eq!([0, 1].map(|number| budget.portion(group(number)).unwrap().share), [48 * MIB, 16 * MIB]);
    assert_eq!(budget.portion(group(1)).unwrap().reserve, 4 * MIB);
    let refused = budget.set(group(2), 1000).unwrap_err();
    assert!(matches!(refused, BudgetError::ShareTooSmall { share, .. } if share < QUEUE_BYTES_MIN), "{refused}");
    assert_eq!(budget.set(group(2), 0), Err(BudgetError::Weight { weight: 0 }));
    assert_eq!(budget.portion(group(2)), None);
    assert!(!budget.take(group(2), 1) && budget.lend(group(2), 1) == 0);
    budget.remove(group(0));
    assert_eq!(budget.portion(group(1)).unwrap().share, 64 * MIB);
    let mut many = Budget::new(1 << 50);
    for number in 0..GROUPS_MAX as u128 {
        many.set(GroupId::new((number + 1).to_le_bytes()).unwrap(), 1).unwrap();
    }
    assert_eq!(many.set(group(0), 1), Err(BudgetError::TooManyGroups));
}

#[test]
fn an_idle_queue_is_lent_its_reserve_and_a_used_one_as_much_again() {
    let mut budget = budget(256 * MIB, 4);
    assert_eq!(budget.lend(group(0), 0), 16 * MIB);
    assert_eq!(budget.lend(group(0), 10 * MIB), 26 * MIB);
    assert_eq!(budget.lend(group(0), 26 * MIB), 52 * MIB);
    assert_eq!(budget.lend(group(0), 1), 16 * MIB + 1);
}

#[derive(Clone, Debug)]
enum Op {
    Set(u8, u32),
    Remove(u8),
    Take(u8, u64),
    Give(u8, u64),
    Lend(u8, u64),
}

fn op() -> impl Strategy<Value = Op> {
    let (group, bytes) = (0u8..6, prop_oneof![0..8 * MIB, 0..200 * MIB]);
    prop_oneof![
        1 => (group.clone(), 1u32..5).prop_map(|(group, weight)| Op::Set(group, weight)),
        1 => group.clone().prop_map(Op::Remove),
        8 => (group.clone(), bytes.clone()).prop_map(|(group, bytes)| Op::Take(group, bytes)),
        4 => (group.clone(), bytes.clone()).prop_map(|(group, bytes)| Op::Give(group, bytes)),
        8 => (group, bytes).prop_map(|(group, used)| Op::Lend(group, used)),
    ]
}

/// What the others leave, counted anew.
fn left(budget: &Budget, group: GroupId, to: impl Fn(&Portion) -> u64) -> u64 {
    let others = budget.groups.iter().filter(|(other, _)| **other != group);
    budget.total.saturating_sub(others.map(|(_, portion)| to(portion)).sum::<u64>())
}

proptest! {
    #[test]
    fn nobody_is_pushed_below_his_reserve_and_the_total_is_never_exceeded(
        total in 48 * MIB..300 * MIB,
        ops in prop::collection::vec(op(), 1..120),
    ) {
        let mut budget = Budget::new(total);
        // Whether all reserves are there: not always after somebody came.
        let mut whole = true;
        for op in ops {
            let before = budget.clone();
            match op {
                Op::Set(number, weight) => {
                    whole = false;
                    let _ = budget.set(group(number), weight);
                }
                Op::Remove(number) => {
                    whole = false;
                    budget.remove(group(number));
                }
                Op::Take(number, bytes) => {
                    let Some(portion) = before.portion(group(number)) else { continue };
                    let (taken, wanted) = (budget.take(group(number), bytes), portion.taken + bytes);
                    let leaves = left(&before, group(number), Portion::kept);
                    let leaves_hungry = left(&before, group(number), |other| other.kept() + other.missing());
                    let expected = if wanted <= portion.reserve {
                        before.taken() + bytes <= total
                    } else if wanted <= portion.share {
                        wanted <= leaves
                    } else {
                        wanted <= leaves_hungry
                    };
                    prop_assert_eq!(taken, expected);
                    prop_assert!(!whole || taken || wanted > portion.reserve, "a reserve is there");
                }
                Op::Give(number, bytes) => budget.give(group(number), bytes),
                Op::Lend(number, used) => {
                    let Some(portion) = before.portion(group(number)) else { continue };
                    let used = used.min(portion.taken);
                    let bound = budget.lend(group(number), used);
                    prop_assert!(bound >= used);
                    prop_assert!(!whole || bound >= portion.reserve.min(used + portion.reserve));
                    let others_hunger = before.groups.iter().any(|(other, p)| *other != group(number) && p.missing() > 0);
                    prop_assert!(!others_hunger || bound <= portion.share.max(used), "the hungry come first");
                }
            }
            let sum = |of: fn(&Portion) -> u64| budget.groups.values().map(of).sum::<u64>();
            prop_assert_eq!([budget.taken, budget.kept, budget.missing], [
                sum(|portion| portion.taken), sum(Portion::kept), sum(Portion::missing)
            ]);
            prop_assert!(budget.taken() <= total);
            prop_assert!(sum(|portion| portion.share) <= total);
            prop_assert!(!whole || budget.kept <= total, "what is kept for somebody was lent");
            whole |= budget.kept <= total;
            for portion in budget.groups.values() {
                prop_assert!(portion.reserve <= portion.share && portion.share >= QUEUE_BYTES_MIN);
                prop_assert!(!portion.hungry || portion.taken < portion.share);
            }
        }
    }
}
