//! The claims: what is brought back is what was there.

use super::{Checked, DISK, Stage, connect_to, millis};
use crate::demo::image::{Content, check_file_system, first_difference_outside};
use crate::demo::load::Bounds;
use crate::demo::port::Blocks;
use crate::demo::{Facts, check};
use crate::engine::{MountSpec, RestoreSpec};
use crate::exit::{Exit, Failure};
use crate::json::{Export, MountEvent, Restored};
use crate::place::Place;
use crate::stop::Stop;
use cdp_core::when::When;
use cdp_net::nbd::Uri;
use cdp_net::report::At;
use std::fs;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Instant;

/// Restores into a file that is removed after it was judged, unless it is wrong.
fn with_restored<T>(
    stage: &Stage<'_>,
    when: &str,
    judge: impl FnOnce(&Path) -> Result<(bool, T), Failure>,
) -> Result<(At, T, bool), Failure> {
    let output = stage.plan.dir.join("restored.img");
    let spec = RestoreSpec {
        at: when.parse::<When>()?,
        nearest: None,
        output: output.clone(),
        disk: Some(DISK.into()),
        force: true,
    };
    let way = Place::directory(&stage.replica).way()?;
    let Restored { at, .. } = stage.engine.restore(way, &spec, stage.stop, &mut |_| {})?;
    let (ok, found) = judge(&output)?;
    if ok {
        fs::remove_file(&output).map_err(anyhow::Error::from)?;
    } else {
        let kept = stage.plan.dir.join(format!("wrong-{}.img", at.lsn));
        fs::rename(&output, kept).map_err(anyhow::Error::from)?;
    }
    Ok((at, found, ok))
}

/// A restored moment: the ledger holds and lies where it should, every other byte is as ever, the file system is clean. In a
/// gap its neighbour is taken, and that is said.
pub(super) fn restored(stage: &Stage<'_>, when: &str, bounds: &Bounds, what: &str) -> Result<Checked, Failure> {
    let begin = Instant::now();
    let judge = |path: &Path| judge_image(stage, path, bounds);
    let (result, instead) = match with_restored(stage, when, judge) {
        Err(failure) if failure.status == Exit::NotRestorable && !failure.nearest.is_empty() => {
            let near = format!("lsn:{}-{}", failure.nearest[0].timeline, failure.nearest[0].lsn);
            let judge = |path: &Path| judge_image(stage, path, &Bounds::default());
            (with_restored(stage, &near, judge), "; in a gap, so its neighbour was taken")
        }
        result => (result, ""),
    };
    let what = format!("{what} {when}");
    Ok(match result {
        Ok((at, found, ok)) => Checked { what, at: Some(at), ok, found: found + instead, ms: millis(begin) },
        Err(failure) => {
            stage.go_on()?;
            Checked { what, at: None, ok: false, found: failure.message, ms: millis(begin) }
        }
    })
}

fn judge_image(stage: &Stage<'_>, path: &Path, bounds: &Bounds) -> Result<(bool, String), Failure> {
    let mut image = stage.open(path)?;
    let (ledger, length) = (stage.layout.base, stage.layout.end() - stage.layout.base);
    let facts = match judge_ledger(&mut image, ledger, bounds) {
        Ok(facts) => facts,
        Err(wrong) => return Ok((false, wrong)),
    };
    let pristine = stage.open(&stage.pristine)?;
    let difference = first_difference_outside(&image, &pristine, ledger, length).map_err(anyhow::Error::from)?;
    if let Some(byte) = difference {
        return Ok((false, format!("byte {byte}, which nobody wrote, is another")));
    }
    let mut found = words(&facts);
    if stage.made.content == Content::Ext4 {
        match check_file_system(path)? {
            Some(Ok(())) => found.push_str(", e2fsck clean"),
            Some(Err(said)) => return Ok((false, format!("e2fsck: {said}"))),
            None => found.push_str(", e2fsck skipped"),
        }
    }
    Ok((true, found))
}

fn judge_ledger(image: &mut dyn Blocks, base: u64, bounds: &Bounds) -> Result<Facts, String> {
    let facts = check(image, base).map_err(|violation| violation.to_string())?;
    facts.within(bounds).map_err(|violation| violation.to_string())?;
    Ok(facts)
}

