//! Where Consul is and how to talk to it, checked before the first request.

use std::path::PathBuf;

use reqwest::Url;
use secrecy::SecretString;

/// What an operator gave, unchecked: the flags, or the environment variables that Consul's own
/// tools read (<https://developer.hashicorp.com/consul/commands#environment-variables>).
#[derive(Clone, Debug, Default)]
pub struct ConsulSettings {
    /// `CONSUL_HTTP_ADDR`: one address or several, comma-separated: `http://host:port`,
    /// `https://host:port`, `unix:///path`, or `host:port`. Empty means `127.0.0.1:8500`.
    pub addresses: String,
    /// `CONSUL_HTTP_TOKEN`.
    pub token: Option<SecretString>,
    /// `CONSUL_HTTP_TOKEN_FILE`; goes before the token, as in Consul's own tools.
    pub token_file: Option<PathBuf>,
    /// `CONSUL_HTTP_SSL`: addresses use TLS even where they say `http://`.
    pub ssl: bool,
    /// `CONSUL_CACERT`: a PEM bundle; only these authorities are trusted then.
    pub ca_cert: Option<PathBuf>,
    /// `CONSUL_CLIENT_CERT`: a PEM chain.
    pub client_cert: Option<PathBuf>,
    /// `CONSUL_CLIENT_KEY`: the PEM key of the client certificate.
    pub client_key: Option<PathBuf>,
    /// `CONSUL_TLS_SERVER_NAME`: the name to ask for and to find in the server's certificate.
    pub tls_server_name: Option<String>,
    /// `CONSUL_NAMESPACE`, Enterprise only.
    pub namespace: Option<String>,
    /// `CONSUL_PARTITION`, Enterprise only.
    pub partition: Option<String>,
}

/// Settings that hold together; made by [`ConsulConfig::new`].
#[derive(Clone, Debug)]
pub struct ConsulConfig {
    /// In the order in which they are tried; never empty.
    pub(super) addresses: Vec<Url>,
    pub(super) token: TokenSource,
    pub(super) tls: TlsConfig,
    pub(super) tenancy: Tenancy,
}

/// Namespace and partition, which exist in Enterprise only: Community Edition refuses them, so
/// they are sent only where they were set.
#[derive(Clone, Debug, Default)]
pub(super) struct Tenancy {
    pub(super) namespace: Option<String>,
    pub(super) partition: Option<String>,
}

impl Tenancy {
    /// Whether nothing was set.
    pub(super) fn is_default(&self) -> bool {
        self.namespace.is_none() && self.partition.is_none()
    }

    /// The parameters of a query.
    pub(super) fn query(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let namespace = self.namespace.iter().map(|value| ("ns", value.as_str()));
        namespace.chain(
            self.partition
                .iter()
                .map(|value| ("partition", value.as_str())),
        )
    }
}

/// Where the token comes from.
#[derive(Clone, Debug)]
pub(super) enum TokenSource {
    /// There is none, or a login sets it later.
    None,
    /// It was given.
    Fixed(SecretString),
    /// It is in a file, which may change.
    File(PathBuf),
}

/// Files and names for TLS.
#[derive(Clone, Debug, Default)]
pub struct TlsConfig {
    pub(super) ca_cert: Option<PathBuf>,
    /// Certificate chain and key.
    pub(super) identity: Option<(PathBuf, PathBuf)>,
    pub(super) server_name: Option<String>,
}

impl TlsConfig {
    /// The files that the connections depend on.
    pub(super) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let identity = self.identity.iter().flat_map(|(cert, key)| [cert, key]);
        self.ca_cert.iter().chain(identity)
    }
}

/// Why settings were refused: the variable and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{variable}: {problem}")]
pub struct ConfigError {
    variable: &'static str,
    problem: String,
}

impl ConfigError {
    pub(super) fn new(variable: &'static str, problem: impl Into<String>) -> Self {
        Self {
            variable,
            problem: problem.into(),
        }
    }

    /// The environment variable of the setting that is at fault.
    #[must_use]
    pub fn variable(&self) -> &'static str {
        self.variable
    }
}

/// Where Consul's agents listen unless told otherwise.
const DEFAULT_ADDRESS: &str = "127.0.0.1:8500";

