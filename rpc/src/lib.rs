//! JSON-RPC server, method registry and configuration, a superset of SPDK's.
