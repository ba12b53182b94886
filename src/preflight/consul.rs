//! What Consul shows, judged.

use std::time::Duration;

use jiff::Timestamp;

use super::facts::{Consul, Rest, Seen, Token};
use super::finding::Finding;
use super::{Settings, clock};
use crate::consul::TokenStanding;
use crate::consul::rights::{self, Access, Permission, Resource, Rule};
use crate::model::names::ClusterName;

const REACHABLE: &str = "consul.reachable";
const LEADER: &str = "consul.leader";
const VERSION: &str = "consul.version";
const DATACENTER: &str = "consul.datacenter";
const CLOCK: &str = "consul.clock";
const TOKEN: &str = "consul.token";
const RIGHT: &str = "consul.right";

/// The oldest version that Lictor is made for.
const OLDEST: (u64, u64) = (1, 19);
/// The first version with checks that follow sessions.
const SESSION_CHECKS: (u64, u64) = (1, 21);

pub(super) fn judge(settings: &Settings, seen: &Seen<Box<Consul>>) -> Vec<Finding> {
    let skip = |names: &[&'static str], why: &str| -> Vec<Finding> {
        let skip = |name: &&'static str| Finding::skipped(name, why);
        names.iter().map(skip).collect()
    };
    let seen = match seen {
        Ok(seen) => seen,
        Err(why) => {
            let mut findings = vec![Finding::error(REACHABLE, why.clone()).remedy(
                "see CONSUL_HTTP_ADDR, and for TLS CONSUL_CACERT and CONSUL_TLS_SERVER_NAME",
            )];
            let names = [LEADER, CLOCK, TOKEN, VERSION, DATACENTER, RIGHT];
            findings.extend(skip(&names, "Consul was not reached"));
            return findings;
        }
    };
    let mut findings = vec![
        Finding::ok(REACHABLE, "Consul answers"),
        leader(seen.leader),
        clock::judge(
            CLOCK,
            seen.clock.as_ref(),
            "the service account's token of a login and certificates are judged by its clock",
        ),
        token(
            &seen.token,
            seen.rest.as_deref().ok(),
            seen.clock.as_ref().map(|it| it.received),
        ),
    ];
    match &seen.rest {
        Ok(rest) => {
            findings.push(version(settings.dead_after, &rest.version));
            findings.push(datacenter(rest));
            findings.extend(rights(settings, &rest.rights));
        }
        Err(why) => findings.extend(skip(&[VERSION, DATACENTER, RIGHT], why)),
    }
    findings
}

fn leader(there: bool) -> Finding {
    if there {
        return Finding::ok(LEADER, "the servers have a leader");
    }
    Finding::error(
        LEADER,
        "the servers have no leader: nothing can be read for sure, nor written",
    )
    .remedy("see `consul operator raft list-peers` and the servers' logs")
}

fn version(dead_after: Option<Duration>, seen: &Seen<Option<crate::model::text::Text>>) -> Finding {
    let text = match seen {
        Ok(Some(text)) => text,
        Ok(None) => {
            return Finding::skipped(VERSION, "the catalog does not show the servers' versions");
        }
        Err(why) => return Finding::skipped(VERSION, why.clone()),
    };
    let mut numbers = text.split('.');
    let mut number = || numbers.next()?.parse::<u64>().ok();
    let Some(version) = number().zip(number()) else {
        return Finding::warning(VERSION, format!("{text:?} is no version that is known"))
            .remedy("Lictor is made for Consul 1.19 and later: see that the servers are");
    };
    if version < OLDEST {
        return Finding::warning(VERSION, format!("{text} is older than 1.19"))
            .remedy("Lictor is made for Consul 1.19 and later: upgrade the servers");
    }
    if version >= SESSION_CHECKS {
        return Finding::ok(VERSION, format!("{text}, of the oldest server"));
    }
    let message = format!("{text} has no checks that follow sessions, which began with 1.21");
    if dead_after.is_some() {
        return Finding::error(VERSION, format!("{message}: --dead-after does nothing"))
            .remedy("upgrade the servers, or leave --dead-after out");
    }
    Finding::warning(
        VERSION,
        format!("{message}: checks of the kind ttl do not work"),
    )
    .remedy("upgrade the servers before they are used")
}

fn datacenter(rest: &Rest) -> Finding {
    let name = match &rest.datacenter {
        Ok(Some(name)) => name,
        Ok(None) => return Finding::skipped(DATACENTER, "neither agent nor catalog tell its name"),
        Err(why) => return Finding::skipped(DATACENTER, why.clone()),
    };
    match &rest.primary {
        Ok(None) => Finding::ok(DATACENTER, format!("{name}, which has the config entries")),
        Ok(Some(primary)) => Finding::ok(
            DATACENTER,
            format!("{name}; config entries are read and written in {primary}"),
        ),
        Err(why) => Finding::warning(
            DATACENTER,
            format!("{name}; where the config entries are is not known: {why}"),
        )
        .remedy("intentions wait until it is known"),
    }
}

