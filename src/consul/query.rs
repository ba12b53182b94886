//! Prepared queries: `/v1/query/...`.
//!
//! They have neither compare-and-set nor metadata, and no transaction takes them. What they do have is
//! a name that is unique: of two who create a query of one name, the second is
//! [`ErrorClass::Conflict`].
//!
//! Source: <https://developer.hashicorp.com/consul/api-docs/query>; observed on Consul 1.22.7.

use serde::Deserialize;

use super::catalog::signal;
use super::error::unwrapped;
use super::wire::PreparedQuery;
use super::{
    Client, Consistency, ConsulError, ErrorClass, Observed, Quality, Request, Response, Watch,
};
use crate::model::text::Text;

/// How Consul says that there is none.
const NONE: &str = "Query not found";

/// Any JSON object would do for a query; that it has an id shows that it is one.
const NAMELESS: &str = "a query without an id";

#[derive(Deserialize)]
#[serde(rename_all = "UPPERCASE")]
struct Created {
    id: Text,
}

impl Client {
    /// All queries, in the order of their ids.
    ///
    /// Those that the token may not read are left out: [`Quality::Filtered`].
    pub async fn queries(
        &self,
        consistency: Consistency,
    ) -> Result<Observed<Vec<PreparedQuery>>, ConsulError> {
        let request = Request::get("query").consistency(consistency);
        queries(&self.send(&request).await?.success()?)
    }

    /// A query by its id; `None` if there is none. What is no UUID is
    /// [`ErrorClass::Refused`].
    pub async fn query(
        &self,
        id: &str,
        consistency: Consistency,
    ) -> Result<Observed<Option<PreparedQuery>>, ConsulError> {
        let request = of_id(Request::get("query"), id)?.consistency(consistency);
        let answer = self.send(&request).await?;
        if answer.status != 404 {
            let answer = answer.success()?;
            let found = queries(&answer)?.map(|queries| queries.into_iter().next());
            // A list of none is not how Consul says that there is none.
            return match found.value {
                Some(_) => Ok(found),
                None => Err(answer.malformed("a success without a query")),
            };
        }
        if answer.quality == Quality::Unidentified || !says_none(&answer.body) {
            return Err(answer.malformed("a 404 that is not Consul's"));
        }
        Ok(answer.observed(None))
    }

    /// Creates a query, whatever id is in it, and gives the id that Consul chose.
    pub async fn create_query(&self, query: &PreparedQuery) -> Result<Text, ConsulError> {
        let answer = self.send(&Request::post("query").json(query)?).await?;
        let answer = answer.success()?;
        let Created { id } = answer.decode()?;
        if id.is_empty() {
            return Err(answer.malformed(NAMELESS));
        }
        Ok(id)
    }

    /// Replaces the query that has this id, whole: a token that is stored in it is taken out. Even what
    /// changes nothing is a write and moves `ModifyIndex`.
    ///
    /// One that is not there is [`ErrorClass::NotFound`].
    pub async fn update_query(&self, query: &PreparedQuery) -> Result<(), ConsulError> {
        let request = of_id(Request::put("query"), &query.id)?.json(query)?;
        self.send(&request).await?.success()?;
        Ok(())
    }

    /// Removes a query. One that is not there is
    /// [`ErrorClass::NotFound`].
    pub async fn delete_query(&self, id: &str) -> Result<(), ConsulError> {
        let request = of_id(Request::delete("query"), id)?;
        self.send(&request).await?.success()?;
        Ok(())
    }

    /// Tells that some query changed, appeared or went, without saying which. Its index is that of the
    /// queries alone. Each answer carries all of them (there is no filter), but is not decoded.
    #[must_use]
    pub fn watch_any_query(&self, consistency: Consistency) -> Watch<()> {
        let request = Request::get("query").consistency(consistency);
        Watch::new(self.clone(), request, signal)
    }
}

fn queries(answer: &Response) -> Result<Observed<Vec<PreparedQuery>>, ConsulError> {
    let queries: Vec<PreparedQuery> = answer.decode()?;
    if queries.iter().any(|query| query.id.is_empty()) {
        return Err(answer.malformed(NAMELESS));
    }
    Ok(answer.observed(queries))
}

/// Whether a text is Consul's way to say that there is none: as the leader says it, or as an agent or a
/// follower passes it on.
fn says_none(body: &[u8]) -> bool {
    str::from_utf8(body).is_ok_and(|text| unwrapped(text) == NONE)
}

/// Adds an id to the path, where anything else could mean another request: `<name>/execute`.
fn of_id<'a>(request: Request<'a>, id: &'a str) -> Result<Request<'a>, ConsulError> {
    let is_of_id = |c: char| c.is_ascii_hexdigit() || c == '-';
    if id.is_empty() || !id.chars().all(is_of_id) {
        return Err(request.error(ErrorClass::Refused, "not the id of a query"));
    }
    Ok(request.segment(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_there_is_none_is_understood_from_any_server() {
        for text in ["", "rpc error making call: "] {
            assert!(says_none(format!("{text}Query not found").as_bytes()));
        }
        for text in [
            "",
            "<html>Query not found</html>",
            "Query not found: /",
            "page: Query not found",
        ] {
            assert!(!says_none(text.as_bytes()), "{text}");
        }
        assert!(!says_none(b"\xff"));
    }

    #[test]
    fn what_is_no_id_never_gets_into_a_path() {
        for id in ["", "..", "a/execute", "web", "a?b"] {
            let error = of_id(Request::delete("query"), id).unwrap_err();
            assert_eq!(error.class(), ErrorClass::Refused);
        }
        let id = "adf4238a-882b-9ddc-4a9d-5b6758e4159e";
        assert!(of_id(Request::get("query"), id).is_ok());
    }
}
