//! HTTP beside the unix socket, on the same thread: JSON-RPC by POST, as SPDK's clients send it through a proxy, and metrics by GET.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

mod auth;
mod conn;
pub mod parse;
mod server;

pub use auth::Credentials;
pub(crate) use server::Http;

/// An answer in pieces; each is made when the client has room for it.
pub type Pages = Box<dyn Iterator<Item = String>>;

/// What a listener serves.
#[derive(Debug)]
pub enum Serve {
    /// `GET /metrics`, to anybody.
    Metrics,
    /// JSON-RPC by POST, and `GET /metrics`: to those with the credentials, or where there are none, to anybody who can connect.
    Rpc(Option<Credentials>),
}

/// A listening TCP socket.
#[derive(Debug)]
pub struct Listener {
    pub(crate) socket: TcpListener,
    pub(crate) serve: Arc<Serve>,
}

impl Listener {
    /// Listens.
    ///
    /// # Errors
    /// The address cannot be had; or JSON-RPC without credentials would be open to other machines.
    pub fn bind(address: SocketAddr, serve: Serve) -> io::Result<Listener> {
        let explain = |kind, why: String| io::Error::new(kind, format!("HTTP on {address}: {why}"));
        if matches!(serve, Serve::Rpc(None)) && !address.ip().to_canonical().is_loopback() {
            return Err(explain(
                io::ErrorKind::InvalidInput,
                "RPC on an address that is not loopback needs credentials; give --rpc-http-auth FILE, or listen on 127.0.0.1".into(),
            ));
        }
        let open = || {
            let socket = TcpListener::bind(address)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let socket = open().map_err(|e: io::Error| {
            explain(e.kind(), format!("cannot listen ({e}); is the address one of this machine, and the port free?"))
        })?;
        Ok(Listener { socket, serve: Arc::new(serve) })
    }

    /// What it serves.
    pub fn serves(&self) -> &Serve {
        &self.serve
    }

    /// Where it listens; with the port that the system chose if 0 was asked for.
    ///
    /// # Errors
    /// The system's.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rpc_for_other_machines_needs_credentials() {
        for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
            let error = Listener::bind(address.parse().unwrap(), Serve::Rpc(None)).unwrap_err();
            assert!(error.to_string().contains("--rpc-http-auth"), "{error}");
        }
        Listener::bind("127.0.0.1:0".parse().unwrap(), Serve::Rpc(None)).unwrap();
        let credentials = Credentials::parse("u:p").unwrap();
        Listener::bind("0.0.0.0:0".parse().unwrap(), Serve::Rpc(Some(credentials))).unwrap();
        Listener::bind("0.0.0.0:0".parse().unwrap(), Serve::Metrics).unwrap();
    }
}
