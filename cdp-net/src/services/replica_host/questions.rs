//! A session in which a filter, or somebody who reads, only asks.

use super::Shared;
use super::only::Only;
use super::seat::Seat;
use crate::clock::{mono, until};
use crate::link::accept::Accepted;
use crate::link::connection::ConnectionOptions;
use crate::link::hub::{Happened, Hub};
use cdp_core::link::calls::CallId;
use cdp_core::link::message::{Answer, Code, Farewell, Features};
use cdp_core::link::target::{TargetEffect, TargetEnd, TargetOptions, Terms};
use std::sync::Arc;
use tokio::sync::mpsc::unbounded_channel;

/// After so long without a word the other end is taken for dead, in milliseconds.
pub(super) const SILENCE_MS: u32 = 10_000;

/// Until it ends.
pub(super) async fn run(shared: Arc<Shared>, seat: Arc<Seat>, only: Option<Only>, accepted: Accepted) {
    let only = Arc::new(only);
    let options = TargetOptions {
        group: None,
        timeline: None,
        features: Features::ALL,
        connections: 0,
        silence_ms: SILENCE_MS,
        attempt: 0,
    };
    let mut end = TargetEnd::new(options);
    let mut hub = Hub::new(Arc::clone(&shared.identity), ConnectionOptions::default());
    let conn = hub.add(accepted.opened);
    end.handle_accepted(mono(), conn, *accepted.hello);
    let mut ending = shared.ending.subscribe();
    let (answers, mut answered) = unbounded_channel::<(CallId, Answer)>();
    loop {
        while let Some(effect) = end.poll() {
            match effect {
                TargetEffect::Judge { session, .. } => end.admit(mono(), session, Terms::default()),
                TargetEffect::Send { conn, message } => hub.send(conn, message),
                TargetEffect::Close { conn, farewell } => hub.close(conn, farewell),
                TargetEffect::Called { id, call } => {
                    let (seat, only, answers) = (Arc::clone(&seat), Arc::clone(&only), answers.clone());
                    // At most as many of these wait as a session may have calls.
                    tokio::spawn(async move {
                        // Nobody waits for what is not begun when its session ends.
                        let turn = tokio::select! {
                            turn = seat.turns.turn(&call) => turn,
                            () = answers.closed() => None,
                        };
                        let Some(turn) = turn else { return };
                        tokio::task::spawn_blocking(move || {
                            // The session may have ended meanwhile.
                            let _ = answers.send((id, seat.answer_to(only.as_ref().as_ref(), &call)));
                            drop(turn);
                        });
                    });
                }
                TargetEffect::Take(_) | TargetEffect::TakeSeed(_) | TargetEffect::Answered { .. } => {}
                TargetEffect::Up { .. } => {}
                TargetEffect::Down { .. } => {}
            }
        }
        if hub.is_empty() {
            return;
        }
        tokio::select! {
            _ = ending.changed() => end.close(Farewell::new(Code::Stopping, "the replica host ends")),
            Some((id, answer)) = answered.recv() => end.answer(mono(), id, answer),
            happened = hub.next() => match happened {
                Happened::Message { conn, message } => end.handle_message(mono(), conn, message),
                Happened::Heard { conn } => end.handle_heard(mono(), conn),
                Happened::Sent { conn, bytes } => end.handle_sent(mono(), conn, bytes),
                Happened::Disconnected { conn, why } => {
                    end.handle_disconnected(mono(), conn, &why);
                    if hub.is_empty() {
                        return;
                    }
                }
                Happened::Connected { .. } | Happened::NotConnected { .. } => {}
            },
            () = until(end.next_deadline()) => end.handle_timer(mono()),
        }
    }
}
