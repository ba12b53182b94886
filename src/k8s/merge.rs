//! Several watches of one kind, each of a namespace, as one.
//!
//! Whoever reads the events knows of one list and one watch of each kind: what is in no page between `Listing`
//! and `Listed` is gone. So where one namespace is listed anew, all are, and the list of all is complete when
//! that of each is. [`Merged`] decides; [`watch_in`] carries out.

use std::collections::{BTreeMap, BTreeSet};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::home::Home;
use super::kinds::{Change, KubeEvent, Relist, Turn};
use crate::model::kind::Kind;
use crate::model::text::Text;

/// Events of one namespace that may wait to be merged.
const BUFFER: usize = 64;

/// Watches a kind in these namespaces, or in the whole cluster if there is none, until the receiver is gone.
/// `None` for a kind that is in no namespace, where only namespaces are watched.
///
/// See [`watch`](super::watch) for `events` and `relist`.
#[must_use]
pub fn watch_in(
    kind: Kind,
    home: Home,
    namespaces: &BTreeSet<Text>,
    events: mpsc::Sender<KubeEvent>,
    relist: Relist,
) -> Option<BoxFuture<'static, ()>> {
    if namespaces.is_empty() {
        return Some(super::watch(kind, home, None, events, relist));
    }
    let namespaces = namespaces.clone();
    let watch = watch_namespaces(kind, home, namespaces, events, relist);
    kind.is_namespaced().then(|| watch.boxed())
}

async fn watch_namespaces(
    kind: Kind,
    home: Home,
    namespaces: BTreeSet<Text>,
    events: mpsc::Sender<KubeEvent>,
    mut relist: Relist,
) {
    let (sender, mut merging) = mpsc::channel(BUFFER);
    let mut relists = BTreeMap::new();
    // Ends them all when it is dropped.
    let mut watches = JoinSet::new();
    for namespace in &namespaces {
        let asks = watch::Sender::new(());
        let watch = super::watch(
            kind,
            home.clone(),
            Some(namespace.clone()),
            sender.clone(),
            asks.subscribe(),
        );
        relists.insert(namespace.clone(), asks);
        watches.spawn(watch);
    }
    let mut merged = Merged::new(namespaces);
    loop {
        let asked = tokio::select! {
            event = merging.recv() => {
                let Some(event) = event else { return };
                let Some(scope) = &event.scope else { continue };
                let (told, asked) = merged.take(scope, event.change);
                for change in told {
                    let event = KubeEvent { at: event.at, scope: None, change };
                    if events.send(event).await.is_err() {
                        return;
                    }
                }
                asked
            }
            changed = relist.changed() => {
                if changed.is_err() {
                    return;
                }
                merged.list_all()
            }
            () = events.closed() => return,
            // One that ends by itself broke down: without it the others tell half of what is.
            _ = watches.join_next() => return,
        };
        for namespace in asked {
            if let Some(relist) = relists.get(&namespace) {
                relist.send_replace(());
            }
        }
    }
}

/// The watch of one namespace.
#[derive(Debug, Default)]
struct Scope {
    /// It was asked to list anew, and did not begin yet.
    asked: bool,
    /// Its list of this round is complete.
    listed: bool,
    /// Its list of this round began.
    begun: bool,
    /// The pages of a list that is not complete: it may start over.
    pages: Vec<Change>,
    /// Why it is broken, if it is.
    broken: Option<Change>,
}

/// Several watches of one kind as one.
#[derive(Debug)]
struct Merged {
    scopes: BTreeMap<Text, Scope>,
    /// A list of all is under way.
    listing: bool,
    /// How the last list was told to be complete, while that waits for other namespaces.
    end: Option<Change>,
}

impl Merged {
    /// Each watch begins with a list by itself.
    fn new(namespaces: BTreeSet<Text>) -> Self {
        let scope = || Scope {
            asked: true,
            ..Scope::default()
        };
        Self {
            scopes: namespaces.into_iter().map(|name| (name, scope())).collect(),
            listing: false,
            end: None,
        }
    }

