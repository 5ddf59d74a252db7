//! How a command ends: its exit status, and the one sentence when it failed.

use cdp_core::when::{AmountError, LabelError, WhenError};
use cdp_net::host::read_only;
use cdp_net::owner::{AccessError, ClientError, OwnerError};
use cdp_net::report::{At, Problem, ProblemClass};
use std::io::ErrorKind;
use std::process::{ExitCode, Termination};

/// Exit statuses, which scripts rely on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed.
    Failed = 1,
    /// Wrong usage.
    Usage = 2,
    /// The moment asked for is not restorable; the nearest that are, are named.
    NotRestorable = 3,
    /// Refused because of state or ownership; what is possible instead is named.
    Refused = 4,
    /// Damage found.
    Damage = 5,
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        ExitCode::from(self as u8)
    }
}

impl From<ProblemClass> for Exit {
    fn from(class: ProblemClass) -> Self {
        match class {
            ProblemClass::Failed => Self::Failed,
            ProblemClass::Usage => Self::Usage,
            ProblemClass::NotRestorable => Self::NotRestorable,
            ProblemClass::Refused => Self::Refused,
            ProblemClass::Damage => Self::Damage,
        }
    }
}

/// Why a command did not do what it was asked for.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The exit status.
    pub status: Exit,
    /// A word for scripts, never changed once released.
    pub code: String,
    /// One sentence: what, where and why.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The restorable moments before and after the one that was asked for.
    pub nearest: Vec<At>,
}

impl Failure {
    /// A failure with its status, a word and a sentence.
    pub fn new(status: Exit, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { status, code: code.into(), message: message.into(), hint: None, nearest: Vec::new() }
    }

    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The sentence, with the hint, as people see it.
    #[must_use]
    pub fn for_people(&self) -> String {
        let mut text = format!("cdp: {}", self.message);
        if let Some(hint) = &self.hint {
            text.push_str(&format!("\n     {hint}"));
        }
        for at in &self.nearest {
            let time = crate::human::local_time(at.time);
            text.push_str(&format!("\n     restorable: lsn:{}-{} ({time})", at.timeline, at.lsn));
        }
        text
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        let Problem { class, code, message, hint, nearest } = problem;
        Self { status: class.into(), code, message, hint, nearest }
    }
}

/// What to do about a replica of somebody else.
pub(crate) const AS_THAT_USER: &str = "run the command as the user that the replica belongs to, or as root";

impl From<OwnerError> for Failure {
    fn from(error: OwnerError) -> Self {
        match error {
            OwnerError::Owned { .. } => Self::new(Exit::Refused, "owned", error.to_string())
                .hint("wait until that process ends, or stop it: a replica has one owner at a time"),
            OwnerError::Io { ref source, .. } if source.kind() == ErrorKind::PermissionDenied => {
                Self::new(Exit::Refused, "no-permission", error.to_string()).hint(AS_THAT_USER)
            }
            OwnerError::Io { ref path, ref source } if source.kind() == ErrorKind::ReadOnlyFilesystem => {
                // The path is the lock's.
                read_only(path.parent().unwrap_or(path)).into()
            }
            OwnerError::Io { .. } => Self::new(Exit::Failed, "replica-directory", error.to_string())
                .hint("give the directory of a replica that you may write to"),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused(problem) => problem.into(),
            ClientError::NoOwner { .. } => {
                Self::new(Exit::Refused, "no-owner", error.to_string()).hint("start `cdp protect` on the replica first")
            }
            ClientError::Denied { .. } => {
                Self::new(Exit::Refused, "no-permission", error.to_string()).hint(AS_THAT_USER)
            }
            other => Self::new(Exit::Failed, "owner-silent", other.to_string()),
        }
    }
}

impl From<AccessError> for Failure {
    fn from(error: AccessError) -> Self {
        match error {
            AccessError::Owner(error) => error.into(),
            AccessError::Client(error) => error.into(),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(failure) => failure,
            Err(error) => Self::new(Exit::Failed, "failed", format!("{error:#}")),
        }
    }
}

macro_rules! wrong_usage {
    ($($error:ty),*) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::new(Exit::Usage, "usage", error.to_string())
            }
        }
    )*};
}
wrong_usage!(WhenError, LabelError, AmountError);

#[cfg(test)]
mod tests {
    use super::*;
    use cdp_core::types::{Lsn, WallTime};

    #[test]
    fn statuses_are_the_contract() {
        let all = [Exit::Done, Exit::Failed, Exit::Usage, Exit::NotRestorable, Exit::Refused, Exit::Damage];
        assert_eq!(all.map(|exit| exit as u8), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_sentence_a_hint_and_the_neighbours() {
        let at = At { timeline: "00112233445566ff".parse().unwrap(), lsn: Lsn(7), time: WallTime(0), point: None };
        let problem = Problem::new(ProblemClass::NotRestorable, "not-restorable", "lsn:9 lies in a gap")
            .hint("take a neighbour with --nearest before")
            .nearest(vec![at]);
        let failure = Failure::from(problem);
        assert_eq!(failure.status, Exit::NotRestorable);
        let text = failure.for_people();
        let start = "cdp: lsn:9 lies in a gap\n     take a neighbour with --nearest before\n     restorable: lsn:0011";
        assert!(text.starts_with(start), "{text}");
    }

    #[test]
    fn a_failure_inside_anyhow_keeps_its_status() {
        let failure = Failure::new(Exit::Damage, "damage", "a segment is torn");
        assert_eq!(Failure::from(anyhow::Error::new(failure.clone())), failure);
        let error = anyhow::anyhow!("no such file").context("cannot open x");
        assert_eq!(Failure::from(error).message, "cannot open x: no such file");
    }
}
