//! Network traffic rules: what is encrypted on its way between two addresses, and how fast it may go.
//!
//! Rules are read from the first to the last, and all that match count: of those that speak about encryption *yes* wins, of those that limit the rate the
//! lowest. So the order changes nothing but which of two equal rules is named as the one that decided: the first.
//!
//! Without a rule, what leaves private networks is encrypted and what stays in them is not; nothing is limited. What passes a gateway, or has a
//! public address at either end, is encrypted whatever the rules say: a *no* is refused there, and [`Decision::refused`] names it.
//! What is not encrypted still carries a keyed MAC.

mod range;
mod window;

pub use range::{Range, RangeError, is_private};
pub use window::{LocalTime, Window, WindowError};

use super::throttle::RATE_MIN;
use crate::types::NAME_MAX;
use crate::when::format_bytes;
use core::net::IpAddr;
use std::collections::BTreeSet;
use std::fmt;
use thiserror::Error;

/// The most rules of a set.
pub const RULES_MAX: usize = 256;
/// The most windows of a limit.
pub const WINDOWS_MAX: usize = 32;

/// How fast, and when that holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limit {
    /// Bytes a second, of all that the rule limits together; at least [`RATE_MIN`].
    pub bytes_per_s: u64,
    /// It holds while one of these does; without any, always. At most [`WINDOWS_MAX`].
    pub windows: Vec<Window>,
}

impl Limit {
    fn holds(&self, at: LocalTime) -> bool {
        self.windows.is_empty() || self.windows.iter().any(|window| window.contains(at))
    }
}

/// A rule, for what goes from one range to the other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// What it is called, as no other of its set.
    pub name: String,
    /// Else it is passed over.
    pub enabled: bool,
    /// Where the data come from.
    pub source: Range,
    /// Where they go.
    pub target: Range,
    /// Whether they are encrypted; none: the rule does not say.
    pub encrypt: Option<bool>,
    /// How fast they may go; none: the rule does not say.
    pub limit: Option<Limit>,
}

/// Why rules are no set.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum RulesError {
    /// More than [`RULES_MAX`].
    #[error("{found} network traffic rules are more than the {RULES_MAX} that a set may have")]
    TooMany {
        /// How many there were.
        found: usize,
    },
    /// None, longer than [`NAME_MAX`] bytes, or with control characters.
    #[error(
        "network traffic rule {number} has the name {name:?}: 1 to {NAME_MAX} bytes without control characters are one"
    )]
    Name {
        /// Which one, from 1.
        number: usize,
        /// Its name.
        name: String,
    },
    /// Two of the same name.
    #[error("two network traffic rules are called {name:?}")]
    Twice {
        /// The name.
        name: String,
    },
    /// It says nothing.
    #[error("network traffic rule {name:?} says neither whether to encrypt nor how fast to send")]
    Silent {
        /// Its name.
        name: String,
    },
    /// A rate below [`RATE_MIN`].
    #[error("network traffic rule {name:?} limits to {bytes_per_s} bytes a second: the least is {RATE_MIN}")]
    Rate {
        /// Its name.
        name: String,
        /// The rate.
        bytes_per_s: u64,
    },
    /// More than [`WINDOWS_MAX`].
    #[error("network traffic rule {name:?} has {found} windows of time: at most {WINDOWS_MAX} are possible")]
    Windows {
        /// Its name.
        name: String,
        /// How many there were.
        found: usize,
    },
}

/// Who sends to whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow {
    /// The address of the source end.
    pub source: IpAddr,
    /// The address of the target end.
    pub target: IpAddr,
    /// Through a gateway.
    pub gateway: bool,
}

/// What holds for a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Traffic {
    /// TLS; else plain, with a MAC.
    pub encrypt: bool,
    /// Bytes a second, of all flows together that the same rule limits; none: as fast as it goes.
    pub limit: Option<u64>,
}

/// Why a flow has to be encrypted whatever the rules say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Must {
    /// It passes a gateway.
    Gateway,
    /// Its source is not in a private network.
    PublicSource,
    /// Its target is not.
    PublicTarget,
}

/// What decided on encryption.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// It has to be.
    Must(Must),
    /// This rule, by its place from 0.
    Rule(usize),
    /// No rule speaks about it, and it stays in private networks.
    Default,
}

