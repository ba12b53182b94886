use std::collections::{BTreeMap, BTreeSet};

use super::facts::{Consul, ConsulNode, Crd, Held, Kubernetes, Rest, Services, Token};
use super::*;
use crate::app::epoch_of;
use crate::consul::rights::{Access, Resource};
use crate::consul::{OwnToken, TokenStanding};
use crate::k8s::rights::needed;
use crate::model::epoch::{Epoch, EpochKind};

fn settings() -> Settings {
    Settings {
        cluster: "east".parse().unwrap(),
        scope: Scope::default(),
        lease: Some(LeaseName::of(
            &"east".parse().unwrap(),
            "lictor-system".into(),
        )),
        readiness_gate: false,
        dead_after: None,
        take_over: None,
        services: Vec::new(),
    }
}

fn kubernetes() -> Kubernetes {
    let crd = Crd::Installed {
        unserved: None,
        version: true,
        same: true,
    };
    Kubernetes {
        version: "v1.36.3".to_owned(),
        clock: None,
        identity: Ok("uid-1".into()),
        crds: vec![("intentions.lictor.io", Ok(crd))],
        rights: needed(false, &BTreeSet::new(), settings().lease.as_ref())
            .into_iter()
            .map(|right| (right, Ok(true)))
            .collect(),
        nodes: Ok(vec!["a".into()]),
        consul_k8s: Ok(false),
    }
}

fn rest() -> Rest {
    let rights = consul::questions(&settings().cluster, &[]).into_iter();
    Rest {
        version: Ok(Some("1.22.7".into())),
        datacenter: Ok(Some("dc1".into())),
        primary: Ok(None),
        rights: Ok(rights.map(|(_, question)| (question, true)).collect()),
        epoch: Ok(Held::Free),
        nodes: Ok(Vec::new()),
        services: Ok(Services::default()),
    }
}

fn consul(rest: Rest) -> Consul {
    let standing = TokenStanding::Token {
        accessor: "acc".into(),
    };
    Consul {
        leader: true,
        clock: None,
        token: Ok(Token {
            standing,
            own: Some(OwnToken::default()),
        }),
        rest: Ok(Box::new(rest)),
    }
}

fn facts() -> Facts {
    with(kubernetes(), consul(rest()))
}

fn with(kubernetes: Kubernetes, consul: Consul) -> Facts {
    Facts {
        kubernetes: Ok(Box::new(kubernetes)),
        consul: Ok(Box::new(consul)),
    }
}

fn with_rest(change: impl FnOnce(&mut Rest)) -> Facts {
    let mut rest = rest();
    change(&mut rest);
    with(kubernetes(), consul(rest))
}

const CLOCKS: [&str; 2] = ["consul.clock", "kubernetes.clock"];

/// The findings that are neither good nor about clocks, as text.
fn bad(settings: &Settings, facts: &Facts) -> Vec<String> {
    let report = judge(settings, facts);
    let bad = report
        .findings
        .iter()
        .filter(|finding| finding.status != Status::Ok && !CLOCKS.contains(&finding.name));
    bad.map(|finding| {
        if matches!(finding.status, Status::Error | Status::Warning) {
            let remedy = finding.remedy.as_deref().unwrap_or_default();
            assert!(remedy.len() > 10, "what to do is not said: {finding:?}");
        }
        let subject = finding.subject.as_deref().unwrap_or_default();
        let status = finding.status.as_str();
        format!("{status} {} {subject}: {}", finding.name, finding.message)
    })
    .collect()
}

/// The only finding that is not good, which has all of this in it.
fn only(facts: &Facts, texts: &[&str]) {
    let bad = bad(&settings(), facts);
    assert_eq!(bad.len(), 1, "{bad:#?}");
    for text in texts {
        assert!(bad[0].contains(text), "{text} in {bad:?}");
    }
}

