//! What is gathered of an image before it is written: blocks that follow each other, in memory that goes to the disk as it is, past
//! the page cache. A copy is written once and read much later: filling pages that are written back later cost most of its time.

use crate::buffer::{BufferPool, PooledBuffer};
use crate::media::{File, MediaError};

/// Written at once, at most, in bytes: several requests for any disk.
const GATHERED_BYTES: usize = 4 << 20;

/// Blocks of one image that are not written yet.
#[derive(Debug, Default)]
pub(super) struct Gather {
    /// Made at the first use: who writes nothing needs none.
    buffer: Option<PooledBuffer>,
    /// Where the first byte belongs.
    offset: u64,
    filled: usize,
}

impl Gather {
    /// Takes what belongs there; writes what it does not follow, and what is full.
    pub(super) fn add(&mut self, image: &dyn File, offset: u64, data: &[u8]) -> Result<(), MediaError> {
        if offset != self.offset + self.filled as u64 {
            self.write(image)?;
            self.offset = offset;
        }
        let mut rest = data;
        while !rest.is_empty() {
            let buffer = self.buffer.get_or_insert_with(|| BufferPool::new(GATHERED_BYTES, 0).take());
            let length = rest.len().min(GATHERED_BYTES - self.filled);
            buffer[self.filled..self.filled + length].copy_from_slice(&rest[..length]);
            self.filled += length;
            rest = &rest[length..];
            if self.filled == GATHERED_BYTES {
                self.write(image)?;
            }
        }
        Ok(())
    }

    /// Writes what there is.
    pub(super) fn write(&mut self, image: &dyn File) -> Result<(), MediaError> {
        let Some(gathered) = self.buffer.as_deref().filter(|_| self.filled > 0) else { return Ok(()) };
        image.write_all_at(self.offset, &gathered[..self.filled])?;
        self.offset += self.filled as u64;
        self.filled = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::{Fault, Faults, Faulty, MediaErrorKind, Memory, Operation, Storage};
    use std::sync::Arc;

    #[test]
    fn what_follows_goes_with_one_write_and_what_does_not_with_another() {
        let (memory, faults) = (Memory::new(), Faults::default());
        let storage = Faulty::new(Arc::new(memory), faults.clone());
        let image = storage.create("image").unwrap();
        image.set_len(16 << 20).unwrap();
        let mut gather = Gather::default();
        let data: Vec<u8> = (0..GATHERED_BYTES + 8192).map(|at| (at % 251) as u8).collect();
        for piece in data.chunks(12_288) {
            let at = piece.as_ptr().addr() - data.as_ptr().addr();
            gather.add(image.as_ref(), at as u64, piece).unwrap();
        }
        let mut found = vec![0; data.len()];
        image.read_exact_at(0, &mut found).unwrap();
        assert!(found[..GATHERED_BYTES] == data[..GATHERED_BYTES], "what is full is written");
        assert!(found[GATHERED_BYTES..].iter().all(|byte| *byte == 0), "the rest waits");
        gather.add(image.as_ref(), 8 << 20, &data[..4096]).unwrap();
        image.read_exact_at(0, &mut found).unwrap();
        assert!(found == data, "what does not follow has the rest written");
        faults.add(Fault::once(Operation::Write, "image", MediaErrorKind::NoSpace));
        assert!(gather.write(image.as_ref()).is_err());
        gather.write(image.as_ref()).unwrap();
        image.read_exact_at(8 << 20, &mut found[..4096]).unwrap();
        assert!(found[..4096] == data[..4096], "what failed is still there to be written");
    }
}
