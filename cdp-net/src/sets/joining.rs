//! The call by which a taker finds a member: its set in the question, the member's group in the answer. JSON, with the fields of `set/SET.md`.

use super::words::{VERSION, WORDS_MAX, id};
use bytes::Bytes;
use cdp_core::types::{GroupId, SetId};
use serde::{Deserialize, Serialize};

/// The kind of the call.
pub const JOIN: u16 = 33;
/// The most bytes that a reason has; what is longer is cut off.
const WHY_MAX: usize = 512;

#[derive(Serialize, Deserialize, Default)]
struct Words {
    v: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    set: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

impl Words {
    fn to_bytes(&self) -> Bytes {
        // Strings and a number: there is nothing in it that JSON does not have.
        serde_json::to_vec(self).unwrap_or_default().into()
    }

    fn of(bytes: &[u8]) -> Option<Self> {
        let words: Self = serde_json::from_slice(bytes.get(..bytes.len().min(WORDS_MAX + 1))?).ok()?;
        (bytes.len() <= WORDS_MAX && words.v == VERSION).then_some(words)
    }
}

/// The question: whether the group of this session is a member of the set.
#[must_use]
pub fn join_to_bytes(set: SetId) -> Bytes {
    Words { v: VERSION, set: Some(set.to_string()), ..Words::default() }.to_bytes()
}

/// The set that is asked for; none where there is none in it.
#[must_use]
pub fn join_of(bytes: &[u8]) -> Option<SetId> {
    SetId::new(id(Words::of(bytes)?.set.as_deref()?)?)
}

/// The answer: it is, and this is the group; or why it is not.
#[must_use]
pub fn joined_to_bytes(joined: Result<GroupId, &str>) -> Bytes {
    let mut words = Words { v: VERSION, ..Words::default() };
    match joined {
        Ok(group) => words.group = Some(group.to_string()),
        Err(why) => words.why = Some(why.chars().take(WHY_MAX / 4).collect()),
    }
    words.to_bytes()
}

/// What was answered; none where there is no answer in it. A reason is text of somebody else's: what would not be shown is left out.
#[must_use]
pub fn joined_of(bytes: &[u8]) -> Option<Result<GroupId, String>> {
    let words = Words::of(bytes)?;
    match (words.group, words.why) {
        (Some(group), None) => GroupId::new(id(&group)?).map(Ok),
        (None, Some(why)) => Some(Err(why.chars().filter(|c| !c.is_control()).take(WHY_MAX / 4).collect())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_and_answered_is_heard() {
        let set = SetId::new([3; 16]).unwrap();
        let group = GroupId::new([4; 16]).unwrap();
        assert_eq!(join_of(&join_to_bytes(set)), Some(set));
        assert_eq!(joined_of(&joined_to_bytes(Ok(group))), Some(Ok(group)));
        assert_eq!(joined_of(&joined_to_bytes(Err("no such set"))), Some(Err("no such set".into())));
        assert_eq!(joined_of(&join_to_bytes(set)), None, "a question is no answer");
        assert_eq!(join_of(&joined_to_bytes(Ok(group))), None, "nor the other way round");
    }

    #[test]
    fn what_is_hostile_is_nothing_or_short() {
        let long = "x\u{1b}[2J".repeat(1000);
        let Some(Err(why)) = joined_of(&joined_to_bytes(Err(&long))) else { panic!("it is a reason") };
        assert!(why.len() <= WHY_MAX && !why.contains('\u{1b}'), "{why:?}");
        for text in ["", "{}", "{\"v\":2,\"set\":\"00\"}", "{\"v\":1,\"set\":\"00\"}", "[1]"] {
            assert_eq!((join_of(text.as_bytes()), joined_of(text.as_bytes())), (None, None), "{text}");
        }
        let zero = format!("{{\"v\":1,\"set\":\"{0}\",\"group\":\"{0}\"}}", "0".repeat(32));
        assert_eq!((join_of(zero.as_bytes()), joined_of(zero.as_bytes())), (None, None));
        let set = join_to_bytes(SetId::new([3; 16]).unwrap());
        let padded = [&set[..], &vec![b' '; WORDS_MAX]].concat();
        assert_eq!(join_of(&padded), None);
    }
}
