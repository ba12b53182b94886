//! Names and texts, as Lictor takes them.

use serde_json::{Map, Value};

use crate::model::marks;

/// Longest name of an endpoint or a check: a DNS label.
const LONGEST: usize = 63;

/// A text as a lower-case DNS label; `otherwise` where nothing of it is left.
pub(super) fn label(text: &str, otherwise: &str) -> String {
    let letter = |letter: char| {
        let letter = letter.to_ascii_lowercase();
        let is_fine = letter.is_ascii_lowercase() || letter.is_ascii_digit();
        if is_fine { letter } else { '-' }
    };
    let all: String = text.chars().map(letter).collect();
    let trimmed = all.trim_matches('-');
    let cut = &trimmed[..trimmed.len().min(LONGEST)];
    match cut.trim_end_matches('-') {
        "" => otherwise.to_owned(),
        label => label.to_owned(),
    }
}

/// One that is not taken yet, which it is from now on.
pub(super) fn once(label: &str, taken: &mut Vec<String>) -> String {
    let mut name = label.to_owned();
    for number in 2.. {
        if !taken.contains(&name) {
            break;
        }
        let end = format!("-{number}");
        let room = LONGEST - end.len();
        name = format!("{}{end}", &label[..label.len().min(room)]);
    }
    taken.push(name.clone());
    name
}

/// The items of a list with commas, without blanks around them. A comma after a backslash does not part.
pub(super) fn items(list: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut letters = list.chars().peekable();
    while let Some(letter) = letters.next() {
        let is_part = letter == '\\' && letters.peek() == Some(&',');
        match (letter, items.last_mut()) {
            (',', _) => items.push(String::new()),
            (_, Some(item)) if is_part => item.extend(letters.next()),
            (_, Some(item)) => item.push(letter),
            (_, None) => {}
        }
    }
    let items = items.iter().map(|item| item.trim().to_owned());
    items.filter(|item| !item.is_empty()).collect()
}

/// A tag or a value of meta as Lictor's templates have it, in which a dollar stands for itself.
pub(super) fn plain(text: &str) -> String {
    text.replace('$', "$$")
}

/// Meta without what others read a meaning in, which is told.
pub(super) fn meta(
    pairs: impl IntoIterator<Item = (String, Value)>,
    of: &str,
    notes: &mut Vec<String>,
) -> Map<String, Value> {
    let mut meta = Map::new();
    for (key, value) in pairs {
        if marks::is_reserved(&key) {
            notes.push(format!(
                "{of}: meta {key:?} is left out: it is a mark of whose an entry is"
            ));
        } else {
            let value = value
                .as_str()
                .map_or(value.clone(), |text| plain(text).into());
            meta.insert(key, value);
        }
    }
    meta
}

/// Text fields of an object.
pub(super) fn texts(object: &Value) -> impl Iterator<Item = (&str, &str)> {
    let fields = object.as_object().into_iter().flatten();
    fields.filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
}

/// Puts a field in that is not empty.
pub(super) fn put(fields: &mut Map<String, Value>, name: &str, value: impl Into<Value>) {
    let value = value.into();
    let is_empty = match &value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    };
    if !is_empty {
        fields.insert(name.to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_labels_that_are_there_once() {
        assert_eq!(label("Db.Example_1", "x"), "db-example-1");
        assert_eq!(label("...", "x"), "x");
        let long = label(&"ä".repeat(80), "x");
        assert_eq!(long, "x");
        let long = label(&"a".repeat(80), "x");
        assert_eq!(long.len(), LONGEST);
        let mut taken = Vec::new();
        assert_eq!(once(&long, &mut taken), long);
        let second = once(&long, &mut taken);
        assert!(second.ends_with("a-2") && second.len() == LONGEST);
    }

    #[test]
    fn a_comma_after_a_backslash_does_not_part() {
        assert_eq!(items(r"a, b\,c ,,d\e"), ["a", "b,c", r"d\e"]);
        assert!(items(" , ").is_empty());
    }
}
