//! Nothing is written before it is known what the settings in Consul say.

use super::*;

/// `dry-run` in base64.
const DRY_RUN: &str = "ZHJ5LXJ1bg==";

#[tokio::test]
async fn nothing_is_written_while_the_settings_cannot_be_read() {
    let bed = Bed::start(Consul {
        hides_settings: true,
        ..Consul::default()
    })
    .await;
    bed.list(Change::Pod, vec![web("web-0", "n1")]).await;
    let folder = "/v1/kv/lictor/v1/a/config/";
    bed.until("it is not tried again", |consul| consul.asked(folder) > 1)
        .await;
    assert_eq!(bed.consul().asked("/v1/txn"), 0);
    bed.consul().hides_settings = false;
    bed.node_is("n1", "passing").await;
    bed.end().await;
}

#[tokio::test]
async fn a_start_obeys_them_from_its_first_write_on() {
    let bed = Bed::start(Consul {
        policy: Some(DRY_RUN),
        ..Consul::default()
    })
    .await;
    let (log, _guard) = Log::begin();
    bed.list(Change::Pod, vec![web("web-0", "n1")]).await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while !log.text().contains("would register") {
        assert!(Instant::now() < deadline, "{}", log.text());
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(bed.consul().asked("/v1/txn"), 0);
    bed.end().await;
}