impl ConsulConfig {
    /// The hosts and ports of the addresses.
    pub fn hosts(&self) -> impl Iterator<Item = (String, u16)> {
        let host = |url: &Url| Some((url.host_str()?.to_owned(), url.port_or_known_default()?));
        self.addresses.iter().filter_map(host)
    }

    /// Checks settings without touching the network or a file.
    pub fn new(settings: ConsulSettings) -> Result<Self, ConfigError> {
        let ConsulSettings {
            addresses,
            token,
            token_file,
            ssl,
            ca_cert,
            client_cert,
            client_key,
            tls_server_name,
            namespace,
            partition,
        } = settings;
        let addresses = parse_addresses(&addresses, ssl)?;
        let identity = match (client_cert, client_key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) => {
                return Err(ConfigError::new(
                    "CONSUL_CLIENT_KEY",
                    "missing, but CONSUL_CLIENT_CERT is set; give both",
                ));
            }
            (None, Some(_)) => {
                return Err(ConfigError::new(
                    "CONSUL_CLIENT_CERT",
                    "missing, but CONSUL_CLIENT_KEY is set; give both",
                ));
            }
        };
        let server_name = filled(tls_server_name);
        if let Some(name) = &server_name {
            check_server_name(name)?;
        }
        let token = match (token_file, token) {
            (Some(file), _) => TokenSource::File(file),
            (None, Some(token)) => TokenSource::Fixed(token),
            (None, None) => TokenSource::None,
        };
        Ok(Self {
            addresses,
            token,
            tls: TlsConfig {
                ca_cert,
                identity,
                server_name,
            },
            tenancy: Tenancy {
                namespace: filled(namespace),
                partition: filled(partition),
            },
        })
    }

    /// Whether any address uses TLS.
    pub(super) fn uses_tls(&self) -> bool {
        self.addresses.iter().any(|url| url.scheme() == "https")
    }
}

/// A variable that is set to nothing is not set, as in Consul's own tools.
fn filled(value: Option<String>) -> Option<String> {
    value
        .map(|value| value.trim().to_owned())
        .filter(|value| !value.is_empty())
}

fn parse_addresses(list: &str, ssl: bool) -> Result<Vec<Url>, ConfigError> {
    if list.trim().is_empty() {
        return Ok(vec![parse_address(DEFAULT_ADDRESS, ssl)?]);
    }
    let mut urls = Vec::new();
    for text in list.split(',') {
        let url = parse_address(text.trim(), ssl)?;
        if !urls.contains(&url) {
            urls.push(url);
        }
    }
    Ok(urls)
}

fn parse_address(text: &str, ssl: bool) -> Result<Url, ConfigError> {
    const VARIABLE: &str = "CONSUL_HTTP_ADDR";
    // The text itself may hold a password, so it is shown only once it is known not to.
    let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
    let scheme = match scheme {
        "http" if ssl => "https",
        "http" | "https" => scheme,
        "unix" => return parse_socket(rest),
        _ => {
            return Err(ConfigError::new(
                VARIABLE,
                "unknown scheme; give http://HOST:PORT, https://HOST:PORT or unix:///PATH",
            ));
        }
    };
    if rest.contains('@') {
        return Err(ConfigError::new(
            VARIABLE,
            "user and password are not supported; give a token instead",
        ));
    }
    let url = Url::parse(&format!("{scheme}://{rest}"));
    let url = url.map_err(|error| {
        ConfigError::new(
            VARIABLE,
            format!("{text:?} is not an address ({error}); give http://HOST:PORT"),
        )
    })?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err(ConfigError::new(
            VARIABLE,
            format!("{text:?} has a query or fragment; give http://HOST:PORT"),
        ));
    }
    Ok(url)
}

/// A socket of this machine, which has no TLS.
fn parse_socket(path: &str) -> Result<Url, ConfigError> {
    let url = Url::parse(&format!("unix://{path}")).ok();
    // What a URL would write otherwise is not the path that was meant.
    let same = url.filter(|url| path.starts_with('/') && path.len() > 1 && url.path() == path);
    same.ok_or_else(|| {
        let remedy =
            format!("{path:?} is not the path of a socket; give unix:///PATH, in plain letters");
        ConfigError::new("CONSUL_HTTP_ADDR", remedy)
    })
}

