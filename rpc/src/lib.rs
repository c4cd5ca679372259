//! JSON-RPC server, method registry and configuration, a superset of SPDK's.

mod conn;
pub mod error;
pub mod exec;
pub mod json;
pub mod jsonrpc;
pub mod server;
pub mod socket;
