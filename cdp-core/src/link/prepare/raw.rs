//! The target proxy's half: frames as a replica host takes them that does not inflate.

use crate::frame::{Compression, EncodedFrame, Encoder, FrameError, FrameHead};

/// Unpacks a frame to raw chunks. Every chunk and every part is verified, also where nothing is compressed: what goes on from here is
/// whole. Frames and records stay what they were.
///
/// # Errors
/// Whatever does not verify; or the frame holds records that this version does not know, and has to be passed on as it is.
pub fn to_raw(frame: &EncodedFrame, encoder: &mut Encoder) -> Result<EncodedFrame, FrameError> {
    let head = FrameHead::parse(&frame.head)?;
    let raw = head.unpack_pieces(&frame.body)?;
    if head.chunks.iter().all(|chunk| !chunk.compressed) {
        return Ok(frame.clone());
    }
    if let Some(record) = head.records.iter().find(|record| record.kind.is_none()) {
        return Err(FrameError::Field { field: "kind", value: record.lsn.0 });
    }
    Ok(encoder.encode(raw, head.info.group, Compression::None))
}
