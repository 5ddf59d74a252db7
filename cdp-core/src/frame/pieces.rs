//! A body that lies in pieces, as who received or packed it has it, read chunk after chunk.

use bytes::{Bytes, BytesMut};

/// What was not taken.
pub(super) struct Pieces<'a> {
    first: Bytes,
    rest: std::slice::Iter<'a, Bytes>,
}

impl<'a> Pieces<'a> {
    pub(super) fn new(body: &'a [Bytes]) -> Self {
        Self { first: Bytes::new(), rest: body.iter() }
    }

    /// The next bytes: copied where they do not lie in one piece. Fewer, where there are no more.
    pub(super) fn take(&mut self, length: usize) -> Bytes {
        if self.first.is_empty() {
            self.first = self.rest.next().cloned().unwrap_or_default();
        }
        if self.first.len() >= length {
            return self.first.split_to(length);
        }
        let mut joined = BytesMut::with_capacity(length);
        while joined.len() < length {
            let part = self.first.split_to(self.first.len().min(length - joined.len()));
            joined.extend_from_slice(&part);
            if self.first.is_empty() {
                let Some(next) = self.rest.next() else { break };
                self.first = next.clone();
            }
        }
        joined.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_one_piece_is_not_copied_and_the_rest_is_joined() {
        let whole = Bytes::from((0..100).collect::<Vec<u8>>());
        let body = [whole.slice(..30), whole.slice(30..30), whole.slice(30..40), whole.slice(40..)];
        let mut pieces = Pieces::new(&body);
        let taken = [10, 20, 15, 5, 50, 7].map(|length| pieces.take(length));
        let mut at = 0;
        for bytes in &taken {
            assert_eq!(bytes, &whole[at..at + bytes.len()]);
            at += bytes.len();
        }
        assert_eq!((at, taken[5].len()), (100, 0));
        let same = |bytes: &Bytes, at: usize| bytes.as_ptr() == whole[at..].as_ptr();
        assert!(same(&taken[0], 0) && same(&taken[1], 10) && same(&taken[3], 45) && same(&taken[4], 50));
        assert!(!same(&taken[2], 30), "it lies in two");
    }
}
