use super::*;
use proptest::prelude::*;
use std::cell::RefCell;
use std::convert::Infallible;

/// Bytes that know their zeros by the sector, as an index would, and remember what was read of them.
struct Bytes {
    bytes: Vec<u8>,
    knows_zeros: bool,
    reads: RefCell<Vec<Extent>>,
}

impl Bytes {
    fn new(bytes: Vec<u8>, knows_zeros: bool) -> Self {
        Self { bytes, knows_zeros, reads: RefCell::default() }
    }

    fn digest(&self) -> Digest {
        digest(self, |_| true).unwrap().unwrap()
    }
}

impl Content for Bytes {
    type Error = Infallible;

    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), Infallible> {
        self.reads.borrow_mut().push(Extent::new(offset, out.len() as u64));
        out.copy_from_slice(&self.bytes[offset as usize..][..out.len()]);
        Ok(())
    }

    fn zeros(&self, range: Extent) -> Result<Vec<(Extent, bool)>, Infallible> {
        let bytes = &self.bytes[range.offset as usize..range.end() as usize];
        let sectors = bytes.chunks(512).enumerate().map(|(number, sector)| {
            let extent = Extent::new(range.offset + number as u64 * 512, sector.len() as u64);
            (extent, self.knows_zeros && sector.iter().all(|byte| *byte == 0))
        });
        Ok(sectors.collect())
    }
}

/// The table of the module's text, by somebody who has only that and BLAKE3.
fn by_the_text(bytes: &[u8]) -> [u8; 32] {
    let mut table = b"CDP-DISK-DIGEST\x01".to_vec();
    table.extend((bytes.len() as u64).to_le_bytes());
    table.extend([0, 0, 16, 0, 0, 0, 0, 0]);
    bytes.chunks(1_048_576).for_each(|leaf| table.extend(blake3::hash(leaf).as_bytes()));
    *blake3::hash(&table).as_bytes()
}

/// Some data, some zeros, on any grain.
fn disk() -> impl Strategy<Value = Vec<u8>> {
    let run = (prop_oneof![Just(0u8), any::<u8>()], 1usize..5000);
    prop::collection::vec(run, 0..6).prop_map(|runs| {
        runs.into_iter().flat_map(|(fill, sectors)| std::iter::repeat_n(fill, sectors * 512)).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn it_is_what_the_text_says_whatever_is_known_of_zeros(bytes in disk()) {
        let expected = by_the_text(&bytes);
        for knows_zeros in [false, true] {
            let found = Bytes::new(bytes.clone(), knows_zeros).digest();
            prop_assert_eq!(found, Digest { size: bytes.len() as u64, root: expected });
        }
    }

    #[test]
    fn one_other_byte_or_one_more_makes_another(bytes in disk(), at: prop::sample::Index, by in 1u8..) {
        let digest = Bytes::new(bytes.clone(), true).digest();
        let mut longer = bytes.clone();
        longer.extend([0; 512]);
        prop_assert_ne!(Bytes::new(longer, true).digest(), digest);
        if !bytes.is_empty() {
            let mut other = bytes.clone();
            let at = at.index(other.len());
            other[at] ^= by;
            prop_assert_ne!(Bytes::new(other, true).digest(), digest);
        }
    }
}

/// Others have computed it: it never changes.
#[test]
fn it_stays_as_it_is() {
    let hex = |bytes: Vec<u8>| Bytes::new(bytes, true).digest().to_string();
    let pattern: Vec<u8> = (0..LEAF + 1024).map(|at| (at % 251) as u8).collect();
    let expected = [
        "48a6bbf19b7130dce4af9a19d2e6e9302ae984df20a2c8de3de15ebadecda55f",
        "5611b6529e934f3f04e568ed341f98237b013d6a4ebfb0701d75700b679d1319",
        "9226ab74f5ebde63086ed4f14154322542e592dd8502b1bbf1901523df48890b",
    ];
    assert_eq!([hex(Vec::new()), hex(vec![0; 512]), hex(pattern)], expected);
}

#[test]
fn a_leaf_of_zeros_is_not_read_and_any_order_will_do() {
    let mut bytes = vec![0; 4 * LEAF as usize + 512];
    bytes[2 * LEAF as usize + 7] = 1;
    let bytes = Bytes::new(bytes, true);
    let mut buffer = Vec::new();
    let mut hashes: Vec<_> =
        (0..leaves(bytes.size())).rev().map(|number| leaf(&bytes, number, &mut buffer).unwrap()).collect();
    assert_eq!(*bytes.reads.borrow(), [Extent::new(2 * LEAF, LEAF)]);
    hashes.reverse();
    let mut tree = Tree::new(bytes.size());
    hashes.iter().for_each(|hash| tree.push(hash));
    assert_eq!(tree.finish(), bytes.digest());
}

#[test]
fn it_tells_how_far_it_is_and_can_be_stopped() {
    let bytes = Bytes::new(vec![1; 2 * LEAF as usize + 512], false);
    let mut told = Vec::new();
    digest(&bytes, |done| {
        told.push(done);
        true
    })
    .unwrap()
    .unwrap();
    assert_eq!(told, [LEAF, 2 * LEAF, 2 * LEAF + 512]);
    assert_eq!(digest(&bytes, |done| done < 2 * LEAF).unwrap(), None);
}
