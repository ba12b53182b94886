//! `${pod.…}` in tags and meta values.

use crate::model::facts::PodFacts;

/// Why a template cannot be rendered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A `$` that starts neither a variable nor `$$`.
    #[error("a single \"$\" in {0:?}: write \"$$\" for a literal dollar sign")]
    LoneDollar(String),
    /// A `${` without its `}`.
    #[error(
        "\"${{\" without a closing \"}}\" in {0:?}: close it, or write \"$${{\" for a literal one"
    )]
    Unclosed(String),
    /// A variable that does not exist.
    #[error(
        "unknown variable {:?}: there are pod.name, pod.namespace, pod.node, pod.ip, \
         pod.labels['KEY'] and pod.annotations['KEY']",
        braced(.0)
    )]
    UnknownVariable(String),
    /// A variable where there is no pod.
    #[error("{:?} needs a pod, and an endpoint has none: write its value itself", braced(.0))]
    NoPod(String),
}

/// A variable as it is written.
fn braced(variable: &str) -> String {
    format!("${{{variable}}}")
}

/// Renders `template` for `pod`.
///
/// `None` where it refers to a label or annotation that the pod lacks, or to an address or node
/// that it does not have yet: then the tag is dropped and the meta key left out.
pub fn render(template: &str, pod: Option<&PodFacts>) -> Result<Option<String>, TemplateError> {
    let mut rendered = String::with_capacity(template.len());
    let mut lacking = false;
    let mut rest = template;
    while let Some(at) = rest.find('$') {
        rendered.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            rendered.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('{') {
            let end = end_of_variable(after)
                .ok_or_else(|| TemplateError::Unclosed(template.to_owned()))?;
            match variable(&after[..end], pod)? {
                Some(value) => rendered.push_str(value),
                None => lacking = true,
            }
            rest = &after[end + 1..];
        } else {
            return Err(TemplateError::LoneDollar(template.to_owned()));
        }
    }
    rendered.push_str(rest);
    Ok((!lacking).then_some(rendered))
}

/// Where the variable that starts at the beginning of `text` ends; a `}` inside quotes is not its end.
fn end_of_variable(text: &str) -> Option<usize> {
    let mut quoted = false;
    text.char_indices().find_map(|(at, character)| {
        if character == '\'' {
            quoted = !quoted;
        }
        (character == '}' && !quoted).then_some(at)
    })
}

fn variable<'a>(name: &str, pod: Option<&'a PodFacts>) -> Result<Option<&'a str>, TemplateError> {
    let known = matches!(name, "pod.name" | "pod.namespace" | "pod.node" | "pod.ip")
        || map_key(name, "pod.labels").is_some()
        || map_key(name, "pod.annotations").is_some();
    if !known {
        return Err(TemplateError::UnknownVariable(name.to_owned()));
    }
    let Some(pod) = pod else {
        return Err(TemplateError::NoPod(name.to_owned()));
    };
    let value = match name {
        "pod.name" => Some(&pod.name),
        "pod.namespace" => Some(&pod.namespace),
        "pod.node" => pod.node.as_ref(),
        "pod.ip" => pod.ips.first(),
        _ => map_key(name, "pod.labels")
            .and_then(|key| pod.labels.get(key))
            .or_else(|| map_key(name, "pod.annotations").and_then(|key| pod.annotations.get(key))),
    };
    Ok(value.map(AsRef::as_ref))
}

/// The `KEY` of `map['KEY']`.
fn map_key<'a>(variable: &'a str, map: &str) -> Option<&'a str> {
    let key = variable
        .strip_prefix(map)?
        .strip_prefix("['")?
        .strip_suffix("']")?;
    (!key.is_empty() && !key.contains('\'')).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::fixtures::pod;

    fn rendered(template: &str) -> Option<String> {
        render(
            template,
            Some(
                &pod("web-0")
                    .label("app.kubernetes.io/version", "v2")
                    .facts(),
            ),
        )
        .unwrap()
    }

    #[test]
    fn variables_are_replaced_and_dollars_escaped() {
        assert_eq!(rendered("plain").as_deref(), Some("plain"));
        assert_eq!(
            rendered("${pod.name}@${pod.namespace}").as_deref(),
            Some("web-0@shop")
        );
        assert_eq!(
            rendered("${pod.node}/${pod.ip}").as_deref(),
            Some("n1/10.0.0.1")
        );
        assert_eq!(
            rendered("v=${pod.labels['app.kubernetes.io/version']}").as_deref(),
            Some("v=v2")
        );
        assert_eq!(
            rendered("$$5 $${pod.name}").as_deref(),
            Some("$5 ${pod.name}")
        );
    }

    #[test]
    fn what_the_pod_lacks_gives_nothing() {
        assert_eq!(rendered("v-${pod.labels['none']}"), None);
        assert_eq!(rendered("v-${pod.annotations['none']}"), None);
    }

    #[test]
    fn mistakes_are_named() {
        let error = |template: &str| render(template, Some(&pod("p").facts())).unwrap_err();
        assert!(matches!(
            error("${pod.uid}"),
            TemplateError::UnknownVariable(_)
        ));
        assert!(matches!(
            error("${pod.labels[app]}"),
            TemplateError::UnknownVariable(_)
        ));
        assert!(matches!(
            error("${pod.labels['']}"),
            TemplateError::UnknownVariable(_)
        ));
        assert!(matches!(error("${pod.name"), TemplateError::Unclosed(_)));
        assert!(matches!(error("costs 5$"), TemplateError::LoneDollar(_)));
        assert!(matches!(
            render("${pod.ip}", None).unwrap_err(),
            TemplateError::NoPod(_)
        ));
    }

    #[test]
    fn a_closing_brace_in_a_quoted_key_is_not_the_end() {
        assert_eq!(rendered("${pod.labels['a}b']}"), None);
    }
}
