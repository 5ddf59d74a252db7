use super::*;
use proptest::prelude::*;

const MS: u64 = 1_000_000;
const MIB: u64 = 1 << 20;

fn group(number: u8) -> GroupId {
    GroupId::new([number + 1; 16]).expect("not zero")
}

fn throttle(rate: u64) -> Throttle {
    Throttle::new(MonoTime(0), Some(rate)).expect("a good rate")
}

/// Senders that always want `sizes` bytes from `froms` on; gives what each was granted until `end`, and the moments of all grants.
fn run(throttle: &mut Throttle, wishes: &[(u64, u64)], end: u64) -> (Vec<u64>, Vec<(u64, u64)>) {
    let mut sent = vec![0; wishes.len()];
    let mut grants = Vec::new();
    let mut now = 0;
    let mut asked = vec![false; wishes.len()];
    while now < end {
        let mut granted = Vec::new();
        for (number, (size, from)) in wishes.iter().enumerate() {
            if !asked[number] && *from <= now {
                asked[number] = true;
                if throttle.take(MonoTime(now), group(number as u8), *size) == Ok(Grant::Now) {
                    granted.push(number);
                }
            }
        }
        granted
            .extend(std::iter::from_fn(|| throttle.poll(MonoTime(now))).map(|group| usize::from(group.bytes()[0] - 1)));
        for number in &granted {
            asked[*number] = false;
            sent[*number] += wishes[*number].0;
            grants.push((now, wishes[*number].0));
        }
        if granted.is_empty() {
            let begins = wishes.iter().map(|(_, from)| *from).filter(|from| *from > now).min();
            let due = throttle.next_deadline().map(|due| due.0.max(now + 1));
            now = due.into_iter().chain(begins).min().unwrap_or(end);
        }
    }
    (sent, grants)
}

#[test]
fn groups_that_always_want_get_the_same_whatever_their_sizes() {
    let mut throttle = throttle(10 * MIB);
    let wishes = [(256 << 10, 0), (4 << 10, 0), (100_000, 0), (REQUEST_MAX, 0)];
    let (sent, _) = run(&mut throttle, &wishes, 20_000 * MS);
    let (least, most) = (sent.iter().min().expect("four"), sent.iter().max().expect("four"));
    assert!(most - least <= 2 * REQUEST_MAX, "{sent:?}");
    let total: u64 = sent.iter().sum();
    assert!(total.abs_diff(200 * MIB) <= 2 * REQUEST_MAX, "all of the rate is used: {total}");
}

#[test]
fn what_one_leaves_goes_to_the_others() {
    let mut throttle = throttle(10 * MIB);
    let (mut sent, mut now) = ([0u64; 3], 0);
    // The third wants 1 MiB a second, a tenth; the others everything.
    while now < 10_000 * MS {
        for number in 0..3u8 {
            let wants = number < 2 || sent[2] < MIB * (now / (1_000 * MS) + 1);
            if wants && throttle.take(MonoTime(now), group(number), 64 << 10) == Ok(Grant::Now) {
                sent[usize::from(number)] += 64 << 10;
            }
        }
        while let Some(group) = throttle.poll(MonoTime(now)) {
            sent[usize::from(group.bytes()[0] - 1)] += 64 << 10;
        }
        now += MS;
    }
    assert_eq!(sent[2], 10 * MIB);
    assert!(sent[0].abs_diff(45 * MIB) <= MIB && sent[1].abs_diff(45 * MIB) <= MIB, "{sent:?}");
}

/// Who was away does not catch up on what the others were given meanwhile.
#[test]
fn who_comes_late_gets_its_share_and_no_more() {
    let mut throttle = throttle(8 * MIB);
    let (sent, _) = run(&mut throttle, &[(64 << 10, 0), (64 << 10, 5_000 * MS)], 10_000 * MS);
    assert!(sent[0].abs_diff(60 * MIB) <= MIB && sent[1].abs_diff(20 * MIB) <= MIB, "{sent:?}");
}

