//! What a proxy does wrong.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;

use super::connection::End;

/// What a [`Proxy`](super::Proxy) does to connections. All of it touches those that are open too.
#[derive(Debug, Clone, Default)]
pub enum Fault {
    /// Nothing: it passes all bytes on.
    #[default]
    Pass,
    /// Nothing listens: connections are refused, and those that are open are closed.
    Refuse,
    /// Connections are taken and reset (RST), and those that are open are reset.
    Reset,
    /// Connections are taken and nothing is ever answered. Those that are open become half-open and
    /// stay so when the fault is over, as when a firewall has forgotten them, until
    /// [`Fault::Refuse`] or [`Fault::Reset`].
    ///
    /// The kernel still acknowledges what is sent, so keep-alive probes of TCP do not notice.
    Blackhole,
    /// Bytes arrive later by so much; the throughput stays.
    Delay {
        /// From the client to the server.
        request: Duration,
        /// From the server to the client.
        response: Duration,
    },
    /// No more bytes a second than this, for each connection and direction.
    Throttle {
        /// At least one.
        bytes_per_second: u32,
    },
    /// Bits of responses are flipped: of HTTP in the body, which is no UTF-8 then, the header is
    /// left alone; of all else from the first byte on.
    Corrupt,
    /// Each connection ends after so many more bytes of response, header included.
    Cut {
        /// Counted anew for each connection since the fault was set.
        after: u64,
        /// By RST, otherwise in an orderly manner.
        reset: bool,
    },
    /// Requests of plain HTTP/1.1 are answered without asking the server, then the connection is
    /// closed. Responses that are under way go on.
    Answer(Answer),
}

/// What [`Fault::Answer`] answers.
#[derive(Debug, Clone)]
pub struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
    pub(super) headers: Vec<(String, String)>,
    only: String,
    times: u64,
}

impl Answer {
    /// Answers all requests with this status and an empty body.
    #[must_use]
    pub fn new(status: u16) -> Self {
        Self {
            status,
            body: String::new(),
            headers: Vec::new(),
            only: String::new(),
            times: u64::MAX,
        }
    }

    /// Adds a body.
    #[must_use]
    pub fn body(mut self, body: &str) -> Self {
        body.clone_into(&mut self.body);
        self
    }

    /// Adds a header; those of the length and the end of the connection are there already.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Answers so many requests; those after them go to the server.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    /// Answers only requests whose first line, such as `PUT /v1/txn HTTP/1.1`, contains the text;
    /// all others go to the server.
    #[must_use]
    pub fn only(mut self, text: &str) -> Self {
        text.clone_into(&mut self.only);
        self
    }
}

pub(super) type Modes = watch::Receiver<Arc<InForce>>;

/// A fault since it was set.
#[derive(Debug)]
pub(super) struct InForce {
    pub fault: Fault,
    answered: AtomicU64,
}

impl InForce {
    pub fn new(fault: Fault) -> Self {
        Self {
            fault,
            answered: AtomicU64::new(0),
        }
    }

    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// How it ends connections that are open, if it does.
    pub fn end(&self) -> Result<(), End> {
        match self.fault {
            Fault::Refuse => Err(End::Closed),
            Fault::Reset => Err(End::Reset),
            Fault::Blackhole => Err(End::Silent),
            _ => Ok(()),
        }
    }

    /// The answer to what a client has just sent, if it is a request to be answered; counts it.
    pub fn answer(&self, sent: &[u8]) -> Option<&Answer> {
        let Fault::Answer(answer) = &self.fault else {
            return None;
        };
        let line = sent.split(|byte| *byte == b'\r').next()?;
        let line = std::str::from_utf8(line).ok()?;
        if !line.contains(" HTTP/1.") || !line.contains(&answer.only) {
            return None;
        }
        let count = |answered| (answered < answer.times).then_some(answered + 1);
        let counted = self
            .answered
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, count);
        counted.is_ok().then_some(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_given_to_the_requests_it_is_for() {
        let answer = Answer::new(503).only("PUT /v1/txn").times(2);
        let force = InForce::new(Fault::Answer(answer));
        let txn = b"PUT /v1/txn HTTP/1.1\r\nHost: a\r\n\r\n";
        assert!(force.answer(b"GET /v1/txn HTTP/1.1\r\n\r\n").is_none());
        assert!(force.answer(b"the rest of a body").is_none());
        assert!(force.answer(txn).is_some());
        assert!(force.answer(txn).is_some());
        assert!(force.answer(txn).is_none());
        assert_eq!(force.answered(), 2);
    }
}
