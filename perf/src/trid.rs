//! Transport IDs: `trtype:TCP adrfam:IPv4 traddr:127.0.0.1 trsvcid:4420 subnqn:nqn... ns:1 hostnqn:nqn...`.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};

use longshore_nvme::wire::DISCOVERY_NQN;

/// Where a subsystem is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TransportId {
    /// IPv4, IPv6 address or host name.
    pub(crate) traddr: String,
    /// TCP port.
    pub(crate) trsvcid: u16,
    /// Wanted address family, if one was named.
    pub ipv6: Option<bool>,
    /// Subsystem; the discovery subsystem stands for all that it lists.
    pub(crate) subnqn: String,
    /// The only namespace to use; all active ones if none.
    pub(crate) nsid: Option<u32>,
    /// Host NQN to connect with.
    pub(crate) hostnqn: Option<String>,
}

impl TransportId {
    /// True if this names the discovery subsystem.
    pub(crate) fn is_discovery(&self) -> bool {
        self.subnqn == DISCOVERY_NQN
    }

    /// The socket address of this transport ID.
    ///
    /// # Errors
    /// The name does not resolve to an address of the wanted family.
    pub(crate) fn resolve(&self) -> Result<SocketAddr, String> {
        let wanted = |a: &SocketAddr| self.ipv6.is_none_or(|v6| a.is_ipv6() == v6);
        (self.traddr.as_str(), self.trsvcid)
            .to_socket_addrs()
            .map_err(|e| format!("traddr '{}' cannot be resolved: {e}", self.traddr))?
            .find(wanted)
            .ok_or_else(|| format!("traddr '{}' has no address of the family that adrfam asks for", self.traddr))
    }
}

impl std::str::FromStr for TransportId {
    type Err = String;

    fn from_str(text: &str) -> Result<TransportId, String> {
        let mut trtype = None;
        let mut id = TransportId {
            traddr: String::new(),
            trsvcid: 4420,
            ipv6: None,
            subnqn: DISCOVERY_NQN.into(),
            nsid: None,
            hostnqn: None,
        };
        for item in text.split_whitespace() {
            let (key, value) = item
                .split_once([':', '='])
                .ok_or_else(|| format!("'{item}' in the transport ID is not of the form key:value"))?;
            if value.is_empty() {
                return Err(format!("'{key}' in the transport ID has no value"));
            }
            match key.to_ascii_lowercase().as_str() {
                "trtype" => trtype = Some(value.to_ascii_uppercase()),
                "adrfam" => match value.to_ascii_lowercase().as_str() {
                    "ipv4" => id.ipv6 = Some(false),
                    "ipv6" => id.ipv6 = Some(true),
                    _ => return Err(format!("adrfam '{value}' is not one that TCP has: use IPv4 or IPv6")),
                },
                "traddr" => id.traddr = value.trim_matches(['[', ']']).into(),
                "trsvcid" => {
                    id.trsvcid = value.parse().map_err(|_| format!("trsvcid '{value}' is not a port number"))?;
                }
                "subnqn" => id.subnqn = nqn("subnqn", value)?,
                "hostnqn" => id.hostnqn = Some(nqn("hostnqn", value)?),
                "ns" => match value.parse() {
                    Ok(n) if n != 0 && n != u32::MAX => id.nsid = Some(n),
                    _ => return Err(format!("ns '{value}' is not a namespace ID (1 to 4294967294)")),
                },
                // Carried by IDs that were written for other transports; TCP has no use for a priority.
                "priority" => {}
                _ => {
                    return Err(format!(
                        "'{key}' is no key of a transport ID: use trtype, adrfam, traddr, trsvcid, subnqn, ns, hostnqn"
                    ));
                }
            }
        }
        match trtype.as_deref() {
            Some("TCP") => {}
            Some(other) => return Err(format!("trtype '{other}' is not supported yet: use trtype:TCP")),
            None => return Err("the transport ID names no trtype: add trtype:TCP".into()),
        }
        if id.traddr.is_empty() {
            return Err("the transport ID names no traddr".into());
        }
        match (id.ipv6, id.traddr.parse::<IpAddr>()) {
            (Some(true), Ok(IpAddr::V4(a))) => Err(format!("traddr {a} is not an IPv6 address")),
            (Some(false), Ok(IpAddr::V6(a))) => Err(format!("traddr {a} is not an IPv4 address")),
            _ => Ok(id),
        }
    }
}

/// An NQN is 1 to 223 bytes (NVM Express Base Specification, 4.7).
fn nqn(key: &str, value: &str) -> Result<String, String> {
    if value.len() > 223 { Err(format!("{key} is longer than 223 bytes")) } else { Ok(value.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_of_spdk_nvme_perf_is_taken() {
        let id: TransportId =
            "trtype:TCP adrfam:IPv4 traddr:127.0.0.1 trsvcid:4421 subnqn:nqn.2016-06.io.spdk:cnode1 ns:3 hostnqn:nqn.h"
                .parse()
                .unwrap();
        assert_eq!((id.trsvcid, id.nsid, id.hostnqn.as_deref()), (4421, Some(3), Some("nqn.h")));
        // an NQN holds colons of its own
        assert_eq!(id.subnqn, "nqn.2016-06.io.spdk:cnode1");
        let id: TransportId = "trtype=tcp traddr=::1".parse().unwrap();
        assert!(id.is_discovery());
        assert_eq!(id.resolve().unwrap().to_string(), "[::1]:4420");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("traddr:127.0.0.1", "trtype"),
            ("trtype:RDMA traddr:127.0.0.1", "RDMA"),
            ("trtype:TCP", "traddr"),
            ("trtype:TCP traddr:1.2.3.4 trsvcid:70000", "70000"),
            ("trtype:TCP traddr:1.2.3.4 adrfam:IPv6", "IPv6"),
            ("trtype:TCP traddr:1.2.3.4 ns:0", "ns '0'"),
            ("trtype:TCP traddr:1.2.3.4 colour:red", "colour"),
            ("trtype", "key:value"),
        ] {
            let e = text.parse::<TransportId>().unwrap_err();
            assert!(e.contains(part), "{text}: {e}");
        }
    }
}
