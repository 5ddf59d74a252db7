//! Where an NBD server is: `nbd://HOST:PORT/NAME`, `nbd+unix:///NAME?socket=PATH`, and the same with `nbds` for TLS.
//!
//! Source: <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md>. Names and paths are percent-encoded.

use std::fmt::{self, Write as _};
use std::path::PathBuf;
use std::str::FromStr;
use thiserror::Error;

/// The port that is meant where a URI names none.
pub(crate) const PORT_DEFAULT: u16 = 10809;

/// A place to listen on or to connect to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Address {
    /// A host name or address (IPv6 without brackets) and a port.
    Tcp {
        /// Name or address.
        host: String,
        /// Port; 0 lets the system choose when listening.
        port: u16,
    },
    /// The path of a unix socket.
    Unix(PathBuf),
}

/// An NBD URI.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Uri {
    /// Whether the connection is upgraded to TLS.
    pub tls: bool,
    /// Where the server is.
    pub address: Address,
    /// The export's name; empty means the first one.
    pub export: String,
}

/// Why a text is no NBD URI.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum UriError {
    /// It does not begin with one of the schemes.
    #[error("{text:?} begins with none of nbd://, nbds://, nbd+unix://, nbds+unix://")]
    Scheme {
        /// The text.
        text: String,
    },
    /// `nbd+unix` without `?socket=PATH`, or with a host.
    #[error("{text:?} must have the form nbd+unix:///NAME?socket=PATH")]
    Socket {
        /// The text.
        text: String,
    },
    /// The port is no number from 0 to 65535, or the host is missing or malformed.
    #[error("{text:?} has no valid HOST:PORT")]
    Authority {
        /// The text.
        text: String,
    },
    /// A `%` that no two hex digits follow, or bytes that are no UTF-8.
    #[error("{text:?} holds a bad percent-encoding")]
    Encoding {
        /// The text.
        text: String,
    },
}

impl Uri {
    /// A TCP address without TLS.
    #[must_use]
    pub fn tcp(host: impl Into<String>, port: u16) -> Self {
        Self { tls: false, address: Address::Tcp { host: host.into(), port }, export: String::new() }
    }

    /// A unix socket without TLS.
    #[must_use]
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self { tls: false, address: Address::Unix(path.into()), export: String::new() }
    }

    /// The same server's export of that name.
    #[must_use]
    pub fn with_export(&self, name: impl Into<String>) -> Self {
        Self { export: name.into(), ..self.clone() }
    }

    /// The same place, with or without TLS.
    #[must_use]
    pub fn with_tls(&self, tls: bool) -> Self {
        Self { tls, ..self.clone() }
    }
}

impl FromStr for Uri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let (scheme, rest) = text.split_once("://").ok_or_else(|| UriError::Scheme { text: text.into() })?;
        let (tls, unix) = match scheme {
            "nbd" => (false, false),
            "nbds" => (true, false),
            "nbd+unix" => (false, true),
            "nbds+unix" => (true, true),
            _ => return Err(UriError::Scheme { text: text.into() }),
        };
        let (before_query, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, name) = before_query.split_once('/').unwrap_or((before_query, ""));
        let encoding = || UriError::Encoding { text: text.into() };
        let export = decode(name).ok_or_else(encoding)?;
        let address = if unix {
            let socket = query.split('&').find_map(|pair| pair.strip_prefix("socket="));
            let socket = socket.filter(|path| !path.is_empty() && authority.is_empty());
            let socket = socket.ok_or_else(|| UriError::Socket { text: text.into() })?;
            Address::Unix(decode(socket).ok_or_else(encoding)?.into())
        } else {
            let (host, port) = split_authority(authority).ok_or_else(|| UriError::Authority { text: text.into() })?;
            Address::Tcp { host, port }
        };
        Ok(Self { tls, address, export })
    }
}

