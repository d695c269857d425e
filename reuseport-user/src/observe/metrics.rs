//! Every metric: its name, its labels and what it means. Dashboards and alerts depend on them.
//!
//! A counter of a slot starts again from 0 when another listener takes the slot, which Prometheus
//! notices as a reset. A sum of such counters would fall without having been reset, and be taken for
//! a leap: so there are none here, and sums are the reader's: `sum by (group) (rate(...))`.

mod collect;
#[cfg(feature = "cli")]
mod text;

pub use collect::{Family, Sample, Value, collect};
#[cfg(feature = "cli")]
pub use text::{CONTENT_TYPE, text};

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, or starts again from 0.
    Counter,
    /// Goes up and down.
    Gauge,
    /// How long things took, by how often they took how long.
    Histogram,
}

/// One metric.
#[derive(Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it means.
    pub help: &'static str,
}

/// Declares the metrics, and the list of them all in the same order.
macro_rules! metrics {
    ($($constant:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $constant: Metric = Metric {
                name: concat!("reuseport_steer_", $name),
                kind: Kind::$kind,
                labels: &[$($label),*],
                help: $help,
            };
        )*
        /// Every metric.
        pub static ALL: &[&Metric] = &[$(&$constant),*];
    };
}

// A group is told by `group`, `netns` and `uid` together; `port` is there for queries.
metrics! {
    BUILD_INFO: Gauge "build_info" ["version", "abi"]
        "1; which version this is, and which layout of its maps it speaks.";
    GROUPS: Gauge "groups" ["state"]
        "Groups by state: steered by us; displaced (we steered it, but another program or none is attached now); unsteered; gone (pins without listeners).";
    STEERED: Gauge "steered" ["group", "port", "netns", "uid"]
        "1 if we steer the group, 0 if not.";
    RUNG: Gauge "rung" ["group", "port", "netns", "uid", "rung"]
        "1 for the mechanism that picks the group's listeners, 0 for the others; all 0 where it cannot be told.";
    STEERING_INFO: Gauge "steering_info" ["group", "port", "netns", "uid", "policy", "migration"]
        "1; how the group is steered: what a row of the table means, and whether connections of a closing listener move to another.";
    FOREIGN_PROGRAM: Gauge "foreign_program" ["group", "port", "netns", "uid"]
        "1 if a program that is not ours is attached to the group.";
    PROBLEMS: Gauge "problems" ["group", "port", "netns", "uid"]
        "Things that are wrong with the group; `reuseport-steer status` tells them.";
    PLAN_GENERATION: Gauge "plan_generation" ["group", "port", "netns", "uid"]
        "Plans that were made live since the first attach.";
    ATTACHED: Gauge "attached_timestamp_seconds" ["group", "port", "netns", "uid"]
        "When the program was attached, in seconds since the epoch.";
    SLOTS: Gauge "slots" ["group", "port", "netns", "uid"]
        "Slots of the group's map, occupied or not.";
    LISTENERS: Gauge "listeners" ["group", "port", "netns", "uid", "seated"]
        "Listeners of the group, with a slot (seated=\"true\") and without.";
    SEATS: Gauge "seats" ["group", "port", "netns", "uid", "role"]
        "Seated listeners by role: active; standby, for a newer generation or until it is ready; superseded, by its server's own word; drained by hand.";
    WORKER_INFO: Gauge "worker_info" ["group", "port", "netns", "uid", "slot", "listener", "worker", "cpus"]
        "1 for each listener; who serves it, and on which CPUs they may run. Join on group, netns, uid and listener (the socket's cookie).";
    QUEUE: Gauge "accept_queue_length" ["group", "port", "netns", "uid", "slot", "listener"]
        "Connections that wait to be accepted from the listener.";
    QUEUE_LIMIT: Gauge "accept_queue_limit" ["group", "port", "netns", "uid", "slot", "listener"]
        "Connections that may wait: the listener's backlog.";
    EVICTED: Gauge "evicted" ["group", "port", "netns", "uid", "slot", "listener"]
        "1 for a listener that an agent has taken out because its worker did not accept, so that the second choices serve its rows; 0 for the others that are seated.";
    SELECTIONS: Counter "selections_total" ["group", "port", "netns", "uid", "slot", "path"]
        "Runs of the program that selected the slot, by path: first choice; second, because the first was empty; spilled, because the first was over its limit; migrated, from a listener that closed. Not connections: with SYN cookies one takes two runs.";
    LOCAL_SELECTIONS: Counter "local_selections_total" ["group", "port", "netns", "uid", "slot"]
        "Those of a worker pinned to the CPU that received the connection, as it is pinned now. Missing where workers are not pinned or rows are no CPUs.";
    MISSES: Counter "misses_total" ["group", "port", "netns", "uid", "reason"]
        "Runs of the program that selected nothing, so that the kernel's hash decided.";
    TRACED: Counter "traced_connections_total" ["group", "port", "netns", "uid", "slot", "listener", "distance"]
        "Connections accepted from the listener, by distance of the accepting CPU from the receiving one: same CPU; sibling thread of its core; llc, sharing its last-level cache; node; remote. Only while a `trace` of the group runs, since it traces the listener.";
    // What an agent knows and did.
    AGENT_START: Gauge "agent_start_time_seconds" []
        "When the agent started, in seconds since the epoch.";
    AGENT_WATCHING: Gauge "agent_watching" ["how"]
        "1; how the agent learns of listeners that come and go: functions or tracepoint, where the kernel tells; polling, by looking often.";
    AGENT_TICKS: Counter "agent_ticks_total" []
        "Times that the agent compared what is with what is in force.";
    AGENT_TICK_FAILURES: Counter "agent_tick_failures_total" []
        "Times that it could not look at one of its targets or not put it right; its log says why.";
    AGENT_LAST_TICK: Gauge "agent_last_tick_seconds" []
        "How long the latest comparison took.";
    AGENT_UNSEEN: Gauge "agent_unseen_targets" []
        "Targets whose groups are missing here because they could not be looked at just now.";
    HEALS: Counter "heals_total" ["group", "port", "netns", "uid"]
        "Attaches, and changes of the mapping, by the agent.";
    HEAL_SECONDS: Histogram "heal_seconds" ["group", "port", "netns", "uid"]
        "From a listener that came or went to the mapping that follows from it, where the kernel told the moment.";
    SUPERSEDED: Counter "superseded_total" ["group", "port", "netns", "uid"]
        "Workers that a newer generation superseded: they stand by, and drain.";
    RESTORED: Counter "restored_total" ["group", "port", "netns", "uid"]
        "Those that got their rows back, because the newer ones died or theirs was an addition.";
    RUNG_PASSED_OVER: Gauge "rung_passed_over" ["group", "port", "netns", "uid", "rung", "why"]
        "1 for a mechanism that is better than the one in force, and why the agent did not take it: not_permitted, unsupported by the kernel, unfit for the group or not asked for, untried. Its log has the words.";
    EVICTIONS: Counter "evictions_total" ["group", "port", "netns", "uid", "cause"]
        "Workers that the agent evicted, by cause: stalled, because they accepted next to nothing of what came; full, because their accept queue was nearly full while others had room.";
    WIDENED_ROWS: Gauge "widened_rows" ["group", "port", "netns", "uid"]
        "CPUs whose connections all workers share now, because too many for their own arrive there.";
    WIDENINGS: Counter "widenings_total" ["group", "port", "netns", "uid"]
        "Rows that the agent widened so.";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_and_helps_follow_the_conventions() {
        let names: BTreeSet<_> = ALL.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), ALL.len(), "a name is given twice");
        for metric in ALL {
            let fits = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
            assert!(metric.name.bytes().all(fits), "{}", metric.name);
            assert!(metric.labels.iter().all(|it| it.bytes().all(fits)), "{}", metric.name);
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter);
            assert!(metric.help.ends_with('.'), "{}", metric.name);
        }
    }
}
