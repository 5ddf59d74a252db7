use super::*;
use cdp_core::types::WallTime;
use cdp_net::report::{RangeKind, Rates, RemoteReplica, TimelineEntry, TimelineRole, TimelineState};
use serde_json::Value;
use serde_json::json;

pub(crate) fn timeline() -> TimelineName {
    "00112233445566ff".parse().unwrap()
}

pub(crate) fn at() -> At {
    let point = Some("00112233445566ff-7".parse().unwrap());
    At { timeline: timeline(), lsn: Lsn(7), time: WallTime(1_000_000_001), point }
}

pub(crate) fn range() -> Range {
    let (from_lsn, to_lsn) = (Lsn(1), Lsn(9));
    let (from_time, to_time) = (WallTime(0), WallTime(1_000_000_000));
    Range { timeline: timeline(), kind: RangeKind::Every, from_lsn, to_lsn, from_time, to_time }
}

pub(crate) fn gap() -> Gap {
    let Range { timeline, from_lsn, to_lsn, from_time, to_time, .. } = range();
    let cause = Some("unclean-stop".into());
    Gap { timeline, from_lsn, to_lsn, from_time, to_time, reason: "resync".into(), cause, open: false }
}

pub(crate) fn point() -> Point {
    let At { timeline, lsn, time, point } = at();
    Point {
        id: point.unwrap(),
        timeline,
        lsn,
        time,
        kinds: vec![PointKind::Mark],
        label: Some("before upgrade".into()),
        pinned: false,
        on_barrier: true,
        set_consistent: false,
        disks: vec!["root".into()],
    }
}

fn check(document: impl Serialize, expect: Value) {
    assert_eq!(serde_json::to_value(document).unwrap(), expect);
}

fn at_json() -> Value {
    json!({"timeline": "00112233445566ff", "lsn": 7, "time": "1970-01-01T00:00:01.000000001Z", "point": "00112233445566ff-7"})
}

fn range_json() -> Value {
    json!({
        "timeline": "00112233445566ff", "kind": "every", "from_lsn": 1, "to_lsn": 9,
        "from_time": "1970-01-01T00:00:00.000000000Z", "to_time": "1970-01-01T00:00:01.000000000Z"
    })
}

fn gap_json() -> Value {
    json!({
        "timeline": "00112233445566ff", "from_lsn": 1, "to_lsn": 9,
        "from_time": "1970-01-01T00:00:00.000000000Z", "to_time": "1970-01-01T00:00:01.000000000Z",
        "reason": "resync", "cause": "unclean-stop"
    })
}

fn point_json() -> Value {
    json!({
        "id": "00112233445566ff-7", "timeline": "00112233445566ff", "lsn": 7,
        "time": "1970-01-01T00:00:01.000000001Z", "kinds": ["mark"], "label": "before upgrade", "pinned": false,
        "on_barrier": true, "set_consistent": false, "disks": ["root"]
    })
}

#[test]
fn points() {
    let timeline = TimelineEntry {
        timeline: timeline(),
        number: 1,
        parent: None,
        fork_lsn: Lsn(0),
        state: TimelineState::Open,
        role: TimelineRole::Trunk,
    };
    let points = Points {
        group: "web".into(),
        timelines: vec![timeline],
        ranges: vec![range()],
        points: vec![point()],
        disks: vec!["root".into(), "data".into()],
        gaps: vec![gap()],
        next: Some(WallTime(5)),
        damaged: None,
    };
    check(
        &points,
        json!({
            "group": "web",
            "timelines": [{
                "timeline": "00112233445566ff", "number": 1, "parent": null, "fork_lsn": 0, "state": "open",
                "role": "trunk"
            }],
            "ranges": [range_json()], "points": [point_json()], "disks": ["root", "data"], "gaps": [gap_json()],
            "next": "1970-01-01T00:00:00.000000005Z"
        }),
    );
    let text = serde_json::to_string(&points).unwrap();
    assert_eq!(serde_json::from_str::<Points>(&text).unwrap(), points, "an owner's answer is read back");
}

