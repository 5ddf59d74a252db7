//! `cdp mount`: serve a moment.

use super::protect::name;
use super::{Nearest, behind_said, incomplete_line};
use crate::ask::ask;
use crate::engine::{Engine, MountSpec};
use crate::exit::{Exit, Failure};
use crate::human;
use crate::json::MountEvent;
use crate::output::Output;
use crate::place::Place;
use crate::stop::Stop;
use anyhow::Context as _;
use cdp_core::when::When;
use cdp_net::nbd::Uri;
use cdp_net::owner::Request;
use clap::Args;
use std::path::PathBuf;

/// Serve the disks as they were, over NBD
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    place: Place,
    /// The moment: latest, a time, -15m, lsn:N, point:ID or a label
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true, required_unless_present_any = ["session", "drop"])]
    at: Option<When>,
    /// If the moment is not restorable, take its neighbour
    #[arg(long, value_enum, requires = "at")]
    nearest: Option<Nearest>,
    /// Where to serve: nbd://HOST:PORT or nbd+unix:///?socket=PATH [default: nbd://127.0.0.1:10810 or the next free port]
    #[arg(long, value_name = "URI")]
    listen: Option<Uri>,
    /// Directory of server-cert.pem, server-key.pem and, to know clients by their certificates, ca-cert.pem
    #[arg(long, value_name = "DIR")]
    tls_certificates: Option<PathBuf>,
    /// Take writes, into an overlay that is removed at the end
    #[arg(long)]
    writable: bool,
    /// Keep the writes under this name; a session that exists is opened again
    #[arg(long, value_name = "NAME", value_parser = name, requires = "writable")]
    session: Option<String>,
    /// Forget a named session and all that was written in it
    #[arg(long, value_name = "NAME", value_parser = name, conflicts_with_all = ["at", "listen", "writable", "session"])]
    drop: Option<String>,
}

impl Arguments {
    /// Serves until a signal, or drops a session.
    ///
    /// # Errors
    /// What the owner or the engine says.
    pub fn run(self, engine: &dyn Engine, output: &mut Output<'_>) -> Result<Exit, Failure> {
        if let Some(session) = self.drop {
            ask::<()>(engine, &self.place, Request::DropSession { name: session.clone() })?;
            output.answer(&MountEvent::Dropped { session }, for_people);
            return Ok(Exit::Done);
        }
        let Self { place, at, nearest, listen, tls_certificates: tls, writable, session, .. } = self;
        let spec = MountSpec { at, nearest: nearest.map(Into::into), listen, tls, writable, session };
        let stop = Stop::on_signals().context("cannot handle signals")?;
        engine.mount(place.way()?, &spec, &stop, &mut |event| {
            output.answer(&event, for_people);
            if let MountEvent::Ready { at, behind, .. } = &event {
                behind_said(at, behind.as_ref(), output);
            }
        })?;
        Ok(Exit::Done)
    }
}

fn for_people(event: &MountEvent) -> String {
    match event {
        MountEvent::Ready { at, exports, session, writable, incomplete, .. } => {
            let how = match (writable, session) {
                (false, _) => "read-only".into(),
                (true, None) => "writable; what is written is forgotten at the end".into(),
                (true, Some(session)) => format!("writable; what is written is kept in the session {session:?}"),
            };
            let mut text = format!("{}, {how}\n", human::moment(at));
            exports.iter().for_each(|export| text.push_str(&format!("{} is served at {}\n", export.name, export.uri)));
            text.push_str(&incomplete_line(incomplete));
            text
        }
        MountEvent::Stopped { kept: true } => "stopped; the session is kept\n".into(),
        MountEvent::Stopped { kept: false } => "stopped\n".into(),
        MountEvent::Dropped { session } => format!("the session {session:?} is gone\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::Export;
    use crate::json::tests::at;

    #[test]
    fn it_says_where_writes_go() {
        let export = Export { name: "root".into(), uri: "nbd://127.0.0.1:10810/root".into(), size: 1 };
        let ready = |session: Option<&str>, writable| {
            let session = session.map(str::to_owned);
            for_people(&MountEvent::Ready {
                at: at(),
                exports: vec![export.clone()],
                session,
                writable,
                incomplete: Vec::new(),
                behind: None,
            })
        };
        assert!(ready(None, false).contains("read-only\nroot is served at nbd://127.0.0.1:10810/root\n"));
        assert!(ready(None, true).contains("forgotten at the end"));
        assert!(ready(Some("lab"), true).contains("kept in the session \"lab\""));
    }
}
