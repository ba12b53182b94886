//! One direction of a connection.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::tcp::{ReadHalf, WriteHalf},
    time::{Instant, sleep_until},
};

use super::{
    Fault,
    connection::End,
    fault::{InForce, Modes},
};

/// How much is held of what is delayed: more than passes in any delay worth testing.
const HELD: usize = 16 << 20;
const CHUNK: usize = 16 << 10;
/// A throttled second has so many pieces.
const PIECES: u32 = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Request,
    Response,
}

pub(super) struct Pump<'a> {
    way: Way,
    force: Arc<InForce>,
    /// Something was asked since the last response began; the two directions share it.
    asked: &'a AtomicBool,
    spoiler: Spoiler,
    queue: VecDeque<(Instant, Vec<u8>)>,
    held: usize,
    /// Written of the first in the queue.
    offset: usize,
    /// Under the present fault.
    written: u64,
    next: Instant,
}

impl<'a> Pump<'a> {
    pub fn new(way: Way, modes: &Modes, asked: &'a AtomicBool) -> Self {
        Self {
            way,
            force: Arc::clone(&modes.borrow()),
            asked,
            spoiler: Spoiler::default(),
            queue: VecDeque::new(),
            held: 0,
            offset: 0,
            written: 0,
            next: Instant::now(),
        }
    }

    /// Passes bytes on until there are no more, or until the connection must end.
    pub async fn run(
        mut self,
        mut modes: Modes,
        mut from: ReadHalf<'_>,
        mut to: WriteHalf<'_>,
    ) -> Result<(), End> {
        let mut buffer = vec![0; CHUNK];
        let mut open = true;
        loop {
            self.force.end()?;
            if self.queue.is_empty() && !open {
                // The other direction may go on.
                let _ = to.shutdown().await;
                return Ok(());
            }
            let piece = self.piece()?;
            tokio::select! {
                biased;
                changed = modes.changed() => {
                    changed.map_err(|_| End::Closed)?;
                    self.force = Arc::clone(&modes.borrow_and_update());
                    self.written = 0;
                    self.next = Instant::now();
                }
                written = write(&mut to, piece), if piece.is_some() => {
                    self.wrote(written.map_err(|_| End::Reset)?)?;
                }
                read = from.read(&mut buffer), if open && self.held < HELD => {
                    match read.map_err(|_| End::Reset)? {
                        0 => open = false,
                        count => self.take(&mut buffer[..count])?,
                    }
                }
            }
        }
    }

    fn take(&mut self, chunk: &mut [u8]) -> Result<(), End> {
        match self.way {
            Way::Request => {
                self.asked.store(true, Ordering::Relaxed);
                if let Some(answer) = self.force.answer(chunk) {
                    return Err(End::Answer(chunk.to_vec(), answer.clone()));
                }
            }
            Way::Response => {
                if self.asked.swap(false, Ordering::Relaxed) {
                    self.spoiler = Spoiler::default();
                }
                let spoil = matches!(self.force.fault, Fault::Corrupt);
                for byte in &mut *chunk {
                    self.spoiler.see(byte, spoil);
                }
            }
        }
        let delay = match (&self.force.fault, self.way) {
            (Fault::Delay { request, .. }, Way::Request) => *request,
            (Fault::Delay { response, .. }, Way::Response) => *response,
            _ => Duration::ZERO,
        };
        self.held += chunk.len();
        self.queue
            .push_back((Instant::now() + delay, chunk.to_vec()));
        Ok(())
    }

    /// What may be written next, and when.
    fn piece(&self) -> Result<Option<(Instant, &[u8])>, End> {
        let Some((due, chunk)) = self.queue.front() else {
            return Ok(None);
        };
        let rest = &chunk[self.offset..];
        let most = match (&self.force.fault, self.way) {
            (Fault::Throttle { bytes_per_second }, _) => usize::try_from(bytes_per_second / PIECES)
                .unwrap_or(CHUNK)
                .max(1),
            (&Fault::Cut { after, .. }, Way::Response) => {
                self.cut()?;
                usize::try_from(after - self.written).unwrap_or(usize::MAX)
            }
            _ => rest.len(),
        };
        Ok(Some(((*due).max(self.next), &rest[..most.min(rest.len())])))
    }

    fn wrote(&mut self, count: usize) -> Result<(), End> {
        self.offset += count;
        self.held -= count;
        self.written += count as u64;
        if self
            .queue
            .front()
            .is_some_and(|(_, chunk)| chunk.len() == self.offset)
        {
            self.queue.pop_front();
            self.offset = 0;
        }
        if let Fault::Throttle { bytes_per_second } = self.force.fault {
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            let second = Duration::from_secs(1);
            self.next = Instant::now() + second * count / bytes_per_second.max(1);
        }
        self.cut()
    }

    fn cut(&self) -> Result<(), End> {
        match self.force.fault {
            Fault::Cut { after, reset } if self.way == Way::Response && self.written >= after => {
                Err(if reset { End::Reset } else { End::Closed })
            }
            _ => Ok(()),
        }
    }
}

/// Cancelled, it has written nothing.
async fn write(to: &mut WriteHalf<'_>, piece: Option<(Instant, &[u8])>) -> std::io::Result<usize> {
    let Some((due, bytes)) = piece else {
        return Ok(0);
    };
    if due > Instant::now() {
        sleep_until(due).await;
    }
    to.write(bytes).await
}

/// Follows responses, and spoils what comes after their header.
#[derive(Debug, Clone, Copy)]
enum Spoiler {
    /// So many bytes are those that HTTP begins with.
    Start(usize),
    /// So many bytes are those that a header ends with.
    Header(usize),
    /// At this byte of the body.
    Body(usize),
}

impl Default for Spoiler {
    fn default() -> Self {
        Self::Start(0)
    }
}

impl Spoiler {
    /// Often enough to hit every body, the first byte among them.
    const EVERY: usize = 64;

    fn see(&mut self, byte: &mut u8, spoil: bool) {
        const START: &[u8] = b"HTTP/";
        const END: &[u8] = b"\r\n\r\n";
        *self = match *self {
            Self::Start(seen) if START.get(seen) == Some(byte) => match seen + 1 {
                seen if seen == START.len() => Self::Header(0),
                seen => Self::Start(seen),
            },
            Self::Header(seen) if END.get(seen) == Some(byte) => match seen + 1 {
                seen if seen == END.len() => Self::Body(0),
                seen => Self::Header(seen),
            },
            Self::Header(_) => Self::Header(usize::from(*byte == b'\r')),
            Self::Start(at) | Self::Body(at) => {
                if spoil && at % Self::EVERY == 0 {
                    *byte ^= 0x80;
                }
                Self::Body(at + 1)
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spoiled(text: &str) -> Vec<u8> {
        let mut bytes = text.as_bytes().to_vec();
        let mut spoiler = Spoiler::default();
        for byte in &mut bytes {
            spoiler.see(byte, true);
        }
        bytes
    }

    #[test]
    fn a_header_is_left_alone_and_a_body_is_not() {
        let header = "HTTP/1.1 200 OK\r\nX: \r\r\n\r\n";
        let seen = spoiled(&format!("{header}[]"));
        assert_eq!(&seen[..header.len()], header.as_bytes());
        assert_eq!(&seen[header.len()..], [b'[' ^ 0x80, b']']);
        assert_eq!(spoiled("\u{16}\u{3}"), [0x16 ^ 0x80, 3]);
    }
}
