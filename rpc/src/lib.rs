//! JSON-RPC server, method registry and configuration, a superset of SPDK's.
//!
//! [`server`] moves bytes and runs requests on one thread, those of [`http`] too; [`jsonrpc`] and [`json`] are the pure part of the protocol; [`method`] and
//! [`decode`] are how a method is declared, `methods` are the methods; [`config`] dumps, loads and saves.

pub mod app;
pub mod config;
mod conn;
pub mod decode;
pub mod docs;
pub mod error;
pub mod exec;
pub mod http;
pub mod json;
pub mod jsonrpc;
pub mod logging;
pub mod method;
pub mod methods;
pub mod metrics;
pub mod recipes;
pub mod secret;
pub mod server;
pub mod socket;
