//! Answering a request of HTTP/1.1 in place of the server.

use std::{fmt::Write as _, io, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, sink},
    net::TcpStream,
    time::timeout,
};

use super::Answer;

/// A client that sends less than it promised is left.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the client may take to close a connection that we have closed.
const FAREWELL: Duration = Duration::from_millis(500);

/// Reads the rest of a request of which `sent` was read already, answers it and ends the connection.
pub(super) async fn give(client: &mut TcpStream, sent: Vec<u8>, answer: &Answer) {
    // What fails here fails for want of a client.
    if let Ok(Ok(())) = timeout(PATIENCE, exchange(client, sent, answer)).await {
        // To close with unread bytes would be a reset, which takes the answer away.
        let _ = timeout(FAREWELL, tokio::io::copy(client, &mut sink())).await;
    }
}

async fn exchange(client: &mut TcpStream, mut sent: Vec<u8>, answer: &Answer) -> io::Result<()> {
    let mut chunk = [0; 4096];
    while !is_whole(&sent) {
        let count = client.read(&mut chunk).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        sent.extend_from_slice(&chunk[..count]);
    }
    client.write_all(text(answer).as_bytes()).await?;
    client.shutdown().await
}

fn text(answer: &Answer) -> String {
    let mut text = format!(
        "HTTP/1.1 {} \r\nContent-Length: {}\r\nConnection: close\r\n",
        answer.status,
        answer.body.len()
    );
    for (name, value) in &answer.headers {
        // A String takes all that is written.
        let _ = write!(text, "{name}: {value}\r\n");
    }
    text.push_str("\r\n");
    text.push_str(&answer.body);
    text
}

/// Whether a request has come with its whole body.
fn is_whole(sent: &[u8]) -> bool {
    let Some(end) = sent.windows(4).position(|four| four == b"\r\n\r\n") else {
        return false;
    };
    let head = String::from_utf8_lossy(&sent[..end]).to_ascii_lowercase();
    let body = &sent[end + 4..];
    let header = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(':'));
        let found = lines.find(|(key, _)| *key == name);
        found.map(|(_, value)| value.trim().to_owned())
    };
    if header("transfer-encoding").is_some_and(|value| value.contains("chunked")) {
        return body.ends_with(b"0\r\n\r\n");
    }
    let length = header("content-length").and_then(|value| value.parse().ok());
    body.len() >= length.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_whole_with_its_body() {
        let get = "GET / HTTP/1.1\r\nHost: a\r\n";
        assert!(!is_whole(get.as_bytes()));
        assert!(is_whole(format!("{get}\r\n").as_bytes()));
        let put = "PUT / HTTP/1.1\r\nContent-Length: 3\r\n\r\nab";
        assert!(!is_whole(put.as_bytes()));
        assert!(is_whole(format!("{put}c").as_bytes()));
        let chunked = "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
        assert!(!is_whole(chunked.as_bytes()));
        assert!(is_whole(format!("{chunked}0\r\n\r\n").as_bytes()));
    }
}
