//! The page with every field of Lictor's resources, made from their CRDs.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// The page. `crds` are CRDs as YAML, in the order in which they are to stand there.
pub fn page(crds: &[String]) -> Result<String> {
    let mut page = "# Fields\n\nEvery field of Lictor's resources, of `lictor.io/v1alpha1`. `[]` is each item of a \
        list, `{}` each value of a map. What is in **bold** must be given where the field around it is.\n"
        .to_owned();
    for crd in crds {
        let crd: Value = serde_saphyr::from_str(crd).context("a CRD is no YAML")?;
        kind(&mut page, &crd)?;
    }
    Ok(page)
}

fn kind(page: &mut String, crd: &Value) -> Result<()> {
    let names = &crd["spec"]["names"];
    let name = names["kind"].as_str().context("a CRD has no kind")?;
    let short = names["shortNames"][0].as_str();
    let scope = match crd["spec"]["scope"].as_str() {
        Some("Cluster") => "of the whole cluster",
        _ => "in a namespace",
    };
    let versions = crd["spec"]["versions"].as_array().into_iter().flatten();
    writeln!(page, "\n## {name}\n")?;
    for version in versions {
        let schema = &version["schema"]["openAPIV3Schema"];
        let short = short.map_or(String::new(), |short| format!(" (`{short}`)"));
        writeln!(page, "{name}{short}, {scope}: {}\n", text(schema))?;
        for part in ["spec", "status"] {
            let schema = &schema["properties"][part];
            if schema.is_null() {
                continue;
            }
            writeln!(page, "| field | type | meaning |\n|---|---|---|")?;
            rows(page, part, schema)?;
            page.push('\n');
        }
    }
    page.truncate(page.trim_end().len());
    page.push('\n');
    Ok(())
}

/// A row for each field of an object, and of what is in it.
fn rows(page: &mut String, path: &str, schema: &Value) -> Result<()> {
    rules(page, path, schema)?;
    let required: Vec<&str> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        let shown = if required.contains(&&**name) {
            format!("**`{path}`**")
        } else {
            format!("`{path}`")
        };
        writeln!(page, "| {shown} | {} | {} |", kind_of(field), text(field))?;
        let (path, within) = inner(path, field);
        rows(page, &path, within)?;
    }
    Ok(())
}

/// What the API server says of an object that breaks a rule over several fields.
fn rules(page: &mut String, path: &str, schema: &Value) -> Result<()> {
    if schema["type"] != "object" {
        return Ok(());
    }
    let rules = schema["x-kubernetes-validations"].as_array();
    let rules = rules.into_iter().flatten();
    for message in rules.filter_map(|rule| rule["message"].as_str()) {
        writeln!(page, "| `{path}` | | *{}* |", escaped(message))?;
    }
    Ok(())
}

/// What is in a list or a map, and how that is written.
fn inner(mut path: String, mut schema: &Value) -> (String, &Value) {
    loop {
        if schema["items"].is_object() {
            path.push_str("[]");
            schema = &schema["items"];
        } else if schema["additionalProperties"].is_object() {
            path.push_str("{}");
            schema = &schema["additionalProperties"];
        } else {
            return (path, schema);
        }
    }
}

fn kind_of(schema: &Value) -> String {
    if schema["x-kubernetes-int-or-string"] == true {
        return "number or text".to_owned();
    }
    let kind = match schema["type"].as_str() {
        Some("array") => return format!("list of {}", kind_of(&schema["items"])),
        Some("object") if schema["additionalProperties"].is_object() => {
            let values = kind_of(&schema["additionalProperties"]);
            return format!("map of {values}");
        }
        Some("string") => match schema["format"].as_str() {
            Some("date-time") => "time",
            _ => "text",
        },
        Some(kind) => kind,
        None => "any",
    };
    let values = schema["enum"].as_array().into_iter().flatten();
    let values: Vec<String> = values
        .filter_map(Value::as_str)
        .map(|value| format!("`{value}`"))
        .collect();
    if !values.is_empty() {
        return values.join(", ");
    }
    let number = |name: &str| schema[name].as_f64();
    match (number("minimum"), number("maximum")) {
        (Some(least), Some(most)) => format!("{kind}, {least} to {most}"),
        (Some(least), None) => format!("{kind}, at least {least}"),
        (None, Some(most)) => format!("{kind}, at most {most}"),
        (None, None) => kind.to_owned(),
    }
}

/// The description, with what must be true of a single value.
fn text(schema: &Value) -> String {
    let mut text = schema["description"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    if schema["type"] != "object" {
        let rules = schema["x-kubernetes-validations"].as_array();
        for rule in rules.into_iter().flatten() {
            if let Some(message) = rule["message"].as_str() {
                let _ = write!(text, " *{message}.*");
            }
        }
    }
    if let Some(default) = schema.get("default") {
        let _ = write!(text, " Default: `{default}`.");
    }
    escaped(&text)
}

fn escaped(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CRD: &str = r"
spec:
  names: {kind: Thing, shortNames: [th]}
  scope: Namespaced
  versions:
  - name: v1alpha1
    schema:
      openAPIV3Schema:
        description: A thing.
        properties:
          spec:
            type: object
            required: [name]
            x-kubernetes-validations:
            - {message: give a or b, rule: 'has(self.a)'}
            properties:
              name: {type: string, description: 'Its name, a|b.', enum: [a, b]}
              parts:
                type: array
                items:
                  type: object
                  required: [size]
                  properties:
                    size: {type: integer, minimum: 1, maximum: 9, description: How big., default: 2}
              labels:
                type: object
                additionalProperties: {type: string}
";

    #[test]
    fn each_field_has_a_row_with_its_type_and_its_bounds() {
        let page = page(&[CRD.to_owned()]).unwrap();
        for line in [
            "## Thing",
            "Thing (`th`), in a namespace: A thing.",
            "| `spec` | | *give a or b* |",
            r"| **`spec.name`** | `a`, `b` | Its name, a\|b. |",
            "| `spec.parts` | list of object |  |",
            "| **`spec.parts[].size`** | integer, 1 to 9 | How big. Default: `2`. |",
            "| `spec.labels` | map of text |  |",
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\n{page}");
        }
    }
}
