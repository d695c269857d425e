//! The ladder for sockets of our own: which rung, put there, and taken off again.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use reuseport_common::abi::{Policy, Role};

use super::builder::GroupBuilder;
use super::load::Slot;
use super::members::Members;
use super::open::Opened;
use super::refusal::{Refusal, unfit};
use super::{GroupError, Notice};
use crate::bpf::pins::Descriptors;
use crate::discover::acquire::with_listener;
use crate::discover::{Look, NetnsChoice, Target};
use crate::model::{Cpu, Listener};
use crate::rungs::{self, Choice, PassedOver, Rung, Why};
use crate::steer::attach::AttachOptions;
use crate::steer::attach::own::{self, Held};
use crate::steer::change::Handshakes;
use crate::steer::{Intent, Settings, SteerError};
use crate::sys::{membarrier, netns};
use crate::topology::Topology;

/// What is in force on one address, and on whom.
#[derive(Debug)]
pub(super) struct Steered {
    pub(super) members: Members,
    /// The program, on [`Rung::Ebpf`].
    pub(super) held: Option<Held>,
    /// Slots of our listeners, in their order; none on the other rungs.
    slots: Vec<u32>,
    rung: Rung,
    /// Whether an older process serves until it is taken over from.
    waits: bool,
    /// Since connections are steered away.
    draining: Option<Draining>,
}

/// What had been on its way to our listeners when connections were steered away from them.
#[derive(Debug)]
struct Draining {
    look: Look,
    handshakes: Handshakes,
}

/// What the ladder came to.
pub(super) struct Climbed {
    pub(super) choice: Choice,
    pub(super) steered: Vec<Steered>,
    pub(super) notices: Vec<Notice>,
}

/// How to steer.
pub(super) struct Plans<'a> {
    pub(super) builder: &'a GroupBuilder,
    pub(super) topology: &'a Topology,
    /// By worker.
    pub(super) cpus: &'a [Cpu],
}

