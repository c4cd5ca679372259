//! What concerns the sockets and the wire alone. What concerns commands is in the target core's transport options.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::net::sockopt;

/// Options of the wire, for all listeners and connections of a transport that are made from now on.
#[derive(Clone, Debug)]
pub struct TcpOptions {
    /// Connections that may wait to be accepted.
    pub backlog: i32,
    /// `SO_SNDBUF` in bytes; 0 leaves it to the kernel's tuning.
    pub send_buffer: usize,
    /// `SO_RCVBUF` in bytes; 0 leaves it to the kernel's tuning.
    pub recv_buffer: usize,
    /// `TCP_QUICKACK`.
    pub quickack: bool,
    /// CPDA: alignment that hosts are asked to give data in H2CData and capsules, in Dwords less one (0 to 31).
    pub cpda: u8,
    /// How long a new connection may take to send ICReq.
    pub icreq_timeout: Duration,
    /// How long it may take to send Connect, counted from its acceptance.
    pub connect_timeout: Duration,
    /// A connection is closed if it takes nothing of what is queued for it for this long, or if for this long nothing comes of the data that
    /// an R2T asked for, nor of what R2Ts before that asked for. The time for an R2T's data begins when the host has the R2T, as far as the
    /// kernel can tell, and stands while nothing is received because the host takes too little. It is looked at once a second.
    pub stall_timeout: Duration,
}

impl Default for TcpOptions {
    fn default() -> Self {
        TcpOptions {
            backlog: 1024,
            send_buffer: 0,
            recv_buffer: 0,
            quickack: false,
            cpda: 0,
            icreq_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
        }
    }
}

fn named(name: &str, e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{name}: {e}"))
}

impl TcpOptions {
    /// Applies what concerns one socket, with the priority and acknowledgement timeout (0: leave) of the transport. An option
    /// that the kernel refuses is an error that names it.
    pub(crate) fn apply(&self, fd: impl AsFd, priority: u32, ack_timeout_ms: u32) -> io::Result<()> {
        sockopt::set_tcp_nodelay(&fd, true).map_err(|e| named("TCP_NODELAY", e.into()))?;
        if self.send_buffer > 0 {
            sockopt::set_socket_send_buffer_size(&fd, self.send_buffer).map_err(|e| named("SO_SNDBUF", e.into()))?;
        }
        if self.recv_buffer > 0 {
            sockopt::set_socket_recv_buffer_size(&fd, self.recv_buffer).map_err(|e| named("SO_RCVBUF", e.into()))?;
        }
        if self.quickack {
            sockopt::set_tcp_quickack(&fd, true).map_err(|e| named("TCP_QUICKACK", e.into()))?;
        }
        if ack_timeout_ms > 0 {
            sockopt::set_tcp_user_timeout(&fd, ack_timeout_ms).map_err(|e| named("TCP_USER_TIMEOUT", e.into()))?;
        }
        if priority > 0 {
            longshore_reactor::net::set_priority(&fd, priority).map_err(|e| named("SO_PRIORITY", e))?;
        }
        Ok(())
    }
}
