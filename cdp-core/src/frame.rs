//! The record model and its unit of transfer: records, the frames that carry them, and the codec between them and bytes.
//!
//! A guest's write becomes one record with one LSN, cut into *parts* that are checksummed once and travel as they are. Parts
//! are gathered into a [`RawFrame`], which the codec packs into independently decodable *chunks*. A frame is what is sent,
//! acknowledged and appended; it looks the same on the wire and in the journal.

pub mod record;

pub use record::{GapReason, Mark, Note, Part, Payload, PointKinds, RawFrame, RecordKind, ResyncReason};
