//! Shows how far a long list has come, on standard error.

use std::io::{IsTerminal, stderr};

use indicatif::{ProgressBar, ProgressStyle};

/// Shorter lists are done before anyone wonders.
const LONG_LIST: usize = 100;

/// A bar on a terminal, a line for each tenth elsewhere, or nothing.
pub(crate) enum Progress {
    Silent,
    Bar(ProgressBar),
    Lines {
        /// Tenths reported so far.
        n_tenths: usize,
    },
}

impl Progress {
    /// For a list of `n_places`; `asked_for` shows it whatever the length.
    pub(crate) fn new(n_places: usize, asked_for: bool) -> Progress {
        let terminal = stderr().is_terminal();
        if terminal && (asked_for || n_places > LONG_LIST) {
            let style = ProgressStyle::with_template(
                "{wide_bar} {human_pos}/{human_len} places, {eta} left",
            );
            let bar = ProgressBar::new(n_places as u64);
            Progress::Bar(match style {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            })
        } else if asked_for {
            Progress::Lines { n_tenths: 0 }
        } else {
            Progress::Silent
        }
    }

    /// Shows that `n_done` of `n_places` are done.
    pub(crate) fn show(&mut self, n_done: usize, n_places: usize) {
        match self {
            Progress::Silent => {}
            Progress::Bar(bar) => bar.set_position(n_done as u64),
            Progress::Lines { n_tenths } => {
                let now = n_done * 10 / n_places.max(1);
                if now > *n_tenths {
                    *n_tenths = now;
                    eprintln!("{n_done}/{n_places} places");
                }
            }
        }
    }

    /// Takes the bar away, so that the results follow on a clean line.
    pub(crate) fn finish(&self) {
        if let Progress::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}
