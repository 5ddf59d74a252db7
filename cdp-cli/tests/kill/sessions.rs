//! Named sessions that are made and dropped until the owner is killed: those that were answered are there, or gone.

use cdp_core::trust::KeyHolder;
use cdp_core::types::Lsn;
use cdp_core::when::When;
use cdp_net::owner::{Access, ClientError, ControlClient, Request};
use cdp_net::reading::Writing;
use cdp_net::report::{Problem, Session};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

/// What was answered.
#[derive(Default)]
pub(crate) struct Sessions {
    /// How many were asked for.
    asked: u64,
    /// Those that were made, with the moments they began at.
    made: BTreeMap<String, Lsn>,
    /// Those that were dropped.
    dropped: BTreeSet<String>,
}

/// The owner's answer, or its refusal; `None` when it is gone.
fn answer<T>(answer: Result<T, ClientError>) -> Option<Result<T, Problem>> {
    match answer {
        Ok(answer) => Some(Ok(answer)),
        Err(ClientError::Refused(problem)) => Some(Err(problem)),
        Err(_) => None,
    }
}

impl Sessions {
    /// Makes sessions and drops every second one; `None` when the owner is gone, else when so long has passed.
    pub(crate) fn come_and_go(&mut self, directory: &Path, patience: Duration) -> Option<()> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            self.asked += 1;
            let name = format!("session {}", self.asked);
            let mut client = ControlClient::connect(directory).ok()?;
            let open = Request::OpenSession { at: Some(When::Latest), nearest: None, name: Some(name.clone()) };
            let session: Session = answer(client.call(&open))?.expect("a session can be made");
            self.made.insert(name.clone(), session.at.lsn);
            drop(client);
            if self.asked.is_multiple_of(2) {
                self.drop_one(directory, &name, deadline)?;
            }
        }
        Some(())
    }

    fn drop_one(&mut self, directory: &Path, name: &str, deadline: Instant) -> Option<()> {
        // From here on nobody knows which it is until it is answered.
        let lsn = self.made.remove(name);
        let mut client = ControlClient::connect(directory).ok()?;
        while Instant::now() < deadline {
            match answer(client.call::<Value>(&Request::DropSession { name: name.to_owned() }))? {
                Ok(_) => {
                    self.dropped.insert(name.to_owned());
                    return Some(());
                }
                // The owner may not have seen yet that its connection has ended.
                Err(problem) => assert_eq!(problem.code, "session-open", "{problem}"),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.made.extend(lsn.map(|lsn| (name.to_owned(), lsn)));
        Some(())
    }

    /// Holds what `cdp status` says against it, and opens every session that there is.
    pub(crate) fn check(&self, directory: &Path, status: &Value) {
        let listed = status["sessions"].as_array().unwrap().iter();
        let listed: BTreeSet<&str> = listed.map(|session| session["name"].as_str().unwrap()).collect();
        for name in self.made.keys() {
            assert!(listed.contains(name.as_str()), "{name:?} was made, and is not one of {listed:?}");
        }
        for name in listed {
            assert!(!self.dropped.contains(name), "{name:?} was dropped, and is there");
            let access = Access::open(directory, Duration::from_secs(10)).unwrap();
            let writing =
                Writing::open(directory, access, None, None, Some(name.to_owned()), &KeyHolder::default()).unwrap();
            if let Some(lsn) = self.made.get(name) {
                assert_eq!(writing.report.at.lsn, *lsn, "{name:?} began at another moment");
            }
        }
    }
}
