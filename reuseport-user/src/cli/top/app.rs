//! What `top` shows, and how keys change it. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use crate::model::GroupKey;
use crate::observe::{Rates, Snapshot, changes};

/// Events that are remembered.
const EVENTS: usize = 256;

/// Everything there is to show.
pub(super) struct App {
    pub(super) interval: Duration,
    /// Where it looks.
    pub(super) source: String,
    /// What was seen last.
    pub(super) latest: Snapshot,
    /// What happened since the look before; `None` until there were two.
    pub(super) rates: Option<Rates>,
    /// What was seen to happen, the latest last; an agent's own events are in the snapshot.
    pub(super) events: VecDeque<Happening>,
    /// Why the last look failed.
    pub(super) error: Option<String>,
    pub(super) paused: bool,
    pub(super) sort: Sort,
    pub(super) reverse: bool,
    /// First line of the body that is shown.
    pub(super) scroll: usize,
    /// Lines that can be scrolled by, and lines of a page: as last drawn.
    pub(super) extent: (usize, usize),
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Happening {
    /// Seconds since the epoch.
    pub(super) at: u64,
    pub(super) group: Option<GroupKey>,
    pub(super) what: String,
}

/// What is to become of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Stay,
    Quit,
}

/// What workers are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    Slot,
    Worker,
    Queue,
    Rate,
    Total,
}

impl Sort {
    /// In the order of the columns.
    pub(super) const ALL: [Self; 5] =
        [Self::Slot, Self::Worker, Self::Queue, Self::Rate, Self::Total];

    /// The column `by` columns further right.
    fn shift(self, by: isize) -> Self {
        let place = Self::ALL.iter().position(|&it| it == self).unwrap_or_default();
        Self::ALL[(place as isize + by).rem_euclid(Self::ALL.len() as isize) as usize]
    }
}

impl App {
    pub(super) fn new(interval: Duration, source: String, first: Snapshot) -> Self {
        Self {
            interval,
            source,
            latest: first,
            rates: None,
            events: VecDeque::new(),
            error: None,
            paused: false,
            sort: Sort::Slot,
            reverse: false,
            scroll: 0,
            extent: (0, 0),
        }
    }

    /// Takes note of another look.
    pub(super) fn sample(&mut self, sample: Result<Snapshot, String>) {
        if self.paused {
            return;
        }
        let later = match sample {
            Ok(later) => later,
            Err(error) => {
                self.error = Some(error);
                return;
            }
        };
        self.error = None;
        if later.clock == self.latest.clock {
            // An agent that is asked more often than it looks.
            return;
        }
        self.rates = Rates::between(&self.latest, &later);
        for change in changes(&self.latest, &later) {
            if self.events.len() == EVENTS {
                self.events.pop_front();
            }
            let (at, group) = (later.taken_at, Some(change.group));
            self.events.push_back(Happening { at, group, what: change.what });
        }
        self.latest = later;
    }

    /// What happened, the latest first: as an agent tells it where there is one.
    pub(super) fn happenings(&self) -> Vec<Happening> {
        match &self.latest.agent {
            Some(agent) => {
                let told = agent.events.iter().rev().map(|it| Happening {
                    at: it.at / 1_000_000,
                    group: it.group,
                    what: it.what.clone(),
                });
                told.collect()
            }
            None => self.events.iter().rev().cloned().collect(),
        }
    }

    pub(super) fn event(&mut self, event: &Event) -> Wish {
        match event {
            Event::Key(key) if key.kind != KeyEventKind::Release => self.key(*key),
            // Another size takes nothing but another frame.
            _ => Wish::Stay,
        }
    }

    fn key(&mut self, key: KeyEvent) -> Wish {
        let (most, page) = self.extent;
        match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                return Wish::Quit;
            }
            KeyCode::Char('q') | KeyCode::Esc => return Wish::Quit,
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Char('r') => self.reverse = !self.reverse,
            KeyCode::Left => self.sort = self.sort.shift(-1),
            KeyCode::Right => self.sort = self.sort.shift(1),
            KeyCode::Up => self.scroll = self.scroll.saturating_sub(1),
            KeyCode::Down => self.scroll += 1,
            KeyCode::PageUp => self.scroll = self.scroll.saturating_sub(page),
            KeyCode::PageDown => self.scroll += page,
            KeyCode::Home => self.scroll = 0,
            KeyCode::End => self.scroll = most,
            _ => {}
        }
        self.scroll = self.scroll.min(most);
        Wish::Stay
    }
}
