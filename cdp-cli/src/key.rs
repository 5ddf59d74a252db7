//! Where the key of a replica that is sealed at rest comes from: a file that was named, or the environment.

use crate::exit::{Exit, Failure};
use cdp_core::trust::{KeyError, KeyHolder, WrappingKey};
use std::io::Read;
use std::path::Path;

/// The variable that has the key as 64 hexadecimal digits.
const VARIABLE: &str = "CDP_KEY";
/// No key file is longer, in bytes: 64 digits and white space.
const FILE_MAX: u64 = 1 << 10;

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
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(FILE_MAX).read_to_end(&mut bytes));
    let name = path.display();
    read.map_err(|error| Failure::new(Exit::Failed, "key-file", format!("cannot read the key file {name}: {error}")))?;
    WrappingKey::parse(&bytes).map_err(|error| {
        let hint = "make one with: head -c 32 /dev/urandom > FILE";
        Failure::new(Exit::Usage, "key-malformed", format!("{name}: {error}")).hint(hint)
    })
}