#[test]
fn status() {
    let status = Status {
        state: State::NoSpace,
        group: "web".into(),
        disks: vec![],
        timeline: Some(timeline()),
        lsn: Lsn(9),
        durable_lsn: Lsn(8),
        rpo_ms: Some(12),
        ranges: vec![range()],
        ranges_left_off: None,
        space: Space { base: 1, layers: 2, segments: 3, overlays: 4, pinned: 5, quota: None },
        lacks: Some(Lack { needed_bytes: 11, free_bytes: 10 }),
        rates: Rates { write_bytes_per_s: 6, stored_bytes_per_s: 7 },
        sessions: vec![Session { name: None, timeline: timeline(), at: at(), bytes: 1, open: false }],
        pins: 1,
        history: History {
            window_ms: 9,
            kept_ms: 8,
            forecast_ms: Some(7),
            limit: Some(Limit::Room),
            room_bytes: Some(6),
            cut: true,
            cut_by: Some(Limit::MaxBytes),
            problem: None,
        },
        holds: vec![Hold { at: at(), by: "pin".into(), label: Some("court".into()), bytes: 6 }],
        sealed_at_rest: false,
        journal: Some(Journal { driver: "threads".into() }),
        owner_pid: None,
        damaged: None,
        hot_bytes: 2,
        reread_bytes: 3,
        detached: None,
        failure: Some("away for good".into()),
        remote: Some(RemoteReplica { address: "h:1".into(), linked: false, problem: Some("away".into()) }),
    };
    check(
        &status,
        json!({
            "state": "no-space", "group": "web", "disks": [], "timeline": "00112233445566ff", "lsn": 9,
            "durable_lsn": 8, "rpo_ms": 12, "ranges": [range_json()],
            "space": {"base": 1, "layers": 2, "segments": 3, "overlays": 4, "pinned": 5, "quota": null},
            "lacks": {"needed_bytes": 11, "free_bytes": 10},
            "rates": {"write_bytes_per_s": 6, "stored_bytes_per_s": 7},
            "sessions": [{
                "name": null, "timeline": "00112233445566ff", "at": at_json(), "bytes": 1, "open": false
            }],
            "history": {"window_ms": 9, "kept_ms": 8, "forecast_ms": 7, "limit": "room", "room_bytes": 6, "cut": true, "cut_by": "max-bytes"},
            "holds": [{"at": at_json(), "by": "pin", "label": "court", "bytes": 6}],
            "pins": 1, "journal": {"driver": "threads"}, "sealed_at_rest": false, "hot_bytes": 2, "reread_bytes": 3,
            "failure": "away for good", "remote": {"address": "h:1", "linked": false, "problem": "away"}
        }),
    );
    let text = serde_json::to_string(&status).unwrap();
    assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status, "an owner's answer is read back");
}

#[test]
fn events_of_protect() {
    let export = Export { name: "root".into(), uri: "nbd://127.0.0.1:10809/root".into(), size: 512 };
    check(
        ProtectEvent::Opened { timeline: timeline(), resumed: true, clean: false, compared: Compared::ActivityLog },
        json!({
            "event": "opened", "timeline": "00112233445566ff", "resumed": true, "clean": false,
            "compared": "activity-log"
        }),
    );
    check(
        ProtectEvent::Seeding { done: 1, total: 2, bytes_per_s: 3 },
        json!({"event": "seeding", "done": 1, "total": 2, "bytes_per_s": 3}),
    );
    check(
        ProtectEvent::Ready { exports: vec![export] },
        json!({"event": "ready", "exports": [{"name": "root", "uri": "nbd://127.0.0.1:10809/root", "size": 512}]}),
    );
    check(ProtectEvent::Point { point: point() }, json!({"event": "point", "point": point_json()}));
    check(ProtectEvent::Gap { gap: gap() }, json!({"event": "gap", "gap": gap_json()}));
    check(
        ProtectEvent::State { state: State::Tracking, reason: None, lacks: None },
        json!({"event": "state", "state": "tracking", "reason": null}),
    );
    let lacks = Some(Lack { needed_bytes: 2, free_bytes: 1 });
    check(
        ProtectEvent::State { state: State::NoSpace, reason: Some("full".into()), lacks },
        json!({
            "event": "state", "state": "no-space", "reason": "full", "lacks": {"needed_bytes": 2, "free_bytes": 1}
        }),
    );
    check(
        ProtectEvent::Stopped(Stopped { drained: true, ..Stopped::default() }),
        json!({
            "event": "stopped", "drained": true, "lsn": 0, "durable_lsn": 0, "written_bytes": 0, "stored_bytes": 0,
            "hot_bytes": 0, "points": 0, "seconds": 0, "manifest_stored": false
        }),
    );
}

