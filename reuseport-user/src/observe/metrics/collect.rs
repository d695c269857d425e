//! The values of the metrics in one snapshot.

use std::collections::{BTreeMap, BTreeSet};

use reuseport_common::abi::{ABI_VERSION, Role};
use reuseport_common::stats::{Hit, Miss};

use super::{ALL, Metric};
use crate::agent;
use crate::agent::state::{Evictions, Latency};
use crate::bpf::owner::Attached;
use crate::model::GroupKey;
use crate::observe::Snapshot;
use crate::plan::role_str;
use crate::rungs::{PassedOver, Rung};
use crate::steer::GroupStatus;
use crate::steer::status::{self, ListenerStatus, SlotCounters, Steering};
use crate::trace::Locality;

/// A metric and its values.
#[derive(Debug)]
pub struct Family {
    /// The metric.
    pub metric: &'static Metric,
    /// Its values; at least one.
    pub samples: Vec<Sample>,
}

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Values of the labels, in the order of [`Metric::labels`].
    pub labels: Vec<String>,
    /// The value.
    pub value: Value,
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of a counter or gauge.
    Number(f64),
    /// Of a histogram.
    Latency(Latency),
}

/// Every metric that has values, in the order of [`ALL`].
pub fn collect(snapshot: &Snapshot) -> Vec<Family> {
    let mut collection = Collection::default();
    let build = vec![snapshot.version.clone(), ABI_VERSION.to_string()];
    collection.put(&super::BUILD_INFO, build, 1.0);
    for state in ["steered", "displaced", "unsteered", "gone"] {
        let count = snapshot.groups.iter().filter(|group| state_of(group) == state).count();
        collection.put(&super::GROUPS, vec![state.to_owned()], count as f64);
    }
    for status in &snapshot.groups {
        OfGroup { collection: &mut collection, labels: labels(&status.group), status }.collect();
    }
    if let Some(agent) = &snapshot.agent {
        collection.put(&super::AGENT_UNSEEN, Vec::new(), snapshot.unseen.len() as f64);
        collection.agent(agent);
    }
    let mut by_name = collection.by_name;
    let family = |metric: &&'static Metric| {
        let samples = by_name.remove(metric.name)?;
        Some(Family { metric, samples })
    };
    ALL.iter().filter_map(family).collect()
}

#[derive(Default)]
struct Collection {
    by_name: BTreeMap<&'static str, Vec<Sample>>,
}

impl Collection {
    fn put(&mut self, metric: &'static Metric, labels: Vec<String>, value: f64) {
        self.put_value(metric, labels, Value::Number(value));
    }

    fn put_value(&mut self, metric: &'static Metric, labels: Vec<String>, value: Value) {
        debug_assert_eq!(labels.len(), metric.labels.len(), "{}", metric.name);
        self.by_name.entry(metric.name).or_default().push(Sample { labels, value });
    }

    fn agent(&mut self, agent: &agent::State) {
        self.put(&super::AGENT_START, Vec::new(), agent.started_at as f64);
        self.put(&super::AGENT_WATCHING, vec![agent.watching.name().to_owned()], 1.0);
        self.put(&super::AGENT_TICKS, Vec::new(), agent.ticks as f64);
        self.put(&super::AGENT_TICK_FAILURES, Vec::new(), agent.failed_ticks as f64);
        self.put(&super::AGENT_LAST_TICK, Vec::new(), agent.last_tick.as_secs_f64());
        for group in &agent.groups {
            let labels = || labels(&group.key);
            self.put(&super::HEALS, labels(), group.heals as f64);
            let latency = Value::Latency(group.latency.clone());
            self.put_value(&super::HEAL_SECONDS, labels(), latency);
            self.put(&super::SUPERSEDED, labels(), group.superseded as f64);
            self.put(&super::RESTORED, labels(), group.restored as f64);
            for PassedOver { rung, why } in group.rung.iter().flat_map(|it| &it.passed_over) {
                let more = [rung.name(), why.kind()].map(str::to_owned);
                let labels = labels().into_iter().chain(more).collect();
                self.put(&super::RUNG_PASSED_OVER, labels, 1.0);
            }
            let health = &group.health;
            let Evictions { stalled, full } = health.evictions;
            for (cause, count) in [("stalled", stalled), ("full", full)] {
                let labels = labels().into_iter().chain([cause.to_owned()]).collect();
                self.put(&super::EVICTIONS, labels, count as f64);
            }
            self.put(&super::WIDENED_ROWS, labels(), health.hot.len() as f64);
            self.put(&super::WIDENINGS, labels(), health.widenings as f64);
        }
    }
}

