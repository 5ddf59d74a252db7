//! Keys: published vectors, and the three ways in which one does not fit.

use super::derive::derive;
use super::file::NotOpened;
use super::*;
use crate::types::{ReplicaId, SegmentId, WallTime};
use proptest::prelude::*;

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[at * 2..at * 2 + 2], 16).unwrap()).collect()
}

/// RFC 5869, appendix A, cases 1 to 3.
#[test]
fn hkdf_is_that_of_the_rfc() {
    let found: [u8; 42] =
        derive(&[0x0b; 22], &bytes("000102030405060708090a0b0c"), &[&bytes("f0f1f2f3f4f5f6"), &bytes("f7f8f9")]);
    let first = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865";
    assert_eq!(found.to_vec(), bytes(first));
    let run = |from: u8, to: u8| (from..=to).collect::<Vec<u8>>();
    let found: [u8; 82] = derive(&run(0, 0x4f), &run(0x60, 0xaf), &[&run(0xb0, 0xff)]);
    let second = "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09\
                  da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87";
    assert_eq!(found.to_vec(), bytes(second));
    let found: [u8; 42] = derive(&[0x0b; 22], &[], &[]);
    let third = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8";
    assert_eq!(found.to_vec(), bytes(third));
}

fn replica(number: u8) -> ReplicaId {
    ReplicaId::new([number; 16]).unwrap()
}

fn key(byte: u8) -> WrappingKey {
    WrappingKey::parse(&[byte; 32]).unwrap()
}

fn holder(byte: u8) -> KeyHolder {
    Some(key(byte)).into()
}

fn wrapped(with: &WrappingKey, generation: u32, salt: u8) -> WrappedKey {
    let wrap = Wrap { salt: [salt; 16], created: WallTime(5) };
    with.new_key(replica(1), [generation as u8 + 100; 32], wrap).name(generation, &Keyring::default())
}

fn file(keyring: &Keyring, generation: u32) -> Result<FileKey, KeyError> {
    keyring.segment(generation, SegmentId::new([9; 16]).unwrap())
}

#[test]
fn a_key_is_32_bytes_or_64_digits() {
    let digits: String = (0..32).map(|byte: u8| format!("{byte:02X}")).collect();
    let raw: Vec<u8> = (0..32).collect();
    assert_eq!(WrappingKey::parse(digits.as_bytes()), WrappingKey::parse(&raw));
    assert_eq!(WrappingKey::parse(format!(" {digits}\n").as_bytes()), WrappingKey::parse(&raw));
    for wrong in [&b""[..], &raw[1..], &digits.as_bytes()[1..], &[b'g'; 64]] {
        assert_eq!(WrappingKey::parse(wrong), Err(KeyError::Malformed { found: wrong.len() }));
    }
    assert_eq!(format!("{:?}", WrappingKey::parse(&raw).unwrap()), "WrappingKey", "it is never printed");
}

#[test]
fn the_wrong_key_is_told_from_a_damaged_wrap_and_from_none() {
    let keys = [wrapped(&key(1), 3, 1), wrapped(&key(1), 4, 2)];
    let keyring = holder(1).unlock(replica(1), &keys).unwrap();
    assert!(file(&keyring, 3).is_ok() && file(&keyring, 4).is_ok());
    assert_eq!(file(&keyring, 5).unwrap_err(), KeyError::Unknown { generation: 5 });
    assert_eq!(file(&Keyring::default(), 3).unwrap_err(), KeyError::Missing);
    assert_eq!(holder(2).unlock(replica(1), &keys).unwrap_err(), KeyError::Wrong);
    assert_eq!(KeyHolder::default().unlock(replica(1), &keys).unwrap_err(), KeyError::Missing);
    assert!(holder(1).unlock(replica(1), &[]).unwrap().is_empty());
    assert_eq!(holder(1).unlock(replica(2), &keys).unwrap_err(), KeyError::Wrong, "keys are of one replica");
    for at in 0..48 {
        let mut damaged = keys;
        damaged[1].sealed[at] ^= 0x20;
        assert_eq!(holder(1).unlock(replica(1), &damaged).unwrap_err(), KeyError::Damaged { generation: 4 });
    }
    let mut swapped = keys;
    swapped[0].generation = 2;
    assert_eq!(holder(1).unlock(replica(1), &swapped).unwrap_err(), KeyError::Damaged { generation: 2 });
}

