//! The terminal, taken over for a live picture.

use std::io;

use ratatui::crossterm::terminal::is_raw_mode_enabled;
use ratatui::{DefaultTerminal, Frame};

/// The terminal, given back on drop.
pub(super) struct Screen(Option<DefaultTerminal>);

impl Screen {
    /// Takes it over, with a panic hook that gives it back first.
    pub(super) fn take() -> io::Result<Self> {
        Ok(Self(Some(ratatui::try_init()?)))
    }

    /// Draws a frame.
    pub(super) fn draw(&mut self, frame: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        let Some(terminal) = &mut self.0 else { return Ok(()) };
        terminal.draw(frame).map(drop)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let Some(mut terminal) = self.0.take() else { return };
        if terminal.show_cursor().is_err() {
            // It hung up. Dropped, it would try again, and panic because it cannot even say so.
            std::mem::forget(terminal);
        }
        // A panic hook has done it already: a second time would put the cursor back to where it was
        // before, and the next line over what the panic said.
        if is_raw_mode_enabled().unwrap_or(true) {
            let _hung_up = ratatui::try_restore();
        }
    }
}