#[test]
fn a_group_that_leaves_holds_nobody_up() {
    let mut throttle = throttle(RATE_MIN);
    assert_eq!(throttle.take(MonoTime(0), group(0), REQUEST_MAX), Ok(Grant::Now));
    assert!(matches!(throttle.take(MonoTime(0), group(1), REQUEST_MAX), Ok(Grant::Later(_))));
    assert!(matches!(throttle.take(MonoTime(0), group(2), 8), Ok(Grant::Later(_))));
    assert_eq!(throttle.poll(MonoTime(10 * MS)), None);
    throttle.leave(group(1));
    assert_eq!(throttle.poll(MonoTime(10 * MS)), Some(group(2)));
    assert_eq!((throttle.next_deadline(), throttle.waiting()), (None, 0));
}

#[test]
fn a_lower_rate_holds_at_once_and_no_rate_grants_all() {
    let mut throttle = throttle(100 * MIB);
    assert_eq!(throttle.burst(), 5 * MIB);
    throttle.set_rate(MonoTime(1), Some(MIB)).expect("good");
    assert_eq!(throttle.take(MonoTime(1), group(0), REQUEST_MAX), Ok(Grant::Now));
    assert_eq!(throttle.take(MonoTime(1), group(0), REQUEST_MAX), Ok(Grant::Later(MonoTime(1 + 500 * MS))));
    throttle.set_rate(MonoTime(2), None).expect("good");
    assert_eq!(throttle.poll(MonoTime(2)), Some(group(0)));
    for _ in 0..100 {
        assert_eq!(throttle.take(MonoTime(3), group(0), REQUEST_MAX), Ok(Grant::Now));
    }
    throttle.set_rate(MonoTime(4), Some(MIB)).expect("good");
    assert!(matches!(throttle.take(MonoTime(4), group(0), REQUEST_MAX), Ok(Grant::Later(_))));
    assert_eq!(throttle.set_rate(MonoTime(5), Some(1)), Err(RateTooLow { bytes_per_s: 1 }));
}

#[test]
fn requests_and_groups_have_bounds() {
    let mut throttle = throttle(RATE_MIN);
    let error = throttle.take(MonoTime(0), group(0), REQUEST_MAX + 1);
    assert_eq!(error, Err(TakeError::TooMuch { bytes: REQUEST_MAX + 1 }));
    for number in 1..=GROUPS_MAX as u128 {
        let group = GroupId::new(number.to_le_bytes()).expect("not zero");
        assert!(throttle.take(MonoTime(0), group, REQUEST_MAX).is_ok());
    }
    assert_eq!(throttle.take(MonoTime(0), GroupId::new([255; 16]).expect("not zero"), 1), Err(TakeError::TooMany));
}

#[test]
fn groups_that_are_gone_are_forgotten() {
    let mut throttle = Throttle::new(MonoTime(0), None).expect("none");
    for number in 0..10_000u128 {
        let group = GroupId::new((number + 1).to_le_bytes()).expect("not zero");
        assert_eq!(throttle.take(MonoTime(0), group, 1_000), Ok(Grant::Now));
        // One goes on, so that turns pass by.
        assert_eq!(throttle.take(MonoTime(0), GroupId::new([255; 16]).expect("not zero"), 1_000), Ok(Grant::Now));
    }
    assert!(throttle.groups.len() < 10, "{} are remembered", throttle.groups.len());
}

#[derive(Clone, Debug)]
enum Op {
    Wait(u64),
    Take(u8, u64),
    Leave(u8),
    Rate(Option<u64>),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let bytes = prop_oneof![0..REQUEST_MAX + 1, Just(REQUEST_MAX), 1..5_000u64];
    let rate = prop_oneof![(RATE_MIN..200 * MIB).prop_map(Some), (RATE_MIN..MIB).prop_map(Some), Just(None)];
    let op = prop_oneof![
        4 => (0..200 * MS).prop_map(Op::Wait),
        8 => (0..6u8, bytes).prop_map(|(group, bytes)| Op::Take(group, bytes)),
        1 => (0..6u8).prop_map(Op::Leave),
        1 => rate.prop_map(Op::Rate),
    ];
    prop::collection::vec(op, 1..120)
}