impl Plans<'_> {
    /// Puts the sockets on the best rung there is, or on the one that was demanded. `passed` is what
    /// the process before this one passed on, by address.
    pub(super) fn climb(
        &self,
        opened: &[Opened],
        passed: &dyn Fn(&Members) -> Option<Descriptors>,
    ) -> Result<Climbed, GroupError> {
        let find = |it: &Opened| Members::find(it, self.cpus, self.builder.beside_others);
        let found: Result<Vec<Members>, GroupError> = opened.iter().map(find).collect();
        let (members, unseen) = match found {
            Ok(members) => (members, None),
            // Not so on the lower rungs, which need nothing but our own sockets.
            Err(error) => {
                let unseen = |it: &Opened| Members::unseen(it, self.cpus);
                (opened.iter().map(unseen).collect::<Result<_, _>>()?, Some(error.to_string()))
            }
        };
        let mut passed_over = Vec::new();
        let demanded = self.builder.rung;
        let offered = Rung::LADDER.into_iter().filter(|&rung| demanded.is_none_or(|it| it == rung));
        for rung in offered {
            let climbed = match (rung, &unseen) {
                (Rung::Ebpf, Some(why)) => Err(Refusal::Why(Why::Untried(why.clone()))),
                (Rung::Ebpf, None) => self.attach(&members, passed),
                _ => self.set(rung, opened, &members, &passed_over).map(|()| {
                    let without = |it| Steered::new(it, None, Vec::new(), rung);
                    (members.iter().cloned().map(without).collect(), Vec::new())
                }),
            };
            match climbed {
                Ok((steered, notices)) => {
                    let choice = Choice { rung, passed_over };
                    return Ok(Climbed { choice, steered, notices });
                }
                Err(refusal) if demanded.is_some() => return Err(refusal.demanded(rung)),
                Err(refusal) => passed_over.push(PassedOver { rung, why: refusal.why() }),
            }
        }
        let why = Why::Unfit("it is no rung of the ladder".to_owned());
        Err(GroupError::Rung { rung: demanded.unwrap_or(Rung::Hash), why })
    }

    /// Attaches the program on every address, or on none.
    fn attach(
        &self,
        members: &[Members],
        passed: &dyn Fn(&Members) -> Option<Descriptors>,
    ) -> Result<(Vec<Steered>, Vec<Notice>), Refusal> {
        let mut steered: Vec<Steered> = Vec::new();
        let mut notices = Vec::new();
        for members in members {
            let passed = passed(members);
            match self.attach_one(members, passed) {
                Ok((one, more)) => {
                    steered.push(one);
                    notices.extend(more);
                }
                Err(error) => {
                    for one in &mut steered {
                        // Best effort: the failure that is told is the first.
                        let _detached = one.leave(self);
                    }
                    return Err(Refusal::Steer(error));
                }
            }
        }
        Ok((steered, notices))
    }

    fn attach_one(
        &self,
        members: &Members,
        passed: Option<Descriptors>,
    ) -> Result<(Steered, Vec<Notice>), SteerError> {
        let options = self.options(members);
        let waits = self.builder.standby && !members.older.is_empty();
        let request = if waits {
            members.request(&options, self.topology, Role::Standby, &[])
        } else {
            members.request(&options, self.topology, Role::Active, &members.older)
        };
        let (report, held) = own::attach(request, passed)?;
        let slot = |listener: &Listener| {
            let place = report.group.listeners.iter().position(|it| it.cookie == listener.cookie);
            place.and_then(|place| report.slots.get(place).copied())
        };
        let slots: Option<Vec<u32>> = members.own().iter().map(slot).collect();
        let slots = slots.ok_or(SteerError::Vanished { group: members.group.key })?;
        let steered = Steered::new(members.clone(), Some(held), slots, Rung::Ebpf);
        Ok((Steered { waits, ..steered }, report.notices))
    }

    /// Sets one of the lower rungs.
    fn set(
        &self,
        rung: Rung,
        opened: &[Opened],
        members: &[Members],
        passed_over: &[PassedOver],
    ) -> Result<(), Refusal> {
        if rung == Rung::Hash {
            return Ok(());
        }
        if self.builder.policy != Policy::Cpu {
            let policy = self.builder.policy.name();
            return Err(unfit(format!("it steers by CPU, and policy {policy} was asked for")));
        }
        if let Some(above) = passed_over.iter().find(|it| matches!(it.why, Why::Unfit(_))) {
            // Another program decides, whatever is set.
            return Err(unfit(above.why.to_string()));
        }
        if rung == Rung::ClassicBpf && members.iter().any(|it| !it.fresh) {
            return Err(unfit("others are in the group, and their order is not known".to_owned()));
        }
        rungs::probe(rung).map_err(Refusal::Why)?;
        let fds: Vec<Vec<(BorrowedFd<'_>, Option<Cpu>)>> =
            opened.iter().map(|it| self.with_cpus(it)).collect();
        for (done, fds_of_one) in fds.iter().enumerate() {
            if let Err(error) = rungs::apply(rung, fds_of_one) {
                for (fd, _) in fds[..done].iter().flatten() {
                    // Best effort: the failure that is told is the first.
                    let _removed = rungs::remove(&[*fd]);
                }
                return Err(error.into());
            }
        }
        Ok(())
    }

    fn with_cpus<'b>(&self, opened: &'b Opened) -> Vec<(BorrowedFd<'b>, Option<Cpu>)> {
        let fds = opened.sockets.iter().map(|socket| socket.as_fd());
        fds.zip(self.cpus.iter().copied().map(Some)).collect()
    }

    fn options(&self, members: &Members) -> AttachOptions {
        let address = members.group.key.address;
        let target = Target {
            port: address.port(),
            addrs: vec![address.ip()],
            netns: NetnsChoice::Path(netns::OWN.into()),
            protocol: members.group.key.protocol,
        };
        let policy = self.builder.policy;
        AttachOptions { policy, settings: self.settings(), ..AttachOptions::new(target) }
    }

    fn settings(&self) -> Settings {
        self.builder.settings()
    }
}

impl Steered {
    fn new(members: Members, held: Option<Held>, slots: Vec<u32>, rung: Rung) -> Self {
        Self { members, held, slots, rung, waits: false, draining: None }
    }

    /// Where each listener of ours publishes its load; `None` where nobody reads it.
    pub(super) fn loads(&self) -> Vec<Option<Slot>> {
        let own = self.members.own();
        let nowhere = || vec![None; own.len()];
        let Some(held) = &self.held else { return nowhere() };
        let loads = held.pinned.maps.loads();
        // Without a descriptor to spare, nothing can be accepted either.
        let Ok(sockets) = held.pinned.maps.sockets.descriptor().map(Arc::new) else {
            return nowhere();
        };
        let slot = |(listener, &index): (&Listener, &u32)| {
            let (loads, sockets) = (Arc::clone(&loads), Arc::clone(&sockets));
            Some(Slot { loads, sockets, index, cookie: listener.cookie })
        };
        own.iter().zip(&self.slots).map(slot).collect()
    }

    /// How often the program chose each of our listeners so far, by receiving CPU; `None` where none of
    /// ours is in force, or its counters cannot be read.
    #[cfg(feature = "cli")]
    pub(super) fn selections(&self) -> Option<Vec<Vec<u64>>> {
        let maps = &self.held.as_ref()?.pinned.maps;
        let of = |&slot: &u32| {
            let mut by_cpu = Vec::new();
            maps.selections(slot, &mut by_cpu).ok()?;
            Some(by_cpu)
        };
        self.slots.iter().map(of).collect()
    }

    /// Whether it was opened to take over later.
    #[cfg(feature = "tokio")]
    pub(super) fn waits(&self) -> bool {
        self.waits
    }

