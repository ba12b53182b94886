//! The condition `lictor.io/registered` of pods that have it as a readiness gate.

use super::board::{Board, Reason, Standing, beside};
use crate::api::conditions::cut;
use crate::desired::index::gate::{Awaited, AwaitedInstance, Kept};
use crate::model::facts::{GateCondition, GateFacts};
use crate::model::key::Key;

/// `reason` of one that is True.
const REGISTERED: &str = "Registered";

/// How the gate of a pod is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    /// The condition.
    pub condition: GateCondition,
    /// Whether it may be another in a moment, without anybody doing anything.
    pub passes: bool,
}

impl Gate {
    /// Whether a pod that is told this, or was, need not be told anew. An outage has many words.
    #[must_use]
    pub fn says_no_more_than(&self, known: &GateCondition) -> bool {
        let GateCondition { open, reason, .. } = &self.condition;
        let outage = !open && **reason == *Reason::ConsulUnavailable.as_str();
        self.condition == *known || (outage && !known.open && known.reason == *reason)
    }
}

/// Derives it from what the pod waits for; `None` where it is to be left alone.
///
/// `is_due` says whether a key is to be planned or written: then how it stands is not known yet. `outage` is
/// why Consul takes no writes, if it does not.
#[must_use]
pub fn derive(
    awaited: &Awaited,
    board: &Board,
    is_due: &dyn Fn(&Key) -> bool,
    outage: Option<&str>,
) -> Option<Gate> {
    let closed = |reason: &str, message: String, passes| Gate {
        condition: GateCondition {
            open: false,
            reason: reason.into(),
            message: cut(message, GateFacts::MESSAGE_BYTES).into(),
        },
        passes,
    };
    Some(match awaited {
        Awaited::Nothing => return None,
        Awaited::Invalid(problems) => {
            closed(reason_of(Reason::Invalid), problems.join("; "), false)
        }
        Awaited::Pending(why) => closed("Pending", format!("waiting: {why}"), true),
        Awaited::Unclaimed => {
            let message = "nothing registers the pod: give it the annotation lictor.io/service, have a \
                           ServiceRegistration select it, or remove its readiness gate";
            closed("NotClaimed", message.to_owned(), false)
        }
        Awaited::Instances(instances) => {
            let troubles = instances
                .iter()
                .filter_map(|one| trouble(one, board, is_due));
            let troubles: Vec<(Reason, String)> = troubles.collect();
            match troubles.iter().min_by_key(|(reason, _)| *reason) {
                None => Gate {
                    condition: GateCondition {
                        open: true,
                        reason: REGISTERED.into(),
                        message: registered(instances).into(),
                    },
                    passes: false,
                },
                Some((reason, message)) => {
                    let (reason, message) = match (reason, outage) {
                        (Reason::Writing, Some(outage)) => (Reason::ConsulUnavailable, outage),
                        _ => (*reason, &**message),
                    };
                    let message = beside(message, troubles.len() - 1);
                    closed(reason_of(reason), message, reason.is_transient())
                }
            }
        }
    })
}

fn registered(instances: &[AwaitedInstance]) -> String {
    match instances {
        [one] => format!("Consul has {}", one.key),
        many => format!("Consul has all {} instances of the pod", many.len()),
    }
}

/// Why Consul does not have an instance as it is to be, if it does not.
fn trouble(
    awaited: &AwaitedInstance,
    board: &Board,
    is_due: &dyn Fn(&Key) -> bool,
) -> Option<(Reason, String)> {
    let AwaitedInstance { key, kept } = awaited;
    let full_key = Key::Instance(key.clone());
    let writing = || {
        let message = format!("{key} is being written to Consul");
        (Reason::Writing, message)
    };
    // The first is the one that holds it: those that claim it too have nothing to do with the pod.
    let standing = board.standings(&full_key).first();
    let standing = standing.map(|(_, standing)| standing);
    let trouble = standing.and_then(|standing| standing.trouble.as_ref());
    let is_there = |standing: &Standing| standing.claimed && standing.registered.is_some();
    let is_good = |standing: &&Standing| match standing.trouble.as_ref().map(|it| it.reason) {
        // What is paused follows its pod.
        None | Some(Reason::Paused) => true,
        // These are of the session of a check, and of a removal: Consul has the instance.
        Some(Reason::ConsulRefused | Reason::AccessDenied | Reason::Held) => standing.settled,
        Some(_) => false,
    };
    if standing.filter(is_good).is_some_and(is_there) {
        return is_due(&full_key).then(writing);
    }
    if let Some(trouble) = trouble {
        return Some((trouble.reason, trouble.message.clone()));
    }
    Some(match kept {
        None => writing(),
        Some(Kept::Paused(who)) => (
            Reason::Paused,
            format!(
                "{key} is not registered: {who} is held by the annotation lictor.io/paused: remove it"
            ),
        ),
        Some(Kept::Invalid(what)) => (Reason::Invalid, format!("{key} is not registered: {what}")),
    })
}

