use std::time::Duration;

use super::*;
use crate::leader::{LEASE, TENURE};

const SECOND: Duration = Duration::from_secs(1);

/// A Consul that holds one key and sessions, as real ones do.
#[derive(Default)]
struct Consul {
    key: Seen,
    index: u64,
    sessions: Vec<Text>,
    count: usize,
    /// Until when nobody can lock the key.
    delay: Option<Instant>,
}

impl Consul {
    fn lock(&mut self, session: &Text, holder: &Holder, now: Instant) -> bool {
        let free = self.key.session.is_empty() && self.delay.is_none_or(|until| until <= now);
        if !self.sessions.contains(session) || !(free || self.key.session == *session) {
            return false;
        }
        self.index += 1;
        self.key = Seen {
            index: self.index,
            session: session.clone(),
            holder: Some(holder.clone()),
        };
        true
    }

    /// The session ends without having released the key.
    fn expire(&mut self, session: &Text, now: Instant) {
        self.sessions.retain(|it| it != session);
        if self.key.session == *session {
            self.key = Seen::default();
            self.delay = Some(now + LEASE);
        }
    }

    fn release(&mut self, session: &Text) {
        assert_eq!(self.key.session, *session);
        self.index += 1;
        self.key.index = self.index;
        self.key.session = Text::default();
        self.sessions.retain(|it| it != session);
    }

    /// Does all that is due. Returns when to come back, and the leadership that it has then.
    fn act(
        &mut self,
        rules: &mut Rules,
        now: Instant,
    ) -> Result<(Option<Instant>, Option<u64>), IdentityTaken> {
        for _ in 0..12 {
            match rules.next(now) {
                Act::Read => rules.see(self.key.clone(), now)?,
                Act::Prepare => rules.prepared(),
                Act::Create => {
                    self.count += 1;
                    let id = Text::from(format!("s{}", self.count));
                    self.sessions.push(id.clone());
                    rules.created(id, now);
                }
                Act::Renew(id) => rules.renewed(self.sessions.contains(&id), now, now),
                Act::Lock(id) => {
                    let won = self.lock(&id, &rules.ours().clone(), now);
                    rules.locked(&id, won, now);
                }
                Act::End(id) => {
                    self.expire(&id, now);
                    rules.ended(&id);
                }
                Act::Wait(until) => return Ok((until, rules.leadership(now).term(now))),
            }
        }
        panic!("it does not come to rest");
    }

    fn leads(&mut self, rules: &mut Rules, now: Instant) -> Option<u64> {
        self.act(rules, now).unwrap().1
    }

    fn show(&self, rules: &mut Rules, now: Instant) {
        rules.see(self.key.clone(), now).unwrap();
    }
}

fn rules(identity: &str, process: &str) -> Rules {
    let ours = Holder {
        holder: identity.to_owned(),
        process: process.to_owned(),
    };
    Rules::new(ours, "the lock".to_owned())
}

#[test]
fn the_first_one_leads_and_renews_and_the_other_waits_without_a_session() {
    let (mut consul, mut now) = (Consul::default(), Instant::now());
    let (mut a, mut b) = (rules("a", "1"), rules("b", "2"));
    assert_eq!(consul.leads(&mut a, now), Some(1));
    for _ in 0..20 {
        assert_eq!(consul.leads(&mut b, now), None);
        now += RENEWAL;
        assert_eq!(
            consul.act(&mut a, now).unwrap(),
            (Some(now + RENEWAL), Some(1))
        );
    }
    assert_eq!(consul.sessions.len(), 1);
    assert_eq!(
        b.leadership(now),
        Leadership::StandsBy {
            leader: Some("a".to_owned())
        }
    );
}

#[test]
fn what_is_released_is_taken_at_once() {
    let (mut consul, now) = (Consul::default(), Instant::now());
    let (mut a, mut b) = (rules("a", "1"), rules("b", "2"));
    consul.leads(&mut a, now);
    consul.leads(&mut b, now);
    let session = a.release().unwrap();
    assert_eq!(a.leadership(now).term(now), None);
    consul.release(&session);
    consul.show(&mut b, now);
    assert_eq!(b.leadership(now), Leadership::default(), "nobody leads");
    assert_eq!(consul.leads(&mut b, now), Some(1));
    assert_eq!(consul.leads(&mut a, now), None);
    assert!(a.release().is_none());
}

#[test]
fn after_a_session_that_expired_the_lock_delay_is_waited_for() {
    let (mut consul, start) = (Consul::default(), Instant::now());
    let (mut a, mut b) = (rules("a", "1"), rules("b", "2"));
    consul.leads(&mut a, start);
    consul.leads(&mut b, start);
    let session = a.session().unwrap().clone();
    let mut now = start + LEASE * 2;
    consul.expire(&session, now);
    consul.show(&mut b, now);
    loop {
        let (until, term) = consul.act(&mut b, now).unwrap();
        if term.is_some() {
            break;
        }
        assert!(until.unwrap() > now && until.unwrap() <= now + SECOND);
        now = until.unwrap();
    }
    let after = now - start;
    assert!(after <= LEASE * 3 + SECOND, "{after:?}");
    // Its session was kept alive all the while.
    assert_eq!(consul.count, 2);
    // The other one had stopped long before.
    assert_eq!(consul.leads(&mut a, now), None);
}

