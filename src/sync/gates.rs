//! The readiness gates `lictor.io/registered` of pods: which wait, and when which is written.
//!
//! A pod that was let through stays so: it is forgotten here as soon as the API server shows that. So what
//! is kept is in proportion to the pods that wait.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::report::Report;
use crate::desired::index::Index;
use crate::desired::index::gate::Awaited;
use crate::desired::table::ObjectName;
use crate::k8s::{Change, EventReason, ObjectStatus, StatusUpdate, WatchEvent};
use crate::model::facts::{GateCondition, PodFacts};
use crate::model::key::Key;
use crate::model::owner::{Owner, OwnerKind};
use crate::model::text::Text;
use crate::status::gate;

/// How long what passes by itself may take before it is told: most pods then get one write, the last.
const LAG: Duration = Duration::from_secs(2);
/// The least time between two Events about gates that nobody writes.
const PAUSE: Duration = Duration::from_secs(1);

/// The pods whose gates are not open.
#[derive(Debug, Default)]
pub struct Gates {
    /// Whether they are written (`--readiness-gate`).
    on: bool,
    waiting: BTreeMap<ObjectName, Waiting>,
    /// Those that may have to be told something else.
    changed: BTreeSet<ObjectName>,
    /// Those of which what there is to tell may pass by itself, and until when that is waited for.
    late: BTreeMap<ObjectName, Instant>,
    /// Those that are to hear that nobody writes their gates.
    untold: BTreeSet<ObjectName>,
    not_before: Option<Instant>,
    warned: bool,
    /// Those for which something was sent that need not be written any more.
    dropped: Vec<ObjectName>,
}

#[derive(Debug)]
struct Waiting {
    uid: Text,
    /// What the pod shows, or was sent.
    known: Option<GateCondition>,
    sent: bool,
}

impl Gates {
    /// Gates that are written only if this is `on`.
    #[must_use]
    pub fn new(on: bool) -> Self {
        Self {
            on,
            ..Self::default()
        }
    }

    /// How many pods wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// What an event of Kubernetes means for gates.
    pub(super) fn hear(&mut self, change: &Change) {
        match change {
            Change::Pod(event) => match event {
                WatchEvent::Applied(pod) => self.see(pod),
                WatchEvent::Page(page) => page.iter().for_each(|pod| self.see(pod)),
                WatchEvent::Deleted { object, .. } => self.drop(&name_of(object)),
                // What the list did not bring is gone.
                WatchEvent::Listed { .. } => self.look_again(),
                _ => {}
            },
            Change::Registration(event) => match event {
                WatchEvent::Deleted { object, .. } => self.look_again_in(&object.namespace),
                WatchEvent::Listed { .. } => self.look_again(),
                _ => {}
            },
            _ => {}
        }
    }

    fn see(&mut self, pod: &PodFacts) {
        let name = name_of(pod);
        let Some(gate) = &pod.gate else {
            return self.drop(&name);
        };
        if gate.is_open() || pod.deleting {
            return self.drop(&name);
        }
        let known = self.waiting.get(&name);
        let known = known.filter(|known| known.uid == pod.uid);
        // What was let through is let through, whatever an older state of the pod shows.
        let is_opening = known.is_some_and(|known| {
            let condition = known.known.as_ref();
            condition.is_some_and(|condition| condition.open)
        });
        if is_opening {
            return;
        }
        if known.is_none() && !self.on {
            self.untold.insert(name.clone());
        }
        let waiting = Waiting {
            uid: pod.uid.clone(),
            known: gate.shown.clone(),
            sent: known.is_some_and(|known| known.sent),
        };
        self.waiting.insert(name.clone(), waiting);
        self.changed.insert(name);
    }

    fn drop(&mut self, name: &ObjectName) {
        let Some(waiting) = self.waiting.remove(name) else {
            return;
        };
        self.changed.remove(name);
        self.late.remove(name);
        self.untold.remove(name);
        if waiting.sent {
            self.dropped.push(name.clone());
        }
    }

