//! A frame from the bytes that somebody sent or kept: head and body are slices of them.

use super::decode::{FrameError, FrameHead, verify_chunk};
use super::encode::EncodedFrame;
use bytes::Bytes;

impl EncodedFrame {
    /// The frame that these bytes are, nothing before and nothing behind it; with its head. The head is verified, the chunks are
    /// not. The body has a piece for each chunk.
    ///
    /// # Errors
    /// Whatever is wrong with the head, and bytes that are more or less than it says.
    pub fn whole(bytes: &Bytes) -> Result<(FrameHead, Self), FrameError> {
        let head = FrameHead::parse(bytes)?;
        let head_bytes = head.info.head_bytes as usize;
        let (expected, found) = (head_bytes + head.info.body_bytes as usize, bytes.len());
        if found < expected {
            return Err(FrameError::Short { expected, found });
        }
        if found > expected {
            return Err(FrameError::Field { field: "body_bytes", value: u64::from(head.info.body_bytes) });
        }
        let piece = |from: usize, length: u32| bytes.slice(from..from + length as usize);
        let body =
            head.chunks.iter().map(|chunk| piece(head_bytes + chunk.offset as usize, chunk.stored_length)).collect();
        let frame = Self { info: head.info, head: bytes.slice(..head_bytes), body };
        Ok((head, frame))
    }
}

impl FrameHead {
    /// Whether the stored bytes of every chunk are what was written; `body` has a piece for each chunk, as
    /// [`EncodedFrame::whole`] gives it.
    ///
    /// # Errors
    /// The first chunk that is damaged or not there.
    pub fn verify_stored(&self, body: &[Bytes]) -> Result<(), FrameError> {
        for (at, chunk) in self.chunks.iter().enumerate() {
            let piece = body.get(at).ok_or(FrameError::Short { expected: self.chunks.len(), found: body.len() })?;
            verify_chunk(chunk, piece)?;
        }
        Ok(())
    }
}
