//! Where a transport listens, and who is at the other end.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use longshore_nvme::wire::discovery::{adrfam, trtype};

/// A kind of transport. Names are read without regard to case and written in capitals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TrType {
    /// NVMe/TCP.
    Tcp,
    /// NVMe/RDMA.
    Rdma,
    /// Fibre Channel: only in referrals.
    Fc,
}

impl TrType {
    /// The name clients use.
    pub const fn name(self) -> &'static str {
        match self {
            TrType::Tcp => "TCP",
            TrType::Rdma => "RDMA",
            TrType::Fc => "FC",
        }
    }

    /// TRTYPE of a discovery log page entry.
    pub const fn code(self) -> u8 {
        match self {
            TrType::Tcp => trtype::TCP,
            TrType::Rdma => trtype::RDMA,
            TrType::Fc => trtype::FC,
        }
    }
}

impl fmt::Display for TrType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for TrType {
    type Err = ();
    fn from_str(s: &str) -> Result<Self, ()> {
        [TrType::Tcp, TrType::Rdma, TrType::Fc].into_iter().find(|t| t.name().eq_ignore_ascii_case(s)).ok_or(())
    }
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AdrFam {
    /// IPv4.
    #[default]
    Ipv4,
    /// IPv6.
    Ipv6,
    /// InfiniBand: only in referrals.
    Ib,
    /// Fibre Channel: only in referrals.
    Fc,
}

impl AdrFam {
    /// The name clients read.
    pub const fn name(self) -> &'static str {
        match self {
            AdrFam::Ipv4 => "IPv4",
            AdrFam::Ipv6 => "IPv6",
            AdrFam::Ib => "IB",
            AdrFam::Fc => "FC",
        }
    }

    /// ADRFAM of a discovery log page entry.
    pub const fn code(self) -> u8 {
        match self {
            AdrFam::Ipv4 => adrfam::IPV4,
            AdrFam::Ipv6 => adrfam::IPV6,
            AdrFam::Ib => adrfam::IB,
            AdrFam::Fc => adrfam::FC,
        }
    }
}

impl fmt::Display for AdrFam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for AdrFam {
    type Err = ();
    fn from_str(s: &str) -> Result<Self, ()> {
        let all = [AdrFam::Ipv4, AdrFam::Ipv6, AdrFam::Ib, AdrFam::Fc];
        all.into_iter().find(|t| t.name().eq_ignore_ascii_case(s)).ok_or(())
    }
}

/// A transport address: what a listener, a referral or a peer is named by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// Kind of transport.
    pub trtype: TrType,
    /// Family of `traddr`.
    pub adrfam: AdrFam,
    /// Host part, as it was given.
    pub traddr: String,
    /// Service part: for TCP the decimal port. May be empty in referrals.
    pub trsvcid: String,
}

impl Address {
    /// The TCP address of a socket.
    pub fn tcp(at: SocketAddr) -> Address {
        Address {
            trtype: TrType::Tcp,
            adrfam: if at.is_ipv4() { AdrFam::Ipv4 } else { AdrFam::Ipv6 },
            traddr: at.ip().to_string(),
            trsvcid: at.port().to_string(),
        }
    }

    /// The socket address, if `traddr` and `trsvcid` are numeric and of the family.
    pub fn socket(&self) -> Option<SocketAddr> {
        let ip: IpAddr = self.traddr.parse().ok()?;
        let port: u16 = self.trsvcid.parse().ok()?;
        let fits = match self.adrfam {
            AdrFam::Ipv4 => ip.is_ipv4(),
            AdrFam::Ipv6 => ip.is_ipv6(),
            _ => false,
        };
        fits.then(|| SocketAddr::new(ip, port))
    }

    /// True for 0.0.0.0 and ::, which a host cannot connect to.
    pub fn is_unspecified(&self) -> bool {
        self.socket().is_some_and(|s| s.ip().is_unspecified())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.adrfam {
            AdrFam::Ipv6 => write!(f, "{} [{}]:{}", self.trtype, self.traddr, self.trsvcid),
            _ => write!(f, "{} {}:{}", self.trtype, self.traddr, self.trsvcid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_without_regard_to_case() {
        assert_eq!("tcp".parse(), Ok(TrType::Tcp));
        assert_eq!("iPv6".parse(), Ok(AdrFam::Ipv6));
        assert_eq!("BAD".parse::<TrType>(), Err(()));
    }

    #[test]
    fn a_socket_address_must_match_its_family() {
        let mut a = Address::tcp("127.0.0.1:4420".parse().unwrap());
        assert_eq!(a.socket(), Some("127.0.0.1:4420".parse().unwrap()));
        a.adrfam = AdrFam::Ipv6;
        assert_eq!(a.socket(), None);
        let b = Address::tcp("[::1]:4420".parse().unwrap());
        assert_eq!((b.adrfam, b.traddr.as_str(), b.to_string()), (AdrFam::Ipv6, "::1", "TCP [::1]:4420".into()));
    }
}
