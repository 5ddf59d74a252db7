//! Where the key of a replica that is sealed at rest comes from: a file that was named, or the environment.

use crate::exit::{Exit, Failure};
use cdp_core::trust::{KeyError, KeyHolder, WrappingKey};
use cdp_net::key_file::{self, KeyFileError};
use std::path::Path;

/// The variable that has the key as 64 hexadecimal digits.
const VARIABLE: &str = "CDP_KEY";

/// The key that was given, if any was.
///
/// # Errors
/// When what was given is no key, or cannot be read.
pub fn given(file: Option<&Path>) -> Result<KeyHolder, Failure> {
    if let Some(file) = file {
        return Ok(Some(read(file)?).into());
    }
    let Some(text) = std::env::var_os(VARIABLE).filter(|text| !text.is_empty()) else {
        return Ok(KeyHolder::default());
    };
    // A variable is text: 32 bytes of it would be a key that somebody has thought of.
    let key = WrappingKey::parse(text.as_encoded_bytes()).ok().filter(|_| text.len() > 32);
    let malformed = KeyError::Malformed { found: text.len() };
    let failure = || Failure::new(Exit::Usage, "key-malformed", format!("{VARIABLE}: {malformed}"));
    Ok(Some(key.ok_or_else(failure)?).into())
}

/// The key in a file.
///
/// # Errors
/// When it cannot be read or holds no key.
pub fn read(path: &Path) -> Result<WrappingKey, Failure> {
    key_file::read(path).map_err(|error| {
        let (exit, code) = match error {
            KeyFileError::Read { .. } => (Exit::Failed, "key-file"),
            KeyFileError::Content { .. } => (Exit::Usage, "key-malformed"),
        };
        Failure::new(exit, code, error.to_string()).hint(error.hint())
    })
}