/// What holds for a flow, and what decided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    /// What holds.
    pub traffic: Traffic,
    /// What decided on encryption.
    pub encrypt: Why,
    /// The first rule that says no where that is not possible.
    pub refused: Option<usize>,
    /// The rule that limits, whose throttle this flow shares with all others that it limits.
    pub limit: Option<usize>,
}

/// What came of one wish of a rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// It has none.
    Unsaid,
    /// It holds, by this rule.
    Decides,
    /// Another one decided, or the same without it.
    Overruled,
    /// It is not possible.
    Refused,
    /// Its windows do not hold now.
    NotNow,
}

/// What came of a rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It is not enabled.
    Disabled,
    /// The source is not in its range.
    OtherSource,
    /// The target is not in its range.
    OtherTarget,
    /// It matches.
    Matches {
        /// What came of what it says on encryption.
        encrypt: Effect,
        /// What came of its limit.
        limit: Effect,
    },
}

/// A decision with what came of every rule, for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Explanation {
    /// The decision.
    pub decision: Decision,
    /// The rules in their order, by name.
    pub rules: Vec<(String, Outcome)>,
}

/// Network traffic rules in the order in which they are read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rules(Vec<Rule>);

fn check(number: usize, rule: &Rule) -> Result<(), RulesError> {
    let Rule { name, encrypt, limit, .. } = rule;
    if name.is_empty() || name.len() > NAME_MAX || name.chars().any(char::is_control) {
        return Err(RulesError::Name { number, name: name.clone() });
    }
    let name = || rule.name.clone();
    match limit {
        None if encrypt.is_none() => Err(RulesError::Silent { name: name() }),
        Some(limit) if limit.bytes_per_s < RATE_MIN => {
            Err(RulesError::Rate { name: name(), bytes_per_s: limit.bytes_per_s })
        }
        Some(limit) if limit.windows.len() > WINDOWS_MAX => {
            Err(RulesError::Windows { name: name(), found: limit.windows.len() })
        }
        _ => Ok(()),
    }
}

/// What the flow has to be whatever the rules say.
fn must(flow: Flow) -> Option<Must> {
    match flow {
        Flow { gateway: true, .. } => Some(Must::Gateway),
        Flow { source, .. } if !is_private(source) => Some(Must::PublicSource),
        Flow { target, .. } if !is_private(target) => Some(Must::PublicTarget),
        _ => None,
    }
}

/// Why a rule does not match the flow, if it does not.
fn mismatch(rule: &Rule, flow: Flow) -> Option<Outcome> {
    match rule {
        Rule { enabled: false, .. } => Some(Outcome::Disabled),
        Rule { source, .. } if !source.contains(flow.source) => Some(Outcome::OtherSource),
        Rule { target, .. } if !target.contains(flow.target) => Some(Outcome::OtherTarget),
        _ => None,
    }
}

impl Rules {
    /// A set of these rules, none of which may be out of its bounds.
    ///
    /// # Errors
    /// Names the first that is wrong.
    pub fn new(rules: Vec<Rule>) -> Result<Self, RulesError> {
        if rules.len() > RULES_MAX {
            return Err(RulesError::TooMany { found: rules.len() });
        }
        let mut names = BTreeSet::new();
        for (at, rule) in rules.iter().enumerate() {
            check(at + 1, rule)?;
            if !names.insert(&rule.name) {
                return Err(RulesError::Twice { name: rule.name.clone() });
            }
        }
        Ok(Self(rules))
    }

    /// One rule: everything is encrypted, and nothing limited.
    #[must_use]
    pub fn encrypting() -> Self {
        let (name, any) = ("everything is encrypted".to_owned(), Range::ANY);
        Self(vec![Rule { name, enabled: true, source: any, target: any, encrypt: Some(true), limit: None }])
    }

    /// The rules, in their order.
    #[must_use]
    pub fn as_slice(&self) -> &[Rule] {
        &self.0
    }