    /// What the pod was sent last was not written.
    pub(super) fn unsent(&mut self, name: ObjectName) {
        if let Some(waiting) = self.waiting.get_mut(&name) {
            waiting.known = None;
            self.changed.insert(name);
        }
    }

    /// How an instance stands may have changed.
    pub(super) fn touch(&mut self, key: &Key) {
        if self.waiting.is_empty() {
            return;
        }
        let Key::Instance(key) = key else {
            return;
        };
        if let Some((namespace, name)) = key.id.object() {
            let name = (namespace.into(), name.into());
            if self.waiting.contains_key(&name) {
                self.changed.insert(name);
            }
        }
    }

    fn look_again(&mut self) {
        self.changed.extend(self.waiting.keys().cloned());
    }

    /// A registration in this namespace changed. One that selects pods and is paused has no keys to show
    /// that by.
    pub(super) fn look_again_in(&mut self, namespace: &Text) {
        if self.waiting.is_empty() {
            return;
        }
        let from = (namespace.clone(), Text::from(""));
        let names = self.waiting.range(from..).map(|(name, _)| name);
        let names = names.take_while(|(of, _)| of == namespace);
        self.changed.extend(names.cloned());
    }

    /// When there is something to tell without an event.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let late = self.late.values().min().copied();
        let told = self.not_before.filter(|_| !self.untold.is_empty());
        late.into_iter().chain(told).min()
    }
}

fn name_of(pod: &PodFacts) -> ObjectName {
    (pod.namespace.clone(), pod.name.clone())
}

impl Report {
    /// Sends what changed in the gates of pods; only for a process that may write to Consul, since nobody
    /// else knows what it holds.
    ///
    /// `is_due` says whether a key is to be planned or written, `outage` why Consul takes no writes, if it
    /// does not.
    pub(super) fn flush_gates(
        &mut self,
        index: &Index,
        is_due: &dyn Fn(&Key) -> bool,
        outage: Option<&str>,
        now: Instant,
    ) {
        for (namespace, name) in std::mem::take(&mut self.gates.dropped) {
            self.statuses.forget(OwnerKind::Pod, &namespace, &name);
        }
        let due = self.gates.late.iter().filter(|(_, at)| **at <= now);
        let due: Vec<ObjectName> = due.map(|(name, _)| name.clone()).collect();
        let mut names = std::mem::take(&mut self.gates.changed);
        names.extend(due);
        for name in names {
            self.flush_gate(name, index, is_due, outage, now);
        }
        self.tell_of_gates_that_are_off(index, now);
        let waiting = i64::try_from(self.gates.waiting()).unwrap_or(i64::MAX);
        self.metrics.gates_waiting.set(waiting);
    }

    fn flush_gate(
        &mut self,
        name: ObjectName,
        index: &Index,
        is_due: &dyn Fn(&Key) -> bool,
        outage: Option<&str>,
        now: Instant,
    ) {
        let Some((pod, awaited)) = index.awaited(&name.0, &name.1) else {
            return self.gates.drop(&name);
        };
        let Some(gate) = gate::derive(&awaited, self.board(), is_due, outage) else {
            return self.gates.drop(&name);
        };
        let gates = &mut self.gates;
        let Some(waiting) = gates.waiting.get_mut(&name) else {
            return;
        };
        let is_opening = waiting.known.as_ref().is_some_and(|known| known.open);
        if !gates.on || waiting.uid != pod.uid || is_opening {
            return;
        }
        let known = waiting.known.as_ref();
        if known.is_some_and(|known| gate.says_no_more_than(known)) {
            gates.late.remove(&name);
            return;
        }
        if gate.passes && *gates.late.entry(name.clone()).or_insert(now + LAG) > now {
            return;
        }
        gates.late.remove(&name);
        let GateCondition {
            open,
            reason,
            message,
        } = &gate.condition;
        tracing::info!(
            namespace = &*name.0,
            pod = &*name.1,
            open,
            reason = &**reason,
            "readiness gate: {message}"
        );
        waiting.known = Some(gate.condition.clone());
        waiting.sent = true;
        let (namespace, name) = name;
        self.statuses.send(StatusUpdate {
            namespace,
            name,
            uid: waiting.uid.clone(),
            status: ObjectStatus::Pod(gate.condition),
        });
    }