/// As Events have it, where they and conditions of our own kinds differ.
fn reason_of(reason: Reason) -> &'static str {
    match reason {
        Reason::Invalid => "InvalidAnnotation",
        other => other.as_str(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::entry::Health;
    use crate::model::key::InstanceKey;
    use crate::model::names::{InstanceId, NodeName};
    use crate::model::owner::Owner;
    use crate::status::board::Trouble;

    fn key(service: &str) -> InstanceKey {
        InstanceKey {
            node: NodeName::for_kubernetes(&"a".parse().unwrap(), "n1"),
            id: InstanceId::observed(&format!("a.shop.{service}.p")),
        }
    }

    fn two() -> Awaited {
        let one = |service| AwaitedInstance {
            key: key(service),
            kept: None,
        };
        Awaited::Instances(vec![one("api"), one("web")])
    }

    fn stands(board: &mut Board, service: &str, registered: bool, reason: Option<Reason>) {
        let trouble = reason.map(|reason| Trouble {
            reason,
            message: format!("{service} is in trouble"),
        });
        let standing = Standing {
            claimed: true,
            registered: registered.then_some(Health::Critical),
            settled: false,
            trouble,
        };
        let owner = Owner::pod(&"shop".into(), &"p".into());
        board.set(&Key::Instance(key(service)), vec![(owner, standing)]);
    }

    fn shown(awaited: &Awaited, board: &Board, outage: Option<&str>) -> (bool, String, bool) {
        let gate = derive(awaited, board, &|_| false, outage).unwrap();
        let GateCondition { open, reason, .. } = gate.condition;
        (open, reason.to_string(), gate.passes)
    }

    #[test]
    fn it_opens_once_all_instances_are_there_whatever_their_health() {
        let mut board = Board::default();
        assert_eq!(shown(&two(), &board, None), (false, "Writing".into(), true));
        stands(&mut board, "api", true, None);
        assert_eq!(shown(&two(), &board, None), (false, "Writing".into(), true));
        stands(&mut board, "web", true, Some(Reason::Writing));
        assert_eq!(shown(&two(), &board, None), (false, "Writing".into(), true));
        stands(&mut board, "web", true, None);
        assert_eq!(
            shown(&two(), &board, None),
            (true, "Registered".into(), false)
        );
        // Not while there is something to write, such as another address of the pod.
        let due = Key::Instance(key("api"));
        let gate = derive(&two(), &board, &|key| *key == due, None).unwrap();
        assert_eq!(&*gate.condition.reason, "Writing");
        // Also while Consul is away: it said so.
        assert!(shown(&two(), &board, Some("away")).0);
    }

    /// Its session may be denied, or Consul too old for it: that is said elsewhere.
    #[test]
    fn what_is_wrong_beside_an_instance_that_is_there_keeps_no_gate_shut() {
        let mut board = Board::default();
        stands(&mut board, "web", true, None);
        for (reason, settled, open) in [
            (Reason::AccessDenied, true, true),
            (Reason::ConsulRefused, true, true),
            (Reason::Held, true, true),
            (Reason::AccessDenied, false, false),
            (Reason::ConsulRefused, false, false),
            (Reason::Invalid, true, false),
            (Reason::Drifted, true, false),
        ] {
            stands(&mut board, "api", true, Some(reason));
            let full_key = Key::Instance(key("api"));
            let mut standings = board.standings(&full_key).to_vec();
            standings[0].1.settled = settled;
            board.set(&full_key, standings);
            assert_eq!(shown(&two(), &board, None).0, open, "{reason:?}, {settled}");
        }
    }

    #[test]
    fn the_worst_of_several_reasons_is_told() {
        let mut board = Board::default();
        let away = shown(&two(), &board, Some("away"));
        assert_eq!(away, (false, "ConsulUnavailable".into(), true));
        stands(&mut board, "api", false, Some(Reason::OwnedByAnother));
        let gate = derive(&two(), &board, &|_| false, Some("away")).unwrap();
        assert_eq!(&*gate.condition.reason, "OwnedByAnother");
        assert_eq!(&*gate.condition.message, "api is in trouble (and 1 more)");
        stands(&mut board, "web", true, Some(Reason::Invalid));
        let invalid = shown(&two(), &board, None);
        assert_eq!(invalid, (false, "InvalidAnnotation".into(), false));
    }

    #[test]
    fn an_outage_is_told_once_in_whatever_words() {
        let board = Board::default();
        let gate = |outage| derive(&two(), &board, &|_| false, Some(outage)).unwrap();
        let known = gate("away").condition;
        assert!(gate("slow").says_no_more_than(&known));
        let writing = derive(&two(), &board, &|_| false, None).unwrap();
        assert!(!writing.says_no_more_than(&known));
        assert!(writing.says_no_more_than(&writing.condition));
    }

    #[test]
    fn what_is_paused_is_enough_where_it_is_there() {
        let paused = Awaited::Instances(vec![AwaitedInstance {
            key: key("web"),
            kept: Some(Kept::Paused("the pod".into())),
        }]);
        let mut board = Board::default();
        assert_eq!(
            shown(&paused, &board, None),
            (false, "Paused".into(), false)
        );
        stands(&mut board, "web", true, Some(Reason::Paused));
        assert!(shown(&paused, &board, None).0);
    }

    #[test]
    fn without_instances_the_reason_says_what_to_do() {
        let board = Board::default();
        assert_eq!(derive(&Awaited::Nothing, &board, &|_| false, None), None);
        for (awaited, reason, passes) in [
            (Awaited::Unclaimed, "NotClaimed", false),
            (Awaited::Pending("x"), "Pending", true),
            (
                Awaited::Invalid(vec!["y".into()]),
                "InvalidAnnotation",
                false,
            ),
        ] {
            let expected = (false, reason.to_owned(), passes);
            assert_eq!(shown(&awaited, &board, None), expected);
        }
    }
}