fn token(seen: &Seen<Token>, rest: Option<&Rest>, now: Option<Timestamp>) -> Finding {
    const GIVE: &str = "set CONSUL_HTTP_TOKEN, CONSUL_HTTP_TOKEN_FILE or CONSUL_AUTH_METHOD";
    let token = match seen {
        Ok(token) => token,
        Err(why) => {
            return Finding::error(TOKEN, why.clone())
                .remedy("see that Consul answers /v1/acl/token/self, and look again");
        }
    };
    match &token.standing {
        TokenStanding::AclsOff => Finding::ok(
            TOKEN,
            "ACLs are off: whoever reaches Consul may do everything",
        ),
        TokenStanding::Anonymous => Finding::error(
            TOKEN,
            "ACLs are on, and no token was given: reads would be silently incomplete",
        )
        .remedy(GIVE),
        TokenStanding::Unknown => Finding::error(
            TOKEN,
            "Consul does not know it: it is revoked, expired, or of another datacenter",
        )
        .remedy("give a token that is good, see `consul acl token read -self`"),
        TokenStanding::Token { accessor } => {
            let own = token.own.as_ref();
            let primary = rest.and_then(|rest| rest.primary.as_ref().ok()?.as_ref());
            if let Some(primary) = primary
                && own.is_some_and(|own| own.local)
            {
                return Finding::error(
                    TOKEN,
                    format!("{accessor} is good in its own datacenter alone: intentions are in {primary}"),
                )
                .remedy("create it without -local");
            }
            let left = own
                .and_then(|own| own.expires)
                .zip(now)
                .map(|(expires, now)| expires.duration_since(now).as_secs());
            match left {
                Some(left) => Finding::ok(TOKEN, format!("{accessor}, for another {left} s")),
                None => Finding::ok(TOKEN, format!("{accessor}, without an end")),
            }
        }
    }
}

/// What is to be asked about the token, with the rule that gives it. With `services` the right to write is
/// asked for these alone.
pub(super) fn questions(cluster: &ClusterName, services: &[String]) -> Vec<(Rule, Permission)> {
    let mut questions = Vec::new();
    for rule in rights::rules(cluster) {
        for permission in rule.permissions() {
            let narrowed = matches!(permission.resource, Resource::Service | Resource::Intention)
                && permission.access == Access::Write
                && !services.is_empty();
            if !narrowed {
                questions.push((rule.clone(), permission));
                continue;
            }
            for service in services {
                let rule = Rule {
                    name: service.clone(),
                    prefix: false,
                    ..rule.clone()
                };
                let permission = Permission {
                    segment: service.clone(),
                    ..permission.clone()
                };
                questions.push((rule, permission));
            }
        }
    }
    questions
}

/// What does not work without it.
fn without(cluster: &ClusterName, permission: &Permission) -> String {
    let Permission {
        resource,
        segment,
        access,
    } = permission;
    let external = segment.ends_with("-external");
    let text = match (resource, access) {
        (Resource::Node | Resource::Service, Access::Read) => {
            "Consul leaves out of its answers what may not be read, without a failure: then nothing found \
             missing can be removed, and nothing at all is decided at a start"
        }
        (Resource::Intention, Access::Read) => {
            "Consul leaves out what may not be read: then no intention that is found missing can be removed"
        }
        (Resource::Query, Access::Read) => {
            "Consul leaves out what may not be read: then no query that is found missing can be removed"
        }
        (Resource::Node, Access::Write) if external => {
            "no endpoint outside the cluster can be registered"
        }
        (Resource::Node, Access::Write) => "no node can be created for the pods' instances",
        (Resource::Service, Access::Write) => {
            "no service whose name no rule allows can be registered"
        }
        (Resource::Intention, Access::Write) => {
            "no intention towards other services can be written"
        }
        (Resource::Query, Access::Write) => {
            "no prepared query whose name no rule allows can be written"
        }
        (Resource::Session, _) => {
            "heartbeats have no session: checks of the kind ttl stay critical"
        }
        (Resource::Key, Access::Write) => "the epoch cannot be taken: nothing is written at all",
        (Resource::Key, Access::Read) => {
            return format!(
                "whose a query is that is not of {cluster} cannot be read: none is adopted"
            );
        }
    };
    text.to_owned()
}

fn rights(settings: &Settings, seen: &Seen<Vec<(Permission, bool)>>) -> Vec<Finding> {
    let answers = match seen {
        Ok(answers) if answers.is_empty() => {
            return vec![Finding::ok(RIGHT, "ACLs are off: none is needed")];
        }
        Ok(answers) => answers,
        Err(why) => {
            // Whoever asks must not take it for a yes.
            let why = format!("Consul does not say what the token allows: {why}");
            let remedy = "look again; until then take no right for given";
            return vec![Finding::error(RIGHT, why).remedy(remedy)];
        }
    };
    let cluster = &settings.cluster;
    let mut findings = Vec::new();
    for (rule, permission) in questions(cluster, &settings.services) {
        let answer = answers.iter().find(|(asked, _)| *asked == permission);
        let finding = match answer {
            Some((_, true)) => continue,
            Some((_, false)) => {
                Finding::error(RIGHT, format!("missing: {}", without(cluster, &permission)))
                    .remedy(format!("the policy lacks `{}`", one_line(&rule)))
            }
            None => Finding::skipped(RIGHT, "it was not asked for"),
        };
        findings.push(finding.about(permission.to_string()));
    }
    if findings.is_empty() {
        let count = answers.len();
        findings.push(Finding::ok(RIGHT, format!("all {count} are given")));
    }
    findings
}

/// A rule without its line breaks.
fn one_line(rule: &Rule) -> String {
    let text = rule.to_string();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
