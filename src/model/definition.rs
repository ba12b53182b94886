//! How somebody else is to run a check: the `Definition` of a check in Consul's catalog.
//!
//! Source: <https://developer.hashicorp.com/consul/api-docs/catalog#checks>, which takes the fields; what
//! comes back was observed on Consul 1.22.7: durations as Go writes them, and nothing that is empty.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::text::Text;

/// The definition of a check in the form in which Consul returns it: equal means that Consul holds it so.
///
/// It is kept as text, so that whatever another hand adds makes it another one, and thousands of them are
/// small.
#[derive(Clone, PartialEq, Eq)]
pub struct Definition(Text);

// By hand: people put tokens into the header fields of a check.
impl fmt::Debug for Definition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Definition")
    }
}

/// A request over HTTP, as a definition has it.
#[derive(Clone, Copy, Debug)]
pub struct HttpDefinition<'a> {
    /// The whole address, `http://…` or `https://…`.
    pub url: &'a str,
    /// The method, in capitals.
    pub method: &'a str,
    /// Header fields; of two that differ in case the last one holds.
    pub headers: &'a [(Text, Text)],
    /// Whether a certificate is taken as it comes.
    pub skips_verification: bool,
}

impl Definition {
    /// A request over HTTP, this often, that may take this long.
    #[must_use]
    pub fn http(http: &HttpDefinition<'_>, interval: Duration, timeout: Duration) -> Self {
        let HttpDefinition {
            url,
            method,
            headers,
            skips_verification,
        } = http;
        // Go looks fields up by this form of their names: under another one `host` would not be the host.
        let headers = headers.iter();
        let headers = headers.map(|(name, value)| (canonical_name(name), json!([&**value])));
        let headers: BTreeMap<String, Value> = headers.collect();
        Self::of([
            ("HTTP", json!(url)),
            ("Method", json!(method)),
            ("Header", headers.into_iter().collect()),
            ("TLSSkipVerify", json!(skips_verification)),
            ("Interval", json!(go_duration(interval))),
            ("Timeout", json!(go_duration(timeout))),
        ])
    }

    /// A TCP connection to a host and port.
    #[must_use]
    pub fn tcp(to: &str, interval: Duration, timeout: Duration) -> Self {
        Self::of([
            ("TCP", json!(to)),
            ("Interval", json!(go_duration(interval))),
            ("Timeout", json!(go_duration(timeout))),
        ])
    }

    fn of<const N: usize>(fields: [(&str, Value); N]) -> Self {
        let fields = fields
            .into_iter()
            .filter(|(_, value)| says_something(value));
        let fields: BTreeMap<&str, Value> = fields.collect();
        Self(json!(fields).to_string().into())
    }

    /// Reads what Consul returned; `None` where it says nothing.
    #[must_use]
    pub fn read(definition: &Value) -> Option<Self> {
        let Some(fields) = definition.as_object() else {
            // None of Consul's: it equals nothing that is wanted.
            return says_something(definition).then(|| Self(definition.to_string().into()));
        };
        let fields = fields.iter().filter(|(_, value)| says_something(value));
        let fields: BTreeMap<&String, &Value> = fields.collect();
        (!fields.is_empty()).then(|| Self(json!(fields).to_string().into()))
    }

    /// The definition as Consul takes it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        serde_json::from_str(&self.0).unwrap_or_else(|_| Value::Object(Map::new()))
    }
}

/// Whether a field is other than Go's zero of it.
fn says_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(is) => *is,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty() && text != "0s",
        Value::Array(list) => !list.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

/// The name of a header field as Go writes it: `content-type` as `Content-Type`.
fn canonical_name(name: &str) -> String {
    let mut begins = true;
    let letter = |letter: char| {
        let canonical = if begins {
            letter.to_ascii_uppercase()
        } else {
            letter.to_ascii_lowercase()
        };
        begins = letter == '-';
        canonical
    };
    name.chars().map(letter).collect()
}

