//! A look at Consul's DNS.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use domain::{
    base::{Message, MessageBuilder, Name, Rtype, StreamTarget, iana::Rcode},
    rdata::{A, Srv},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use crate::Bed;

/// Longer than Consul takes for an answer, also one that another datacenter gives.
const DEADLINE: Duration = Duration::from_secs(10);

/// How long an answer over UDP may be, as resolvers say it: to who says nothing Consul leaves out records
/// without a word, since it adds the meta of the nodes.
const UDP_BYTES: u16 = 4096;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsType {
    /// Addresses.
    A,
    /// Addresses with ports.
    Srv,
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DnsRecord {
    /// An address.
    A {
        /// The address.
        address: Ipv4Addr,
        /// How long the answer may be kept.
        ttl: Duration,
    },
    /// A port of a host.
    Srv {
        /// The name of the host.
        target: String,
        /// The address of the host, which Consul tells in the same answer.
        address: Option<Ipv4Addr>,
        /// The port.
        port: u16,
        /// How much of what is asked goes there, in proportion to the other records.
        weight: u16,
        /// How long the answer may be kept.
        ttl: Duration,
    },
}

impl DnsRecord {
    /// The address, of an SRV record that of its host.
    pub fn address(&self) -> Option<Ipv4Addr> {
        match self {
            Self::A { address, .. } => Some(*address),
            Self::Srv { address, .. } => *address,
        }
    }

    /// How long the answer may be kept.
    pub fn ttl(&self) -> Duration {
        match self {
            Self::A { ttl, .. } | Self::Srv { ttl, .. } => *ttl,
        }
    }
}

impl Bed {
    /// Asks the DNS of `dc1`; see [`dns_lookup`].
    pub async fn dns_lookup(&self, name: &str, kind: DnsType) -> Result<Vec<DnsRecord>> {
        dns_lookup(&self.consul_dns_addr(), name, kind).await
    }
}

/// Asks a DNS server at an address such as `127.0.0.1:8600` for a name such as `web.query.consul`.
///
/// Over UDP, and over TCP if the answer is too long for that, as a resolver does; but nothing is
/// kept and nothing is tried again. A name that stands for nothing has no records; any other refusal
/// is an error.
pub async fn dns_lookup(server: &str, name: &str, kind: DnsType) -> Result<Vec<DnsRecord>> {
    let server: SocketAddr = server.parse().context("not an address")?;
    let question = question(name, kind)?;
    let exchange = async {
        let answer = over_udp(server, &question).await?;
        if answer.header().tc() {
            return over_tcp(server, &question).await;
        }
        Ok(answer)
    };
    let answer = timeout(DEADLINE, exchange).await;
    let answer = answer.with_context(|| format!("{server} does not answer for {name}"))??;
    records(&answer, kind).with_context(|| format!("{server} on {name}"))
}

fn question(name: &str, kind: DnsType) -> Result<StreamTarget<Vec<u8>>> {
    let name: Name<Vec<u8>> = name.parse().with_context(|| format!("{name:?}"))?;
    let mut message = MessageBuilder::from_target(StreamTarget::new_vec())?;
    let [id, more, ..] = RandomState::new().build_hasher().finish().to_ne_bytes();
    message.header_mut().set_id(u16::from_ne_bytes([id, more]));
    message.header_mut().set_rd(true);
    let mut message = message.question();
    let rtype = match kind {
        DnsType::A => Rtype::A,
        DnsType::Srv => Rtype::SRV,
    };
    message.push((name, rtype))?;
    let mut message = message.additional();
    message.opt(|opt| {
        opt.set_udp_payload_size(UDP_BYTES);
        Ok(())
    })?;
    Ok(message.finish())
}

async fn over_udp(
    server: SocketAddr,
    question: &StreamTarget<Vec<u8>>,
) -> Result<Message<Vec<u8>>> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    socket.connect(server).await?;
    socket.send(question.as_dgram_slice()).await?;
    let mut answer = vec![0; usize::from(u16::MAX)];
    let length = socket.recv(&mut answer).await?;
    answer.truncate(length);
    answer_to(question, answer)
}

async fn over_tcp(
    server: SocketAddr,
    question: &StreamTarget<Vec<u8>>,
) -> Result<Message<Vec<u8>>> {
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(question.as_stream_slice()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    answer_to(question, answer)
}

fn answer_to(question: &StreamTarget<Vec<u8>>, answer: Vec<u8>) -> Result<Message<Vec<u8>>> {
    let question = Message::from_slice(question.as_dgram_slice())?;
    let answer = Message::from_octets(answer)?;
    ensure!(answer.is_answer(question), "not an answer to the question");
    Ok(answer)
}

fn records(answer: &Message<Vec<u8>>, kind: DnsType) -> Result<Vec<DnsRecord>> {
    match answer.header().rcode() {
        Rcode::NOERROR => {}
        Rcode::NXDOMAIN => return Ok(Vec::new()),
        other => bail!("{other}"),
    }
    let records = answer.answer()?;
    match kind {
        DnsType::A => records
            .limit_to_in::<A>()
            .map(|record| {
                let record = record?;
                Ok(DnsRecord::A {
                    address: record.data().addr(),
                    ttl: record.ttl().into_duration(),
                })
            })
            .collect(),
        DnsType::Srv => {
            let mut hosts = HashMap::new();
            for record in answer.additional()?.limit_to_in::<A>() {
                let record = record?;
                hosts.insert(record.owner().to_string(), record.data().addr());
            }
            records
                .limit_to_in::<Srv<_>>()
                .map(|record| {
                    let record = record?;
                    let target = record.data().target().to_string();
                    Ok(DnsRecord::Srv {
                        address: hosts.get(&target).copied(),
                        target,
                        port: record.data().port(),
                        weight: record.data().weight(),
                        ttl: record.ttl().into_duration(),
                    })
                })
                .collect()
        }
    }
}
