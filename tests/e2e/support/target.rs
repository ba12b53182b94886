//! Small servers for checks to ask.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::Scene;

/// How a server answers.
#[derive(Clone, Debug)]
pub enum Answer {
    /// With this status.
    Status(u16),
    /// Elsewhere.
    Redirect(String),
    /// Never.
    Hang,
    /// A byte now and then, and no end.
    Trickle,
    /// With a head that has no end.
    Endless,
    /// By closing the connection without a word.
    Reset,
}

/// A server of HTTP that answers as it is told.
pub struct Target {
    pub port: u16,
    answer: Arc<Mutex<Answer>>,
    asked: Arc<AtomicUsize>,
    heads: Arc<Mutex<Vec<String>>>,
    _serves: JoinSet<()>,
}

impl Target {
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let answer = Arc::new(Mutex::new(Answer::Status(200)));
        let asked = Arc::new(AtomicUsize::new(0));
        let heads = Arc::new(Mutex::new(Vec::new()));
        let mut serves = JoinSet::new();
        let shared = (answer.clone(), asked.clone(), heads.clone());
        serves.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, asked, heads) = shared.clone();
                let answer = answer.lock().unwrap().clone();
                asked.fetch_add(1, Ordering::Relaxed);
                open.spawn(async move {
                    // Whoever asks may go at any time.
                    let _ = serve(stream, answer, &heads).await;
                });
            }
        });
        Ok(Self {
            port,
            answer,
            asked,
            heads,
            _serves: serves,
        })
    }

    /// From now on it answers like this.
    pub fn answers(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    /// How often it was connected to.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// The head of the last request.
    pub fn last_head(&self) -> String {
        let heads = self.heads.lock().unwrap();
        heads.last().cloned().unwrap_or_default()
    }
}

async fn serve(
    mut stream: TcpStream,
    answer: Answer,
    heads: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut part = [0; 1024];
    while !head.ends_with(b"\r\n\r\n") {
        let read = stream.read(&mut part).await?;
        if read == 0 {
            return Ok(());
        }
        head.extend_from_slice(&part[..read]);
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    heads.lock().unwrap().push(text);
    match answer {
        Answer::Status(status) => {
            let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 6\r\n\r\nsecret");
            stream.write_all(answer.as_bytes()).await
        }
        Answer::Redirect(to) => {
            let answer = format!("HTTP/1.1 302 X\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await
        }
        Answer::Hang => {
            sleep(Duration::from_mins(1)).await;
            Ok(())
        }
        Answer::Trickle => {
            stream.write_all(b"HTTP/1.1 200 X\r\n").await?;
            loop {
                stream.write_all(b"x: y\r\n").await?;
                sleep(Duration::from_millis(50)).await;
            }
        }
        Answer::Endless => {
            stream.write_all(b"HTTP/1.1 200 X\r\nx: ").await?;
            loop {
                stream.write_all(&[b'y'; 4096]).await?;
            }
        }
        Answer::Reset => Ok(()),
    }
}

/// A server of the health service of gRPC.
pub struct GrpcTarget {
    pub port: u16,
    reporter: tonic_health::server::HealthReporter,
    _serves: JoinSet<()>,
}

impl GrpcTarget {
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let (reporter, service) = tonic_health::server::health_reporter();
        let router = tonic::transport::Server::builder().add_service(service);
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let mut serves = JoinSet::new();
        serves.spawn(async move {
            // It serves until it is dropped.
            let _ = router.serve_with_incoming(incoming).await;
        });
        Ok(Self {
            port,
            reporter,
            _serves: serves,
        })
    }

    /// Whether a service serves.
    pub async fn serves(&self, service: &str, serves: bool) {
        let status = if serves {
            tonic_health::ServingStatus::Serving
        } else {
            tonic_health::ServingStatus::NotServing
        };
        self.reporter.set_service_status(service, status).await;
    }
}

/// A service of one pod with a proxy beside it, and a check of the server.
pub async fn selected(scene: &Scene, port: u16) -> Result<()> {
    let pod = scene.pod("p").label("app", "p").ip("127.0.0.1");
    pod.port("api", port).create_ready(&scene.client).await?;
    let check = json!({"name": "api", "http": {"port": "api"}, "interval": "1s"});
    let spec = json!({"service": "web", "selector": {"matchLabels": {"app": "p"}},
                      "health": {"checks": [check]}, "connect": {"sidecar": {"port": 20000}}});
    scene.register("web", spec).await?;
    Ok(())
}