    /// All are to be listed anew; returns which are to be asked for it.
    fn list_all(&mut self) -> Vec<Text> {
        let mut asked = Vec::new();
        // What is under way began before it was asked for.
        self.listing = false;
        self.end = None;
        for (name, scope) in &mut self.scopes {
            scope.listed = false;
            scope.begun = false;
            scope.pages.clear();
            if !std::mem::replace(&mut scope.asked, true) {
                asked.push(name.clone());
            }
        }
        asked
    }

    /// What one namespace's watch says; returns what is said of all, and which are to be listed anew.
    fn take(&mut self, name: &Text, change: Change) -> (Vec<Change>, Vec<Text>) {
        let Some(scope) = self.scopes.get_mut(name) else {
            return (Vec::new(), Vec::new());
        };
        let (mut told, mut asked) = (Vec::new(), Vec::new());
        match change.turn() {
            Turn::Listing => {
                scope.asked = false;
                scope.pages.clear();
                // What it listed before in this round is void, and with it all that was told of the round.
                if !self.listing || scope.listed {
                    asked = self.begin(name);
                    told.push(change);
                } else {
                    scope.begun = true;
                }
            }
            Turn::Page => scope.pages.push(change),
            Turn::Listed => {
                let was_broken = scope.broken.take().is_some();
                // One that began before the round may lack what was there when it began.
                if scope.begun {
                    scope.listed = true;
                    told.append(&mut scope.pages);
                }
                self.end = Some(change);
                // What was told last was of this one.
                if was_broken {
                    told.extend(self.scopes.values().find_map(|it| it.broken.clone()));
                }
            }
            Turn::Broken => {
                scope.broken = Some(change.clone());
                told.push(change);
            }
            Turn::Healthy => {
                let was_broken = scope.broken.take().is_some();
                let other = self.scopes.values().find_map(|scope| scope.broken.clone());
                if was_broken {
                    told.push(other.unwrap_or(change));
                }
            }
            // It would count as listed in this round, and nobody would miss it where its own list, which is asked
            // for and shows all that is there, does not have it any more.
            Turn::Applied if self.listing && !scope.begun => {}
            Turn::Applied | Turn::Deleted => told.push(change),
        }
        told.extend(self.complete());
        (told, asked)
    }

    /// A list of all begins with that of one namespace; returns which others are to be listed too.
    fn begin(&mut self, first: &Text) -> Vec<Text> {
        self.listing = true;
        self.end = None;
        let mut asked = Vec::new();
        for (name, scope) in &mut self.scopes {
            scope.listed = false;
            scope.begun = name == first;
            if !scope.begun {
                scope.pages.clear();
                if !std::mem::replace(&mut scope.asked, true) {
                    asked.push(name.clone());
                }
            }
        }
        asked
    }

