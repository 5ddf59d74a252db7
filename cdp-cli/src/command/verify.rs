//! `cdp verify`: read and check everything.

use super::range_line;
use crate::ask::access;
use crate::engine::Engine;
use crate::exit::{Exit, Failure};
use crate::json::Verified;
use crate::output::Output;
use crate::progress::Meter;
use cdp_core::when::format_bytes;
use clap::Args;
use std::path::PathBuf;

/// Read everything, check every checksum and the chain
#[derive(Args, Debug)]
pub struct Arguments {
    /// Directory of the replica
    dir: PathBuf,
}

impl Arguments {
    /// Checks; status 5 when there is damage.
    ///
    /// # Errors
    /// What the owner or the engine says.
    pub fn run(self, engine: &dyn Engine, output: &mut Output<'_>) -> Result<Exit, Failure> {
        let meter = Meter::new("verifying", output.shows_progress());
        let verified = engine.verify(&self.dir, access(&self.dir)?, &mut |progress| meter.set(progress))?;
        meter.finish();
        output.answer(&verified, for_people);
        Ok(if verified.ok { Exit::Done } else { Exit::Damage })
    }
}

fn for_people(verified: &Verified) -> String {
    let read = format_bytes(verified.bytes);
    if verified.ok && verified.unopened {
        return format!(
            "{read} read: every checksum is right; it is sealed at rest and no key was given, so nothing was opened\n"
        );
    }
    if verified.ok {
        return format!("{read} read: every checksum is right\n");
    }
    let mut text = format!("{read} read: {}\n", crate::human::count(verified.damage.len(), "damaged place"));
    for damage in &verified.damage {
        let (file, end) = (damage.file.display(), damage.offset.saturating_add(damage.length));
        text.push_str(&format!("\n{file}, bytes {} to {end}: {}\n", damage.offset, damage.what));
        damage.lost.iter().for_each(|range| text.push_str(&format!("  lost: {}", range_line(range))));
    }
    text.push_str("\nstill good:\n");
    if verified.good.is_empty() {
        text.push_str("  nothing\n");
    }
    verified.good.iter().for_each(|range| text.push_str(&format!("  {}", range_line(range))));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::Damage;
    use crate::json::tests::range;

    #[test]
    fn damage_is_named_with_what_is_lost_and_what_is_good() {
        let what = "the checksum of a chunk is wrong".into();
        let damage = Damage { file: "journal/1.seg".into(), offset: 512, length: 64, what, lost: vec![range()] };
        let verified = Verified { ok: false, damage: vec![damage], good: vec![range()], bytes: 1024, unopened: false };
        let text = for_people(&verified);
        assert!(text.contains("1 damaged place\n\njournal/1.seg, bytes 512 to 576: the checksum"), "{text}");
        assert!(text.contains("  lost: every write") && text.contains("still good:\n  every write"), "{text}");
        assert!(for_people(&Verified { ok: true, ..Verified::default() }).ends_with("every checksum is right\n"));
        let shut = Verified { ok: true, unopened: true, ..Verified::default() };
        assert!(for_people(&shut).ends_with("no key was given, so nothing was opened\n"));
    }
}