#[test]
fn all_is_well() {
    let report = judge(&settings(), &facts());
    assert_eq!(bad(&settings(), &facts()), [""; 0]);
    assert!(report.is_ok());
    let text = report.text(|_, word| word.to_owned());
    assert!(
        text.ends_with("0 errors, 0 warnings, 2 skipped\n"),
        "{text}"
    );
    let json: serde_json::Value = serde_json::from_str(&report.json().unwrap()).unwrap();
    assert_eq!((&json["ok"], &json["form"]), (&true.into(), &1.into()));
    assert_eq!(json["findings"][0]["name"], "kubernetes.reachable");
}

#[test]
fn a_side_that_is_away_leaves_the_other_to_be_judged() {
    let mut facts = facts();
    facts.consul = Err("connection refused".to_owned());
    let found = bad(&settings(), &facts);
    assert!(found[0].starts_with("error consul.reachable : connection refused"));
    assert!(
        found[1..].iter().all(|it| it.starts_with("skipped")),
        "{found:#?}"
    );
    let report = judge(&settings(), &facts);
    assert!(!report.is_ok());
    let names: Vec<_> = report.findings.iter().map(|it| it.name).collect();
    for name in [
        "kubernetes.right",
        "consul.right",
        "cluster.name",
        "cluster.nodes",
        "consul-k8s",
    ] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }

    let facts = Facts {
        kubernetes: Err("no route".to_owned()),
        ..self::facts()
    };
    let found = bad(&settings(), &facts);
    assert!(found[0].starts_with("error kubernetes.reachable : no route"));
    assert_eq!(found.len(), 4, "{found:#?}");
}

#[test]
fn each_missing_right_is_named_with_what_it_costs() {
    let mut there = kubernetes();
    for (right, seen) in &mut there.rights {
        if right.to_string() == "patch intentions/status.lictor.io" {
            *seen = Ok(false);
        }
    }
    only(
        &with(there, consul(rest())),
        &[
            "error kubernetes.right patch intentions/status.lictor.io: missing",
            "status",
        ],
    );
    for (resource, access, segment, rule) in [
        (Resource::Node, Access::Read, "", "left out"),
        (
            Resource::Service,
            Access::Read,
            "",
            "nothing found missing can be removed",
        ),
        (Resource::Intention, Access::Write, "", "intention"),
        (
            Resource::Session,
            Access::Write,
            "lictor-east--",
            "heartbeats",
        ),
        (
            Resource::Node,
            Access::Write,
            "lictor-east-external",
            "outside",
        ),
        (Resource::Key, Access::Write, "lictor/v1/east/", "epoch"),
    ] {
        let facts = with_rest(|rest| {
            for (asked, allowed) in rest.rights.as_mut().unwrap() {
                *allowed =
                    (asked.resource, asked.access, &*asked.segment) != (resource, access, segment);
            }
        });
        let rule = if rule == "left out" {
            "leaves out"
        } else {
            rule
        };
        only(
            &facts,
            &["error consul.right", &format!("on \"{segment}\""), rule],
        );
    }
}

#[test]
fn a_narrow_token_is_asked_for_its_services_alone() {
    let settings = Settings {
        services: vec!["payment".to_owned()],
        ..settings()
    };
    let facts = with_rest(|rest| {
        let questions = consul::questions(&settings.cluster, &settings.services);
        let answers = questions.into_iter().map(|(_, question)| {
            let allowed =
                question.resource != Resource::Intention || question.access == Access::Read;
            (question, allowed)
        });
        rest.rights = Ok(answers.collect());
    });
    let found = bad(&settings, &facts);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].contains("intention:write on \"payment\""),
        "{found:?}"
    );
}

#[test]
fn a_crd_is_missing_leaving_or_another() {
    let installed = |unserved: Option<&str>, version, same| Crd::Installed {
        unserved: unserved.map(str::to_owned),
        version,
        same,
    };
    for (crd, text) in [
        (
            Crd::Missing,
            "error kubernetes.crd intentions.lictor.io: not installed",
        ),
        (
            Crd::Leaving,
            "error kubernetes.crd intentions.lictor.io: being deleted",
        ),
        (
            installed(Some("names taken"), true, true),
            "not served: names taken",
        ),
        (installed(None, false, false), "error kubernetes.crd"),
        (installed(None, true, false), "warning kubernetes.crd"),
    ] {
        let mut there = kubernetes();
        there.crds = vec![("intentions.lictor.io", Ok(crd))];
        only(&with(there, consul(rest())), &[text]);
    }
}

