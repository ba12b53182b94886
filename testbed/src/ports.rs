//! Free ports on 127.0.0.1 that stay ours while a bed lives, also when a server is stopped.

use std::{
    fs::{self, File},
    hash::{BuildHasher, RandomState},
    net::{Ipv4Addr, TcpListener, UdpSocket},
    path::Path,
};

use anyhow::{Context, Result, bail};

/// Below the range from which Linux and macOS take the ports of outgoing connections, so that no
/// client takes the port of a server that is stopped for a while.
const FIRST: u16 = 20_000;
const COUNT: u16 = 10_000;

/// A port that no other bed of this user takes while this value lives.
#[derive(Debug)]
pub struct Port {
    number: u16,
    // The lock ends with the file, and with the process, however it ends.
    _reservation: File,
}

impl Port {
    /// Reserves a port that is free for TCP and UDP; `folder` holds the reservations.
    pub fn reserve(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        // Beds that start together should not all walk the same way.
        let start = RandomState::new().hash_one(std::process::id());
        for step in 0..u64::from(COUNT) {
            let offset = u16::try_from((start % u64::from(COUNT) + step) % u64::from(COUNT))?;
            if let Some(port) = Self::try_reserve(folder, FIRST + offset)? {
                return Ok(port);
            }
        }
        bail!(
            "no free port on 127.0.0.1 between {FIRST} and {}",
            FIRST + COUNT - 1
        )
    }

    /// The port's number.
    pub fn number(&self) -> u16 {
        self.number
    }

    fn try_reserve(folder: &Path, number: u16) -> Result<Option<Self>> {
        let file = folder.join(number.to_string());
        let reservation = File::options()
            .create(true)
            .append(true)
            .open(&file)
            .with_context(|| format!("cannot open {}", file.display()))?;
        if reservation.try_lock().is_err() {
            return Ok(None);
        }
        let address = (Ipv4Addr::LOCALHOST, number);
        let free = TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok();
        Ok(free.then_some(Self {
            number,
            _reservation: reservation,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_reservations_differ() {
        let folder = tempfile::tempdir().unwrap();
        let ports: Vec<_> = (0..20)
            .map(|_| Port::reserve(folder.path()).unwrap())
            .collect();
        let mut numbers: Vec<_> = ports.iter().map(Port::number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), ports.len());
    }

    #[test]
    fn a_port_in_use_is_not_given() {
        let folder = tempfile::tempdir().unwrap();
        let port = Port::reserve(folder.path()).unwrap().number();
        let _user = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        assert!(Port::try_reserve(folder.path(), port).unwrap().is_none());
    }
}