proptest! {
    /// Against a list of what came in and what went out: never more than rate x time + burst in any window, whatever happens; and whenever
    /// nothing is granted although somebody waits, the bucket does not have what is next.
    #[test]
    fn no_window_ever_gets_more_than_rate_times_time_and_a_burst(ops in ops(), rate in RATE_MIN..50 * MIB) {
        let mut throttle = throttle(rate);
        let mut now = 0u64;
        let mut wants: BTreeMap<u8, u64> = BTreeMap::new();
        // Moments with what the rate gave until there (bytes x ns a second), the burst then, and what was granted.
        let mut history: Vec<(u128, u64, u64)> = Vec::new();
        let mut given = 0u128;
        for op in ops {
            match op {
                Op::Wait(time) => {
                    let end = now + time;
                    // As a driver does: every deadline on the way is kept.
                    while let Some(due) = throttle.next_deadline().filter(|due| due.0 <= end) {
                        given += u128::from(throttle.rate().unwrap_or(0)) * u128::from(due.0.saturating_sub(now));
                        now = now.max(due.0);
                        let before = throttle.waiting();
                        while let Some(group) = throttle.poll(MonoTime(now)) {
                            let bytes = wants.remove(&(group.bytes()[0] - 1)).expect("it asked");
                            history.push((given, throttle.burst(), bytes));
                        }
                        prop_assert!(throttle.waiting() < before, "a deadline gives something");
                    }
                    given += u128::from(throttle.rate().unwrap_or(0)) * u128::from(end - now);
                    now = end;
                }
                Op::Take(number, bytes) => {
                    let answer = throttle.take(MonoTime(now), group(number), bytes).expect("in bounds");
                    wants.insert(number, bytes);
                    if answer == Grant::Now {
                        wants.remove(&number);
                        if throttle.rate().is_some() {
                            history.push((given, throttle.burst(), bytes));
                        }
                    }
                }
                Op::Leave(number) => {
                    throttle.leave(group(number));
                    wants.remove(&number);
                }
                Op::Rate(rate) => {
                    throttle.set_rate(MonoTime(now), rate).expect("in bounds");
                }
            }
            while let Some(group) = throttle.poll(MonoTime(now)) {
                let bytes = wants.remove(&(group.bytes()[0] - 1)).expect("it asked");
                if throttle.rate().is_some() {
                    history.push((given, throttle.burst(), bytes));
                }
            }
            prop_assert_eq!(throttle.waiting(), wants.len());
            if let Some(due) = throttle.next_deadline() {
                prop_assert!(due.0 > now, "what the bucket has is granted");
            }
            if throttle.rate().is_none() {
                prop_assert!(wants.is_empty());
                history.clear();
            }
        }
        for (first, (before, ..)) in history.iter().enumerate() {
            let (mut burst, mut granted) = (0, 0u128);
            for (after, now_burst, bytes) in &history[first..] {
                burst = burst.max(*now_burst);
                granted += u128::from(*bytes) * SECOND;
                prop_assert!(granted <= after - before + u128::from(burst) * SECOND);
            }
        }
    }

    /// While two groups always want, what they got differs by two requests at most, whoever else comes and goes.
    #[test]
    fn nobody_that_always_wants_gets_more_than_another(
        wishes in prop::collection::vec((1..=REQUEST_MAX, 0..3_000 * MS), 1..6),
        sizes in (1_000..=REQUEST_MAX, 1_000..=REQUEST_MAX),
    ) {
        let mut throttle = throttle(4 * MIB);
        let all: Vec<_> = [(sizes.0, 0), (sizes.1, 0)].into_iter().chain(wishes.iter().map(|(size, from)| ((*size).max(1_000), *from))).collect();
        let (sent, _) = run(&mut throttle, &all, 6_000 * MS);
        prop_assert!(sent[0].abs_diff(sent[1]) <= 2 * REQUEST_MAX, "{:?} of {:?}", sent, all);
    }
}