#[test]
fn a_crd_is_compared_with_that_of_the_build() {
    let ours = crate::api::crds().remove(0);
    assert_eq!(Crd::of(None, &ours), Crd::Missing);
    let served = |crd: &_| match Crd::of(Some(crd), &ours) {
        Crd::Installed {
            unserved,
            version,
            same,
        } => (unserved.is_none(), version, same),
        other => panic!("{other:?}"),
    };
    let mut there = ours.clone();
    assert_eq!(served(&there), (false, true, true));
    let status = serde_json::json!({
        "conditions": [{"type": "Established", "status": "True"}],
    });
    there.status = Some(serde_json::from_value(status).unwrap());
    assert_eq!(served(&there), (true, true, true));
    there.spec.versions[0].schema = None;
    assert_eq!(served(&there), (true, true, false));
    there.spec.versions[0].served = false;
    assert_eq!(served(&there), (true, false, false));
}

#[test]
fn versions_have_a_floor() {
    for (text, judged) in [
        ("v1.33.0-gke.1", ""),
        ("v1.40.1+k3s1", ""),
        (
            "v1.32.9",
            "warning kubernetes.version : v1.32.9 is older than 1.33",
        ),
        ("403 Forbidden", "warning kubernetes.version"),
    ] {
        let mut there = kubernetes();
        text.clone_into(&mut there.version);
        let found = bad(&settings(), &with(there, consul(rest())));
        assert!(
            found.concat().starts_with(judged) && found.concat().is_empty() == judged.is_empty()
        );
    }
    let dead_after = Settings {
        dead_after: Some(Duration::from_mins(1)),
        ..settings()
    };
    for (settings, text, judged) in [
        (settings(), "1.22.7", ""),
        (settings(), "1.21.0+ent", ""),
        (settings(), "2.0.0", ""),
        (settings(), "1.20.3", "warning consul.version"),
        (dead_after, "1.20.3", "error consul.version"),
        (
            settings(),
            "1.18.0",
            "warning consul.version : 1.18.0 is older",
        ),
    ] {
        let facts = with_rest(|rest| rest.version = Ok(Some(text.into())));
        let found = bad(&settings, &facts).concat();
        assert!(
            found.starts_with(judged) && found.is_empty() == judged.is_empty(),
            "{found}"
        );
    }
}

#[test]
fn a_token_is_told_by_its_standing() {
    for (standing, text) in [
        (TokenStanding::Anonymous, "no token was given"),
        (TokenStanding::Unknown, "does not know it"),
    ] {
        let mut there = consul(rest());
        there.token = Ok(Token {
            standing,
            own: None,
        });
        let found = bad(&settings(), &with(kubernetes(), there));
        assert!(found[0].starts_with("error consul.token"), "{found:?}");
        assert!(found[0].contains(text), "{found:?}");
    }
    let mut there = consul(Rest {
        primary: Ok(Some("dc1".into())),
        ..rest()
    });
    if let Ok(Token { own: Some(own), .. }) = &mut there.token {
        own.local = true;
    }
    only(&with(kubernetes(), there), &["error consul.token", "dc1"]);
}

fn held(epoch: Epoch) -> Facts {
    with_rest(|rest| rest.epoch = Ok(Held::By(Box::new(epoch))))
}

