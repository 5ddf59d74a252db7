//! The files that tickets are made with, judged by and carried in.
//!
//! A *key file* is text of one line for each key, its number and 64 hexadecimal digits; lines that begin with `#` and empty ones are
//! skipped. The key with the highest number makes new tickets, all of them judge. Whoever can read it can let anybody in: it must
//! be its owner's alone. A *ticket file* has one ticket in hexadecimal digits, and is no secret: without its certificate's key it is of no use.

use crate::random;
use cdp_core::trust::ticket::{TICKET_BYTES_MAX, TICKET_KEYS_MAX, TicketKey, TicketKeys};
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The longest key file, in bytes: every key with much to say about it.
const KEY_FILE_MAX: u64 = 64 << 10;
/// The longest ticket file, in bytes: digits and white space.
const TICKET_FILE_MAX: u64 = 4 << 10;
/// Digits of a key.
const KEY_DIGITS: usize = 64;

/// What is wrong with a file of keys or with that of a ticket.
#[derive(Debug, Error)]
pub enum TicketFileError {
    /// It cannot be read or written.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others can read the keys.
    #[error("{} holds keys and has the mode {mode:o}: whoever read it can make tickets. If nobody else could, give it the mode 600; else make a new one", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It is longer than any.
    #[error("{} has more than {max} bytes, which is no file of this kind", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The most.
        max: u64,
    },
    /// A line is no key.
    #[error("{}, line {line}: not a number from 1 and {KEY_DIGITS} hexadecimal digits", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// A number stands there twice.
    #[error("{}, line {line}: key {key} is there already", path.display())]
    Twice {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Which key.
        key: u32,
    },
    /// There are none, or too many.
    #[error("{} has {found} keys: 1 to {TICKET_KEYS_MAX} may stand there", path.display())]
    Count {
        /// The file.
        path: PathBuf,
        /// How many.
        found: usize,
    },
    /// It is no ticket.
    #[error("{} holds no ticket: 312 to {} hexadecimal digits", path.display(), 2 * TICKET_BYTES_MAX)]
    NoTicket {
        /// The file.
        path: PathBuf,
    },
    /// The highest number is taken.
    #[error("{} has the highest number that a key can have", path.display())]
    LastKey {
        /// The file.
        path: PathBuf,
    },
}

impl TicketFileError {
    /// There is no such file.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// The keys of a file.
#[derive(Debug)]
pub struct KeyFile {
    /// What tickets are made with.
    pub newest: TicketKey,
    /// What they are judged by.
    pub keys: TicketKeys,
}

impl KeyFile {
    /// Reads a file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(path: &Path) -> Result<Self, TicketFileError> {
        let (keys, newest) = parse(path, &read_keys(path)?)?;
        Ok(Self { newest, keys })
    }

    /// Makes a file with one new key. Its number.
    ///
    /// # Errors
    /// When it is there already, or cannot be written.
    pub fn make(path: &Path) -> Result<u32, TicketFileError> {
        let wrong = |source| TicketFileError::Io { path: path.to_owned(), source };
        if path.symlink_metadata().is_ok() {
            return Err(wrong(io::ErrorKind::AlreadyExists.into()));
        }
        let head = "# Keys of tickets: whoever reads this can let anybody in.\n";
        write(path, &format!("{head}{}", line(1)), |draft| fs::hard_link(draft, path)).map_err(wrong)?;
        Ok(1)
    }

    /// Adds a new key to a file: new tickets are made with it, and those of the others stay good. Where there is no room for one
    /// more the oldest goes. Its number.
    ///
    /// # Errors
    /// What is wrong with the file, or that it cannot be written.
    pub fn rotate(path: &Path) -> Result<u32, TicketFileError> {
        let text = read_keys(path)?;
        let (_, newest) = parse(path, &text)?;
        let number = newest.id().checked_add(1).ok_or_else(|| TicketFileError::LastKey { path: path.to_owned() })?;
        let is_key = |line: &&str| !(line.trim().is_empty() || line.trim().starts_with('#'));
        let count = text.lines().filter(is_key).count();
        let oldest = text.lines().filter(is_key).filter_map(|line| Some(key(line)?.0)).min();
        let goes = oldest.filter(|_| count >= TICKET_KEYS_MAX);
        let stays = |line: &&str| goes.is_none() || key(line).map(|(number, _)| number) != goes;
        let mut new: String = text.lines().filter(stays).map(|line| format!("{line}\n")).collect();
        new.push_str(&line(number));
        write(path, &new, |draft| fs::rename(draft, path))
            .map_err(|source| TicketFileError::Io { path: path.to_owned(), source })?;
        Ok(number)
    }
}

