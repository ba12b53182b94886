use super::*;

fn record(reason: EventReason, note: &str) -> EventRecord {
    let regarding = Regarding::pod("shop".into(), "web-1".into(), "uid-1".into());
    EventRecord {
        regarding,
        reason,
        note: note.to_owned(),
    }
}

fn client() -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::try_from(kube::Config::new("http://127.0.0.1:9".parse().unwrap())).unwrap()
}

#[test]
fn an_event_says_who_what_and_about_which_object() {
    let event = event(
        &record(EventReason::OwnedByAnother, "held by db"),
        "lictor-0",
        Timestamp::UNIX_EPOCH,
    );
    let event = serde_json::to_value(event).unwrap();
    assert_eq!(event["type"], "Warning");
    assert_eq!(event["reason"], "OwnedByAnother");
    assert_eq!(event["note"], "held by db");
    assert_eq!(event["reportingController"], "lictor");
    assert_eq!(event["reportingInstance"], "lictor-0");
    assert_eq!(
        event["metadata"],
        json!({"name": "web-1.0", "namespace": "shop"})
    );
    let regarding = json!({"apiVersion": "v1", "kind": "Pod", "namespace": "shop", "name": "web-1", "uid": "uid-1"});
    assert_eq!(event["regarding"], regarding);
    assert!(event["eventTime"].is_string());
}

#[test]
fn a_long_note_and_a_long_name_are_cut() {
    let mut long = record(EventReason::Registered, &"é".repeat(1000));
    long.note.insert(0, 'x');
    long.regarding.name = "n".repeat(253).into();
    let event = event(&long, "i", Timestamp::now());
    assert_eq!(event.note.unwrap().len(), NOTE_BYTES - 1);
    assert_eq!(event.metadata.name.unwrap().len(), NAME_BYTES);
    assert_eq!(event.type_.as_deref(), Some("Normal"));
}

#[tokio::test]
async fn what_is_too_much_is_counted_and_warnings_have_their_own_room() {
    let (sender, _writer) = EventWriter::new(client(), "i");
    for n in 0..OTHERS + 7 {
        sender.send(record(EventReason::Registered, &n.to_string()));
    }
    assert_eq!(sender.dropped(), 7);
    sender.send(record(EventReason::Conflict, "x"));
    assert_eq!(sender.dropped(), 7);
}

/// However fast they come: the API server's own limit is a thing that all share.
#[tokio::test]
async fn at_most_ten_leave_in_a_second() {
    let (sender, writer) = EventWriter::new(client(), "i");
    for n in 0..11 {
        sender.send(record(EventReason::Conflict, &n.to_string()));
    }
    let dropped = sender.dropped.clone();
    drop(sender);
    let began = Instant::now();
    writer.run().await;
    assert!(began.elapsed() >= Duration::from_secs(1));
    // Nobody listens there.
    assert_eq!(dropped.load(Ordering::Relaxed), 11);
}

#[tokio::test]
async fn the_writer_ends_with_its_senders() {
    let (sender, writer) = EventWriter::new(client(), "i");
    drop(sender);
    writer.run().await;
}

#[test]
fn the_same_is_counted_and_another_text_is_another_event() {
    let (mut repeats, now) = (Repeats::default(), Instant::now());
    let said = record(EventReason::Conflict, "held by a");
    assert_eq!(repeats.again(&said, now), None);
    repeats.first(said.clone(), "e1".to_owned(), now);
    let mut count = |said: &EventRecord, after: u64| {
        repeats
            .again(said, now + Duration::from_mins(after))
            .map(|repeat| repeat.count)
    };
    assert_eq!(count(&said, 1), Some(2));
    assert_eq!(count(&said, 6), Some(3));
    assert_eq!(count(&record(EventReason::Conflict, "held by b"), 6), None);
    assert_eq!(count(&said, 12), None);
}

#[tokio::test]
async fn what_was_withdrawn_is_not_sent() {
    let (sender, mut writer) = EventWriter::new(client(), "");
    let [before, after] = ["before", "after"].map(|note| record(EventReason::Conflict, note));
    sender.send(before);
    sender.withdraw();
    sender.send(after.clone());
    drop(sender);
    assert_eq!(writer.next().await, Some(after));
    assert_eq!(writer.next().await, None);
}
