//! Which rights intentions, defaults and queries need, and how a reader without them is told.

use anyhow::Result;
use lictor::consul::wire::{PreparedQuery, QueryTemplate, ServiceDefaults, ServiceIntentions};
use lictor::consul::{
    Client, Consistency, ConsulError, ConsulSettings, ErrorClass, Quality, Request,
};

use super::access::with_rules;
use super::config_entries::{intentions, source};
use super::queries::query;

fn denied<T: std::fmt::Debug>(result: Result<T, ConsulError>, right: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.class(), ErrorClass::AccessDenied, "{error}");
    assert!(error.text().contains(right), "{error}");
}

pub async fn intentions_need_theirs(manager: &Client, settings: &ConsulSettings) -> Result<()> {
    let mine = intentions("mine", &[source("a", "allow")]);
    // The name of a destination can read like another failure.
    let theirs = intentions("ACL not found", &[source("a", "allow")]);
    let any = intentions("*", &[source("a", "deny")]);
    let rules = r#"service "mine" { policy = "read", intentions = "write" }"#;
    let narrow = with_rules(manager, settings, "intentions", rules).await?;

    // Nothing is there: nothing is left out.
    let all = narrow
        .config_entries::<ServiceIntentions>(Consistency::Consistent)
        .await?;
    assert_eq!((all.quality, all.value), (Quality::Authoritative, vec![]));
    assert!(narrow.put_config_entry(&mine, 0).await?);
    assert!(manager.put_config_entry(&theirs, 0).await?);
    assert!(manager.put_config_entry(&any, 0).await?);
    let all = narrow
        .config_entries::<ServiceIntentions>(Consistency::Consistent)
        .await?;
    let names: Vec<_> = all.value.iter().map(|entry| &*entry.name).collect();
    // Whoever may read any may read that for all.
    assert_eq!((all.quality, names), (Quality::Filtered, vec!["*", "mine"]));

    let need = r#"lacks permission 'intention:write' on "ACL not found""#;
    denied(narrow.put_config_entry(&theirs, 0).await, need);
    denied(narrow.put_config_entry(&any, 0).await, "intention:write");
    let delete = async |name: &str| {
        narrow
            .delete_config_entry::<ServiceIntentions>(name, 1)
            .await
    };
    denied(delete("ACL not found").await, need);
    denied(delete("missing").await, "intention:write");
    // Neither is said to be missing.
    for name in ["ACL not found", "missing"] {
        let found = narrow
            .config_entry::<ServiceIntentions>(name, Consistency::Consistent)
            .await;
        denied(found, "intention:read");
    }
    let all = narrow.nodes(None, Consistency::Consistent).await?;
    assert_eq!(all.quality, Quality::Filtered, "the token is still one");

    // To write the service is to read its intentions.
    let rules = r#"service_prefix "" { policy = "write" }"#;
    let services = with_rules(manager, settings, "services", rules).await?;
    let all = services
        .config_entries::<ServiceIntentions>(Consistency::Consistent)
        .await?;
    assert_eq!((all.quality, all.value.len()), (Quality::Authoritative, 3));
    denied(services.put_config_entry(&any, 0).await, "intention:write");
    Ok(())
}

pub async fn defaults_need_those_of_the_service(
    manager: &Client,
    settings: &ConsulSettings,
) -> Result<()> {
    let defaults = |name: &str| ServiceDefaults {
        name: name.into(),
        protocol: "http".into(),
        ..ServiceDefaults::default()
    };
    let rules = r#"service "mine" { policy = "write" }"#;
    let narrow = with_rules(manager, settings, "defaults", rules).await?;
    assert!(narrow.put_config_entry(&defaults("mine"), 0).await?);
    assert!(manager.put_config_entry(&defaults("theirs"), 0).await?);
    let all = narrow
        .config_entries::<ServiceDefaults>(Consistency::Consistent)
        .await?;
    assert_eq!((all.quality, all.value.len()), (Quality::Filtered, 1));
    let need = r#"lacks permission 'service:write' on "theirs""#;
    denied(narrow.put_config_entry(&defaults("theirs"), 0).await, need);
    denied(
        narrow
            .delete_config_entry::<ServiceDefaults>("theirs", 1)
            .await,
        need,
    );
    Ok(())
}

pub async fn queries_need_theirs(manager: &Client, settings: &ConsulSettings) -> Result<()> {
    let rules = r#"query_prefix "mine-" { policy = "write" }"#;
    let narrow = with_rules(manager, settings, "queries", rules).await?;
    let all = narrow.queries(Consistency::Consistent).await?;
    assert_eq!((all.quality, all.value), (Quality::Authoritative, vec![]));

    let theirs = manager.create_query(&query("rate limit exceeded")).await?;
    let mine = narrow.create_query(&query("mine-a")).await?;
    let all = narrow.queries(Consistency::Consistent).await?;
    assert_eq!((all.quality, all.value.len()), (Quality::Filtered, 1));
    let hidden = narrow.query(&theirs, Consistency::Consistent).await;
    denied(hidden, "Permission denied");
    let missing = "adf4238a-882b-9ddc-4a9d-5b6758e4159e";
    let missing = narrow.query(missing, Consistency::Consistent).await?;
    assert_eq!(
        (missing.quality, missing.value),
        (Quality::Authoritative, None)
    );

    denied(narrow.create_query(&query("theirs")).await, "query:write");
    denied(narrow.delete_query(&theirs).await, "Permission denied");
    // Neither another's nor into another's name.
    let update = |id: &str, name: &str| PreparedQuery {
        id: id.into(),
        ..query(name)
    };
    denied(
        narrow.update_query(&update(&theirs, "mine-b")).await,
        "Permission denied",
    );
    denied(
        narrow.update_query(&update(&mine, "theirs")).await,
        "query:write",
    );
    narrow.update_query(&update(&mine, "mine-b")).await?;
    narrow.delete_query(&mine).await?;

    // That there is a token in it is seen, the token is not; and of what has no name it is said that
    // it was left out.
    let mut raw = serde_json::to_value(query("mine-c"))?;
    raw["Token"] = "s3cret".into();
    let created = narrow.send(&Request::post("query").json(&raw)?).await?;
    created.success()?;
    manager.delete_query(&theirs).await?;
    let all = narrow.queries(Consistency::Consistent).await?;
    let tokens: Vec<_> = all.value.iter().map(|query| query.token).collect();
    assert_eq!((all.quality, tokens), (Quality::Authoritative, vec![true]));
    let nameless = PreparedQuery {
        template: Some(QueryTemplate {
            template_type: "name_prefix_match".into(),
            ..QueryTemplate::default()
        }),
        ..query("")
    };
    manager.create_query(&nameless).await?;
    let all = narrow.queries(Consistency::Consistent).await?;
    assert_eq!((all.quality, all.value.len()), (Quality::Filtered, 1));

    Ok(())
}
