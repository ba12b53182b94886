//! Each fault of the proxy, before a real Consul and a real API server.

use std::{
    io::ErrorKind,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lictor_testbed::{
    Bed, BedOptions, ConsulApi,
    proxy::{Answer, Fault, Proxy},
    wait,
};
use reqwest::{Client, StatusCode};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::SOON;

/// Nothing that works takes as long.
const SILENCE: Duration = Duration::from_millis(500);
/// Bytes of the value that is read to see how fast it comes.
const MUCH: usize = 300_000;

/// One test, since a bed costs seconds: each part sets the faults it needs.
#[tokio::test]
async fn a_proxy_breaks_as_it_is_told() -> Result<()> {
    let bed = Bed::start(BedOptions::default()).await?;
    let proxy = Proxy::start(&bed.consul_addr())?;
    bed.consul()?
        .put("/v1/kv/much", &json!("x".repeat(MUCH)))
        .await?;

    it_refuses(&proxy).await?;
    it_resets(&proxy).await?;
    it_falls_silent(&proxy).await?;
    it_delays(&proxy).await?;
    it_throttles(&proxy).await?;
    it_corrupts(&proxy).await?;
    it_cuts(&proxy).await?;
    it_answers(&proxy).await?;
    it_outlives_its_server(&bed, &proxy).await?;
    tls_goes_through_it(&bed).await?;

    let addr = proxy.addr();
    let mut open = Connection::open(&proxy).await?;
    drop(proxy);
    open.is_closed().await?;
    ensure!(TcpStream::connect(addr).await.is_err(), "it still listens");
    Ok(())
}

/// A connection that asks by hand, so that its end is seen.
struct Connection(TcpStream);

impl Connection {
    /// Opened, and known to work.
    async fn open(proxy: &Proxy) -> Result<Self> {
        let mut this = Self(TcpStream::connect(proxy.addr()).await?);
        this.ask("/v1/status/leader").await?;
        let answer = this.answer().await?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Ok(this)
    }

    async fn ask(&mut self, path: &str) -> Result<()> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: consul\r\n\r\n");
        Ok(self.0.write_all(request.as_bytes()).await?)
    }

    /// What comes next, empty at the end.
    async fn answer(&mut self) -> Result<String> {
        let mut buffer = vec![0; 64 << 10];
        let count = timeout(SOON, self.0.read(&mut buffer)).await??;
        Ok(String::from_utf8_lossy(&buffer[..count]).into_owned())
    }

    async fn is_closed(&mut self) -> Result<()> {
        let rest = self.answer().await?;
        ensure!(rest.is_empty(), "{rest}");
        Ok(())
    }

    async fn is_reset(&mut self) -> Result<()> {
        let mut buffer = [0; 1024];
        loop {
            match timeout(SOON, self.0.read(&mut buffer)).await? {
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
                Ok(count) if count > 0 => {}
                other => bail!("not reset but {other:?}"),
            }
        }
    }

    async fn is_silent(&mut self) -> Result<()> {
        let seen = timeout(SILENCE, self.answer()).await;
        ensure!(seen.is_err(), "{seen:?}");
        Ok(())
    }
}

async fn it_refuses(proxy: &Proxy) -> Result<()> {
    let mut open = Connection::open(proxy).await?;
    proxy.set(Fault::Refuse).await?;
    open.is_closed().await?;
    let refused = TcpStream::connect(proxy.addr()).await;
    let kind = refused.err().map(|error| error.kind());
    ensure!(kind == Some(ErrorKind::ConnectionRefused), "{kind:?}");
    proxy.set(Fault::Pass).await?;
    Connection::open(proxy).await.map(drop)
}

async fn it_resets(proxy: &Proxy) -> Result<()> {
    let mut open = Connection::open(proxy).await?;
    let before = proxy.accepted();
    proxy.set(Fault::Reset).await?;
    open.is_reset().await?;
    a_new_one_is_reset(proxy).await?;
    ensure!(proxy.accepted() == before + 1);
    proxy.set(Fault::Pass).await?;
    Connection::open(proxy).await.map(drop)
}

async fn a_new_one_is_reset(proxy: &Proxy) -> Result<()> {
    match TcpStream::connect(proxy.addr()).await {
        Ok(stream) => Connection(stream).is_reset().await,
        // Before it was known to be open.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn it_falls_silent(proxy: &Proxy) -> Result<()> {
    let mut open = Connection::open(proxy).await?;
    let mut asks = Connection::open(proxy).await?;
    asks.ask("/v1/kv/none?index=1000000&wait=1s").await?;
    proxy.set(Fault::Blackhole).await?;
    open.ask("/v1/status/leader").await?;
    let mut new = Connection(TcpStream::connect(proxy.addr()).await?);
    new.ask("/v1/status/leader").await?;
    open.is_silent().await?;
    new.is_silent().await?;
    proxy.set(Fault::Pass).await?;
    Connection::open(proxy).await?;
    // What went through the fault is lost for ever.
    open.ask("/v1/status/leader").await?;
    open.is_silent().await?;
    asks.is_silent().await?;
    proxy.set(Fault::Reset).await?;
    open.is_reset().await?;
    proxy.set(Fault::Pass).await
}

/// Reads the large value, and says how long that took.
async fn read_much(proxy: &Proxy) -> Result<Duration> {
    let started = Instant::now();
    let read = Client::builder().no_proxy().build()?;
    let read = read.get(format!("{}/v1/kv/much?raw", proxy.url()));
    let bytes = read.timeout(SOON).send().await?.bytes().await?;
    ensure!(bytes.len() == MUCH + 2, "{} bytes", bytes.len());
    Ok(started.elapsed())
}

async fn it_delays(proxy: &Proxy) -> Result<()> {
    let plain = read_much(proxy).await?;
    let fault = Fault::Delay {
        request: Duration::from_millis(200),
        response: Duration::from_millis(300),
    };
    proxy.set(fault).await?;
    let delayed = read_much(proxy).await?;
    // Twenty chunks, one after the other, would take six seconds.
    let most = plain + Duration::from_secs(3);
    ensure!(
        delayed >= Duration::from_millis(500) && delayed < most,
        "{plain:?}, then {delayed:?}"
    );
    proxy.set(Fault::Pass).await
}

async fn it_throttles(proxy: &Proxy) -> Result<()> {
    let bytes_per_second = 400_000;
    proxy.set(Fault::Throttle { bytes_per_second }).await?;
    let slow = read_much(proxy).await?;
    ensure!(slow >= Duration::from_millis(650), "{slow:?}");
    // A new fault holds for what is under way.
    let bytes_per_second = 1_000;
    proxy.set(Fault::Throttle { bytes_per_second }).await?;
    let rest = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        proxy.set(Fault::Pass).await
    };
    let (slow, passed) = tokio::join!(read_much(proxy), rest);
    passed?;
    let slow = slow?;
    ensure!(
        slow >= Duration::from_millis(300) && slow < Duration::from_secs(20),
        "{slow:?}"
    );
    Ok(())
}

