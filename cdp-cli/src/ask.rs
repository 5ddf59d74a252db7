//! Small questions to a replica: to its owner if it has one, else to the replica itself.

use crate::engine::Engine;
use crate::exit::{AS_THAT_USER, Exit, Failure};
use crate::place::{Place, Way};
use cdp_core::journal::MANIFEST_NAME;
use cdp_core::replica::JOURNAL_DIRECTORY;
use cdp_net::owner::{Access, ClientError, Connection, ControlClient, Request, SOCKET_FILE};
use cdp_net::protect::ACTIVITY_LOG;
use serde::de::DeserializeOwned;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

/// How long a directory may be locked by somebody who does not answer: an owner that opens or leaves its replica.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where replicas are, and what answers for one that is elsewhere.
const PLACES: &str = "give the directory after --replica of `cdp protect`; of `cdp serve` a replica host's DIRECTORY/TENANT/GROUP or, for \
                      `status` and `mark`, a filter's STATE/filter/GROUP";

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(60);

/// A way to the replica in `dir`.
///
/// # Errors
/// When it has an owner that does not answer, or cannot be opened.
pub fn access(dir: &Path) -> Result<Access, Failure> {
    // Looking at a directory that is none of ours must leave nothing there, not even a lock.
    let found = std::fs::metadata(dir.join(MANIFEST_NAME));
    if let Err(error) = found {
        if error.kind() == ErrorKind::PermissionDenied {
            let message = format!("cannot look into {}: {error}", dir.display());
            return Err(Failure::new(Exit::Refused, "no-permission", message).hint(AS_THAT_USER));
        }
        // The state of a protection whose replica is kept elsewhere: it answers what it can.
        if dir.join(SOCKET_FILE).exists() {
            return match ControlClient::connect(dir) {
                Ok(client) => Ok(Access::Client(client)),
                Err(ClientError::NoOwner { .. }) => Err(state_of_nobody(dir)),
                Err(error) => Err(error.into()),
            };
        }
        if is_state(dir) {
            return Err(state_of_nobody(dir));
        }
        let message = format!("{} holds no replica: it has no {MANIFEST_NAME}", dir.display());
        return Err(Failure::new(Exit::Failed, "no-replica", message).hint(PLACES));
    }
    Ok(Access::open(dir, PATIENCE)?)
}

/// Whether it is the state of a protection whose replica is kept elsewhere, and not a replica that lost its manifest.
fn is_state(dir: &Path) -> bool {
    dir.join(ACTIVITY_LOG).exists() && !dir.join(JOURNAL_DIRECTORY).exists()
}

/// Such a state answers while somebody protects with it.
fn state_of_nobody(dir: &Path) -> Failure {
    let message = format!("nobody protects now with the state in {}, and its replica is kept elsewhere", dir.display());
    Failure::new(Exit::Refused, "no-owner", message).hint(
        "start `cdp protect --to` or `cdp serve` with it again, or ask where the replica is: cdp://HOST:PORT/GROUP",
    )
}

/// Asks and waits for the answer.
///
/// # Errors
/// What the owner, or the replica, says.
pub fn ask<T: DeserializeOwned>(engine: &dyn Engine, place: &Place, request: Request) -> Result<T, Failure> {
    ask_patiently(engine, place, request, ANSWER)
}

/// Asks what may take so long to do.
///
/// # Errors
/// As [`ask`].
pub fn ask_patiently<T: DeserializeOwned>(
    engine: &dyn Engine,
    place: &Place,
    request: Request,
    patience: Duration,
) -> Result<T, Failure> {
    let answer = match place.way()? {
        Way::Far(replica) => return Ok(replica.request(&request)?),
        Way::Here { access: Access::Client(mut client), .. } => {
            client.set_patience(patience);
            return Ok(client.call(&request)?);
        }
        Way::Here { access: Access::Owner(owner), .. } => engine.open(owner)?.handle(request, &Connection::local())?,
    };
    serde_json::from_value(answer).map_err(|error| {
        Failure::new(Exit::Failed, "internal", format!("the replica's answer has another form: {error}"))
    })
}
