//! The record model and its unit of transfer: records, the frames that carry them, and the codec between them and bytes.
//!
//! A guest's write becomes one record with one LSN, cut into *parts* that are checksummed once and travel as they are. Parts
//! are gathered into a [`RawFrame`], which the codec packs into independently decodable *chunks*. A frame is what is sent,
//! acknowledged and appended; it looks the same on the wire and in the journal. The bytes are specified in `FORMAT.md`
//! beside this code.

mod crc;
mod decode;
mod encode;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod info;
mod layout;
mod note;
mod pieces;
pub mod record;
mod seal;
#[cfg(test)]
mod tests;
mod trim;
mod whole;

pub use decode::{
    ChunkInfo, FRAME_BYTES_MAX, FrameError, FrameHead, HEAD_BYTES_MAX, RecordInfo, decode_chunk, verify_part,
};
pub use encode::{Compression, EncodedFrame, Encoder};
pub use info::FrameInfo;
pub use layout::{HEADER_BYTES, RECORD_BYTES};
pub use note::NOTES_MAX;
pub use record::{GapReason, Mark, Note, Part, Payload, PayloadError, PointKinds, RawFrame, RecordKind, ResyncReason};
pub(crate) use seal::open_chunk;