async fn it_corrupts(proxy: &Proxy) -> Result<()> {
    let consul = ConsulApi::new(&proxy.url())?;
    consul.get("/v1/status/leader").await?;
    proxy.set(Fault::Corrupt).await?;
    // On the connection that is open as well as on a new one.
    for consul in [consul, ConsulApi::new(&proxy.url())?] {
        let seen = consul.get("/v1/status/leader").await;
        ensure!(format!("{seen:?}").contains("not JSON"), "{seen:?}");
    }
    proxy.set(Fault::Pass).await
}

async fn it_cuts(proxy: &Proxy) -> Result<()> {
    let mut asks = Connection::open(proxy).await?;
    let cut = |reset| Fault::Cut { after: 1000, reset };
    proxy.set(cut(false)).await?;
    asks.ask("/v1/kv/much?raw").await?;
    let mut bytes = Vec::new();
    timeout(SOON, asks.0.read_to_end(&mut bytes)).await??;
    ensure!(bytes.len() == 1000, "{} bytes", bytes.len());
    ensure!(read_much(proxy).await.is_err());

    // Under the fault, what is short passes.
    let mut short = Connection::open(proxy).await?;
    proxy.set(cut(true)).await?;
    short.ask("/v1/kv/much?raw").await?;
    short.is_reset().await?;
    proxy.set(Fault::Pass).await
}

async fn it_answers(proxy: &Proxy) -> Result<()> {
    let client = Client::builder().no_proxy().build()?;
    let url = format!("{}/v1/kv/a", proxy.url());
    let put = async || {
        let put = client.put(&url).body("b".repeat(100_000)).send().await?;
        let index = put.headers().get("X-Consul-Index").cloned();
        anyhow::Ok((put.status(), index, put.text().await?))
    };
    let (status, _, text) = put().await?;
    ensure!(status == StatusCode::OK && text.trim() == "true", "{text}");

    let answer = Answer::new(503)
        .body("rate limit exceeded")
        .header("X-Consul-Index", "1")
        .only("PUT /v1/kv/")
        .times(2);
    proxy.set(Fault::Answer(answer)).await?;
    for _ in 0..2 {
        let got = client.get(&url).send().await?;
        ensure!(got.status() == StatusCode::OK, "{got:?}");
        let (status, index, text) = put().await?;
        ensure!(status == StatusCode::SERVICE_UNAVAILABLE && text == "rate limit exceeded");
        ensure!(index.context("no header")? == "1");
    }
    let (status, _, text) = put().await?;
    ensure!(status == StatusCode::OK, "{text}");
    ensure!(proxy.answered() == 2, "{} answered", proxy.answered());
    proxy.set(Fault::Pass).await
}

async fn it_outlives_its_server(bed: &Bed, proxy: &Proxy) -> Result<()> {
    bed.consul_server.stop().await?;
    a_new_one_is_reset(proxy).await?;
    proxy
        .set(Fault::Answer(Answer::new(500).body("No cluster leader")))
        .await?;
    let seen = ConsulApi::new(&proxy.url())?.get("/v1/catalog/nodes").await;
    ensure!(
        format!("{seen:?}").contains("No cluster leader"),
        "{seen:?}"
    );
    proxy.set(Fault::Pass).await?;
    bed.consul_server.start().await?;
    Connection::open(proxy).await.map(drop)
}

async fn tls_goes_through_it(bed: &Bed) -> Result<()> {
    let proxy = Proxy::start(&bed.kube_addr())?;
    let kubeconfig = bed.kubeconfig_through(bed.kubeconfig_path(), &proxy.url())?;
    let namespaces = async || -> Result<String> {
        let mut command = bed.kubectl_command();
        command.env("KUBECONFIG", &kubeconfig);
        command.args(["get", "namespaces", "--request-timeout=5s"]);
        let output = command.output().await?;
        let text = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8(text)?)
    };
    let seen = namespaces().await?;
    ensure!(seen.contains("kube-system"), "{seen}");
    ensure!(proxy.accepted() > 0, "it was passed by");
    proxy.set(Fault::Corrupt).await?;
    let seen = namespaces().await?;
    ensure!(!seen.contains("kube-system"), "{seen}");
    proxy.set(Fault::Pass).await?;
    wait::until("the API through the proxy", SOON, async || {
        let seen = namespaces().await?;
        ensure!(seen.contains("kube-system"), "{seen}");
        Ok(())
    })
    .await
}
