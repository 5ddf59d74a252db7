//! Where a command's answer goes: JSON for scripts or text for people on stdout, sentences about failures on stderr.

use crate::exit::{Exit, Failure};
use crate::json::ErrorDocument;
use serde::Serialize;
use std::io::{self, Write};

/// The two streams of a command. A reader of stdout that went away (`| head`) is no failure, and nothing that cannot be written
/// ever ends a protection: it is dropped. Whoever asked once is told that the answer did not arrive ([`Output::lost`]).
pub struct Output<'a> {
    json: bool,
    terminal: bool,
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
    /// Why an answer did not arrive.
    lost: Option<io::Error>,
    /// Whoever read stdout went away.
    unheard: bool,
}

impl<'a> Output<'a> {
    /// Writes to these; `terminal` says that people watch stderr.
    pub fn new(json: bool, terminal: bool, out: &'a mut dyn Write, err: &'a mut dyn Write) -> Self {
        Self { json, terminal, out, err, lost: None, unheard: false }
    }

    /// Whether scripts read it.
    #[must_use]
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Whether a progress bar makes sense.
    #[must_use]
    pub fn shows_progress(&self) -> bool {
        self.terminal && !self.json
    }

    /// The answer: the document for scripts, else what `people` makes of it (with its line ends).
    pub fn answer<T: Serialize>(&mut self, document: &T, people: impl FnOnce(&T) -> String) {
        let text = if self.json {
            serde_json::to_string(document).map(|line| line + "\n").unwrap_or_default()
        } else {
            people(document)
        };
        let written = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.unheard = true,
            Err(error) => drop(self.lost.get_or_insert(error)),
            Ok(()) => {}
        }
    }

    /// Whether nobody reads answers any more: who has many of them may end.
    #[must_use]
    pub fn is_unheard(&self) -> bool {
        self.unheard
    }

    /// Why an answer did not arrive, if somebody waits for it.
    pub fn lost(&mut self) -> Option<Failure> {
        let error = self.lost.take()?;
        Some(Failure::new(Exit::Failed, "output", format!("the answer cannot be written: {error}")))
    }

    /// A sentence for people, on stderr, in either mode.
    pub fn note(&mut self, sentence: &str) {
        let _ = writeln!(self.err, "{sentence}");
    }

    /// The end of a command that failed.
    pub fn failure(&mut self, failure: &Failure) {
        self.note(&failure.for_people());
        if self.json {
            self.answer(&ErrorDocument::from(failure), |_| String::new());
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What `work` writes to stdout and to stderr.
    pub(crate) fn capture(json: bool, work: impl FnOnce(&mut Output<'_>)) -> (String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        work(&mut Output::new(json, false, &mut out, &mut err));
        (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    #[test]
    fn a_failure_is_a_sentence_for_people_and_a_document_for_scripts() {
        let failure = Failure::new(Exit::Refused, "owned", "DIR belongs to process 7").hint("stop it");
        let sentence = "cdp: DIR belongs to process 7\n     stop it\n".to_owned();
        assert_eq!(capture(false, |output| output.failure(&failure)), (String::new(), sentence.clone()));
        let document =
            r#"{"error":{"code":"owned","message":"DIR belongs to process 7","hint":"stop it","nearest":[]}}"#;
        assert_eq!(capture(true, |output| output.failure(&failure)), (format!("{document}\n"), sentence));
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
        }
        let (mut out, mut err) = (Gone, Gone);
        let mut output = Output::new(true, false, &mut out, &mut err);
        output.answer(&1, |_| String::new());
        output.note("x");
        assert!(output.is_unheard());
        assert_eq!(output.lost(), None);
    }

    #[test]
    fn an_answer_that_found_no_room_is_a_failure() {
        let (mut room, mut err) = ([0; 1], Vec::new());
        let mut out = &mut room[..];
        let mut output = Output::new(true, false, &mut out, &mut err);
        output.answer(&"more than a byte", |_| String::new());
        let lost = output.lost().expect("it was cut off");
        assert_eq!((lost.status, lost.code.as_str()), (Exit::Failed, "output"));
        assert_eq!(output.lost(), None, "told once");
    }
}
