use std::time::Duration;

use super::*;
use crate::model::names::InstanceId;
use crate::plan::Asks;
use crate::plan::critical::OwnHealth;
use crate::test_words::is_whole;

fn key() -> InstanceKey {
    InstanceKey {
        node: NodeName::for_kubernetes(&"a".parse().unwrap(), "n1"),
        id: InstanceId::observed("a.shop.web.p"),
    }
}

fn finding(step: Step) -> Finding {
    Finding {
        owner: None,
        losers: Vec::new(),
        freeze: None,
        refused: None,
        hold: None,
        critical: None,
        asks: Asks::Nothing,
        step,
    }
}

#[test]
fn whatever_is_the_matter_with_an_instance_is_told_with_what_to_do() {
    let critical = Watched {
        instance: key(),
        uid: "u".into(),
        after: Duration::from_secs(30),
        health: OwnHealth::Critical,
        there: true,
        pod: None,
    };
    let mut findings = vec![
        finding(Step::OwnedByAnother {
            holder: "another cluster, b".into(),
        }),
        finding(Step::KeptOut(Duration::from_secs(90))),
        finding(Step::NoNodeAddress {
            node: "n1".into(),
            pod: "shop/p".into(),
        }),
        finding(Step::Waiting),
    ];
    for freeze in [Freeze::Paused, Freeze::NotWatched] {
        findings.push(Finding {
            freeze: Some(freeze),
            ..finding(Step::Settled)
        });
    }
    for hold in Hold::each() {
        findings.push(finding(Step::Held(hold.clone())));
        findings.push(Finding {
            hold: Some(hold),
            critical: Some(critical.clone()),
            ..finding(Step::Settled)
        });
    }
    for finding in findings {
        let trouble = trouble_of(&key(), &finding, true);
        let trouble = trouble.unwrap_or_else(|| panic!("nothing is told of {finding:?}"));
        is_whole(&trouble.message, &key().to_string());
    }
}

#[test]
fn a_claim_that_is_not_allowed_says_what_becomes_of_what_there_is() {
    for hold in Hold::each() {
        let refusal = Refusal {
            message: "web belongs to the namespace bank: choose another name".to_owned(),
            unsure: None,
            waits: false,
        };
        let trouble = not_allowed(&key(), &refusal, Some(&hold));
        is_whole(&trouble.message, &key().to_string());
    }
}

#[test]
fn only_what_is_held_for_longer_than_a_moment_is_told_as_held() {
    let key = key();
    let reason = |hold: Hold| {
        let watched = Watched {
            instance: key.clone(),
            uid: "u".into(),
            after: Duration::from_secs(30),
            health: OwnHealth::Critical,
            there: true,
            pod: None,
        };
        let finding = Finding {
            hold: Some(hold),
            critical: Some(watched),
            ..finding(Step::Settled)
        };
        trouble_of(&key, &finding, true).map(|trouble| trouble.reason)
    };
    for hold in [Hold::Unjudged, Hold::Unseen] {
        assert_eq!(reason(hold), Some(Reason::Writing));
    }
    let (would_go, of) = (12, 16);
    let held = reason(Hold::TooMany { would_go, of });
    assert_eq!(held, Some(Reason::Held));
}