fn words(facts: &Facts) -> String {
    format!("sum {} after {} movements", facts.sum, facts.movements())
}

/// The source itself: if it were still good, the story would prove nothing.
pub(super) fn is_ruined(stage: &Stage<'_>) -> Checked {
    let begin = Instant::now();
    let ledger = stage.open(&stage.disk).map(|mut disk| judge_ledger(&mut disk, stage.layout.base, &Bounds::default()));
    let (ok, found) = match ledger {
        Ok(Err(wrong)) => (true, wrong),
        Ok(Ok(_)) => (false, "the ledger on the source still holds".into()),
        Err(failure) => (false, failure.message),
    };
    Checked { what: "the source is ruined".into(), at: None, ok, found, ms: millis(begin) }
}

/// The latest moment is the source, byte for byte.
pub(super) fn latest_is_the_source(stage: &Stage<'_>) -> Result<Checked, Failure> {
    let begin = Instant::now();
    let (at, found, ok) = with_restored(stage, "latest", |path| {
        let (image, source) = (stage.open(path)?, stage.open(&stage.disk)?);
        let difference = first_difference_outside(&image, &source, 0, 0).map_err(anyhow::Error::from)?;
        Ok(match difference {
            None => (true, "every byte is the source's".into()),
            Some(byte) => (false, format!("byte {byte} is another")),
        })
    })?;
    Ok(Checked { what: "latest".into(), at: Some(at), ok, found, ms: millis(begin) })
}

/// A moment that is served instead of written: the claim, and how long it took until it was served, in milliseconds.
pub(super) fn mounted(stage: &Stage<'_>, when: &str, bounds: &Bounds) -> Result<(Checked, u64), Failure> {
    let spec = MountSpec {
        at: Some(when.parse()?),
        nearest: None,
        listen: Some(Uri::unix(stage.plan.dir.join("mount.sock"))),
        tls: None,
        writable: false,
        session: None,
    };
    let until = Stop::new();
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let (sender, receiver) = channel();
        let (spec, waiting) = (&spec, &until);
        let mounting = scope.spawn(move || {
            let way = Place::directory(&stage.replica).way()?;
            stage.engine.mount(way, spec, waiting, &mut |event| drop(sender.send(event)))
        });
        let ready = receiver.iter().find_map(|event| match event {
            MountEvent::Ready { at, exports, .. } => Some((at, exports)),
            _ => None,
        });
        let mount_ms = millis(begin);
        let judged = ready.map(|(at, exports)| (at, judge_served(stage, &exports, bounds)));
        until.wish();
        let panicked = || Err(Failure::new(Exit::Failed, "internal", "the mount ended by an error of its own"));
        mounting.join().unwrap_or_else(|_| panicked())?;
        let (at, served) =
            judged.ok_or_else(|| Failure::new(Exit::Failed, "not-served", "the mount served nothing"))?;
        let (ok, found) = match served? {
            Ok(facts) => (true, words(&facts)),
            Err(wrong) => (false, wrong),
        };
        Ok((Checked { what: format!("served {when}"), at: Some(at), ok, found, ms: millis(begin) }, mount_ms))
    })
}

fn judge_served(stage: &Stage<'_>, exports: &[Export], bounds: &Bounds) -> Result<Result<Facts, String>, Failure> {
    let uri = exports.first().and_then(|export| export.uri.parse().ok());
    let uri = uri.ok_or_else(|| Failure::new(Exit::Failed, "internal", "the moment is served at no address"))?;
    Ok(judge_ledger(&mut connect_to(&uri)?, stage.layout.base, bounds))
}

/// `verify` finds nothing.
pub(super) fn verified(stage: &Stage<'_>) -> Result<Checked, Failure> {
    let begin = Instant::now();
    let verified = stage.engine.verify(Place::directory(&stage.replica).way()?, stage.stop, &mut |_| {})?;
    let found = match verified.damage.first() {
        None => format!("{} bytes read", verified.bytes),
        Some(damage) => format!("{}: {}", damage.file.display(), damage.what),
    };
    let what = "every checksum of the replica is right".into();
    Ok(Checked { what, at: None, ok: verified.ok, found, ms: millis(begin) })
}
