//! Where no check may connect to. Pure.
//!
//! The address of an instance comes from a pod's status or from a `ServiceRegistration`, and so from
//! people with far fewer rights than this process has where it runs.
#![cfg_attr(not(test), deny(clippy::disallowed_types, clippy::disallowed_methods))]

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Ports at which the servers of Kubernetes and of Consul listen, whichever of them Lictor itself uses: of etcd,
/// of the API server, of the kubelet and the controllers; of Consul for its servers, over HTTP, over gRPC and as
/// DNS. Others at the same address may be anyone's: it may be that of a node, with all that runs there.
const API_PORTS: [u16; 14] = [
    2379, 2380, 6443, 10250, 10257, 10259, 8300, 8301, 8302, 8500, 8501, 8502, 8503, 8600,
];
/// Names of metadata services of clouds.
const METADATA_NAMES: [&str; 3] = [
    "metadata.google.internal",
    "metadata.goog",
    "instance-data.ec2.internal",
];

/// Where no check may connect to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forbidden {
    allows_local: bool,
    apis: HashSet<SocketAddr>,
    /// The names that the APIs are known by here.
    names: HashSet<(String, u16)>,
}

impl Forbidden {
    /// `allows_local` is `--allow-local-checks`; `apis` is where the API server and Consul are.
    #[must_use]
    pub fn new(allows_local: bool, apis: impl IntoIterator<Item = SocketAddr>) -> Self {
        let of = |at: SocketAddr| {
            let ports = API_PORTS.into_iter().chain([at.port()]);
            ports.map(move |port| SocketAddr::new(bare(at.ip()), port))
        };
        Self {
            allows_local,
            apis: apis.into_iter().flat_map(of).collect(),
            names: HashSet::new(),
        }
    }

    /// These hosts are where the API server and Consul are, too, whatever their names lead to.
    #[must_use]
    pub fn with_names<'a>(mut self, apis: impl IntoIterator<Item = &'a (String, u16)>) -> Self {
        let of = |(host, port): &(String, u16)| {
            let (host, ports) = (plain(host), API_PORTS.into_iter().chain([*port]));
            ports.map(move |port| (host.clone(), port))
        };
        self.names = apis.into_iter().flat_map(of).collect();
        self
    }

    /// Why this may not be connected to, if it may not.
    #[must_use]
    pub fn why(&self, address: SocketAddr) -> Option<&'static str> {
        let ip = bare(address.ip());
        if ip.is_unspecified() || ip.is_multicast() || is_broadcast(ip) {
            return Some("it is no address of one host");
        }
        if self.allows_local {
            return None;
        }
        if ip.is_loopback() {
            return Some("it is a loopback address");
        }
        if is_link_local(ip) {
            return Some("it is a link-local address");
        }
        if is_metadata(ip) {
            return Some("it is a cloud's metadata service");
        }
        let is_api = self.apis.contains(&SocketAddr::new(ip, address.port()));
        is_api.then_some("it is the API server's or Consul's")
    }

    /// Why a host may not be given to somebody else to connect to, as far as that can be told without a
    /// look-up: what a name leads to is not known.
    #[must_use]
    pub fn why_not_by_name(&self, host: &str, port: u16) -> Option<&'static str> {
        let (bare, _zone) = host.split_once('%').unwrap_or((host, ""));
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return self.why(SocketAddr::new(ip, port));
        }
        let name = plain(host);
        let last = name.rsplit('.').next().unwrap_or_default();
        if !self.allows_local {
            if last == "localhost" {
                return Some("it is a loopback address");
            }
            if METADATA_NAMES.contains(&&*name) {
                return Some("it is a cloud's metadata service");
            }
            if is_kubernetes(&name) || self.names.contains(&(name.clone(), port)) {
                return Some("it is the API server's or Consul's");
            }
        }
        // Some take 127.1, 2130706433 and 0x7f000001 for addresses.
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit());
        let is_address = is_number(last) || last.starts_with("0x");
        is_address.then_some("it is neither an address in its usual form nor a name")
    }
}

/// A name as all of its forms are.
fn plain(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// Whether a name is that of the API server in any cluster's DNS.
fn is_kubernetes(name: &str) -> bool {
    let rest = name.strip_prefix("kubernetes.default");
    rest.is_some_and(|rest| rest.is_empty() || rest == ".svc" || rest.starts_with(".svc."))
}

fn is_broadcast(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(ip) if ip.is_broadcast())
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        // 0.0.0.0/8 is this host, whatever follows the zero.
        IpAddr::V4(ip) => ip.is_link_local() || ip.octets()[0] == 0,
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// An address as what it leads to: one of IPv4 in whatever dress of IPv6.
fn bare(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(dressed) = ip.to_canonical() else {
        return ip.to_canonical();
    };
    let (high, low) = match dressed.segments() {
        // Neither is dressed: this host and no host.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => return ip,
        // Compatible (RFC 4291) and translated by hosts (RFC 2765).
        [0, 0, 0, 0, 0 | 0xffff, 0, high, low]
        // Translated by the network (RFC 6052, RFC 8215).
        | [0x64, 0xff9b, 0 | 1, _, _, _, high, low]
        // 6to4 (RFC 3056).
        | [0x2002, high, low, ..] => (high, low),
        _ => return ip,
    };
    Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)).into()
}

