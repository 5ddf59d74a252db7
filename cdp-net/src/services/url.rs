//! Where a link goes: `cdp://HOST:PORT`, and a group there: `cdp://HOST:PORT/GROUP`.

use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// The place of a proxy, a gateway or a replica host, and of a group that is reached there.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CdpUrl {
    /// Name or address of the host (IPv6 without brackets).
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The group's name; empty: none is named.
    pub group: String,
}

/// Why a text is no such place.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum UrlError {
    /// It begins with something else.
    #[error("{text:?} does not begin with cdp://")]
    Scheme {
        /// The text.
        text: String,
    },
    /// There is no host, or no port from 1 to 65535.
    #[error("{text:?} has no HOST:PORT after cdp://")]
    Authority {
        /// The text.
        text: String,
    },
    /// More than one name follows.
    #[error("{text:?} names more than a group: cdp://HOST:PORT/GROUP is all that there is")]
    Path {
        /// The text.
        text: String,
    },
}

impl CdpUrl {
    /// Whether a text is meant to be such a place, rather than a directory.
    #[must_use]
    pub fn is_meant(text: &str) -> bool {
        text.starts_with("cdp://")
    }

    /// `HOST:PORT`, as the system's resolver takes it.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The same place without a group.
    #[must_use]
    pub fn place(&self) -> Self {
        Self { group: String::new(), ..self.clone() }
    }
}

impl FromStr for CdpUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let rest = text.strip_prefix("cdp://").ok_or_else(|| UrlError::Scheme { text: text.into() })?;
        let (authority, group) = rest.split_once('/').unwrap_or((rest, ""));
        if group.contains('/') {
            return Err(UrlError::Path { text: text.into() });
        }
        let (host, port) = split(authority).ok_or_else(|| UrlError::Authority { text: text.into() })?;
        Ok(Self { host: host.into(), port, group: group.into() })
    }
}

/// A host and a port that is not 0.
fn split(authority: &str) -> Option<(&str, u16)> {
    let (host, port) = authority.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    let port = port.parse().ok().filter(|port| *port != 0)?;
    let whole = !host.is_empty() && !host.contains(['/', '@', '?', ' ']);
    whole.then_some((host, port))
}

impl fmt::Display for CdpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cdp://{}", self.authority())?;
        if self.group.is_empty() { Ok(()) } else { write!(f, "/{}", self.group) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_they_are_written() {
        for (text, host, port, group) in [
            ("cdp://replica.example:10850", "replica.example", 10850, ""),
            ("cdp://10.0.0.1:1/web", "10.0.0.1", 1, "web"),
            ("cdp://[fd00::1]:10820/a b", "fd00::1", 10820, "a b"),
        ] {
            let url: CdpUrl = text.parse().unwrap();
            assert_eq!((url.host.as_str(), url.port, url.group.as_str()), (host, port, group));
            assert_eq!(url.to_string(), text);
        }
        assert_eq!("cdp://h:1/".parse::<CdpUrl>().unwrap().to_string(), "cdp://h:1");
    }

    #[test]
    fn what_is_no_place_is_said() {
        for (text, said) in [
            ("/var/lib/replica", "does not begin with cdp://"),
            ("cdp://", "has no HOST:PORT"),
            ("cdp://host", "has no HOST:PORT"),
            ("cdp://host:0", "has no HOST:PORT"),
            ("cdp://host:65536", "has no HOST:PORT"),
            ("cdp://fd00::1:10820", "has no HOST:PORT"),
            ("cdp://[fd00::1:10820", "has no HOST:PORT"),
            ("cdp://user@host:1", "has no HOST:PORT"),
            ("cdp://host:1/a/b", "names more than a group"),
        ] {
            let error = text.parse::<CdpUrl>().unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