#[test]
fn rewrapping_keeps_the_replica_keys() {
    let keys = [wrapped(&key(1), 3, 1), WrappedKey { bases: true, ..wrapped(&key(1), 4, 2) }];
    let mut salt = 10;
    let mut draw = || {
        salt += 1;
        [salt; 16]
    };
    assert_eq!(key(3).rewrap(replica(1), &keys, &key(2), &mut draw), Err(KeyError::Wrong));
    let again = key(1).rewrap(replica(1), &keys, &key(2), &mut draw).unwrap();
    assert_eq!(holder(9).rewrap(replica(1), &again, &key(2), &mut draw), Ok(None), "done before");
    assert_eq!(holder(1).unlock(replica(1), &again).unwrap_err(), KeyError::Wrong);
    let (before, after) = (holder(1).unlock(replica(1), &keys).unwrap(), holder(2).unlock(replica(1), &again).unwrap());
    for generation in [3, 4] {
        let place = ChunkPlace { number: 1, codec: 1, content: 1, plain_length: 3 };
        let mut bytes = b"abc".to_vec();
        file(&before, generation).unwrap().seal_chunk(place, &mut bytes);
        assert_eq!(file(&after, generation).unwrap().open_chunk(place, &mut bytes), Ok(3));
        assert_eq!(&bytes[..3], b"abc");
    }
    assert_eq!((again[1].bases, again[1].created), (true, WallTime(5)));
    assert_ne!(again[0].salt, again[1].salt);
}

proptest! {
    #[test]
    fn a_chunk_opens_only_as_what_it_is_where_it_is(
        plain in prop::collection::vec(any::<u8>(), 1..2000),
        number in 0u32..1000,
        flip in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let keyring = holder(1).unlock(replica(1), &[wrapped(&key(1), 3, 1), wrapped(&key(1), 4, 1)]).unwrap();
        let keys = file(&keyring, 3).unwrap();
        let place = ChunkPlace { number, codec: 1, content: 2, plain_length: plain.len() as u32 };
        let mut sealed = plain.clone();
        keys.seal_chunk(place, &mut sealed);
        prop_assert_eq!(sealed.len(), plain.len() + TAG_BYTES);
        let mut opened = sealed.clone();
        prop_assert_eq!(keys.open_chunk(place, &mut opened), Ok(plain.len()));
        prop_assert_eq!(&opened[..plain.len()], &plain[..]);
        let others = [
            ChunkPlace { number: number + 1, ..place },
            ChunkPlace { codec: 2, ..place },
            ChunkPlace { content: 1, ..place },
            ChunkPlace { plain_length: place.plain_length + 1, ..place },
        ];
        for other in others {
            prop_assert_eq!(keys.open_chunk(other, &mut sealed.clone()), Err(NotOpened));
        }
        prop_assert_eq!(file(&keyring, 4).unwrap().open_chunk(place, &mut sealed.clone()), Err(NotOpened));
        let at = flip.index(sealed.len());
        sealed[at] ^= 1 << bit;
        prop_assert_eq!(keys.open_chunk(place, &mut sealed), Err(NotOpened));
    }

    #[test]
    fn events_are_sealed_the_same_way_every_time_and_open_only_whole(
        plain in prop::collection::vec(any::<u8>(), 1..600),
        flip in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let keyring = holder(1).unlock(replica(1), &[wrapped(&key(1), 3, 1)]).unwrap();
        let keys = file(&keyring, 3).unwrap();
        let mut sealed = keys.seal_events(&plain);
        prop_assert_eq!(&sealed, &file(&keyring, 3).unwrap().seal_events(&plain));
        prop_assert_eq!(keys.open_events(&sealed), Ok(plain.clone()));
        let mut longer = plain.clone();
        longer.push(0);
        prop_assert_ne!(&sealed[..12], &keys.seal_events(&longer)[..12], "other bytes, another nonce");
        prop_assert_eq!(keys.open_events(&sealed[..sealed.len() - 1]), Err(NotOpened));
        let at = flip.index(sealed.len());
        sealed[at] ^= 1 << bit;
        prop_assert_eq!(keys.open_events(&sealed), Err(NotOpened));
    }
}

#[test]
fn a_mask_is_of_one_place() {
    let keyring = holder(1).unlock(replica(1), &[wrapped(&key(1), 3, 1), wrapped(&key(1), 4, 1)]).unwrap();
    let keys = file(&keyring, 3).unwrap();
    assert_eq!(keys.mask(7, 512, keys.mask(7, 512, 0xdead_beef)), 0xdead_beef);
    let masks: std::collections::BTreeSet<u32> =
        (0..100).flat_map(|chunk| [0, 512, 1024].map(|offset| keys.mask(chunk, offset, 0))).collect();
    assert!(masks.len() > 298, "two of 300 may meet by chance");
    assert_ne!(masks.first(), Some(&file(&keyring, 4).unwrap().mask(0, 0, 0)));
}
