//! NVMe wire structures, NVMe/TCP PDU codec and the user-space NVMe/TCP host.

pub mod host;
pub mod tcp_pdu;
pub mod wire;
