//! NVMe/TCP transport of the NVMe-oF target.
//!
//! # The way of a connection
//!
//! An acceptor on core 0 takes it; a greeter answers ICReq and reads the first command; [`Target::place`](longshore_nvmf::Target::place)
//! names the core of its queue, and the descriptor moves there with the bytes of that command. There a `Conn` ties a `Sock`,
//! which moves bytes, to a `Qpair`, which knows commands. It never moves again.
//!
//! # The way of a command
//!
//! `on_recv` → `Conn::take` → `capsule` takes a slot and asks `Qpair::begin` what the command needs:
//! nothing, a buffer to read into, or data, which lies in the capsule or is asked for by R2T once the buffer is there.
//! `Qpair::execute` runs it; `Conn::answer` queues data and response and frees the slot. Everything a turn queued goes out as
//! one vectored send at its end.
//!
//! # What bounds it
//!
//! A slot per queue entry; a buffer before each R2T; one mebibyte queued to be sent, and no receive is armed beyond that.
//! While a slot is missing, what was received already is kept: one receive slice at most. In-capsule data for which there is no
//! buffer is kept too, a capsule per slot at most: what frees a buffer may come behind it in the stream.

mod acceptor;
mod conn;
mod core;
mod greeter;
mod options;
mod receive;
mod slot;
mod transport;

pub use options::TcpOptions;
pub use transport::TcpTransport;