/// The bytes of the ticket in a file.
///
/// # Errors
/// What is wrong with the file. Whether the ticket is good is up to whoever has the keys.
pub fn read_ticket(path: &Path) -> Result<Vec<u8>, TicketFileError> {
    let text = read(path, TICKET_FILE_MAX)?;
    let bytes = bytes(text.trim()).filter(|bytes| (1..=TICKET_BYTES_MAX).contains(&bytes.len()));
    bytes.ok_or_else(|| TicketFileError::NoTicket { path: path.to_owned() })
}

/// The text of a ticket file.
#[must_use]
pub fn ticket_text(ticket: &[u8]) -> String {
    digits(ticket) + "\n"
}

fn read_keys(path: &Path) -> Result<String, TicketFileError> {
    let metadata = fs::metadata(path).map_err(|source| TicketFileError::Io { path: path.to_owned(), source })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(TicketFileError::Open { path: path.to_owned(), mode });
    }
    read(path, KEY_FILE_MAX)
}

fn read(path: &Path, max: u64) -> Result<String, TicketFileError> {
    let wrong = |source| TicketFileError::Io { path: path.to_owned(), source };
    let mut text = String::new();
    File::open(path).and_then(|file| file.take(max + 1).read_to_string(&mut text)).map_err(wrong)?;
    if text.len() as u64 > max {
        return Err(TicketFileError::TooLong { path: path.to_owned(), max });
    }
    Ok(text)
}

fn parse(path: &Path, text: &str) -> Result<(TicketKeys, TicketKey), TicketFileError> {
    let (mut keys, mut newest, mut seen) = (TicketKeys::default(), None::<TicketKey>, Vec::new());
    for (index, content) in text.lines().enumerate().map(|(index, line)| (index + 1, line.trim())) {
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let wrong = || TicketFileError::Line { path: path.to_owned(), line: index };
        let (number, secret) = key(content).ok_or_else(wrong)?;
        if seen.contains(&number) {
            return Err(TicketFileError::Twice { path: path.to_owned(), line: index, key: number });
        }
        seen.push(number);
        let key = TicketKey::new(number, &secret);
        if newest.as_ref().is_none_or(|newest| newest.id() < number) {
            newest = Some(key.clone());
        }
        keys.add(key);
    }
    let count = TicketFileError::Count { path: path.to_owned(), found: seen.len() };
    match newest {
        Some(newest) if seen.len() <= TICKET_KEYS_MAX => Ok((keys, newest)),
        _ => Err(count),
    }
}

/// A line's number and key.
fn key(line: &str) -> Option<(u32, [u8; 32])> {
    let (number, digits) = line.trim().split_once(char::is_whitespace)?;
    let number = number.parse().ok().filter(|number| *number != 0)?;
    Some((number, bytes(digits.trim())?.try_into().ok()?))
}

