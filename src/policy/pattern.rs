//! Patterns of names.
//!
//! `{namespace}` differs from namespace to namespace: sets of compiled globs would be one for each
//! namespace and policy, for a handful of short texts that are compared when an object changes.

use std::borrow::Cow;

use crate::model::text::Text;

const NAMESPACE: &str = "{namespace}";

/// A pattern: `*` stands for any text, `?` for any one character, `{namespace}` for a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Text);

impl Pattern {
    /// A pattern of names, which are compared without case.
    pub fn of_name(text: &str) -> Result<Self, String> {
        Self::of_tag(&text.to_lowercase())
    }

    /// A pattern of tags.
    pub fn of_tag(text: &str) -> Result<Self, String> {
        let rest = text.replace(NAMESPACE, "");
        if text.is_empty() {
            return Err("a pattern must not be empty".to_owned());
        }
        if rest.contains(['{', '}']) {
            return Err(format!(
                "the pattern {text:?} has braces that do not stand around {NAMESPACE}"
            ));
        }
        Ok(Self(text.into()))
    }

    /// Whether it matches a text, for an object of this namespace.
    #[must_use]
    pub fn matches(&self, text: &str, namespace: &str) -> bool {
        wild(&self.of_namespace(namespace), text)
    }

    /// Whether it matches every text that begins so.
    #[must_use]
    pub fn matches_all_from(&self, start: &str, namespace: &str) -> bool {
        self.0.ends_with('*') && self.matches(start, namespace)
    }

    /// Whether it matches everything.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.0.bytes().all(|byte| byte == b'*')
    }

    // A namespace is a DNS label, in which nothing is special.
    fn of_namespace(&self, namespace: &str) -> Cow<'_, str> {
        if self.0.contains('{') {
            Cow::Owned(self.0.replace(NAMESPACE, namespace))
        } else {
            Cow::Borrowed(&self.0)
        }
    }
}

/// Compares from the left; where that fails, the last `*` takes one character more.
fn wild(pattern: &str, text: &str) -> bool {
    let (mut pattern, mut text) = (pattern.chars(), text.chars());
    let mut last: Option<(std::str::Chars<'_>, std::str::Chars<'_>)> = None;
    loop {
        let after = pattern.next();
        if after == Some('*') {
            last = Some((pattern.clone(), text.clone()));
            continue;
        }
        match (after, text.next()) {
            (None, None) => return true,
            (Some(wanted), Some(found)) if wanted == '?' || wanted == found => continue,
            _ => {}
        }
        let Some((after_star, rest)) = &mut last else {
            return false;
        };
        if rest.next().is_none() {
            return false;
        }
        (pattern, text) = (after_star.clone(), rest.clone());
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::of_name(text).unwrap()
    }

    #[test]
    fn the_namespace_takes_its_place() {
        let own = pattern("{namespace}-*");
        assert!(own.matches("shop-web", "shop"));
        assert!(!own.matches("shop", "shop") && !own.matches("shop-web", "sho"));
        let both = pattern("{namespace}.{namespace}");
        assert!(both.matches("a.a", "a") && !both.matches("a.b", "a"));
        assert!(pattern("Web-*").matches("web-1", "x"), "without case");
        assert!(!Pattern::of_tag("Web-*").unwrap().matches("web-1", "x"));
    }

    #[test]
    fn braces_and_nothing_are_refused() {
        for bad in ["", "{ns}", "a{", "{namespace", "{{namespace}}"] {
            assert!(Pattern::of_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_what_has_every_longer_name_covers_a_template() {
        assert!(pattern("shop-*").matches_all_from("shop-", "x"));
        assert!(pattern("shop-*").matches_all_from("shop-web", "x"));
        assert!(!pattern("shop-*").matches_all_from("shop", "x"));
        assert!(!pattern("shop").matches_all_from("shop", "x"));
        assert!(!pattern("*-web").matches_all_from("shop-web", "x"));
        assert!(pattern("*").is_all() && pattern("**").is_all() && !pattern("a*").is_all());
    }

    proptest! {
        /// As the globs of the rest of Lictor understand these characters.
        #[test]
        fn it_is_the_usual_glob(glob in "[ab*?-]{0,8}", text in "[ab-]{0,8}") {
            let usual = globset::Glob::new(&glob).unwrap().compile_matcher();
            prop_assert_eq!(wild(&glob, &text), usual.is_match(&text), "{} {}", glob, text);
        }
    }
}
