//! Messages of the raw-socket loop: the sizes of NVMe/TCP's PDUs, and of their contents only what the loop needs.

/// Kind of a message: the PDU type that it has the size of (NVMe/TCP Transport Specification, 3.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Command: 72 bytes, with the payload of a small write behind it.
    Command = 4,
    /// Response: 24 bytes.
    Response = 5,
    /// Payload of a large write: 24 bytes and the payload.
    HostData = 6,
    /// Payload of a read, which stands for its response too: 24 bytes and the payload.
    ControllerData = 7,
    /// Ready to receive the payload of a large write: 24 bytes.
    ReadyToTransfer = 9,
}

impl Kind {
    fn from_byte(b: u8) -> Option<Kind> {
        [Kind::Command, Kind::Response, Kind::HostData, Kind::ControllerData, Kind::ReadyToTransfer]
            .into_iter()
            .find(|&k| k as u8 == b)
    }

    /// Bytes before the payload.
    pub(super) const fn header_len(self) -> usize {
        match self {
            Kind::Command => 72,
            _ => 24,
        }
    }
}

/// What one message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: Kind,
    /// Request it belongs to.
    pub(super) cid: u16,
    /// Where its payload is drawn from.
    pub(super) place: u64,
}

impl Message {
    /// Writes the header into `out`, which has [`Kind::header_len`] bytes.
    #[inline]
    pub(super) fn write(self, out: &mut [u8], payload: u32) {
        let len = self.kind.header_len();
        out[..24].copy_from_slice(&[0; 24]);
        out[0] = self.kind as u8;
        out[2] = len as u8;
        out[4..8].copy_from_slice(&(len as u32 + payload).to_le_bytes());
        out[8..10].copy_from_slice(&self.cid.to_le_bytes());
        out[16..24].copy_from_slice(&self.place.to_le_bytes());
    }

    #[inline]
    fn read(head: &[u8]) -> Option<(Message, usize)> {
        let kind = Kind::from_byte(head[0])?;
        let total = u32::from_le_bytes(head[4..8].try_into().ok()?) as usize;
        let cid = u16::from_le_bytes(head[8..10].try_into().ok()?);
        let place = u64::from_le_bytes(head[16..24].try_into().ok()?);
        Some((Message { kind, cid, place }, total.checked_sub(kind.header_len())?))
    }
}

/// Finds the messages in a stream of bytes; payload is skipped where it lies.
#[derive(Default)]
pub(super) struct Parser {
    head: Head,
    have: usize,
    /// Payload still to come, of this message.
    skip: usize,
    current: Option<Message>,
}

struct Head([u8; 72]);

impl Default for Head {
    fn default() -> Self {
        Head([0; 72])
    }
}

impl Parser {
    /// Takes the next bytes of the stream and calls `f` for each message that they end. False: this is not our stream.
    #[inline]
    #[must_use]
    pub(super) fn feed(&mut self, mut bytes: &[u8], mut f: impl FnMut(Message)) -> bool {
        while let Some(&first) = bytes.first() {
            if self.skip > 0 {
                let n = self.skip.min(bytes.len());
                self.skip -= n;
                bytes = &bytes[n..];
                if self.skip > 0 {
                    return true;
                }
                if let Some(m) = self.current.take() {
                    f(m);
                }
                continue;
            }
            let kind_byte = if self.have == 0 { first } else { self.head.0[0] };
            let Some(kind) = Kind::from_byte(kind_byte) else { return false };
            let need = kind.header_len() - self.have;
            let n = need.min(bytes.len());
            let parsed = if self.have == 0 && n == need {
                Message::read(&bytes[..n])
            } else {
                self.head.0[self.have..self.have + n].copy_from_slice(&bytes[..n]);
                self.have += n;
                if n < need {
                    return true;
                }
                self.have = 0;
                Message::read(&self.head.0)
            };
            bytes = &bytes[n..];
            match parsed {
                None => return false,
                Some((m, 0)) => f(m),
                Some((m, payload)) => {
                    self.skip = payload;
                    self.current = Some(m);
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_however_the_stream_is_cut() {
        let sent = [
            (Message { kind: Kind::Command, cid: 7, place: 99 }, 0u32),
            (Message { kind: Kind::ControllerData, cid: 3, place: 0 }, 4096),
            (Message { kind: Kind::Response, cid: 65535, place: u64::MAX }, 0),
            (Message { kind: Kind::Command, cid: 1, place: 5 }, 100),
        ];
        let mut stream = Vec::new();
        for (m, payload) in sent {
            let at = stream.len();
            stream.resize(at + m.kind.header_len() + payload as usize, 0);
            m.write(&mut stream[at..], payload);
        }
        for piece in [1, 5, 23, 24, 71, 72, 100, stream.len()] {
            let (mut p, mut got) = (Parser::default(), Vec::new());
            for bytes in stream.chunks(piece) {
                assert!(p.feed(bytes, |m| got.push(m)));
            }
            assert_eq!(got, sent.map(|(m, _)| m), "cut into pieces of {piece}");
        }
    }

    #[test]
    fn a_foreign_stream_is_recognised() {
        assert!(!Parser::default().feed(b"GET / HTTP/1.1\r\n\r\n", |_| {}));
        // a length shorter than the header
        let mut short = [0; 24];
        Message { kind: Kind::Response, cid: 0, place: 0 }.write(&mut short, 0);
        short[4] = 8;
        assert!(!Parser::default().feed(&short, |_| {}));
    }
}
