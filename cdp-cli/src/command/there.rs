//! Where a replica at another site is, and who may answer there.

use crate::engine::ThereSpec;
use crate::exit::{Exit, Failure};
use crate::place::ticket;
use cdp_net::link::pin::Fingerprint;
use cdp_net::services::url::CdpUrl;
use clap::Args;
use std::path::{Path, PathBuf};

/// The most bytes of a file of fingerprints.
const PEERS_MAX: u64 = 1 << 20;

/// The flags of `cdp protect --to`.
#[derive(Args, Debug)]
pub(super) struct ThereFlags {
    /// Keep the replica at another site: a source proxy or a replica host, and what the group is called there. Given again: where
    /// to turn when that one is lost. All that goes there is encrypted, also within a private network: traffic rules are of
    /// `cdp serve` only
    #[arg(long, value_name = "cdp://HOST:PORT[/GROUP]", requires = "state")]
    to: Vec<CdpUrl>,
    /// With --to: directory of this side's identity, activity log and control socket; made if it is not there
    #[arg(long, value_name = "DIR", requires = "to")]
    pub(super) state: Option<PathBuf>,
    /// With --to: fingerprint of who may answer there, as `cdp identity` prints it there
    #[arg(long, value_name = "FINGERPRINT", requires = "to")]
    peer: Vec<Fingerprint>,
    /// With --to: file with such fingerprints, one a line
    #[arg(long, value_name = "FILE", requires = "to")]
    peer_file: Option<PathBuf>,
    /// With --to: the ticket that a gateway on the way asks for
    #[arg(long, value_name = "FILE", requires = "to")]
    ticket: Option<PathBuf>,
}

fn usage(message: String) -> Failure {
    Failure::new(Exit::Usage, "usage", message)
}

impl ThereFlags {
    /// Where the replica is, if it is kept elsewhere. `name` is what --name says, `first` the first disk.
    ///
    /// # Errors
    /// When the flags do not fit together, or a file of theirs cannot be read.
    pub(super) fn spec(&self, name: Option<&str>, first: &str) -> Result<Option<ThereSpec>, Failure> {
        if self.to.is_empty() {
            return Ok(None);
        }
        let mut named: Vec<&str> =
            self.to.iter().map(|url| url.group.as_str()).filter(|group| !group.is_empty()).collect();
        named.extend(name);
        if let Some(other) = named.iter().find(|group| **group != named[0]) {
            return Err(usage(format!("one group has one name, and {:?} and {other:?} were given", named[0])));
        }
        let group = super::protect::name(named.first().copied().unwrap_or(first)).map_err(usage)?;
        let mut peers = self.peer.clone();
        if let Some(path) = &self.peer_file {
            peers.extend(read_peers(path)?);
        }
        if peers.is_empty() {
            let message = "nobody is known who may answer there: give a fingerprint with --peer or --peer-file";
            return Err(usage(message.into()).hint("`cdp identity` prints it on the other side"));
        }
        let ticket = ticket(self.ticket.as_deref())?;
        Ok(Some(ThereSpec { to: self.to.clone(), group, peers, ticket }))
    }
}

/// Fingerprints, one a line; what follows a `#` is for people.
fn read_peers(path: &Path) -> Result<Vec<Fingerprint>, Failure> {
    let failed = |what: String| Failure::new(Exit::Failed, "peer-file", format!("{}: {what}", path.display()));
    let bytes = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
    if bytes > PEERS_MAX {
        return Err(failed(format!("{bytes} bytes are more than the {PEERS_MAX} of a file of fingerprints")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    let bare = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let lines = bare.enumerate().filter(|(_, line)| !line.is_empty());
    let parse =
        |(number, line): (usize, &str)| line.parse().map_err(|error| failed(format!("line {}: {error}", number + 1)));
    lines.map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(to: &[&str]) -> ThereFlags {
        ThereFlags {
            to: to.iter().map(|url| url.parse().unwrap()).collect(),
            state: None,
            peer: vec![Fingerprint([7; 32])],
            peer_file: None,
            ticket: None,
        }
    }

    #[test]
    fn a_group_is_called_as_it_is_said_once() {
        assert_eq!(flags(&[]).spec(None, "disk").unwrap(), None);
        let group = |to: &[&str], name| flags(to).spec(name, "disk").map(|there| there.unwrap().group);
        assert_eq!(group(&["cdp://h:1"], None).unwrap(), "disk");
        assert_eq!(group(&["cdp://h:1"], Some("web")).unwrap(), "web");
        assert_eq!(group(&["cdp://h:1", "cdp://i:1/web"], None).unwrap(), "web");
        for (to, name) in [(["cdp://h:1/a", "cdp://i:1/b"], None), (["cdp://h:1/a", "cdp://i:1"], Some("b"))] {
            let refused = group(&to, name).unwrap_err();
            assert!(refused.status == Exit::Usage && refused.message.contains("one name"), "{refused:?}");
        }
    }

    #[test]
    fn fingerprints_stand_one_a_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("peers");
        let known = Fingerprint([7; 32]);
        std::fs::write(&path, format!("# the provider\n\n{known} # proxy\n")).unwrap();
        let there = ThereFlags { peer: Vec::new(), peer_file: Some(path.clone()), ..flags(&["cdp://h:1"]) };
        assert_eq!(there.spec(None, "disk").unwrap().unwrap().peers, [known]);
        std::fs::write(&path, "sha256:12\n").unwrap();
        assert!(there.spec(None, "disk").unwrap_err().message.contains("line 1"));
        std::fs::write(&path, "#\n").unwrap();
        assert!(there.spec(None, "disk").unwrap_err().message.contains("nobody is known"));
    }
}
