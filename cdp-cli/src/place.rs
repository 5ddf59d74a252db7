//! Where a replica is: in a directory here, or at a replica host, and the way to it.

use crate::ask::access;
use crate::exit::{Exit, Failure};
use cdp_net::link::identity::Identity;
use cdp_net::link::pin::{Fingerprint, Peers};
use cdp_net::owner::Access;
use cdp_net::services::remote_reading::{RemoteOptions, RemoteReplica};
use cdp_net::services::tickets::{TicketFileError, read_ticket};
use cdp_net::services::url::{CdpUrl, UrlError};
use clap::Args;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a replica is.
#[derive(Args, Clone, PartialEq, Eq, Debug, Default)]
pub struct Place {
    /// Directory of the replica, or cdp://HOST:PORT/GROUP
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// With cdp://: where this machine's identity is, made at the first use
    #[arg(long, value_name = "DIR", env = "CDP_STATE")]
    state: Option<PathBuf>,
    /// With cdp://: fingerprint of who may answer there (sha256:...); may be given several times
    #[arg(long, value_name = "FINGERPRINT", env = "CDP_PEER", value_delimiter = ',')]
    peer: Vec<Fingerprint>,
    /// With cdp://: ticket for the gateway on the way
    #[arg(long, value_name = "FILE", env = "CDP_TICKET")]
    ticket: Option<PathBuf>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.dir.display().fmt(f)
    }
}

/// The way to a replica.
#[derive(Debug)]
pub enum Way {
    /// In a directory of this machine.
    Here {
        /// The directory.
        dir: PathBuf,
        /// To its owner, or as its owner.
        access: Access,
    },
    /// At a replica host.
    Far(Arc<RemoteReplica>),
}

impl Place {
    /// A directory of this machine.
    #[must_use]
    pub fn directory(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), ..Self::default() }
    }

    /// The directory, where that is meant.
    ///
    /// # Errors
    /// When it is at a replica host.
    pub fn as_directory(&self) -> Result<&Path, Failure> {
        if self.url()?.is_some() {
            let message = format!("{self} is at a replica host, where this is not done from afar");
            return Err(Failure::new(Exit::Refused, "not-from-afar", message).hint("do it there, on its directory"));
        }
        Ok(&self.dir)
    }

    fn url(&self) -> Result<Option<CdpUrl>, Failure> {
        let text = self.dir.to_str().filter(|text| CdpUrl::is_meant(text));
        let url = text.map(str::parse).transpose();
        url.map_err(|error: UrlError| Failure::new(Exit::Usage, "usage", error.to_string()))
    }

    /// The way to it. What has not answered yet is asked for something later.
    ///
    /// # Errors
    /// When there is no replica, it has an owner that does not answer, or who is to be reached is not said.
    pub fn way(&self) -> Result<Way, Failure> {
        let Some(url) = self.url()? else {
            return Ok(Way::Here { dir: self.dir.clone(), access: access(&self.dir)? });
        };
        let needs = |what: &str, hint: &str| {
            Failure::new(Exit::Usage, "usage", format!("{url} needs {what}")).hint(hint.to_owned())
        };
        let state = self.state.as_ref().ok_or_else(|| {
            needs(
                "--state, the directory of this machine's identity",
                "give a directory: it is made if it is not there",
            )
        })?;
        if self.peer.is_empty() {
            return Err(needs("--peer, the fingerprint of the replica host", "`cdp serve` prints it there"));
        }
        let identity = Identity::open_or_make(state, "cdp reader")?;
        let options = RemoteOptions {
            url,
            // As the replica host knows this machine.
            tenant: String::new(),
            peers: Peers::new(self.peer.iter().copied()),
            ticket: ticket(self.ticket.as_deref())?.into(),
        };
        Ok(Way::Far(RemoteReplica::open(Arc::new(identity), options)?))
    }
}

/// The ticket in a file, for a gateway on the way; empty without one.
///
/// # Errors
/// When it cannot be read, or is none.
pub fn ticket(file: Option<&Path>) -> Result<Vec<u8>, Failure> {
    let read = file.map(read_ticket).transpose();
    let wrong = |error: TicketFileError| {
        Failure::new(Exit::Failed, "ticket", error.to_string())
            .hint("whoever has the gateway makes one with `cdp ticket`")
    };
    Ok(read.map_err(wrong)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said() {
        let far = Place::directory(Path::new("cdp://127.0.0.1:1/group"));
        let failure = far.way().unwrap_err();
        assert!(failure.status == Exit::Usage && failure.message.contains("needs --state"), "{failure}");
        let state = Some(PathBuf::from("/nowhere"));
        let failure = Place { state: state.clone(), ..far.clone() }.way().unwrap_err();
        assert!(failure.message.contains("needs --peer"), "{failure}");
        assert_eq!(far.as_directory().unwrap_err().status, Exit::Refused);
        let wrong = Place::directory(Path::new("cdp://127.0.0.1/group"));
        assert!(wrong.way().unwrap_err().message.contains("no HOST:PORT"));
        let directory = tempfile::tempdir().unwrap();
        let peer = vec![Fingerprint([7; 32])];
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        // With the reason, which is what somebody can act on.
        let failure = Place { state: Some(file), peer: peer.clone(), ..far.clone() }.way().unwrap_err();
        assert!(failure.message.contains("File exists") && failure.hint.is_some(), "{failure}");
        let state = Some(directory.path().join("state"));
        let none = Some(directory.path().join("ticket"));
        let failure =
            Place { state: state.clone(), peer: peer.clone(), ticket: none, ..far.clone() }.way().unwrap_err();
        assert!(failure.message.contains("No such file") && failure.hint.is_some(), "{failure}");
        let nameless = Place { dir: "cdp://127.0.0.1:1".into(), state, peer, ticket: None };
        assert!(nameless.way().unwrap_err().message.contains("names no group"));
    }
}