    /// Tells one pod at a time that nobody writes its gate: there may be thousands.
    fn tell_of_gates_that_are_off(&mut self, index: &Index, now: Instant) {
        const WHY: &str = "Lictor runs without --readiness-gate (chart: readinessGate), so that nobody \
                           sets the readiness gate lictor.io/registered and the pod does not become \
                           ready: turn it on, or remove the gate from the pod";
        let gates = &mut self.gates;
        if gates.not_before.is_some_and(|at| at > now) {
            return;
        }
        while let Some(name) = gates.untold.pop_first() {
            let awaited = index.awaited(&name.0, &name.1);
            let Some((pod, _)) = awaited.filter(|(_, awaited)| *awaited != Awaited::Nothing) else {
                continue;
            };
            gates.not_before = Some(now + PAUSE);
            if !std::mem::replace(&mut gates.warned, true) {
                tracing::warn!(namespace = &*name.0, pod = &*name.1, "{WHY}");
            }
            let about = Owner::pod(&name.0, &name.1);
            self.event(
                &about,
                Some(&pod.uid),
                EventReason::GateNotWritten,
                WHY.to_owned(),
            );
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::fixtures::pod;
    use crate::model::facts::GateFacts;

    fn gated(name: &str, uid: &str, open: Option<bool>) -> PodFacts {
        let shown = open.map(|open| GateCondition {
            open,
            reason: "".into(),
            message: "".into(),
        });
        let gate = GateFacts {
            closed: Box::default(),
            shown,
        };
        let change = |pod: &mut PodFacts| {
            pod.uid = uid.into();
            pod.gate = Some(Box::new(gate));
        };
        pod(name).change(change).facts()
    }

    fn applied(pod: PodFacts) -> Change {
        Change::Pod(WatchEvent::Applied(pod))
    }

    fn name() -> ObjectName {
        ("shop".into(), "p".into())
    }

    #[test]
    fn only_pods_whose_gates_are_not_open_are_kept() {
        let mut gates = Gates::new(true);
        gates.hear(&applied(pod("other").facts()));
        gates.hear(&applied(gated("q", "1", Some(true))));
        assert_eq!(gates.waiting(), 0);
        gates.hear(&applied(gated("p", "1", None)));
        gates.hear(&applied(gated("q", "1", Some(false))));
        assert_eq!(gates.waiting(), 2);
        gates.hear(&applied(gated("p", "1", Some(true))));
        let mut ends = gated("q", "1", Some(false));
        ends.deleting = true;
        gates.hear(&applied(ends));
        assert_eq!(gates.waiting(), 0);
        assert!(gates.changed.is_empty());
    }

    #[test]
    fn an_older_state_of_the_pod_does_not_set_it_back_and_another_pod_does() {
        let mut gates = Gates::new(true);
        gates.hear(&applied(gated("p", "1", None)));
        let open = GateCondition {
            open: true,
            reason: "".into(),
            message: "".into(),
        };
        let waiting = gates.waiting.get_mut(&name()).unwrap();
        waiting.known = Some(open.clone());
        gates.hear(&applied(gated("p", "1", Some(false))));
        assert_eq!(gates.waiting[&name()].known, Some(open));
        gates.hear(&applied(gated("p", "2", None)));
        assert_eq!(gates.waiting[&name()].known, None);
    }

    #[test]
    fn what_was_sent_is_called_back_with_the_pod() {
        let mut gates = Gates::new(true);
        gates.hear(&applied(gated("p", "1", None)));
        gates.waiting.get_mut(&name()).unwrap().sent = true;
        gates.hear(&Change::Pod(WatchEvent::Deleted {
            object: gated("p", "1", None),
            by_itself: true,
        }));
        assert_eq!(gates.dropped, [name()]);
    }
}
