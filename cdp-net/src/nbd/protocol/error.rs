//! Errors: those that replies carry, and those that break a stream.

use std::io;
use thiserror::Error;

/// An error that a reply carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[allow(missing_docs, reason = "the names are the protocol's")]
pub enum NbdError {
    #[error("operation not permitted (NBD_EPERM)")]
    Perm,
    #[error("input/output error (NBD_EIO)")]
    Io,
    #[error("cannot allocate memory (NBD_ENOMEM)")]
    NoMem,
    #[error("invalid argument (NBD_EINVAL)")]
    Inval,
    #[error("no space left on device (NBD_ENOSPC)")]
    NoSpace,
    #[error("value too large (NBD_EOVERFLOW)")]
    Overflow,
    #[error("operation not supported (NBD_ENOTSUP)")]
    NotSup,
    #[error("server is shutting down (NBD_ESHUTDOWN)")]
    Shutdown,
}

impl NbdError {
    /// The number on the wire.
    #[must_use]
    pub fn code(self) -> u32 {
        match self {
            Self::Perm => 1,
            Self::Io => 5,
            Self::NoMem => 12,
            Self::Inval => 22,
            Self::NoSpace => 28,
            Self::Overflow => 75,
            Self::NotSup => 95,
            Self::Shutdown => 108,
        }
    }

    /// The error behind a number that is not 0; the protocol says to take unknown ones as `EINVAL`.
    #[must_use]
    pub fn from_code(code: u32) -> Self {
        match code {
            1 => Self::Perm,
            5 => Self::Io,
            12 => Self::NoMem,
            28 => Self::NoSpace,
            75 => Self::Overflow,
            95 => Self::NotSup,
            108 => Self::Shutdown,
            _ => Self::Inval,
        }
    }
}

impl From<&io::Error> for NbdError {
    fn from(error: &io::Error) -> Self {
        use io::ErrorKind;
        use rustix::io::Errno;
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::PERM | Errno::ACCESS | Errno::ROFS) => return Self::Perm,
            Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => return Self::NoSpace,
            Some(Errno::OPNOTSUPP) => return Self::NotSup,
            Some(Errno::NOMEM) => return Self::NoMem,
            Some(Errno::INVAL) => return Self::Inval,
            Some(Errno::OVERFLOW) => return Self::Overflow,
            Some(Errno::SHUTDOWN) => return Self::Shutdown,
            _ => {}
        }
        match error.kind() {
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Self::Perm,
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Self::NoSpace,
            ErrorKind::Unsupported => Self::NotSup,
            ErrorKind::OutOfMemory => Self::NoMem,
            ErrorKind::InvalidInput => Self::Inval,
            _ => Self::Io,
        }
    }
}

impl From<NbdError> for io::Error {
    fn from(error: NbdError) -> Self {
        use rustix::io::Errno;
        let errno = match error {
            NbdError::Perm => Errno::PERM,
            NbdError::Io => Errno::IO,
            NbdError::NoMem => Errno::NOMEM,
            NbdError::Inval => Errno::INVAL,
            NbdError::NoSpace => Errno::NOSPC,
            NbdError::Overflow => Errno::OVERFLOW,
            NbdError::NotSup => Errno::OPNOTSUPP,
            NbdError::Shutdown => Errno::SHUTDOWN,
        };
        errno.into()
    }
}

/// What breaks a stream for good: there is no way to find the next message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ProtocolError {
    /// A message does not begin with its magic number.
    #[error("bad magic number {found:#x} where {expected:#x} belongs")]
    Magic {
        /// What the protocol demands.
        expected: u64,
        /// What was there.
        found: u64,
    },
    /// A length is above the limit of what it describes.
    #[error("{what} of {length} bytes is longer than the limit of {limit}")]
    TooLong {
        /// What the length describes.
        what: &'static str,
        /// The length found.
        length: u64,
        /// The limit.
        limit: u64,
    },
    /// A message contradicts itself or the protocol.
    #[error("{0}")]
    Malformed(&'static str),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_numbers_go_both_ways() {
        for code in [1, 5, 12, 22, 28, 75, 95, 108] {
            assert_eq!(NbdError::from_code(code).code(), code);
            let as_io = io::Error::from(NbdError::from_code(code));
            assert_eq!(NbdError::from(&as_io).code(), code);
        }
        assert_eq!(NbdError::from_code(999), NbdError::Inval);
        assert_eq!(NbdError::from(&io::Error::other("x")), NbdError::Io);
        assert_eq!(NbdError::from(&io::Error::from(io::ErrorKind::Unsupported)), NbdError::NotSup);
    }
}