#[test]
fn a_cluster_name_is_free_ours_or_taken() {
    let ours = epoch_of("uid-1".to_owned(), Vec::new(), EpochKind::Run);
    let theirs = epoch_of("uid-2".to_owned(), Vec::new(), EpochKind::Run);
    assert_eq!(bad(&settings(), &held(ours)), [""; 0]);
    let nobodys = epoch_of(String::new(), Vec::new(), EpochKind::Gc);
    assert_eq!(bad(&settings(), &held(nobodys)), [""; 0]);
    only(
        &held(theirs.clone()),
        &[
            "error cluster.name : ClusterNameTaken",
            "uid-2",
            "--take-over",
        ],
    );
    let take_over = Settings {
        take_over: Some("uid-2".to_owned()),
        ..settings()
    };
    let found = bad(&take_over, &held(theirs));
    assert!(found[0].starts_with("warning cluster.name"), "{found:?}");
    let facts = with_rest(|rest| rest.epoch = Ok(Held::Unreadable("eof".to_owned())));
    only(&facts, &["error cluster.name", "lictor/v1/east/epoch"]);
}

#[test]
fn nodes_of_agents_and_of_nobody_are_told() {
    let node = |cluster: Option<&str>, agent| ConsulNode {
        name: "lictor-east--a".into(),
        cluster: cluster.map(Into::into),
        agent: Ok(agent),
    };
    let facts = |node| with_rest(|rest| rest.nodes = Ok(vec![node]));
    assert_eq!(bad(&settings(), &facts(node(Some("east"), false))), [""; 0]);
    for cluster in [None, Some("east")] {
        only(
            &facts(node(cluster, true)),
            &["error cluster.nodes lictor-east--a: a Consul agent"],
        );
    }
    only(
        &facts(node(None, false)),
        &["warning cluster.nodes lictor-east--a"],
    );
    let mut there = kubernetes();
    there.nodes = Ok(vec!["a".into(), "b-virtual".into()]);
    only(
        &with(there, consul(rest())),
        &["warning cluster.nodes b-virtual"],
    );
}

#[test]
fn consul_k8s_is_there_or_in_the_way() {
    let services = |tags: &[&str], synced: &[&str], meshed: &[&str]| {
        let texts =
            |texts: &[&str]| -> Vec<String> { texts.iter().map(|&text| text.to_owned()).collect() };
        let ours = BTreeMap::from([("web".to_owned(), texts(tags))]);
        with_rest(|rest| {
            rest.services = Ok(Services {
                ours,
                synced: texts(synced).into_iter().collect(),
                meshed: texts(meshed).into_iter().collect(),
            });
        })
    };
    assert_eq!(bad(&settings(), &services(&["k8s"], &[], &[])), [""; 0]);
    let beside = services(&["v1"], &["db"], &["api"]);
    assert_eq!(bad(&settings(), &beside), [""; 0]);
    let report = judge(&settings(), &beside);
    let last = report.findings.last().unwrap();
    assert!(
        last.message.contains("none of it is in the way"),
        "{last:?}"
    );
    only(
        &services(&["k8s"], &["db"], &[]),
        &["warning consul-k8s", "tag k8s", "web"],
    );
    only(
        &services(&[], &["web"], &[]),
        &["warning consul-k8s", "catalog sync", "twice"],
    );
    only(
        &services(&[], &[], &["web"]),
        &["warning consul-k8s", "service mesh", "web"],
    );
}

#[test]
fn what_others_say_stays_in_its_line_and_colours_are_asked_for() {
    let mut facts = facts();
    facts.consul = Err("bad\nthing".to_owned());
    let report = judge(&settings(), &facts);
    let text = report.text(|status, word| format!("<{}>{word}", status.as_str()));
    assert!(
        text.contains("<error>error    consul.reachable: bad thing\n"),
        "{text}"
    );
    assert!(text.contains("\n         see CONSUL_HTTP_ADDR"), "{text}");
}

#[test]
fn rights_that_consul_does_not_tell_are_no_yes() {
    let facts = with_rest(|rest| rest.rights = Err("403: ACL not found".to_owned()));
    let errors = bad(&settings(), &facts);
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert!(
        errors[0].starts_with("error") && errors[0].contains("ACL not found"),
        "{errors:#?}"
    );
}
