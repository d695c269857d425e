//! What each listener is to get, kept beside the table in the pins.
//!
//! An intent is written before the plan that follows from it: whoever is killed in between leaves it
//! to the next plan.

use std::collections::HashMap;

use reuseport_common::abi::{NO_CPU, Role, SeatState};

use crate::bpf::BpfError;
use crate::bpf::maps::Maps;
use crate::model::Cpu;
use crate::plan::{NORMAL_WEIGHT, Plan};

use super::draft::Change;
use super::fill::Slots;

/// What a listener is to get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intent {
    /// Percent of a normal share.
    pub weight: u32,
    /// What part it takes.
    pub role: Role,
    /// The CPU that the last plan counted it on. It says nothing about what is wanted; it is what to
    /// go by where it cannot be seen who serves the listener.
    pub home: Option<Cpu>,
}

impl Default for Intent {
    fn default() -> Self {
        Self { weight: NORMAL_WEIGHT, role: Role::Active, home: None }
    }
}

impl Intent {
    /// What `state` says of the socket with this cookie.
    pub(crate) fn of(state: &SeatState, cookie: u64) -> Self {
        if state.cookie != cookie {
            return Self::default();
        }
        let role = Role::from_u32(state.role).unwrap_or_default();
        Self { weight: state.weight, role, home: Some(state.home).filter(|&home| home != NO_CPU) }
    }
}

/// Intents by cookie; of whom nothing is said, the default holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Intents(HashMap<u64, Intent>);

impl Intents {
    /// What the pins say of the sockets in the map.
    pub(crate) fn read(maps: &Maps) -> Result<Self, BpfError> {
        let cookies = maps.sockets.cookies()?;
        let seated = cookies.into_iter().zip(maps.seats()?);
        Ok(Self(seated.filter_map(|(it, state)| Some((it?, Intent::of(&state, it?)))).collect()))
    }

    /// By cookie.
    pub(super) fn into_map(self) -> HashMap<u64, Intent> {
        self.0
    }

    /// What the listener with this cookie is to get.
    pub(crate) fn get(&self, cookie: u64) -> Intent {
        self.0.get(&cookie).copied().unwrap_or_default()
    }

    /// Changes what `change` names.
    pub(super) fn change(&mut self, change: &Change) {
        for (&cookie, &weight) in &change.weights {
            self.0.entry(cookie).or_default().weight = weight;
        }
        for (&cookie, &role) in &change.roles {
            self.0.entry(cookie).or_default().role = role;
        }
    }

    /// As if the last plan had counted it there.
    #[cfg(test)]
    pub(super) fn remember(&mut self, cookie: u64, home: Cpu) {
        self.0.entry(cookie).or_default().home = Some(home);
    }

    /// Writes what the pins do not say yet of the listeners in `slots`, with the homes that `plan`
    /// gives them.
    pub(super) fn write(
        &self,
        maps: &mut Maps,
        slots: &Slots,
        plan: &Plan,
    ) -> Result<(), BpfError> {
        let seats = maps.seats()?;
        let homes: HashMap<u32, Cpu> =
            plan.seats.iter().filter_map(|seat| Some((seat.slot, seat.home?))).collect();
        for (&cookie, &slot) in slots {
            let intent = self.get(cookie);
            let intent = Intent { home: homes.get(&slot).copied().or(intent.home), ..intent };
            if seats.get(slot as usize).is_none_or(|it| Intent::of(it, cookie) != intent) {
                let Intent { weight, role, home } = intent;
                let (role, home) = (role as u32, home.unwrap_or(NO_CPU));
                maps.set_seat(slot, SeatState { cookie, weight, role, home, padding: 0 })?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_of_another_socket_is_forgotten() {
        let role = Role::Drained;
        let state = SeatState { cookie: 7, weight: 25, role: role as u32, home: 3, padding: 0 };
        assert_eq!(Intent::of(&state, 7), Intent { weight: 25, role, home: Some(3) });
        assert_eq!(Intent::of(&SeatState { home: NO_CPU, ..state }, 7).home, None);
        assert_eq!(Intent::of(&state, 8), Intent::default());
        assert_eq!(Intent::of(&SeatState::default(), 8), Intent::default());
        // A later version's role is none that this one knows.
        let unknown = SeatState { role: 99, ..state };
        assert_eq!(Intent::of(&unknown, 7).role, Role::Active);
    }
}