#[test]
fn it_lasts_from_before_the_session_was_renewed() {
    let (mut consul, start) = (Consul::default(), Instant::now());
    let mut a = rules("a", "1");
    consul.leads(&mut a, start);
    let mut now = start + RENEWAL;
    // None of its renewals arrive.
    while now < start + LEASE {
        match a.next(now) {
            Act::Wait(until) => now = until.unwrap(),
            _ => a.failed(now, 1.0),
        }
        let leads = a.leadership(now).term(now).is_some();
        assert_eq!(leads, now < start + TENURE, "{:?}", now - start);
    }
    // Its session still lives, and nobody else had the lock: it leads anew.
    assert_eq!(consul.leads(&mut a, now + SECOND), Some(2));
}

#[test]
fn a_lock_that_is_lost_ends_the_leadership() {
    let now = Instant::now();
    let lose: [fn(&mut Consul); 2] = [
        // The key is removed by hand.
        |consul| consul.key = Seen::default(),
        // It is unlocked by hand, and another one was faster.
        |consul| {
            consul.key.session = "other".into();
            consul.key.holder = None;
        },
    ];
    for lose in lose {
        let (mut consul, mut a) = (Consul::default(), rules("a", "1"));
        assert_eq!(consul.leads(&mut a, now), Some(1));
        lose(&mut consul);
        let taken = !consul.key.session.is_empty();
        consul.show(&mut a, now);
        assert_eq!(a.leadership(now).term(now), None);
        assert_eq!(consul.leads(&mut a, now), (!taken).then_some(2));
    }
    // Its session is gone.
    let (mut consul, mut a) = (Consul::default(), rules("a", "1"));
    consul.leads(&mut a, now);
    let session = a.session().unwrap().clone();
    consul.expire(&session, now);
    assert_eq!(consul.leads(&mut a, now + RENEWAL), None);
    assert_eq!(consul.leads(&mut a, now + RENEWAL + LEASE), Some(2));
}

#[test]
fn a_lock_whose_answer_was_lost_is_found() {
    let (mut consul, now) = (Consul::default(), Instant::now());
    let mut a = rules("a", "1");
    a.see(Seen::default(), now).unwrap();
    a.prepared();
    consul.sessions.push("s".into());
    a.created("s".into(), now);
    let Act::Lock(session) = a.next(now) else {
        panic!("no lock");
    };
    assert!(consul.lock(&session, &a.ours().clone(), now));
    a.failed(now + SECOND, 1.0);
    assert_eq!(consul.leads(&mut a, now + SECOND * 2), Some(1));
}

#[test]
fn a_restarted_process_takes_its_own_lock_back_at_once() {
    let (mut consul, now) = (Consul::default(), Instant::now());
    let (mut before, mut after) = (rules("a", "1"), rules("a", "2"));
    consul.leads(&mut before, now);
    assert_eq!(consul.leads(&mut after, now), Some(1));
    assert_eq!((consul.count, after.session()), (1, before.session()));
    // Were the other one still there, it would see that its identity is used by another.
    assert!(before.see(consul.key.clone(), now).is_err());
    // One that began before and only watched, too.
    let mut watching = rules("c", "3");
    consul.leads(&mut watching, now);
    consul.key.holder = Some(Holder {
        holder: "c".to_owned(),
        process: "4".to_owned(),
    });
    consul.key.index += 1;
    assert!(watching.see(consul.key.clone(), now).is_err());
}

#[test]
fn a_session_that_others_made_useless_is_ended() {
    let (mut consul, now) = (Consul::default(), Instant::now());
    let (mut a, mut b) = (rules("a", "1"), rules("b", "2"));
    consul.delay = Some(now + LEASE);
    assert_eq!(consul.leads(&mut b, now), None);
    assert_eq!(consul.sessions.len(), 1);
    consul.delay = None;
    consul.leads(&mut a, now);
    consul.show(&mut b, now);
    consul.leads(&mut b, now);
    assert_eq!(consul.sessions, [a.session().unwrap().clone()]);
}

#[test]
fn a_leader_whose_watch_fails_reads_the_key_and_does_not_go_on_by_what_it_saw() {
    let (mut consul, now) = (Consul::default(), Instant::now());
    let mut a = rules("a", "1");
    assert_eq!(consul.leads(&mut a, now), Some(1));
    assert!(a.is_well());
    a.failed(now + SECOND, 1.0);
    // Somebody removed the key meanwhile, and nobody told.
    consul.key = Seen::default();
    let Act::Wait(until) = a.next(now + SECOND) else {
        panic!("no pause");
    };
    assert_eq!(until, Some(now + SECOND * 2));
    assert_eq!(a.next(now + SECOND * 2), Act::Read);
    a.see(consul.key.clone(), now + SECOND * 2).unwrap();
    assert!(!a.leads(now + SECOND * 2));
}
