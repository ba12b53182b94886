//! The token: what Consul takes it for, and how one is had for a `ServiceAccount`.
//!
//! Source: <https://developer.hashicorp.com/consul/api-docs/acl>

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

/// A token that a login gave.
#[derive(Clone, Debug)]
pub struct Login {
    /// Its accessor id, which is no secret.
    pub accessor: Box<str>,
    /// The token.
    pub token: SecretString,
    /// When it ends, by Consul's clock; `None` if it lives until the logout.
    pub expires: Option<Timestamp>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct LoginBody<'a> {
    auth_method: &'a str,
    bearer_token: &'a str,
}

#[derive(Deserialize)]
struct LoginAnswer {
    #[serde(rename = "AccessorID")]
    accessor: Box<str>,
    #[serde(rename = "SecretID")]
    token: String,
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

    /// Exchanges the token of a `ServiceAccount` for one of Consul. The client goes on with the
    /// one that it has until [`Client::set_token`].
    ///
    /// There is no renewal: log in again before it ends, and log the old one out.
    /// [`ErrorClass::AccessDenied`] if Kubernetes does not know the bearer, or no rule gives it a
    /// right; [`ErrorClass::TokenUnknown`] if there is no such auth method. A login whose fate is
    /// unknown may have left a token behind.
    pub async fn login(&self, method: &str, bearer: &SecretString) -> Result<Login, ConsulError> {
        let body = LoginBody {
            auth_method: method,
            bearer_token: bearer.expose_secret(),
        };
        let request = Request::post("acl/login").without_token().json(&body)?;
        let answer = self.send(&request).await?.success()?;
        // The error of the decoder could quote the secret.
        let unreadable = || answer.malformed("not the answer to a login");
        let LoginAnswer {
            accessor,
            token,
            expires,
        } = serde_json::from_slice(&answer.body).map_err(|_| unreadable())?;
        let expires = expires
            .map(|text| text.parse())
            .transpose()
            .map_err(|_| unreadable())?;
        let token = SecretString::from(token);
        Ok(Login {
            accessor,
            token,
            expires,
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