    /// Takes over from older processes of this program.
    pub(super) fn take_over(&mut self, plans: &Plans<'_>) -> Result<(), GroupError> {
        if self.held.is_none() {
            return Ok(());
        }
        // Who was seen then may not be looked at any more, if this process gave its privileges up.
        let mut older = self.members.older.clone();
        self.members.refresh()?;
        older.extend(&self.members.older);
        self.set_role(plans, Role::Active, &older)?;
        self.waits = false;
        Ok(())
    }

    /// Gives our listeners another part; false where no program of ours is in force.
    fn set_role(
        &mut self,
        plans: &Plans<'_>,
        role: Role,
        superseded: &[u64],
    ) -> Result<bool, GroupError> {
        let Some(held) = &mut self.held else { return Ok(false) };
        let options = plans.options(&self.members);
        let request = self.members.request(&options, plans.topology, role, superseded);
        Ok(own::set_roles(&request, held)?)
    }

    /// What our listeners and the others in the map are to get.
    fn intents(&self, settings: &Settings) -> Result<HashMap<u64, Intent>, SteerError> {
        self.held.as_ref().map_or_else(
            || Ok(HashMap::new()),
            |held| own::intents(&self.members.group.key, settings, held),
        )
    }

    fn is_ours(&self, cookie: u64) -> bool {
        self.members.own().iter().any(|listener| listener.cookie == cookie)
    }

    /// Whether others are active in our stead and said that they took over: a drain by hand may be
    /// undone, and an agent may give newer ones our place before they are ready. What cannot be seen
    /// is no reason to go.
    pub(super) fn is_superseded(&self, settings: &Settings) -> bool {
        let intents = self.intents(settings).unwrap_or_default();
        let has = |ours: bool, role: Role| {
            let mut of = intents.iter().filter(|(cookie, _)| self.is_ours(**cookie) == ours);
            of.any(|(_, intent)| intent.role == role)
        };
        has(false, Role::Active) && has(true, Role::Superseded) && !has(true, Role::Active)
    }

    /// Sends new connections to the others of the group, if there are any and the rung can.
    pub(super) fn steer_away(&mut self, plans: &Plans<'_>) -> Result<bool, GroupError> {
        self.members.refresh()?;
        let away = if self.held.is_some() {
            let shared =
                self.intents(&plans.settings())?.keys().any(|&cookie| !self.is_ours(cookie));
            shared && self.set_role(plans, Role::Drained, &[])?
        } else if self.rung == Rung::IncomingCpu && !self.members.others().is_empty() {
            self.unset()?;
            true
        } else {
            false
        };
        if away {
            // Whoever read the old table, or the old options, is done with it then.
            membarrier::wait_for_packets();
            let target = plans.options(&self.members).target;
            let mut look = Look::open(&target, &self.members.group.netns)?;
            let handshakes = Handshakes::find(&mut look)?;
            self.draining = Some(Draining { look, handshakes });
        }
        Ok(away)
    }

    /// Whether nothing waits at our listeners, or is on its way to them since before.
    pub(super) fn is_drained(&mut self) -> Result<bool, GroupError> {
        if let Some(Draining { look, handshakes }) = &mut self.draining {
            // Before the queues, for that is where they end up.
            handshakes.update(look)?;
            if handshakes.left() > 0 {
                return Ok(false);
            }
        }
        Ok(self.members.queued()? == 0)
    }

    /// Takes our listeners out of the steering; all of it off, where nobody else is steered.
    pub(super) fn leave(&mut self, plans: &Plans<'_>) -> Result<(), GroupError> {
        self.members.refresh()?;
        if self.held.is_none() {
            self.unset()?;
        } else if self.intents(&plans.settings())?.keys().any(|&cookie| !self.is_ours(cookie)) {
            self.set_role(plans, Role::Drained, &[])?;
        } else if let Some(held) = &self.held {
            let (group, settings) = (&self.members.group, plans.settings());
            if self.members.own().is_empty() {
                // The kernel took the program off with the last socket.
                own::clear(&group.key, &settings, held)?;
            } else {
                own::detach(group, &settings, held)?;
            }
        }
        // Nothing is left to take off.
        (self.held, self.rung) = (None, Rung::Hash);
        Ok(())
    }

    /// Removes what a lower rung set.
    fn unset(&self) -> Result<(), GroupError> {
        if matches!(self.rung, Rung::Ebpf | Rung::Hash) {
            return Ok(());
        }
        for listener in self.members.own() {
            match with_listener(listener, &self.members.group.key, |fd| rungs::remove(&[fd])) {
                Ok(removed) => {
                    removed.map_err(|error| GroupError::from_rung(self.rung, &error))?;
                }
                // Its worker closed it.
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(SteerError::from(error).into()),
            }
        }
        Ok(())
    }
}