    /// What holds for a flow now.
    #[must_use]
    pub fn decide(&self, flow: Flow, at: LocalTime) -> Decision {
        let (mut yes, mut no, mut lowest) = (None, None, None);
        for (number, rule) in self.0.iter().enumerate().filter(|(_, rule)| mismatch(rule, flow).is_none()) {
            match rule.encrypt {
                Some(true) => yes = yes.or(Some(number)),
                Some(false) => no = no.or(Some(number)),
                None => {}
            }
            if let Some(limit) = rule.limit.as_ref().filter(|limit| limit.holds(at)) {
                let lower = lowest.is_none_or(|(rate, _)| limit.bytes_per_s < rate);
                lowest = if lower { Some((limit.bytes_per_s, number)) } else { lowest };
            }
        }
        let (encrypt, why) = match (must(flow), yes, no) {
            (Some(must), ..) => (true, Why::Must(must)),
            (None, Some(rule), _) => (true, Why::Rule(rule)),
            (None, None, Some(rule)) => (false, Why::Rule(rule)),
            (None, None, None) => (false, Why::Default),
        };
        Decision {
            traffic: Traffic { encrypt, limit: lowest.map(|(rate, _)| rate) },
            encrypt: why,
            refused: no.filter(|_| matches!(why, Why::Must(_))),
            limit: lowest.map(|(_, rule)| rule),
        }
    }

    /// The decision with what came of every rule.
    #[must_use]
    pub fn explain(&self, flow: Flow, at: LocalTime) -> Explanation {
        let decision = self.decide(flow, at);
        let outcome = |number: usize, rule: &Rule| {
            let forced = matches!(decision.encrypt, Why::Must(_));
            let encrypt = match rule.encrypt {
                None => Effect::Unsaid,
                Some(false) if forced => Effect::Refused,
                Some(_) if decision.encrypt == Why::Rule(number) => Effect::Decides,
                Some(_) => Effect::Overruled,
            };
            let limit = match &rule.limit {
                None => Effect::Unsaid,
                Some(limit) if !limit.holds(at) => Effect::NotNow,
                Some(_) if decision.limit == Some(number) => Effect::Decides,
                Some(_) => Effect::Overruled,
            };
            mismatch(rule, flow).unwrap_or(Outcome::Matches { encrypt, limit })
        };
        let rules = self.0.iter().enumerate().map(|(number, rule)| (rule.name.clone(), outcome(number, rule)));
        Explanation { decision, rules: rules.collect() }
    }

    /// Nanoseconds until a window of an enabled rule begins or ends, when flows are to be decided anew; none: no rule has any. Where the place's clocks are
    /// put forward or back before, it is sooner or later: whoever waits asks at least every hour.
    #[must_use]
    pub fn next_change_ns(&self, at: LocalTime) -> Option<u64> {
        let limits = self.0.iter().filter(|rule| rule.enabled).filter_map(|rule| rule.limit.as_ref());
        limits.flat_map(|limit| &limit.windows).map(|window| window.next_edge_ns(at)).min()
    }
}

impl fmt::Display for Must {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gateway => "it passes a gateway",
            Self::PublicSource => "its source is not in a private network",
            Self::PublicTarget => "its target is not in a private network",
        })
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unsaid => "not said",
            Self::Decides => "decides",
            Self::Overruled => "overruled",
            Self::Refused => "refused",
            Self::NotNow => "not at this time",
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disabled => f.write_str("disabled"),
            Self::OtherSource => f.write_str("another source"),
            Self::OtherTarget => f.write_str("another target"),
            Self::Matches { encrypt, limit } => write!(f, "matches; encrypt: {encrypt}; limit: {limit}"),
        }
    }
}

/// Some lines: the decision, then every rule in its order.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Decision { traffic, encrypt, limit, .. } = self.decision;
        let name = |rule: usize| self.rules.get(rule).map_or("", |(name, _)| name.as_str());
        f.write_str(if traffic.encrypt { "encrypted: " } else { "plain, with a MAC: " })?;
        match encrypt {
            Why::Must(must) => write!(f, "{must}")?,
            Why::Rule(rule) => write!(f, "rule {:?}", name(rule))?,
            Why::Default => f.write_str("it stays in private networks, and no rule says otherwise")?,
        }
        match traffic.limit.zip(limit) {
            Some((rate, rule)) => write!(f, "\nlimited to {}/s: rule {:?}", format_bytes(rate), name(rule))?,
            None => f.write_str("\nnot limited")?,
        }
        self.rules.iter().try_for_each(|(name, outcome)| write!(f, "\n  {name:?}: {outcome}"))
    }
}

#[cfg(test)]
mod tests;