fn labels(key: &GroupKey) -> Vec<String> {
    let port = key.address.port();
    vec![key.to_string(), port.to_string(), key.netns.to_string(), key.uid.to_string()]
}

fn state_of(status: &GroupStatus) -> &'static str {
    match &status.steering {
        _ if status.rung.ours => "steered",
        Some(_) => "displaced",
        None if status.listeners.is_empty() => "gone",
        None => "unsteered",
    }
}

struct OfGroup<'a> {
    collection: &'a mut Collection,
    labels: Vec<String>,
    status: &'a GroupStatus,
}

impl OfGroup<'_> {
    fn put(&mut self, metric: &'static Metric, more: &[&str], value: f64) {
        let more = more.iter().map(|&label| label.to_owned());
        let labels = self.labels.iter().cloned().chain(more).collect();
        self.collection.put(metric, labels, value);
    }

    fn collect(&mut self) {
        let status = self.status;
        let flag = |is: bool| f64::from(u8::from(is));
        self.put(&super::STEERED, &[], flag(state_of(status) == "steered"));
        let program = status.steering.as_ref().map(|steering| steering.program_id);
        let foreign = match &status.attached {
            Attached::Program { id } => Some(*id) != program,
            Attached::Classic => !status.rung.ours,
            Attached::Nothing | Attached::Unknown { .. } => false,
        };
        self.put(&super::FOREIGN_PROGRAM, &[], flag(foreign));
        for rung in Rung::LADDER {
            self.put(&super::RUNG, &[rung.name()], flag(status.rung.rung == Some(rung)));
        }
        self.put(&super::PROBLEMS, &[], status.problems.len() as f64);
        for seated in [true, false] {
            let count = status.listeners.iter().filter(|it| it.slot.is_some() == seated).count();
            self.put(&super::LISTENERS, &[&seated.to_string()], count as f64);
        }
        for it in &status.listeners {
            self.listener(it);
        }
        if let Some(steering) = &status.steering {
            self.steering(steering);
        }
    }

    fn listener(&mut self, it: &ListenerStatus) {
        let listener = &it.listener;
        let slot = it.slot.map_or_else(String::new, |slot| slot.to_string());
        let cookie = listener.cookie.to_string();
        let worker = listener.served.to_string();
        let cpus = listener.cpus().to_string();
        self.put(&super::WORKER_INFO, &[&slot, &cookie, &worker, &cpus], 1.0);
        self.put(&super::QUEUE, &[&slot, &cookie], f64::from(listener.queued));
        self.put(&super::QUEUE_LIMIT, &[&slot, &cookie], f64::from(listener.backlog));
        if it.slot.is_some() {
            self.put(&super::EVICTED, &[&slot, &cookie], f64::from(u8::from(it.evicted)));
        }
        if let Some(locality) = &it.traced {
            for (distance, connections) in Locality::NAMES.into_iter().zip(locality.counts()) {
                self.put(&super::TRACED, &[&slot, &cookie, distance], connections as f64);
            }
        }
    }

    fn steering(&mut self, steering: &Steering) {
        let migration = steering.migrates.to_string();
        let how = [steering.policy.unwrap_or("unknown"), migration.as_str()];
        self.put(&super::STEERING_INFO, &how, 1.0);
        self.put(&super::PLAN_GENERATION, &[], f64::from(steering.generation));
        self.put(&super::ATTACHED, &[], steering.attached_at as f64);
        self.put(&super::SLOTS, &[], f64::from(steering.slots));
        for role in Role::ALL {
            let seated = self.status.listeners.iter().filter(|it| it.slot.is_some());
            let count = seated.filter(|it| it.role == role).count();
            self.put(&super::SEATS, &[role_str(role)], count as f64);
        }
        let it = &steering.counters;
        for (miss, runs) in Miss::ALL.into_iter().zip(it.misses()) {
            self.put(&super::MISSES, &[miss.name()], runs as f64);
        }
        let listeners = &self.status.listeners;
        // A slot that is empty is told for as long as it has counts; one that is taken, always: a
        // counter that first appears with a value above 0 hides how it got there.
        let slots: BTreeSet<u32> = it.by_slot.iter().map(|slot| slot.slot).collect();
        let seated = listeners.iter().filter_map(|it| it.slot);
        for slot in slots.into_iter().chain(seated).collect::<BTreeSet<_>>() {
            let counts = it.by_slot.iter().find(|counts| counts.slot == slot).copied();
            let counts = counts.unwrap_or(SlotCounters { slot, ..SlotCounters::default() });
            for (hit, runs) in Hit::ALL.into_iter().zip(counts.hits()) {
                self.put(&super::SELECTIONS, &[&slot.to_string(), hit.name()], runs as f64);
            }
        }
        let Some(local) = status::local(steering.policy, listeners, it.cells()) else { return };
        let mut by_slot: BTreeMap<u32, u64> =
            listeners.iter().filter_map(|it| Some((it.slot?, 0))).collect();
        for (_, slot, runs) in local {
            *by_slot.entry(slot).or_default() += runs;
        }
        for (slot, runs) in by_slot {
            self.put(&super::LOCAL_SELECTIONS, &[&slot.to_string()], runs as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::super::test::{agent, counted, group, listener, snapshot};
    use super::*;
    use crate::model::Served;

    /// Steered, displaced and unsteered, each in a namespace of its own.
    fn everything() -> Snapshot {
        let seated = || vec![listener(10, Some(0), 0), listener(11, Some(1), 1)];
        let steered = counted(group(seated()), &[(0, 0, 70), (0, 1, 10), (1, 1, 20)]);
        let mut displaced = group(seated());
        displaced.group.netns = 43;
        displaced.steering.as_mut().unwrap().in_force = false;
        displaced.attached = Attached::Program { id: 99 };
        displaced.rung.ours = false;
        displaced.listeners[0].role = Role::Standby;
        displaced.listeners[1].evicted = true;
        displaced.listeners[1].traced = Some(Locality { same: 7, node: 2, ..Locality::default() });
        let mut unsteered = group(vec![listener(20, None, 0), listener(21, None, 1)]);
        unsteered.group.netns = 44;
        (unsteered.steering, unsteered.attached) = (None, Attached::Nothing);
        (unsteered.rung.rung, unsteered.rung.ours) = (Some(Rung::Hash), false);
        let mut snapshot = snapshot(1, vec![steered, displaced, unsteered]);
        snapshot.agent = Some(agent());
        snapshot
    }

    fn value(families: &[Family], name: &str, labels: &[&str]) -> Option<f64> {
        let name = format!("reuseport_steer_{name}");
        let family = families.iter().find(|family| family.metric.name == name)?;
        let found = family.samples.iter().find(|it| {
            labels.iter().all(|&label| {
                let (name, value) = label.split_once('=').unwrap();
                let place = family.metric.labels.iter().position(|it| *it == name).unwrap();
                it.labels[place] == value
            })
        });
        found.map(|sample| match sample.value {
            Value::Number(value) => value,
            Value::Latency(_) => panic!("{name} is a histogram"),
        })
    }

    #[test]
    fn every_metric_is_told_and_no_series_twice() {
        let families = collect(&everything());
        let told: Vec<_> = families.iter().map(|family| family.metric.name).collect();
        assert_eq!(told, ALL.iter().map(|metric| metric.name).collect::<Vec<_>>());
        for Family { metric, samples } in &families {
            assert!(!samples.is_empty(), "{}", metric.name);
            let labels: HashSet<_> = samples.iter().map(|sample| &sample.labels).collect();
            assert_eq!(labels.len(), samples.len(), "{}", metric.name);
            assert!(labels.iter().all(|it| it.len() == metric.labels.len()), "{}", metric.name);
        }
    }

    #[test]
    fn values_are_those_of_the_snapshot() {
        let families = collect(&everything());
        let value = |name: &str, labels: &[&str]| value(&families, name, labels);
        for (state, count) in
            [("steered", 1.0), ("displaced", 1.0), ("unsteered", 1.0), ("gone", 0.0)]
        {
            assert_eq!(value("groups", &[&format!("state={state}")]), Some(count), "{state}");
        }
        let by = |slot: &str, path: &str| {
            value(
                "selections_total",
                &["netns=42", &format!("slot={slot}"), &format!("path={path}")],
            )
        };
        assert_eq!((by("0", "first"), by("1", "first")), (Some(70.0), Some(30.0)));
        assert_eq!((by("0", "spilled"), by("2", "first")), (Some(0.0), None));
        let local = |slot: &str| value("local_selections_total", &["netns=42", slot]);
        assert_eq!((local("slot=0"), local("slot=1")), (Some(70.0), Some(20.0)));
        // Seated, and nothing came yet.
        assert_eq!(value("selections_total", &["netns=43", "slot=1", "path=first"]), Some(0.0));
        let of = |name: &str, netns: &str| value(name, &[netns]);
        assert_eq!(
            (of("steered", "netns=42"), of("foreign_program", "netns=42")),
            (Some(1.0), Some(0.0))
        );
        assert_eq!(
            (of("steered", "netns=43"), of("foreign_program", "netns=43")),
            (Some(0.0), Some(1.0))
        );
        assert_eq!((of("steered", "netns=44"), of("slots", "netns=44")), (Some(0.0), None));
        assert_eq!(value("listeners", &["netns=44", "seated=false"]), Some(2.0));
        assert_eq!(value("accept_queue_length", &["netns=44", "listener=21"]), Some(3.0));
        let info =
            ["group=tcp 127.0.0.1:8080", "port=8080", "uid=1000", "worker=worker 11", "cpus=1"];
        assert_eq!(value("worker_info", &info), Some(1.0));
        let roles =
            ["active", "standby", "drained", "superseded"].map(|role| format!("role={role}"));
        let seats = roles.map(|role| value("seats", &["netns=43", &role]));
        assert_eq!(seats, [Some(1.0), Some(1.0), Some(0.0), Some(0.0)]);
        assert_eq!(value("rung", &["netns=42", "rung=ebpf"]), Some(1.0));
        assert_eq!(value("rung", &["netns=44", "rung=ebpf"]), Some(0.0));
        assert_eq!(value("rung", &["netns=44", "rung=hash"]), Some(1.0));
        let evicted = |slot: &str| value("evicted", &["netns=43", slot]);
        assert_eq!((evicted("slot=0"), evicted("slot=1")), (Some(0.0), Some(1.0)));
        assert_eq!(value("evicted", &["netns=44"]), None);
        let traced = |distance: &str| {
            value("traced_connections_total", &["listener=11", &format!("distance={distance}")])
        };
        let distances = Locality::NAMES.map(traced);
        assert_eq!(distances, [7.0, 0.0, 0.0, 2.0, 0.0].map(Some));
        assert_eq!(value("traced_connections_total", &["netns=43", "listener=10"]), None);
        let passed_over = ["rung=ebpf", "why=not_permitted"];
        assert_eq!(value("rung_passed_over", &passed_over), Some(1.0));
        let evictions = |cause: &str| value("evictions_total", &[cause]);
        assert_eq!((evictions("cause=stalled"), evictions("cause=full")), (Some(2.0), Some(1.0)));
        assert_eq!(
            (value("widened_rows", &[]), value("widenings_total", &[])),
            (Some(1.0), Some(4.0))
        );
        assert_eq!(value("agent_ticks_total", &[]), Some(17.0));
        assert_eq!(value("agent_watching", &["how=functions"]), Some(1.0));
    }

    #[test]
    fn workers_that_are_not_pinned_have_no_locality() {
        let mut floating = everything();
        let Served::By(workers) = &mut floating.groups[0].listeners[0].listener.served else {
            unreachable!()
        };
        workers[0].cpus.insert(1);
        assert_eq!(value(&collect(&floating), "local_selections_total", &["netns=42"]), None);
    }
}