#[test]
fn answers_of_commands() {
    check(Marked { at: at(), label: "x".into() }, json!({"at": at_json(), "label": "x"}));
    let output = RestoredDisk { disk: "root".into(), path: "out".into(), bytes: 5, over: None };
    let over = RestoredDisk { over: Some(9), ..output.clone() };
    check(
        Restored { at: at(), outputs: vec![output, over], incomplete: vec![], behind: None },
        json!({"at": at_json(), "outputs": [
            {"disk": "root", "path": "out", "bytes": 5}, {"disk": "root", "path": "out", "bytes": 5, "over": 9}
        ]}),
    );
    check(
        MountEvent::Ready {
            at: at(),
            exports: vec![],
            session: None,
            writable: false,
            incomplete: vec![],
            behind: Some(gap()),
        },
        json!({"event": "ready", "at": at_json(), "exports": [], "session": null, "writable": false, "behind": gap_json()}),
    );
    let damage =
        Damage { file: "f".into(), offset: 1, length: 2, what: "w".into(), lost: vec![range()], ..Damage::default() };
    let extent = LostExtent { disk: Some("root".into()), lsn: Lsn(8), offset: 4096, length: Some(512) };
    let whole = Damage {
        records: Some(Records { from_lsn: Lsn(7), to_lsn: Lsn(9) }),
        disks: vec!["root".into()],
        extents: vec![extent],
        more: 3,
        session: Some("lab".into()),
        ..damage.clone()
    };
    let disk = DiskVerified { disk: "root".into(), lost: vec![range()], good: vec![] };
    check(
        Verified { damage: vec![damage, whole], disks: vec![disk], ..Verified::default() },
        json!({
            "ok": false,
            "damage": [
                {"file": "f", "offset": 1, "length": 2, "what": "w", "lost": [range_json()]},
                {"file": "f", "offset": 1, "length": 2, "what": "w", "session": "lab",
                 "records": {"from_lsn": 7, "to_lsn": 9}, "disks": ["root"], "extents": [{"disk": "root", "lsn": 8, "offset": 4096, "length": 512}], "more": 3, "lost": [range_json()]}
            ],
            "good": [], "disks": [{"disk": "root", "lost": [range_json()], "good": []}], "bytes": 0
        }),
    );
    check(
        Verified {
            at_most: true,
            stopped: true,
            unseeded: true,
            unopened: true,
            unreadable: Some("u".into()),
            ..Verified::default()
        },
        json!({
            "ok": false, "damage": [], "good": [], "at_most": true, "bytes": 0, "stopped": true, "unseeded": true,
            "unopened": true, "unreadable": "u"
        }),
    );
    let policy = json!({
        "rpo_ms": 15000, "points": "every-write", "window_ms": 14_400_000, "max_bytes": 0, "reserve_bytes": 268_435_456,
        "long_term_ms": 0, "keep_ms": 604_800_000, "when_full": "shorten", "quota": 0
    });
    check(Policy::default(), policy);
}

#[test]
fn a_failure_names_its_neighbours() {
    let mut failure = Failure::new(crate::exit::Exit::NotRestorable, "not-restorable", "m");
    failure.nearest = vec![at()];
    check(
        ErrorDocument::from(&failure),
        json!({"error": {"code": "not-restorable", "message": "m", "hint": null, "nearest": [at_json()]}}),
    );
}
