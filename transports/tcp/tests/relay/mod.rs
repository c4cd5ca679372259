//! A wire between host and target that sees, changes and drops PDUs.
#![allow(dead_code, unreachable_pub)]

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// Which way a PDU goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    ToTarget,
    ToHost,
}

/// PDU types that a look is worth.
pub const CAPSULE_CMD: u8 = 0x04;
pub const C2H_DATA: u8 = 0x07;

/// What a command capsule without digests says: opcode, and Dword 10.
pub fn command(pdu: &[u8]) -> Option<(u8, u32)> {
    let dword10 = pdu.get(8 + 40..8 + 44)?.try_into().ok()?;
    (pdu[0] == CAPSULE_CMD).then(|| (pdu[8], u32::from_le_bytes(dword10)))
}

#[derive(Clone)]
pub struct Relay {
    pub addr: SocketAddr,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

fn pdu(from: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut head = [0; 8];
    from.read_exact(&mut head)?;
    let len = u32::from_le_bytes(head[4..8].try_into().expect("four bytes")) as usize;
    let mut all = head.to_vec();
    all.resize(len.max(8), 0);
    from.read_exact(&mut all[8..])?;
    Ok(all)
}

impl Relay {
    /// `tap` sees each PDU, digests must be off, and may change it; false: its connection ends instead.
    pub fn to(target: SocketAddr, tap: impl Fn(Way, &mut [u8]) -> bool + Send + Sync + 'static) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Relay { addr: listener.local_addr().unwrap(), open: Arc::default() };
        let (open, tap) = (relay.open.clone(), Arc::new(tap));
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(target) else { continue };
                for (from, to, way) in [(&near, &far, Way::ToTarget), (&far, &near, Way::ToHost)] {
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let _ = to.set_nodelay(true);
                    let tap = tap.clone();
                    std::thread::spawn(move || {
                        while let Ok(mut p) = pdu(&mut from) {
                            if !tap(way, &mut p) || to.write_all(&p).is_err() {
                                break;
                            }
                        }
                        let _ = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
                    });
                }
                open.lock().unwrap().extend([near, far]);
            }
        });
        relay
    }

    /// Ends all connections; new ones are taken.
    pub fn cut(&self) {
        self.open.lock().unwrap().drain(..).for_each(|s| drop(s.shutdown(Shutdown::Both)));
    }
}
