use super::*;

/// By the text of `WIRE.md`, written out.
#[test]
fn the_mac_is_what_the_text_says() {
    let mut chain = MacChain::new(DataKey([5; 32]), Party::Target, 0x0203);
    let parts: [&[u8]; 2] = [b"header", b"payload"];
    chain.next(parts.into_iter());
    let found = chain.next(parts.into_iter());
    let text = [&[2, 0, 3, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0][..], b"headerpayload"].concat();
    assert_eq!(found, blake3::keyed_hash(&[5; 32], &text).as_bytes()[..16]);
    assert_eq!(chain.count(), 2);
}

#[test]
fn each_bit_counts_and_so_does_the_length() {
    let chain = MacChain::new(DataKey([5; 32]), Party::Source, 1);
    let mac = chain.clone().next(std::iter::once(&b"message"[..]));
    assert!(chain.clone().verify(b"message", &mac));
    for bit in 0..MAC_BYTES * 8 {
        let mut other = mac;
        other[bit / 8] ^= 1 << (bit % 8);
        assert!(!chain.clone().verify(b"message", &other), "bit {bit}");
    }
    assert!(!chain.clone().verify(b"message", &mac[..15]) && !chain.clone().verify(b"messages", &mac));
}

#[test]
fn the_key_is_not_shown() {
    let shown = format!("{:?}", MacChain::new(DataKey([0xab; 32]), Party::Source, 1));
    assert!(!shown.contains("171") && !shown.contains("ab, "), "{shown}");
}

#[test]
fn how_a_message_is_cut_changes_nothing() {
    let message: Vec<u8> = (0..5 * TOGETHER_BYTES + 77).map(|at| (at % 253) as u8).collect();
    for cut in [1, 1000, TOGETHER_BYTES - HEADER_BYTES, TOGETHER_BYTES, 40_000, 2 * TOGETHER_BYTES + 1, message.len()] {
        let hash = hash(&DataKey([5; 32]), &message[..7], message[7..].chunks(cut));
        assert_eq!(hash, blake3::keyed_hash(&[5; 32], &message), "{cut}");
    }
}