/// A line with a new key.
fn line(number: u32) -> String {
    format!("{number} {}\n", digits(&random::key()))
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn bytes(digits: &str) -> Option<Vec<u8>> {
    let (pairs, []) = digits.as_bytes().as_chunks::<2>() else { return None };
    let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

/// Writes a whole file, synced, under another name, and has `place` give it its own.
fn write(path: &Path, text: &str, place: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let draft = directory.join(format!(".ticket-key-{:032x}", u128::from_le_bytes(random::identity())));
    let written = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        place(&draft)?;
        File::open(directory)?.sync_all()
    };
    let written = written();
    // After a rename it is not there any more.
    let _ = fs::remove_file(&draft);
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdp_core::trust::ticket::{Ticket, TicketError};
    use cdp_core::types::WallTime;

    fn ticket() -> Ticket {
        Ticket {
            serial: [1; 16],
            tenant: "acme".into(),
            group: None,
            timeline: None,
            route: "target-1".into(),
            certificate: [2; 32],
            not_before: WallTime(10),
            not_after: WallTime(20),
            connections: 4,
            bytes_per_second: None,
        }
    }

    #[test]
    fn tickets_of_older_keys_stay_good_until_their_key_goes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ticket.key");
        assert_eq!(KeyFile::make(&path).unwrap(), 1);
        let first = KeyFile::read(&path).unwrap();
        let bytes = first.newest.issue(&ticket()).unwrap();
        for number in 2..=TICKET_KEYS_MAX as u32 {
            assert_eq!(KeyFile::rotate(&path).unwrap(), number);
        }
        let file = KeyFile::read(&path).unwrap();
        assert_eq!(file.newest.id(), TICKET_KEYS_MAX as u32);
        assert_eq!(file.keys.verify(&bytes, WallTime(15)), Ok(ticket()));
        KeyFile::rotate(&path).unwrap();
        let file = KeyFile::read(&path).unwrap();
        assert_eq!(file.keys.verify(&bytes, WallTime(15)), Err(TicketError::UnknownKey { found: 1 }));
        assert!(fs::read_to_string(&path).unwrap().starts_with("# Keys of tickets"), "what people wrote stays");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn a_key_file_is_never_written_over_and_never_others_to_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ticket.key");
        KeyFile::make(&path).unwrap();
        assert!(matches!(KeyFile::make(&path), Err(TicketFileError::Io { .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(KeyFile::read(&path), Err(TicketFileError::Open { mode: 0o640, .. })));
        assert!(matches!(KeyFile::rotate(&path), Err(TicketFileError::Open { mode: 0o640, .. })));
    }

    #[test]
    fn what_is_no_key_file_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ticket.key");
        let read = |text: &str| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            KeyFile::read(&path)
        };
        let key = "a1".repeat(32);
        assert_eq!(read(&format!("\n# x\n 7  {key}\n3\t{key}\n")).unwrap().newest.id(), 7);
        for wrong in ["x", "1", "0 {}", "1 {}0", "-1 {}", "4294967296 {}", "1 g{}"] {
            let wrong = wrong.replace("{}", &key);
            assert!(matches!(read(&format!("\n{wrong}")), Err(TicketFileError::Line { line: 2, .. })), "{wrong}");
        }
        let twice = format!("1 {key}\n1 {key}\n");
        assert!(matches!(read(&twice), Err(TicketFileError::Twice { line: 2, key: 1, .. })));
        assert!(matches!(read("# nothing\n"), Err(TicketFileError::Count { found: 0, .. })));
        let many: String = (1..=TICKET_KEYS_MAX + 1).map(|number| format!("{number} {key}\n")).collect();
        assert!(matches!(read(&many), Err(TicketFileError::Count { .. })));
        assert!(matches!(read(&"# \n".repeat(30_000)), Err(TicketFileError::TooLong { .. })));
        read(&format!("{} {key}\n", u32::MAX)).unwrap();
        assert!(matches!(KeyFile::rotate(&path), Err(TicketFileError::LastKey { .. })));
    }

    #[test]
    fn a_ticket_is_read_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("provider.ticket");
        let bytes = TicketKey::new(1, &[9; 32]).issue(&ticket()).unwrap();
        fs::write(&path, ticket_text(&bytes)).unwrap();
        assert_eq!(read_ticket(&path).unwrap(), bytes);
        for wrong in ["", "abc", "zz", &"00".repeat(TICKET_BYTES_MAX + 1)] {
            fs::write(&path, wrong).unwrap();
            assert!(matches!(read_ticket(&path), Err(TicketFileError::NoTicket { .. })), "{wrong}");
        }
        fs::write(&path, " ".repeat(5000)).unwrap();
        assert!(matches!(read_ticket(&path), Err(TicketFileError::TooLong { .. })));
    }
}
