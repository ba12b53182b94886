//! What a message must tell whoever reads it.

use std::sync::LazyLock;

use regex::Regex;

/// An instruction: after a colon, a semicolon or a comma, or as another way out.
const DO: &str = r"(?:[:;,] |\bor |\bthere: |^)(?:add|apply|ask|change|choose|close|create|declare|end|find|give|keep|leave|let|list|look|make|mount|name|put|release|remove|repair|restart|run|say|see|set|start|take|try|upgrade|use|wait|write)\b";
/// What is allowed instead.
const ALLOWED: &str = r"\bmust (?:be|have|not|start)\b|\bat (?:most|least)\b|\bis neither .* nor\b|\bis none of\b|\bthere are\b|\bis enough\b|\b[Oo]nly\b|\bexpected\b";
/// It passes by itself.
const PASSES: &str = r"\bkept (?:until|while)\b|\btried again\b|\bregistered again when\b|\bbeing (?:written|removed)\b|\bwaits\b|\bwith sync it is removed\b";

/// Whether a message tells what to do, what is allowed, or that it passes by itself.
pub(crate) fn helps(message: &str) -> bool {
    static HELP: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(&[DO, ALLOWED, PASSES].join("|")).unwrap());
    HELP.is_match(message)
}

/// What a message lacks that is to say where, and what to do.
pub(crate) fn lacks(message: &str, place: &str) -> Option<String> {
    if !message.contains(place) {
        return Some(format!("{place:?} is not named in {message:?}"));
    }
    (!helps(message)).then(|| format!("what to do is not said in {message:?}"))
}

/// Asserts that a message says where, and what to do.
pub(crate) fn is_whole(message: &str, place: &str) {
    assert_eq!(lacks(message, place), None);
}

#[test]
fn a_bare_complaint_is_no_help() {
    for bare in [
        "lictor.io/port: 70000 is not within 1..65535",
        "spec.endpoints: the name \"a\" is given twice",
        "Consul refuses it: Invalid destination",
        "no such file or directory",
    ] {
        assert!(!helps(bare), "{bare}");
    }
    for good in [
        "lictor.io/port: 70000 is not within 1..65535: give a number that is",
        "tags: 65 are given, at most 64 allowed",
        "kept until 3 lists agree that nothing claims it; 1 did",
    ] {
        assert!(helps(good), "{good}");
    }
}
