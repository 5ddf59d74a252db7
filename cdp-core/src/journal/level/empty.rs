//! Emptying footers: a run that a durable manifest names holds the indexes of its segments, so they give theirs back.
//!
//! Nobody's correctness hangs on it: whoever finds a footer without its index looks for the run, and for the frames where there
//! is none.

use crate::journal::manifest::segment_name;
use crate::journal::reader::{ReadError, Reader};
use crate::journal::scan::check_header;
use crate::types::{Extent, SegmentId};
use std::collections::VecDeque;
use std::sync::Arc;

/// Footers to be emptied: what the owner of the manifest gives to whoever does it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EmptyTask {
    /// Number of the run that holds their indexes.
    pub run: u64,
    /// Segments by number, id and key, with the place of the index in the file.
    pub(in crate::journal) segments: VecDeque<(u64, SegmentId, u32, Extent)>,
}

/// Emptying under way: one segment at a time. Dropped half way it is done again some time, from the beginning.
#[derive(Debug)]
pub struct IndexEmptying {
    reader: Arc<Reader>,
    task: EmptyTask,
}

impl IndexEmptying {
    /// Empties footers in the storage of `reader`.
    #[must_use]
    pub fn new(reader: &Arc<Reader>, task: EmptyTask) -> Self {
        Self { reader: Arc::clone(reader), task }
    }

    /// Empties the next footer and syncs its file. True when all are: then the owner is to be told.
    ///
    /// # Errors
    /// A file is another one, or the media do not let us. What was emptied stays so.
    pub fn step(&mut self) -> Result<bool, ReadError> {
        if let Some((number, id, key, index)) = self.task.segments.pop_front().filter(|(.., index)| !index.is_empty()) {
            let name = crate::media::join(&self.reader.directory, &segment_name(number));
            match self.reader.storage.open(&name, true) {
                // Dropped in between, with all that its footer said.
                Err(error) if error.is_not_found() => {}
                file => {
                    let file = file?;
                    check_header(file.as_ref(), (number, id, key))?;
                    file.punch(index)?;
                    file.sync()?;
                }
            }
        }
        Ok(self.task.segments.is_empty())
    }

    /// Number of the run.
    #[must_use]
    pub fn run(&self) -> u64 {
        self.task.run
    }
}