/// `HOST`, `HOST:PORT`, `[V6]`, `[V6]:PORT`.
fn split_authority(authority: &str) -> Option<(String, u16)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            (host, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
        }
        None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    if host.is_empty() || port.is_some_and(|port| port.contains(':')) {
        return None;
    }
    let port = match port {
        None => PORT_DEFAULT,
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok()?,
        Some(_) => return None,
    };
    Some((host.to_owned(), port))
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = if self.tls { "s" } else { "" };
        match &self.address {
            Address::Tcp { .. } => {
                write!(f, "nbd{s}://{}", self.address)?;
                if !self.export.is_empty() {
                    f.write_char('/')?;
                    encode(f, self.export.as_bytes(), false)?;
                }
                Ok(())
            }
            Address::Unix(path) => {
                use std::os::unix::ffi::OsStrExt;
                write!(f, "nbd{s}+unix:///")?;
                encode(f, self.export.as_bytes(), false)?;
                f.write_str("?socket=")?;
                encode(f, path.as_os_str().as_bytes(), true)
            }
        }
    }
}

/// Percent-encodes all but the unreserved characters (and `/` where it reads better).
fn encode(f: &mut fmt::Formatter<'_>, bytes: &[u8], keep_slash: bool) -> fmt::Result {
    bytes.iter().try_for_each(|&byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => f.write_char(char::from(byte)),
        b'/' if keep_slash => f.write_char('/'),
        _ => write!(f, "%{byte:02X}"),
    })
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let high = char::from(rest.next()?).to_digit(16)?;
        let low = char::from(rest.next()?).to_digit(16)?;
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str, expect: Uri) {
        assert_eq!(text.parse(), Ok(expect.clone()), "{text}");
        assert_eq!(expect.to_string().parse(), Ok(expect), "{text} printed and parsed");
    }

    #[test]
    fn forms_that_operators_type() {
        check("nbd://localhost", Uri::tcp("localhost", 10809));
        check("nbd://127.0.0.1:0/", Uri::tcp("127.0.0.1", 0));
        check("nbd://h:1/disk%201", Uri::tcp("h", 1).with_export("disk 1"));
        check("nbds://[::1]:99/a/b", Uri::tcp("::1", 99).with_export("a/b").with_tls(true));
        check("nbd+unix:///?socket=/run/a b", Uri::unix("/run/a b"));
        check("nbds+unix:///x?socket=s%3F", Uri::unix("s?").with_export("x").with_tls(true));
    }

    #[test]
    fn printed_forms() {
        assert_eq!(Uri::tcp("::1", 7).with_export("a/b").to_string(), "nbd://[::1]:7/a%2Fb");
        assert_eq!(Uri::tcp("h", 7).to_string(), "nbd://h:7");
        assert_eq!(Uri::unix("/run/x y.sock").to_string(), "nbd+unix:///?socket=/run/x%20y.sock");
        assert_eq!(Uri::unix("/s").with_export("é").to_string(), "nbd+unix:///%C3%A9?socket=/s");
    }

    #[test]
    fn what_is_refused() {
        for text in
            ["", "http://x", "nbd:/x", "nbd://", "nbd://:1", "nbd://h:65536", "nbd://h:+1", "nbd://::1", "nbd://[::1"]
        {
            assert!(text.parse::<Uri>().is_err(), "{text}");
        }
        for text in [
            "nbd+unix:///",
            "nbd+unix:///?socket=",
            "nbd+unix://host/?socket=/x",
            "nbd://h/%4",
            "nbd://h/%zz",
            "nbd://h/%ff",
        ] {
            assert!(text.parse::<Uri>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_name_and_path_survive(export in ".*", path in ".+", tls: bool) {
            let uri = Uri { tls, address: Address::Unix(path.into()), export };
            prop_assert_eq!(uri.to_string().parse(), Ok(uri));
        }

        #[test]
        fn garbage_never_panics(text in ".*") {
            let _ = text.parse::<Uri>();
            let _ = format!("nbd://{text}").parse::<Uri>();
            let _ = format!("nbd+unix:///?socket={text}").parse::<Uri>();
        }
    }
}
