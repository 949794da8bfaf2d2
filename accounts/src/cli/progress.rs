//! Steps as they happen: a spinner on a terminal, a line each elsewhere. Always on standard error.

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Shows what is being done.
pub(super) struct Progress {
    bar: ProgressBar,
    started: Instant,
    is_quiet: Cell<bool>,
    last: RefCell<String>,
}

impl Progress {
    /// Shows every step from the first one on.
    pub(super) fn new() -> Self {
        let progress = Self::quiet();
        progress.speak();
        progress
    }

    /// Shows nothing until it is told to [`Progress::speak`].
    pub(super) fn quiet() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
            bar.set_style(style);
        }
        Self { bar, started: Instant::now(), is_quiet: Cell::new(true), last: RefCell::default() }
    }

    /// From here on steps are shown, the one under way first.
    pub(super) fn speak(&self) {
        self.is_quiet.set(false);
        self.bar.set_draw_target(ProgressDrawTarget::stderr());
        self.bar.enable_steady_tick(Duration::from_millis(100));
        let last = self.last.borrow().clone();
        if !last.is_empty() {
            self.say(&last);
        }
    }

    pub(super) fn say(&self, step: &str) {
        step.clone_into(&mut self.last.borrow_mut());
        if self.is_quiet.get() {
            return;
        }
        if self.bar.is_hidden() {
            let _ = writeln!(std::io::stderr(), "[{:5.1}s] {step}", self.started.elapsed().as_secs_f32());
        } else {
            self.bar.set_message(step.to_owned());
        }
    }

    pub(super) fn note(&self, note: &str) {
        if self.bar.is_hidden() {
            let _ = writeln!(std::io::stderr(), "note: {note}");
        } else {
            self.bar.println(format!("note: {note}"));
        }
    }

    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