    /// The end of the list of all, if that is now: a namespace that cannot be read any more holds it up.
    fn complete(&mut self) -> Option<Change> {
        let done = |scope: &Scope| scope.listed && scope.broken.is_none();
        if !self.listing || !self.scopes.values().all(done) {
            return None;
        }
        self.listing = false;
        self.end.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::{Broken, BrokenKind, WatchEvent};
    use crate::model::facts::{LeaseFacts, NodeFacts, Tristate};

    type Event = WatchEvent<NodeFacts>;

    fn merged() -> Merged {
        Merged::new(["a", "b"].map(Text::from).into())
    }

    fn page(name: &str) -> Event {
        WatchEvent::Page(vec![node(name)])
    }

    fn node(name: &str) -> NodeFacts {
        NodeFacts {
            name: name.into(),
            internal_ip: None,
            ready: Tristate::True,
            ready_reason: "".into(),
            region: None,
            zone: None,
        }
    }

    fn listed() -> Event {
        let resource_version = "1".into();
        WatchEvent::Listed { resource_version }
    }

    fn deleted(name: &str) -> Event {
        WatchEvent::Deleted {
            object: node(name),
            by_itself: true,
        }
    }

    fn broken(why: &str) -> Event {
        WatchEvent::Broken(Broken {
            kind: BrokenKind::Unreachable,
            message: why.into(),
        })
    }

    /// What is said, in short, and which are to be listed anew.
    fn take(merged: &mut Merged, scope: &str, event: Event) -> (Vec<String>, Vec<String>) {
        let (told, asked) = merged.take(&scope.into(), Change::Node(event));
        let short = |change: Change| match change {
            Change::Node(WatchEvent::Listing) => "listing".to_owned(),
            Change::Node(WatchEvent::Page(page)) => page
                .iter()
                .map(|node| &*node.name)
                .collect::<Vec<_>>()
                .join(","),
            Change::Node(WatchEvent::Listed { .. }) => "listed".to_owned(),
            Change::Node(WatchEvent::Broken(why)) => why.message.to_string(),
            Change::Node(WatchEvent::Healthy) => "healthy".to_owned(),
            Change::Node(WatchEvent::Applied(node)) => format!("+{}", node.name),
            Change::Node(WatchEvent::Deleted { object, .. }) => format!("-{}", object.name),
            other => format!("{other:?}"),
        };
        let asked = asked.iter().map(ToString::to_string).collect();
        (told.into_iter().map(short).collect(), asked)
    }

    /// What is said.
    fn told(merged: &mut Merged, scope: &str, event: Event) -> Vec<String> {
        let (told, asked) = take(merged, scope, event);
        assert_eq!(asked, [""; 0], "nobody is to be asked");
        told
    }

    /// Both were listed for the first time.
    fn complete() -> Merged {
        let mut merged = merged();
        assert_eq!(told(&mut merged, "a", WatchEvent::Listing), ["listing"]);
        assert_eq!(told(&mut merged, "b", WatchEvent::Listing), [""; 0]);
        assert_eq!(told(&mut merged, "a", page("a1")), [""; 0]);
        assert_eq!(told(&mut merged, "a", listed()), ["a1"]);
        assert_eq!(
            told(&mut merged, "a", WatchEvent::Applied(node("a2"))),
            ["+a2"]
        );
        assert_eq!(told(&mut merged, "b", page("b1")), [""; 0]);
        assert_eq!(told(&mut merged, "b", listed()), ["b1", "listed"]);
        merged
    }

    #[test]
    fn all_are_listed_when_each_is() {
        complete();
    }

    #[test]
    fn where_one_is_listed_anew_all_are() {
        let mut merged = complete();
        let (said, asked) = take(&mut merged, "a", WatchEvent::Listing);
        assert_eq!(
            (said, asked),
            (vec!["listing".into()], vec!["b".to_owned()])
        );
        assert_eq!(told(&mut merged, "a", listed()), [""; 0]);
        // What comes before their own list is in that; what goes is told.
        let applied = || WatchEvent::Applied(node("b2"));
        assert_eq!(told(&mut merged, "b", applied()), [""; 0]);
        assert_eq!(told(&mut merged, "b", deleted("b3")), ["-b3"]);
        assert_eq!(told(&mut merged, "a", applied()), ["+b2"]);
        assert_eq!(told(&mut merged, "b", WatchEvent::Listing), [""; 0]);
        assert_eq!(told(&mut merged, "b", page("b2")), [""; 0]);
        assert_eq!(told(&mut merged, "b", listed()), ["b2", "listed"]);
    }

    #[test]
    fn pages_of_a_list_that_starts_over_are_void() {
        let mut merged = merged();
        told(&mut merged, "a", WatchEvent::Listing);
        told(&mut merged, "a", page("gone"));
        assert_eq!(told(&mut merged, "a", broken("eof")), ["eof"]);
        assert_eq!(told(&mut merged, "a", WatchEvent::Listing), [""; 0]);
        told(&mut merged, "a", page("a1"));
        assert_eq!(told(&mut merged, "a", listed()), ["a1"]);
        told(&mut merged, "b", WatchEvent::Listing);
        assert_eq!(told(&mut merged, "b", listed()), ["listed"]);
    }

    #[test]
    fn what_was_told_of_a_list_is_void_where_it_was_complete_and_starts_over() {
        let mut merged = merged();
        told(&mut merged, "a", WatchEvent::Listing);
        told(&mut merged, "a", page("gone"));
        assert_eq!(told(&mut merged, "a", listed()), ["gone"]);
        assert_eq!(told(&mut merged, "a", WatchEvent::Listing), ["listing"]);
        told(&mut merged, "b", WatchEvent::Listing);
        assert_eq!(told(&mut merged, "b", listed()), [""; 0]);
        told(&mut merged, "a", page("a1"));
        assert_eq!(told(&mut merged, "a", listed()), ["a1", "listed"]);
    }

    #[test]
    fn a_list_that_began_before_the_round_does_not_count() {
        let mut merged = complete();
        // Both at once, and the one that was asked second was about to end.
        assert_eq!(merged.list_all(), ["a", "b"].map(Text::from));
        assert_eq!(told(&mut merged, "a", WatchEvent::Listing), ["listing"]);
        assert_eq!(told(&mut merged, "b", listed()), [""; 0]);
        assert_eq!(told(&mut merged, "a", listed()), [""; 0]);
        told(&mut merged, "b", WatchEvent::Listing);
        assert_eq!(told(&mut merged, "b", listed()), ["listed"]);
    }

    #[test]
    fn a_list_that_is_asked_for_in_the_midst_of_another_is_one_of_its_own() {
        let mut merged = complete();
        let (said, asked) = take(&mut merged, "a", WatchEvent::Listing);
        assert_eq!((said.len(), asked.len()), (1, 1));
        assert_eq!(merged.list_all(), ["a"].map(Text::from));
        assert_eq!(told(&mut merged, "a", listed()), [""; 0]);
        assert_eq!(told(&mut merged, "b", WatchEvent::Listing), ["listing"]);
        assert_eq!(told(&mut merged, "a", WatchEvent::Listing), [""; 0]);
        told(&mut merged, "a", listed());
        assert_eq!(told(&mut merged, "b", listed()), ["listed"]);
    }

    #[test]
    fn what_is_still_wrong_is_told_where_another_is_well_again_by_its_list() {
        let mut merged = complete();
        told(&mut merged, "b", broken("403"));
        told(&mut merged, "a", broken("503"));
        take(&mut merged, "a", WatchEvent::Listing);
        assert_eq!(told(&mut merged, "a", listed()), ["403"]);
    }

    #[test]
    fn one_that_is_broken_makes_all_broken_and_none_else() {
        let mut merged = complete();
        assert_eq!(told(&mut merged, "a", broken("403")), ["403"]);
        assert_eq!(told(&mut merged, "b", broken("eof")), ["eof"]);
        assert_eq!(told(&mut merged, "b", WatchEvent::Healthy), ["403"]);
        assert_eq!(told(&mut merged, "a", WatchEvent::Healthy), ["healthy"]);
    }

    #[test]
    fn a_list_waits_for_what_broke_after_its_own() {
        let mut merged = merged();
        told(&mut merged, "a", WatchEvent::Listing);
        told(&mut merged, "b", WatchEvent::Listing);
        told(&mut merged, "a", listed());
        told(&mut merged, "a", broken("eof"));
        assert_eq!(told(&mut merged, "b", listed()), [""; 0]);
        assert_eq!(
            told(&mut merged, "a", WatchEvent::Healthy),
            ["healthy", "listed"]
        );
    }

    #[test]
    fn a_stranger_is_not_heard() {
        let mut merged = complete();
        let event = Change::Lease(WatchEvent::<LeaseFacts>::Listing);
        assert_eq!(merged.take(&"c".into(), event).0, []);
    }
}
