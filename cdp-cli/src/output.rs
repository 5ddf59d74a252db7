//! Where a command's answer goes: JSON for scripts or text for people on stdout, sentences about failures on stderr.

use crate::exit::Failure;
use crate::json::ErrorDocument;
use serde::Serialize;
use std::io::Write;

/// The two streams of a command. A reader of stdout that went away (`| head`) is no failure and never ends a protection:
/// what cannot be written is dropped.
pub struct Output<'a> {
    json: bool,
    terminal: bool,
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
}

impl<'a> Output<'a> {
    /// Writes to these; `terminal` says that people watch stderr.
    pub fn new(json: bool, terminal: bool, out: &'a mut dyn Write, err: &'a mut dyn Write) -> Self {
        Self { json, terminal, out, err }
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
        let _ = self.out.write_all(text.as_bytes());
        let _ = self.out.flush();
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
    use crate::exit::Exit;

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
        let mut output = Output { json: true, terminal: false, out: &mut Gone, err: &mut Gone };
        output.answer(&1, |_| String::new());
        output.note("x");
    }
}
