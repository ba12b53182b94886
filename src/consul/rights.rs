//! The rights that `lictor run` needs in Consul: what `lictor acl-policy` prints, and what is asked of Consul
//! about a token.
//!
//! Source: <https://developer.hashicorp.com/consul/docs/security/acl/acl-rules>. What is read is read whole:
//! from a narrower answer nothing could be taken for missing. `intentions` do not follow from the right to
//! write a service.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Client, ConsulError, Request};
use crate::model::names::ClusterName;

/// What a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resource {
    /// Nodes of the catalog.
    Node,
    /// Services.
    Service,
    /// Who may call a service; in a policy a part of the rule of the service.
    Intention,
    /// Prepared queries.
    Query,
    /// Sessions, by the node that they are on.
    Session,
    /// Keys of the store.
    Key,
}

impl Resource {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Service => "service",
            Self::Intention => "intention",
            Self::Query => "query",
            Self::Session => "session",
            Self::Key => "key",
        }
    }
}

/// What may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// See it.
    Read,
    /// Change it, and see it.
    Write,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
        })
    }
}

/// One rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What it is about; never [`Resource::Intention`].
    pub resource: Resource,
    /// The name, or the beginning of names.
    pub name: String,
    /// Whether all names that begin so are meant.
    pub prefix: bool,
    /// What may be done.
    pub access: Access,
    /// Of services: whether the intentions towards them may be written too.
    pub intentions: bool,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            resource,
            name,
            prefix,
            access,
            intentions,
        } = self;
        let resource = resource.as_str();
        let suffix = if *prefix { "_prefix" } else { "" };
        if *intentions {
            write!(
                f,
                "{resource}{suffix} \"{name}\" {{\n  policy = \"{access}\"\n  intentions = \"write\"\n}}"
            )
        } else {
            write!(
                f,
                "{resource}{suffix} \"{name}\" {{ policy = \"{access}\" }}"
            )
        }
    }
}

/// All rules that a cluster needs, and no more.
#[must_use]
pub fn rules(cluster: &ClusterName) -> Vec<Rule> {
    use Access::{Read, Write};
    use Resource::{Key, Node, Query, Service, Session};
    let rule = |resource, name: String, prefix, access| Rule {
        resource,
        name,
        prefix,
        access,
        intentions: resource == Service,
    };
    let nodes = || format!("lictor-{cluster}--");
    let external = || format!("lictor-{cluster}-external");
    vec![
        rule(Node, nodes(), true, Write),
        rule(Node, external(), false, Write),
        rule(Node, String::new(), true, Read),
        rule(Service, String::new(), true, Write),
        rule(Query, String::new(), true, Write),
        rule(Session, nodes(), true, Write),
        rule(Session, external(), false, Write),
        rule(Key, format!("lictor/v1/{cluster}/"), true, Write),
        rule(Key, "lictor/v1/".to_owned(), true, Read),
    ]
}

/// A question about a token: may it do this?
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Permission {
    /// On what.
    pub resource: Resource,
    /// On which; the beginning of names for all that begin so, empty for all.
    #[serde(default)]
    pub segment: String,
    /// To do what.
    pub access: Access,
}

/// In the words of Consul's own refusals.
impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            resource,
            segment,
            access,
        } = self;
        write!(f, "{}:{access} on \"{segment}\"", resource.as_str())
    }
}

impl Rule {
    /// What the rule allows that Lictor makes use of.
    #[must_use]
    pub fn permissions(&self) -> Vec<Permission> {
        let permission = |resource, access| Permission {
            resource,
            segment: self.name.clone(),
            access,
        };
        let mut all = Vec::new();
        // Whoever may write may also read, unless a rule allows only that.
        let reads_whole = matches!(self.resource, Resource::Service | Resource::Query);
        if reads_whole && self.access == Access::Write {
            all.push(permission(self.resource, Access::Read));
        }
        all.push(permission(self.resource, self.access));
        if self.intentions {
            all.push(permission(Resource::Intention, Access::Read));
            all.push(permission(Resource::Intention, Access::Write));
        }
        all
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(flatten)]
    permission: Permission,
    allow: bool,
}

impl Client {
    /// Asks which of these the token allows, in their order. Nothing is changed, and it needs no right.
    ///
    /// The segment of a prefix rule is answered by that rule, and the empty one only by a rule for all names:
    /// rules for single names that say otherwise are not seen. 401 where ACLs are off. Not a part of the
    /// documented API: it is what Consul's own UI asks. Observed on Consul 1.22.7.
    pub async fn authorize(&self, permissions: &[Permission]) -> Result<Vec<bool>, ConsulError> {
        let request = Request::post("internal/acl/authorize").json(&permissions)?;
        let answer = self.send(&request).await?.success()?;
        let answers: Vec<Answer> = answer.decode()?;
        let asked = answers.iter().map(|answer| &answer.permission);
        if !asked.eq(permissions) {
            return Err(answer.malformed("not the answers to what was asked"));
        }
        Ok(answers.into_iter().map(|answer| answer.allow).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_follows_from_the_rules() {
        let asked = rules(&"e".parse().unwrap());
        let asked = asked.iter().flat_map(Rule::permissions);
        let asked: Vec<String> = asked.map(|permission| permission.to_string()).collect();
        let expected = [
            "node:write on \"lictor-e--\"",
            "node:write on \"lictor-e-external\"",
            "node:read on \"\"",
            "service:read on \"\"",
            "service:write on \"\"",
            "intention:read on \"\"",
            "intention:write on \"\"",
            "query:read on \"\"",
            "query:write on \"\"",
            "session:write on \"lictor-e--\"",
            "session:write on \"lictor-e-external\"",
            "key:write on \"lictor/v1/e/\"",
            "key:read on \"lictor/v1/\"",
        ];
        assert_eq!(asked, expected);
    }
}