/// A duration as Go writes it (`time.Duration.String`): `1m30s`, `1.5s`, `100ms`.
fn go_duration(duration: Duration) -> String {
    let nanos = duration.subsec_nanos();
    if duration < Duration::from_secs(1) {
        let (unit, scale) = match nanos {
            0 => return "0s".to_owned(),
            1..1_000 => ("ns", 1),
            1_000..1_000_000 => ("µs", 1_000),
            _ => ("ms", 1_000_000),
        };
        return format!("{}{unit}", decimal(nanos / scale, nanos % scale, scale));
    }
    let all = duration.as_secs();
    let (hours, minutes) = (all / 3600, all / 60 % 60);
    let seconds = u32::try_from(all % 60).unwrap_or_default();
    let seconds = decimal(seconds, nanos, 1_000_000_000);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

/// `whole` and `part` of `scale`, without zeros at the end.
fn decimal(whole: u32, part: u32, scale: u32) -> String {
    if part == 0 {
        return whole.to_string();
    }
    let width = scale.ilog10() as usize;
    let part = format!("{part:0width$}");
    format!("{whole}.{}", part.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str, value: &str) -> (Text, Text) {
        (name.into(), value.into())
    }

    fn http(headers: &[(Text, Text)], skips_verification: bool) -> Definition {
        let http = HttpDefinition {
            url: "http://10.0.0.1:80/",
            method: "GET",
            headers,
            skips_verification,
        };
        Definition::http(&http, Duration::from_secs(10), Duration::from_secs(3))
    }

    #[test]
    fn what_is_written_equals_what_consul_returns_of_it() {
        let wanted = http(&[header("host", "db"), header("X-who", "me")], true);
        let returned = json!({
            "HTTP": "http://10.0.0.1:80/", "Method": "GET", "TLSSkipVerify": true,
            "Header": {"Host": ["db"], "X-Who": ["me"]}, "Interval": "10s", "Timeout": "3s",
        });
        assert_eq!(Definition::read(&returned).as_ref(), Some(&wanted));
        assert_eq!(wanted.to_json(), returned);
        let wanted = Definition::tcp("db:5432", Duration::from_mins(1), Duration::from_secs(1));
        let returned = json!({"TCP": "db:5432", "Interval": "1m0s", "Timeout": "1s", "Header": {},
                              "DeregisterCriticalServiceAfter": "0s", "Body": "", "Other": null});
        assert_eq!(Definition::read(&returned), Some(wanted));
    }

    #[test]
    fn whatever_another_hand_adds_makes_it_another_one() {
        let mut returned = http(&[], false).to_json();
        for (field, value) in [
            ("Body", json!("x")),
            ("DeregisterCriticalServiceAfter", json!("1m0s")),
            ("TLSSkipVerify", json!(true)),
            ("TLSServerName", json!("other")),
            ("Header", json!({"A": ["b"]})),
            ("Unheard", json!(1)),
        ] {
            let before = returned.clone();
            returned[field] = value;
            assert_ne!(
                Definition::read(&returned),
                Some(http(&[], false)),
                "{field}"
            );
            returned = before;
        }
    }

    #[test]
    fn one_that_says_nothing_is_none() {
        for nothing in [
            json!({}),
            json!(null),
            json!({"Interval": "0s", "HTTP": ""}),
        ] {
            assert_eq!(Definition::read(&nothing), None, "{nothing}");
        }
        assert!(Definition::read(&json!("text")).is_some());
    }

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (duration, written) in [
            (Duration::from_millis(100), "100ms"),
            (Duration::from_micros(100_500), "100.5ms"),
            (Duration::from_micros(12), "12µs"),
            (Duration::from_secs(1), "1s"),
            (Duration::from_millis(1_500), "1.5s"),
            (Duration::from_millis(90_050), "1m30.05s"),
            (Duration::from_mins(1), "1m0s"),
            (Duration::from_hours(24), "24h0m0s"),
            (Duration::ZERO, "0s"),
        ] {
            assert_eq!(go_duration(duration), written);
        }
    }

    #[test]
    fn header_fields_are_not_shown() {
        let definition = http(&[header("authorization", "secret")], false);
        assert!(!format!("{definition:?}").contains("secret"));
    }
}
