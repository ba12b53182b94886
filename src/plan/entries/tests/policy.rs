//! What may not be claimed.

use super::*;
use crate::desired::fixtures::judge;
use crate::policy::DefaultPolicy;

impl Bed {
    /// From now on this holds, by default.
    fn rule(&mut self, rule: DefaultPolicy) {
        judge(&mut self.index, rule, Instant::now());
        self.index.admission.begun();
    }
}

fn is_refused(finding: &EntryFinding) -> bool {
    let mut stands = finding.parts.iter().flat_map(|part| &part.stands);
    stands.any(|stand| matches!(stand.state, State::NotAllowed(..)))
}

#[test]
fn sources_that_may_not_be_are_not_written_and_go_when_three_lists_confirm_it() {
    let mut bed = Bed::new();
    bed.rule(DefaultPolicy::Deny);
    bed.intention("one", 1, to_payment(&[("web", "allow")]));
    let finding = bed.settle(&payment());
    assert!(is_refused(&finding) && bed.consul.intentions.is_empty());

    let mut bed = Bed::new();
    bed.intention("one", 1, to_payment(&[("web", "allow")]));
    bed.settle(&payment());
    bed.rule(DefaultPolicy::Deny);
    let finding = bed.settle(&payment());
    let (key, hold) = finding.held().next().unwrap();
    assert_eq!(*hold, Hold::Unjudged);
    bed.rules.guard.found(key);
    for list in 1..=3 {
        assert_eq!(bed.sources("payment"), ["web allow"], "list {list}");
        bed.rules.guard.judge(100, Instant::now());
        bed.settle(&payment());
        bed.rules.guard.listed(&Kind::ALL.into());
    }
    assert!(bed.consul.intentions.is_empty());
}
