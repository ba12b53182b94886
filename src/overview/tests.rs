use super::show::Text;
use super::*;

fn instance(name: &str, health: Option<Health>, matters: Vec<Matter>) -> Instance {
    Instance {
        key: format!("lictor-prod--n1/{name}"),
        address: health.map(|_| "10.0.0.1:80".to_owned()),
        health: health.map(Health::as_str),
        owner: Some(format!("Pod/shop/{name}")),
        matters,
    }
}

fn item(action: Action, kind: &'static str, key: &str, service: Option<&str>) -> Item {
    Item {
        action,
        kind,
        key: key.to_owned(),
        service: service.map(str::to_owned),
        owners: vec!["ServiceRegistration/shop/db".to_owned()],
        fields: Vec::new(),
        message: Some("a reason".to_owned()),
    }
}

fn lines(overview: &Overview, wide: bool) -> Vec<String> {
    let text = Text { overview, wide }.to_string();
    let text = anstream::adapter::strip_str(&text).to_string();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn what_is_not_in_consul_yet_is_shown_with_why() {
    let mut mirror = Mirror::new("prod".parse().unwrap());
    mirror.complete();
    let mut plan = Preview::default();
    plan.add(vec![
        item(Action::Create, "instance", "n/a", Some("db")),
        item(Action::Conflict, "instance", "n/b", Some("db")),
        item(Action::Held, "query", "query/db", None),
        item(
            Action::Rejected,
            "object",
            "ServiceRegistration/shop/bad",
            None,
        ),
    ]);
    let seen = overview("prod".to_owned(), &mirror, Some(&plan));
    assert_eq!(seen.services.len(), 1);
    let db = &seen.services[0];
    assert_eq!((db.name.as_str(), db.instances.len()), ("db", 2));
    assert_eq!(
        (db.tally.owned, db.tally.drift, db.tally.conflicts),
        (0, 1, 1)
    );
    assert_eq!(seen.others.len(), 1);
    assert_eq!(seen.objects.len(), 1);
    let all = seen.summary;
    let counts = [all.owned, all.drift, all.held, all.conflicts, all.rejected];
    assert_eq!(counts, [0, 1, 1, 1, 1]);
    assert!(!all.is_settled());
    let text = lines(&seen, false).join("\n");
    for expected in [
        "prod: no process ever wrote",
        "db       0          0        0        0         1       0     1         0",
        "+ create instance n/a (ServiceRegistration/shop/db): a reason",
        "x rejected object ServiceRegistration/shop/bad (ServiceRegistration/shop/db): a reason",
        "0 in Consul, 0 critical; 1 differ, 1 held, 1 in conflict, 1 rejected",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
}

#[test]
fn wide_has_a_line_for_each_and_no_command_of_a_terminal() {
    let mut web = Service {
        name: "web".to_owned(),
        ..Service::default()
    };
    web.insert(instance("p", Some(Health::Passing), Vec::new()));
    let matter = Matter {
        action: Action::Update,
        objects: Vec::new(),
        message: "differs: Tags\u{1b}[2J".to_owned(),
    };
    web.insert(instance("q", Some(Health::Critical), vec![matter]));
    assert_eq!(web.owners, ["Pod/shop/*".to_owned()].into());
    let overview = Overview {
        cluster: "prod".to_owned(),
        writer: Writer {
            holder: Some("lictor-0/1".to_owned()),
            leader: Some("lictor-0".to_owned()),
            seen_seconds_ago: Some(2),
        },
        services: vec![web],
        ..Overview::default()
    };
    let expected = [
        "prod: lictor-0/1 writes, lictor-0 leads and was seen 2 s ago",
        "",
        "SERVICE  INSTANCE           ADDRESS      HEALTH    STATE   OWNER",
        "web      lictor-prod--n1/p  10.0.0.1:80  passing   ok      Pod/shop/p",
        "web      lictor-prod--n1/q  10.0.0.1:80  critical  update  Pod/shop/q",
        "",
        "~ update instance lictor-prod--n1/q: differs: Tags\u{fffd}[2J",
        "",
        "0 in Consul, 0 critical; all is as it should be",
    ];
    assert_eq!(lines(&overview, true), expected);
}

#[test]
fn without_a_plan_only_what_is_there_is_told() {
    let mut mirror = Mirror::new("prod".parse().unwrap());
    mirror.complete();
    let seen = overview("prod".to_owned(), &mirror, None);
    assert_eq!(seen.summary, Tally::default());
}
