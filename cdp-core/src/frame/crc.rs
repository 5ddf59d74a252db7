//! The CRC32C of bytes that stand one after another, from the CRCs of the pieces, without reading the bytes again.
//!
//! A CRC is a remainder of polynomials over GF(2): appending `n` bytes multiplies what was there by x^(8n). One such product
//! takes some 40 ns, or four lookups for the lengths that parts have, while reading the 4 KiB of a usual part takes 250 ns and more
//! where it has left the cache.

/// The generator of CRC32C, lowest power in the highest bit.
const GENERATOR: u32 = 0x82f6_3b78;
/// x^(8 * 2^k) modulo the generator, for every k that a length of 32 bits has.
const POWERS: [u32; 32] = powers();

const fn powers() -> [u32; 32] {
    // x^8: in this order of bits, x^0 is the highest.
    let mut powers = [1 << 23; 32];
    let mut at = 1;
    while at < powers.len() {
        powers[at] = product(powers[at - 1], powers[at - 1]);
        at += 1;
    }
    powers
}

/// The product of two polynomials modulo the generator.
const fn product(a: u32, mut b: u32) -> u32 {
    let mut sum = 0;
    let mut bit = 1 << 31;
    while bit != 0 {
        // Without branches: the bits of a checksum cannot be predicted.
        sum ^= b & 0_u32.wrapping_sub((a & bit != 0) as u32);
        b = (b >> 1) ^ (GENERATOR & 0_u32.wrapping_sub(b & 1));
        bit >>= 1;
    }
    sum
}

/// Parts are as long as 512 bytes, 32 KiB and sums of what lies between: powers of two from this one on have a table.
const TABLES_FROM: usize = 9;
/// By power of two and byte: what a byte becomes when so many bytes are appended.
static TABLES: [[[u32; 256]; 4]; 7] = tables();

const fn tables() -> [[[u32; 256]; 4]; 7] {
    let mut tables = [[[0; 256]; 4]; 7];
    let mut at = 0;
    while at < tables.len() * 4 * 256 {
        let (power, place, byte) = (at / 1024, at / 256 % 4, at % 256);
        // A product is linear: a byte's is that of its lowest bit and that of the others.
        if byte != 0 {
            let lowest = (byte as u32 & byte.wrapping_neg() as u32) << (8 * place);
            let others = tables[power][place][byte & (byte - 1)];
            tables[power][place][byte] = others ^ product(POWERS[TABLES_FROM + power], lowest);
        }
        at += 1;
    }
    tables
}

/// The product with x^(8 * 2^power).
fn shift(sum: u32, power: usize) -> u32 {
    match power.checked_sub(TABLES_FROM).and_then(|power| TABLES.get(power)) {
        Some(table) => table.iter().zip(sum.to_le_bytes()).fold(0, |sum, (bytes, byte)| sum ^ bytes[usize::from(byte)]),
        None => product(POWERS[power], sum),
    }
}

/// The CRC32C of bytes with CRC `front` followed by `length` bytes with CRC `back`.
pub(super) fn joined(front: u32, back: u32, length: u32) -> u32 {
    if front == 0 {
        return back;
    }
    let mut shifted = front;
    let mut rest = length;
    while rest != 0 {
        shifted = shift(shifted, rest.trailing_zeros() as usize);
        rest &= rest - 1;
    }
    shifted ^ back
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Tables and products, for every power of two.
    #[test]
    fn a_table_says_what_a_product_says() {
        for (power, times) in POWERS.iter().enumerate().take(24) {
            for sum in (0..32).map(|bit| 1 << bit).chain([0, u32::MAX, 0x1234_5678]) {
                assert_eq!(shift(sum, power), product(*times, sum), "{sum:x} by 2^{power} bytes");
            }
        }
    }

    proptest! {
        #[test]
        fn pieces_give_the_checksum_of_the_whole(bytes in proptest::collection::vec(any::<u8>(), 0..9000), cut: u16) {
            let (front, back) = bytes.split_at(usize::from(cut) % (bytes.len() + 1));
            let both = joined(crc32c::crc32c(front), crc32c::crc32c(back), back.len() as u32);
            prop_assert_eq!(both, crc32c::crc32c(&bytes));
        }
    }
}
