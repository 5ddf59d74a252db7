//! The name of a point.

use crate::types::NAME_MAX;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// A name that a point may have and that `--at` finds again: never mistaken for another form of a moment.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Label(String);

/// Why a text cannot be a label.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum LabelError {
    /// Nothing was given.
    #[error("a label must not be empty")]
    Empty,
    /// Longer than [`NAME_MAX`] bytes.
    #[error("a label of {bytes} bytes is longer than the {NAME_MAX} that a record holds")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// A colon belongs to the other forms of a moment (`lsn:5`).
    #[error("the label {text:?} holds a colon, which only forms such as lsn:N and point:ID may")]
    Colon {
        /// The text.
        text: String,
    },
    /// A hyphen at the beginning means "so long ago".
    #[error("the label {text:?} begins with a hyphen, as only relative times such as -15m may")]
    Hyphen {
        /// The text.
        text: String,
    },
    /// `latest` always means the last restorable moment.
    #[error("\"latest\" is no label: it always means the last restorable moment")]
    Latest,
    /// A control character, or white space at an end: nobody could type it again.
    #[error("the label {text:?} holds a control character or begins or ends with white space")]
    Invisible {
        /// The text.
        text: String,
    },
}

impl Label {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Label {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        let owned = || text.to_owned();
        if text.is_empty() {
            Err(LabelError::Empty)
        } else if text.len() > NAME_MAX {
            Err(LabelError::TooLong { bytes: text.len() })
        } else if text.contains(':') {
            Err(LabelError::Colon { text: owned() })
        } else if text.starts_with('-') {
            Err(LabelError::Hyphen { text: owned() })
        } else if text == "latest" {
            Err(LabelError::Latest)
        } else if text.chars().any(char::is_control) || text.trim() != text {
            Err(LabelError::Invisible { text: owned() })
        } else {
            Ok(Self(owned()))
        }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