/// Metadata services of clouds that are not link-local: of Azure, Alibaba and Oracle; the range that AWS keeps
/// for its own over IPv6, and Google's.
fn is_metadata(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            [[168, 63, 129, 16], [100, 100, 100, 200], [192, 0, 0, 192]].contains(&ip.octets())
        }
        IpAddr::V6(ip) => matches!(
            ip.segments(),
            [0xfd00, 0xec2, ..] | [0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254]
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ip: &str, port: u16) -> SocketAddr {
        SocketAddr::new(ip.parse().unwrap(), port)
    }

    #[test]
    fn what_is_local_is_refused_in_whatever_dress() {
        let forbidden = Forbidden::new(false, []);
        for ip in [
            "127.0.0.1",
            "127.8.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "fe80::1",
            "0.0.0.0",
            "0.1.2.3",
            "::",
            "255.255.255.255",
            "224.0.0.1",
            "ff02::1",
            "168.63.129.16",
            "100.100.100.200",
            "fd00:ec2::254",
            "fd00:ec2::23",
            "64:ff9b::a83f:8110",
            "64:ff9b:1::7f00:1",
            "::ffff:0:127.0.0.1",
            "::ffff:0:0:1",
        ] {
            assert!(forbidden.why(at(ip, 80)).is_some(), "{ip}");
        }
        for ip in [
            "10.244.0.7",
            "192.168.1.10",
            "203.0.113.9",
            "fd00::7",
            "2001:db8::1",
        ] {
            assert_eq!(forbidden.why(at(ip, 80)), None, "{ip}");
        }
    }

    #[test]
    fn the_apis_are_refused_and_others_beside_them_are_not() {
        let forbidden = Forbidden::new(false, [at("10.0.0.1", 6443), at("10.0.0.2", 8500)]);
        assert!(forbidden.why(at("10.0.0.1", 6443)).is_some());
        assert!(forbidden.why(at("::ffff:10.0.0.1", 6443)).is_some());
        assert!(forbidden.why(at("64:ff9b::a00:1", 6443)).is_some());
        assert!(forbidden.why(at("10.0.0.2", 8500)).is_some());
        assert_eq!(forbidden.why(at("10.0.0.1", 8080)), None);
        // Where Lictor speaks to one over TLS, others may listen in the clear beside it.
        let forbidden = Forbidden::new(false, [at("10.0.0.2", 18501)]);
        for port in [18501, 8500, 8300, 2379] {
            assert!(forbidden.why(at("10.0.0.2", port)).is_some(), "{port}");
        }
        assert_eq!(forbidden.why(at("10.0.0.3", 8500)), None);
    }

    #[test]
    fn the_names_of_the_apis_are_given_to_nobody() {
        let consul = ("Consul.example.com".to_owned(), 18501);
        let forbidden = Forbidden::new(false, []).with_names([&consul]);
        for (host, port) in [
            ("consul.example.com", 18501),
            ("CONSUL.example.com.", 8500),
            ("kubernetes.default", 443),
            ("kubernetes.default.svc", 443),
            ("kubernetes.default.svc.cluster.local", 443),
            ("metadata.google.internal", 80),
        ] {
            let why = forbidden.why_not_by_name(host, port);
            assert!(why.is_some(), "{host}:{port}");
        }
        for (host, port) in [
            ("consul.example.com", 9100),
            ("kubernetes.default.example.com", 443),
            ("db.example.com", 8500),
        ] {
            let why = forbidden.why_not_by_name(host, port);
            assert_eq!(why, None, "{host}:{port}");
        }
    }

    #[test]
    fn what_is_given_to_somebody_else_is_judged_by_what_it_says() {
        let forbidden = Forbidden::new(false, [at("10.0.0.2", 8500)]);
        for host in [
            "127.0.0.1",
            "::1",
            "fe80::1%eth0",
            "169.254.169.254",
            "localhost",
            "Db.LocalHost.",
            "127.1",
            "2130706433",
            "0x7f000001",
            "10.0.0.0x2",
            "10.0.0.2",
        ] {
            assert!(forbidden.why_not_by_name(host, 8500).is_some(), "{host}");
        }
        for host in [
            "10.0.0.1",
            "fd00::7",
            "db.example.com",
            "db-0",
            "localhost.example.com",
            "db.x7",
        ] {
            assert_eq!(forbidden.why_not_by_name(host, 8500), None, "{host}");
        }
        let allowed = Forbidden::new(true, []);
        assert_eq!(allowed.why_not_by_name("localhost", 80), None);
        assert_eq!(allowed.why_not_by_name("127.0.0.1", 80), None);
    }

    #[test]
    fn local_checks_are_allowed_on_demand_and_what_is_no_host_never() {
        let forbidden = Forbidden::new(true, [at("127.0.0.1", 6443)]);
        assert_eq!(forbidden.why(at("127.0.0.1", 6443)), None);
        assert!(forbidden.why(at("0.0.0.0", 80)).is_some());
        assert!(forbidden.why(at("224.0.0.1", 80)).is_some());
    }
}