fn check_server_name(name: &str) -> Result<(), ConfigError> {
    const VARIABLE: &str = "CONSUL_TLS_SERVER_NAME";
    if name.parse::<std::net::IpAddr>().is_ok() {
        let remedy =
            "an IP is no server name; give the name in the certificate, like server.dc1.consul";
        return Err(ConfigError::new(VARIABLE, remedy));
    }
    let parsed = Url::parse(&format!("https://{name}")).ok();
    if parsed.is_none_or(|url| url.host_str() != Some(name.to_ascii_lowercase().as_str())) {
        return Err(ConfigError::new(
            VARIABLE,
            format!("{name:?} is not a host name like server.dc1.consul"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(list: &str, ssl: bool) -> Result<Vec<String>, ConfigError> {
        let settings = ConsulSettings {
            addresses: list.to_owned(),
            ssl,
            ..Default::default()
        };
        let config = ConsulConfig::new(settings)?;
        Ok(config.addresses.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn addresses_are_read_as_consul_reads_them() {
        let good = [
            ("", false, "http://127.0.0.1:8500/"),
            (" ", true, "https://127.0.0.1:8500/"),
            ("consul.example:8501", false, "http://consul.example:8501/"),
            ("consul.example:8501", true, "https://consul.example:8501/"),
            ("http://10.0.0.1:8500", true, "https://10.0.0.1:8500/"),
            ("https://[fd00::1]:8501", false, "https://[fd00::1]:8501/"),
            ("unix:///run/consul.sock", true, "unix:///run/consul.sock"),
            (
                "https://lb.example/consul",
                false,
                "https://lb.example/consul",
            ),
        ];
        for (text, ssl, url) in good {
            assert_eq!(addresses(text, ssl).unwrap(), [url], "{text}");
        }
        let several = addresses("http://a:1, b:2,http://a:1", false).unwrap();
        assert_eq!(several, ["http://a:1/", "http://b:2/"]);
    }

    #[test]
    fn a_bad_address_is_refused_with_the_variable_and_without_a_password() {
        let bad = [
            "a:1,,b:2",
            "unix://",
            "unix://run/consul.sock",
            "unix:///run/../consul.sock",
            "unix:///run/a b",
            "ftp://a",
            "http://",
            "a:port",
            "a:1?x=y",
        ];
        for text in bad {
            let error = addresses(text, false).unwrap_err();
            assert_eq!(error.variable(), "CONSUL_HTTP_ADDR", "{text}");
        }
        let error = addresses("http://user:secret@a:1", false).unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
    }

    #[test]
    fn a_certificate_needs_its_key() {
        let settings = ConsulSettings {
            client_cert: Some("c".into()),
            ..Default::default()
        };
        let error = ConsulConfig::new(settings).unwrap_err();
        assert_eq!(error.variable(), "CONSUL_CLIENT_KEY");
        let settings = ConsulSettings {
            client_key: Some("k".into()),
            ..Default::default()
        };
        let error = ConsulConfig::new(settings).unwrap_err();
        assert_eq!(error.variable(), "CONSUL_CLIENT_CERT");
    }

    #[test]
    fn a_server_name_is_a_host_name() {
        for name in ["10.0.0.1", "::1", "a:8501", "a/b", "a b"] {
            let tls_server_name = Some(name.to_owned());
            let settings = ConsulSettings {
                tls_server_name,
                ..Default::default()
            };
            let error = ConsulConfig::new(settings).unwrap_err();
            assert_eq!(error.variable(), "CONSUL_TLS_SERVER_NAME", "{name}");
        }
        let tls_server_name = Some("Server.dc1.consul".to_owned());
        assert!(
            ConsulConfig::new(ConsulSettings {
                tls_server_name,
                ..Default::default()
            })
            .is_ok()
        );
    }

    #[test]
    fn what_is_set_to_nothing_is_not_set() {
        let nothing = || Some(" ".to_owned());
        let settings = ConsulSettings {
            tls_server_name: nothing(),
            namespace: nothing(),
            partition: nothing(),
            ..Default::default()
        };
        let config = ConsulConfig::new(settings).unwrap();
        assert_eq!(config.tls.server_name, None);
        assert_eq!(config.tenancy.query().count(), 0);
    }

    #[test]
    fn a_token_is_not_shown() {
        let token = Some(SecretString::from("very-secret"));
        let settings = ConsulSettings {
            token,
            ..Default::default()
        };
        assert!(!format!("{settings:?}").contains("very-secret"));
        let config = ConsulConfig::new(settings).unwrap();
        assert!(!format!("{config:?}").contains("very-secret"));
    }
}
