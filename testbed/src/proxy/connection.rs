//! One connection through a proxy.

use std::{net::SocketAddr, sync::Arc, sync::atomic::AtomicBool};

use tokio::{io::AsyncReadExt as _, net::TcpStream};

use super::{
    Answer, Fault, answer,
    fault::Modes,
    pump::{Pump, Way},
};

/// How a connection ends before both sides have said all.
#[derive(Debug)]
pub(super) enum End {
    Closed,
    Reset,
    /// It does not end, but nothing passes any more.
    Silent,
    /// The proxy answers itself; with what it has read of the request.
    Answer(Vec<u8>, Answer),
}

/// Carries a connection to its end.
pub(super) async fn serve(mut client: TcpStream, upstream: SocketAddr, mut modes: Modes) {
    let mut server = None;
    let end = carry(&mut client, &mut server, upstream, &mut modes).await;
    let end = match end {
        End::Silent => silent(&mut client, &mut modes).await,
        End::Answer(sent, answer) => {
            answer::give(&mut client, sent, &answer).await;
            End::Closed
        }
        end => end,
    };
    if matches!(end, End::Reset) {
        for stream in [Some(&client), server.as_ref()].into_iter().flatten() {
            // It may have been reset by the other side.
            let _ = stream.set_zero_linger();
        }
    }
}

async fn carry(
    client: &mut TcpStream,
    server: &mut Option<TcpStream>,
    upstream: SocketAddr,
    modes: &mut Modes,
) -> End {
    if let Err(end) = until_server_is_needed(client, modes).await {
        return end;
    }
    // Refused after it was taken: a reset is as near to a refusal as it can come.
    let Ok(connected) = TcpStream::connect(upstream).await else {
        return End::Reset;
    };
    let server = server.insert(connected);
    for stream in [&*client, &*server] {
        // Without it the kernel adds delays of its own.
        let _ = stream.set_nodelay(true);
    }
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let asked = AtomicBool::new(false);
    let requests = Pump::new(Way::Request, modes, &asked);
    let responses = Pump::new(Way::Response, modes, &asked);
    let ended = tokio::try_join!(
        requests.run(modes.clone(), from_client, to_server),
        responses.run(modes.clone(), from_server, to_client)
    );
    ended.err().unwrap_or(End::Closed)
}

/// A proxy that answers itself does so without a server.
async fn until_server_is_needed(client: &mut TcpStream, modes: &mut Modes) -> Result<(), End> {
    loop {
        let force = Arc::clone(&modes.borrow_and_update());
        force.end()?;
        if !matches!(force.fault, Fault::Answer(_)) {
            return Ok(());
        }
        let mut head = [0; 1024];
        tokio::select! {
            changed = modes.changed() => changed.map_err(|_| End::Closed)?,
            seen = client.peek(&mut head) => {
                let seen = seen.map_err(|_| End::Closed)?;
                return match force.answer(&head[..seen]) {
                    Some(answer) => Err(End::Answer(Vec::new(), answer.clone())),
                    None => Ok(()),
                };
            }
        }
    }
}

/// Swallows what comes until the client gives up or a fault ends it.
async fn silent(client: &mut TcpStream, modes: &mut Modes) -> End {
    let mut swallowed = [0; 4096];
    loop {
        match modes.borrow_and_update().end() {
            Ok(()) | Err(End::Silent) => {}
            Err(end) => return end,
        }
        tokio::select! {
            changed = modes.changed() => if changed.is_err() {
                return End::Closed;
            },
            read = client.read(&mut swallowed) => if !read.is_ok_and(|count| count > 0) {
                return End::Closed;
            },
        }
    }
}
