use super::*;

fn flags() -> Values {
    Values {
        log_level: "info".to_owned(),
        policy: Mode::UpsertOnly,
        drift: DriftMode::Repair,
        drift_interval: Duration::from_secs(10),
        limits: Limits::default(),
        sweep_critical_after: None,
        consul_write_rate: None,
    }
}

fn reading(keys: &[(&str, &str)]) -> Reading {
    let keys = keys.iter();
    Reading {
        keys: keys
            .map(|(name, value)| ((*name).into(), value.as_bytes().into()))
            .collect(),
        lost: false,
    }
}

fn lost() -> Reading {
    Reading {
        lost: true,
        ..Reading::default()
    }
}

fn all() -> Vec<(&'static str, &'static str)> {
    vec![
        ("log-level", "info,lictor::sync=debug"),
        ("policy", "dry-run"),
        ("drift", "report"),
        ("drift-interval", "1m30s"),
        ("max-delete-percent", "5"),
        ("max-delete-floor", "2"),
        ("delete-confirm", "3"),
        ("sweep-critical-after", "2m"),
        ("consul-write-rate", "50"),
    ]
}

#[test]
fn every_setting_is_taken_from_its_key_and_back_from_its_flag() {
    let mut settings = Settings::new(&"a".parse().unwrap(), flags());
    assert!(!settings.is_known());
    let news = settings.read(&reading(&all()));
    assert!(settings.is_known());
    assert_eq!(news.len(), Setting::ALL.len(), "{news:?}");
    let expected = Values {
        log_level: "info,lictor::sync=debug".to_owned(),
        policy: Mode::DryRun,
        drift: DriftMode::Report,
        drift_interval: Duration::from_secs(90),
        limits: Limits {
            percent: 5,
            floor: 2,
            confirm: 3,
        },
        sweep_critical_after: Some(Duration::from_mins(2)),
        consul_write_rate: NonZeroU32::new(50),
    };
    assert_eq!(*settings.values(), expected);
    assert_eq!(settings.read(&reading(&all())), [], "told twice");
    // What is shown is what a key may say.
    for (name, _) in all() {
        let setting = Setting::named(name).unwrap();
        let mut values = flags();
        setting.put(&setting.of(&expected), &mut values).unwrap();
        assert_eq!(setting.of(&values), setting.of(&expected));
    }
    assert_eq!(settings.read(&Reading::default()).len(), Setting::ALL.len());
    assert_eq!(*settings.values(), flags());
}

#[test]
fn what_cannot_be_read_leaves_the_last_good_value_and_is_told_once() {
    let mut settings = Settings::new(&"a".parse().unwrap(), flags());
    settings.read(&reading(&[("drift-interval", "30s")]));
    let bad = [
        ("drift-interval", "soon"),
        ("drift-interval", "10ms"),
        ("policy", "sink"),
        ("drift", "REPAIR"),
        ("log-level", "loud"),
        ("max-delete-percent", "101"),
        ("max-delete-percent", ""),
        ("max-delete-floor", "-1"),
        ("delete-confirm", "0"),
        ("sweep-critical-after", "29s"),
        ("consul-write-rate", "0"),
        ("node-grace", "1m"),
    ];
    for (name, value) in bad {
        let mut keys = vec![("drift-interval", "30s"), (name, value)];
        keys.reverse();
        let mut reading = reading(&keys);
        reading.keys.insert(name.into(), value.as_bytes().into());
        let news = settings.read(&reading);
        assert!(
            matches!(&*news, [News::Refused { name: told, .. }] if **told == *name),
            "{name}={value}: {news:?}"
        );
        assert_eq!(settings.values().drift_interval, Duration::from_secs(30));
        assert_eq!(settings.read(&reading), [], "told twice");
        assert_eq!(settings.complaints().count(), 1);
    }
    let binary = Reading {
        keys: [("drift".into(), [0xff, 0xfe].into())].into(),
        lost: false,
    };
    assert!(matches!(
        &*settings.read(&binary),
        [News::Refused { .. }, ..]
    ));
    settings.read(&reading(&[]));
    assert_eq!(settings.complaints().count(), 0);
}

#[test]
fn what_guards_against_removals_only_becomes_stricter() {
    let laxer = [
        ("policy", "sync"),
        ("max-delete-percent", "31"),
        ("max-delete-floor", "11"),
    ];
    let mut settings = Settings::new(&"a".parse().unwrap(), flags());
    for key in laxer {
        let news = settings.read(&reading(&[key]));
        assert!(matches!(&*news, [News::Refused { .. }]), "{news:?}");
        assert_eq!(*settings.values(), flags());
    }
    let mut confirmed = flags();
    confirmed.limits.confirm = 4;
    let mut settings = Settings::new(&"a".parse().unwrap(), confirmed.clone());
    settings.read(&reading(&[("delete-confirm", "3")]));
    assert_eq!(*settings.values(), confirmed);
    // Less strict than another key was, but not than the flag.
    let mut settings = Settings::new(&"a".parse().unwrap(), flags());
    settings.read(&reading(&[("max-delete-percent", "1")]));
    settings.read(&reading(&[("max-delete-percent", "30")]));
    assert_eq!(settings.values().limits.percent, 30);
}

#[test]
fn keys_that_went_with_everything_keep_their_value_until_they_are_written_again() {
    let mut settings = Settings::new(&"a".parse().unwrap(), flags());
    settings.read(&reading(&[("policy", "dry-run"), ("drift", "report")]));
    let news = settings.read(&lost());
    assert_eq!(news.len(), 2, "{news:?}");
    assert_eq!(settings.values().policy, Mode::DryRun);
    // Later readings say the same, without the loss.
    assert_eq!(settings.read(&reading(&[("drift", "repair")])).len(), 1);
    assert_eq!(settings.values().policy, Mode::DryRun);
    assert!(
        settings
            .lines()
            .iter()
            .any(|line| line.contains("which lost it"))
    );
    settings.read(&Reading::default());
    assert_eq!(
        settings.values().drift,
        DriftMode::Repair,
        "removed by hand"
    );
    settings.read(&reading(&[("policy", "upsert-only")]));
    settings.read(&Reading::default());
    assert_eq!(*settings.values(), flags());
}

#[test]
fn optional_settings_may_be_switched_off() {
    let mut on = flags();
    on.sweep_critical_after = Some(Duration::from_mins(1));
    on.consul_write_rate = NonZeroU32::new(9);
    let mut settings = Settings::new(&"a".parse().unwrap(), on);
    settings.read(&reading(&[
        ("sweep-critical-after", "off"),
        ("consul-write-rate", " off\n"),
    ]));
    assert_eq!(*settings.values(), flags());
}
