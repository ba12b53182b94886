//! The token: what Consul takes it for, and how one is had for a `ServiceAccount`.
//!
//! Source: <https://developer.hashicorp.com/consul/api-docs/acl>

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::{Client, ConsulError, ErrorClass, Request, TokenStanding};

/// The accessor of the token that stands for "no token".
const ANONYMOUS: &str = "00000000-0000-0000-0000-000000000002";
const ACLS_OFF: &str = "ACL support disabled";

#[derive(Deserialize)]
struct SelfToken {
    #[serde(rename = "AccessorID")]
    accessor: Box<str>,
}

/// What a token says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct OwnToken {
    /// When it ends by itself; `None` if it does not.
    #[serde(rename = "ExpirationTime")]
    pub expires: Option<Timestamp>,
    /// Whether it is good in its own datacenter alone.
    pub local: bool,
}

/// A token that a login gave.
#[derive(Clone, Debug)]
pub struct Login {
    /// Its accessor id, which is no secret.
    pub accessor: Box<str>,
    /// The token.
    pub token: SecretString,
    /// How long it lives, by Consul's clock; `None` if until the logout.
    pub lifetime: Option<Duration>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct LoginBody<'a> {
    auth_method: &'a str,
    bearer_token: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    meta: BTreeMap<&'a str, &'a str>,
}

#[derive(Deserialize)]
struct LoginAnswer {
    #[serde(rename = "AccessorID")]
    accessor: Box<str>,
    #[serde(rename = "SecretID")]
    token: String,
    #[serde(rename = "CreateTime")]
    created: Option<Box<str>>,
    #[serde(rename = "ExpirationTime")]
    expires: Option<Box<str>>,
}

impl Client {
    /// Asks Consul what it takes our token for and remembers it: for 15 minutes, or until the
    /// token changes, answers count as verified if it was found good.
    pub async fn check_token(&self) -> Result<TokenStanding, ConsulError> {
        let (sent, generation) = self.token_in_use();
        let answer = self.send(&Request::get("acl/token/self")).await?;
        let standing = match answer.json::<SelfToken>() {
            Ok(token) if &*token.value.accessor == ANONYMOUS => TokenStanding::Anonymous,
            Ok(token) => TokenStanding::Token {
                accessor: token.value.accessor,
            },
            Err(error) if error.status() == Some(401) && error.text().contains(ACLS_OFF) => {
                TokenStanding::AclsOff
            }
            // Consul says the same about no token as about one that it does not know.
            Err(error) if error.class() == ErrorClass::TokenUnknown => {
                if sent {
                    TokenStanding::Unknown
                } else {
                    TokenStanding::Anonymous
                }
            }
            Err(error) => return Err(error),
        };
        self.remember_standing(generation, standing.clone());
        Ok(standing)
    }

    /// What our token says about itself.
    pub async fn own_token(&self) -> Result<OwnToken, ConsulError> {
        let answer = self
            .send(&Request::get("acl/token/self"))
            .await?
            .success()?;
        // The error of the decoder could quote the secret.
        let unreadable = |_| answer.malformed("not a token");
        serde_json::from_slice(&answer.body).map_err(unreadable)
    }

    /// Exchanges the token of a `ServiceAccount` for one of Consul. The client goes on with the
    /// one that it has until [`Client::set_token`]. `pod` is shown with the token in Consul.
    ///
    /// There is no renewal: log in again before it ends, and log the old one out.
    /// [`ErrorClass::AccessDenied`] if Kubernetes does not know the bearer, or no rule gives it a
    /// right; [`ErrorClass::TokenUnknown`] if there is no such auth method. A login whose fate is
    /// unknown may have left a token behind.
    pub async fn login(
        &self,
        method: &str,
        bearer: &SecretString,
        pod: Option<&str>,
    ) -> Result<Login, ConsulError> {
        let body = LoginBody {
            auth_method: method,
            bearer_token: bearer.expose_secret(),
            meta: pod.map(|pod| ("pod", pod)).into_iter().collect(),
        };
        let request = Request::post("acl/login").without_token().json(&body)?;
        let answer = self.send(&request).await?.success()?;
        // The error of the decoder could quote the secret.
        let unreadable = || answer.malformed("not the answer to a login");
        let LoginAnswer {
            accessor,
            token,
            created,
            expires,
        } = serde_json::from_slice(&answer.body).map_err(|_| unreadable())?;
        let time = |text: &str| text.parse::<Timestamp>().map_err(|_| unreadable());
        let lifetime = match (created, expires) {
            (Some(created), Some(expires)) => {
                let lives = time(&expires)?.duration_since(time(&created)?);
                Some(lives.try_into().map_err(|_| unreadable())?)
            }
            _ => None,
        };
        let token = SecretString::from(token);
        Ok(Login {
            accessor,
            token,
            lifetime,
        })
    }

    /// Ends a token that a login gave.
    pub async fn logout(&self, token: SecretString) -> Result<(), ConsulError> {
        self.send(&Request::post("acl/logout").token(token))
            .await?
            .success()?;
        Ok(())
    }
}
