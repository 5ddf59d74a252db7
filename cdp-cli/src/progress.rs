//! A bar that shows how far a long job is, how fast it goes and how long it will take.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How far a job is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// The bar of one job; nothing is drawn where nobody watches.
pub struct Meter {
    bar: ProgressBar,
}

impl Meter {
    /// A bar on stderr for what `job` names, shown if `visible`.
    #[must_use]
    pub fn new(job: &'static str, visible: bool) -> Self {
        let target = if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        let form = "{msg} [{wide_bar:.}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta} left";
        if let Ok(style) = ProgressStyle::with_template(form) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(job);
        Self { bar }
    }

    /// Shows where the job is now.
    pub fn set(&self, progress: Progress) {
        self.bar.set_length(progress.total);
        self.bar.set_position(progress.done);
    }

    /// Does what writes lines to the terminal while the bar is out of their way.
    pub fn aside<T>(&self, work: impl FnOnce() -> T) -> T {
        self.bar.suspend(work)
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// Seconds left at the present rate.
    #[must_use]
    pub fn seconds_left(&self) -> u64 {
        self.bar.eta().as_secs()
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hidden_bar_counts() {
        let meter = Meter::new("seeding", false);
        meter.set(Progress { done: 5, total: 10 });
        assert_eq!((meter.bar.position(), meter.bar.length()), (5, Some(10)));
        meter.finish();
    }
}
