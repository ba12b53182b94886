//! A TCP proxy that breaks on demand, to stand between a client and one of the servers.
//!
//! It passes bytes as they are, so TLS goes through it: a client of the Kubernetes API finds a
//! certificate that is good for 127.0.0.1. Which [`Fault`] it has is set at any time, and touches
//! the connections that are open as well as new ones.
//!
//! ```text
//!  client ──▶ Proxy (a port of its own, a thread of its own) ──▶ server
//!                 ▲
//!        set(Fault::Blackhole)
//! ```

mod answer;
mod connection;
mod fault;
mod pump;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener as StdListener},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use reqwest::Url;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime,
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::timeout,
};

pub use fault::{Answer, Fault};

use crate::{ports::Port, tools};
use fault::{InForce, Modes};

/// How long it waits for connections to end that a fault ends.
const ENDING: Duration = Duration::from_secs(2);
/// How long it lets be when no connection can be taken, as without file descriptors.
const BREATH: Duration = Duration::from_millis(10);

/// A running proxy; it begins with [`Fault::Pass`]. Dropping it ends all its connections and frees
/// its port.
///
/// It has a thread of its own, so it goes on while the test that uses it blocks.
#[derive(Debug)]
pub struct Proxy {
    scheme: String,
    port: Port,
    modes: Modes,
    accepted: Arc<AtomicU64>,
    // Taken when it is dropped: the thread ends with the first, and is waited for by the second.
    commands: Option<mpsc::UnboundedSender<Command>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Command {
    fault: Fault,
    done: oneshot::Sender<Result<()>>,
}

impl Proxy {
    /// Stands before a server, given by its address such as `http://127.0.0.1:8500`, which need not
    /// run.
    pub fn start(upstream: &str) -> Result<Self> {
        let url = Url::parse(upstream).with_context(|| format!("{upstream} is no address"))?;
        let host: IpAddr = url
            .host_str()
            .and_then(|host| host.parse().ok())
            .with_context(|| format!("{upstream} names no IP address"))?;
        let port = url.port_or_known_default().context("no port")?;
        let upstream = SocketAddr::new(host, port);

        // It stays ours also while nothing listens there.
        let port = Port::reserve(&tools::cache_folder()?.join("ports"))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.number()));
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let listener = StdListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(listener)?
        };
        let (sender, modes) = watch::channel(Arc::new(InForce::new(Fault::Pass)));
        let (commands, received) = mpsc::unbounded_channel();
        let accepted = Arc::new(AtomicU64::new(0));
        let listening = Listening {
            address,
            upstream,
            modes: sender,
            accepted: accepted.clone(),
        };
        let thread = thread::Builder::new()
            .name(String::from("fault-proxy"))
            .spawn(move || runtime.block_on(listening.run(listener, received)))?;
        Ok(Self {
            scheme: url.scheme().to_owned(),
            port,
            modes,
            accepted,
            commands: Some(commands),
            thread: Some(thread),
        })
    }

    /// Where it listens, such as `127.0.0.1:21240`.
    pub fn addr(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port.number()))
    }

    /// The same with the scheme of the server, such as `http://127.0.0.1:21240`.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.addr())
    }

    /// Changes the fault; it is in force when this returns, for open connections too.
    pub async fn set(&self, fault: Fault) -> Result<()> {
        let (done, answer) = oneshot::channel();
        let commands = self.commands.as_ref().context("the proxy has ended")?;
        commands
            .send(Command { fault, done })
            .ok()
            .context("the proxy has ended")?;
        answer.await.context("the proxy has ended")?
    }

    /// How many connections it has taken since its start, those that it reset at once included.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// How many requests it has answered itself since the last [`Proxy::set`].
    pub fn answered(&self) -> u64 {
        self.modes.borrow().answered()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // It ends at once, and what it panicked with is on standard error.
            let _ = thread.join();
        }
    }
}

/// What runs in the thread.
struct Listening {
    address: SocketAddr,
    upstream: SocketAddr,
    modes: watch::Sender<Arc<InForce>>,
    accepted: Arc<AtomicU64>,
}

impl Listening {
    async fn run(self, listener: TcpListener, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut listener = Some(listener);
        // Dropped, it ends all connections.
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                command = commands.recv() => {
                    let Some(Command { fault, done }) = command else { return };
                    let changed = self.change(fault, &mut listener, &mut connections).await;
                    // Whoever asked may have given up.
                    let _ = done.send(changed);
                }
                client = accept(listener.as_ref()) => {
                    self.accepted.fetch_add(1, Ordering::Relaxed);
                    let modes = self.modes.subscribe();
                    connections.spawn(connection::serve(client, self.upstream, modes));
                }
                _ = connections.join_next(), if !connections.is_empty() => {}
            }
        }
    }

    async fn change(
        &self,
        fault: Fault,
        listener: &mut Option<TcpListener>,
        connections: &mut JoinSet<()>,
    ) -> Result<()> {
        let refuse = matches!(fault, Fault::Refuse);
        let ends = refuse || matches!(fault, Fault::Reset);
        if refuse {
            *listener = None;
        } else if listener.is_none() {
            let bound = TcpListener::bind(self.address).await;
            *listener = Some(bound.with_context(|| format!("cannot listen on {}", self.address))?);
        }
        self.modes.send_replace(Arc::new(InForce::new(fault)));
        if ends {
            let all = async { while connections.join_next().await.is_some() {} };
            timeout(ENDING, all)
                .await
                .context("connections outlive their end")?;
        } else {
            // There is but one thread: all connections see the fault before this goes on, or a short
            // one would pass some by. A turn of the runtime is 61 of them.
            for _ in 0..=connections.len() / 30 {
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }
}

/// Never returns while nothing listens.
async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    loop {
        match listener.accept().await {
            Ok((client, _)) => return client,
            Err(_) => tokio::time::sleep(BREATH).await,
        }
    }
}
