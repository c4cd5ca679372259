//! What targets say of themselves, as text for people and as JSON: discovery log, controllers, namespaces.

use longshore_nvme::wire::ascii::trimmed;
use longshore_nvme::wire::discovery::{adrfam, subtype, treq, trtype};
use longshore_nvme::wire::identify::{cmic, cntrltype, oacs, oncs, vwc};
use longshore_nvme::wire::identify_ns::{dlfeat, flbas, nidt, nsfeat};
use longshore_nvme::wire::{
    DiscoveryEntry, DiscoveryHeader, IdentifyController, IdentifyNamespace, NamespaceDescriptors,
};
use serde_json::{Map, Value, json};

use crate::units;

/// One fact: name, text, and the same for machines.
struct Fact {
    label: &'static str,
    text: String,
    key: &'static str,
    value: Value,
}

/// Facts that belong together.
#[derive(Default)]
pub(crate) struct Facts(Vec<Fact>);

impl Facts {
    fn add(&mut self, label: &'static str, key: &'static str, value: impl Into<Value>, text: impl Into<String>) {
        self.0.push(Fact { label, text: text.into(), key, value: value.into() });
    }

    fn text(&mut self, label: &'static str, key: &'static str, text: &str) {
        self.add(label, key, text, text);
    }

    fn number(&mut self, label: &'static str, key: &'static str, n: u64) {
        self.add(label, key, n, n.to_string());
    }

    fn list(&mut self, label: &'static str, key: &'static str, items: &[(&str, bool)]) {
        let on: Vec<_> = items.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect();
        let text = if on.is_empty() { "none".into() } else { on.join(", ") };
        self.add(label, key, on, text);
    }

    /// Lines of `indent`, label and text.
    pub(crate) fn print(&self, indent: usize) {
        for f in &self.0 {
            println!("{:indent$}{:26} {}", "", f.label, f.text);
        }
    }

    /// The same as an object.
    pub(crate) fn to_json(&self) -> Value {
        Value::Object(self.0.iter().map(|f| (f.key.to_owned(), f.value.clone())).collect::<Map<_, _>>())
    }
}

/// The head of a discovery log.
pub(crate) fn discovery_header(h: &DiscoveryHeader) -> Facts {
    let mut f = Facts::default();
    f.number("generation", "genctr", h.genctr.get());
    f.number("records", "numrec", h.numrec.get());
    f
}

/// A record of a discovery log.
pub(crate) fn discovery_entry(e: &DiscoveryEntry) -> Facts {
    let mut f = Facts::default();
    let named = |n: u8, names: &[(u8, &'static str)]| {
        names.iter().find(|(v, _)| *v == n).map_or_else(|| format!("unknown ({n})"), |(_, s)| (*s).to_owned())
    };
    let transports =
        [(trtype::RDMA, "RDMA"), (trtype::FC, "FC"), (trtype::TCP, "TCP"), (trtype::INTRA_HOST, "intra-host")];
    let families = [
        (adrfam::IPV4, "IPv4"),
        (adrfam::IPV6, "IPv6"),
        (adrfam::IB, "IB"),
        (adrfam::FC, "FC"),
        (adrfam::INTRA_HOST, "intra-host"),
    ];
    let kinds = [
        (subtype::REFERRAL, "discovery referral"),
        (subtype::NVM, "NVM subsystem"),
        (subtype::CURRENT_DISCOVERY, "current discovery subsystem"),
    ];
    let secure = [
        (treq::SECURE_NOT_SPECIFIED, "not specified"),
        (treq::SECURE_REQUIRED, "required"),
        (treq::SECURE_NOT_REQUIRED, "not required"),
    ];
    f.text("trtype", "trtype", &named(e.trtype, &transports));
    f.text("adrfam", "adrfam", &named(e.adrfam, &families));
    f.text("traddr", "traddr", e.traddr());
    f.text("trsvcid", "trsvcid", e.trsvcid());
    f.text("subnqn", "subnqn", e.subnqn.get().unwrap_or("(not an NQN)"));
    f.text("subtype", "subtype", &named(e.subtype, &kinds));
    f.number("port id", "portid", e.portid.get().into());
    match e.cntlid.get() {
        0xffff => f.add("controller id", "cntlid", 0xffff, "given at connect"),
        n => f.number("controller id", "cntlid", n.into()),
    }
    f.number("admin queue size, at most", "asqsz", e.asqsz.get().into());
    f.text("secure channel", "secure_channel", &named(e.treq & 3, &secure));
    f
}

/// A controller.
pub(crate) fn controller(c: &IdentifyController) -> Facts {
    let mut f = Facts::default();
    f.text("subsystem", "subnqn", c.subnqn.get().unwrap_or("(not an NQN)"));
    f.text("model", "model", trimmed(&c.mn));
    f.text("serial", "serial", trimmed(&c.sn));
    f.text("firmware", "firmware", trimmed(&c.fr));
    let v = c.ver.get();
    f.text("NVMe version", "version", &format!("{}.{}.{}", v >> 16, (v >> 8) & 0xff, v & 0xff));
    f.number("controller id", "cntlid", c.cntlid.get().into());
    let kind = match c.cntrltype {
        cntrltype::IO => "I/O",
        cntrltype::DISCOVERY => "discovery",
        cntrltype::ADMINISTRATIVE => "administrative",
        _ => "not reported",
    };
    f.text("type", "type", kind);
    // In units of the smallest memory page, which is 4 KiB over fabrics.
    match c.mdts {
        0 => f.add("largest transfer", "max_transfer", Value::Null, "no limit"),
        n if n < 48 => {
            let bytes = 4096u64 << n;
            f.add("largest transfer", "max_transfer", bytes, units::size(bytes));
        }
        n => f.add("largest transfer", "max_transfer", Value::Null, format!("not plausible (MDTS {n})")),
    }
    let in_capsule = (u64::from(c.ioccsz.get()) * 16).saturating_sub(64);
    f.add("in-capsule data", "in_capsule_data", in_capsule, units::size(in_capsule));
    f.number("commands per queue", "max_commands", c.maxcmd.get().into());
    f.number("namespaces, at most", "max_namespaces", c.nn.get().into());
    let kas = u64::from(c.kas.get()) * 100;
    f.add("keep-alive granularity", "keep_alive_granularity_ms", kas, format!("{kas} ms"));
    f.number("events outstanding", "async_events", u64::from(c.aerl) + 1);
    let has = |bit: u16, of: u16| of & bit != 0;
    let o = c.oncs.get();
    f.list(
        "optional I/O commands",
        "optional_io_commands",
        &[
            ("compare", has(oncs::COMPARE, o)),
            ("write uncorrectable", has(oncs::WRITE_UNCORRECTABLE, o)),
            ("dataset management", has(oncs::DATASET_MANAGEMENT, o)),
            ("write zeroes", has(oncs::WRITE_ZEROES, o)),
            ("reservations", has(oncs::RESERVATIONS, o)),
            ("verify", has(oncs::VERIFY, o)),
            ("copy", has(oncs::COPY, o)),
            ("compare-and-write (fused)", has(1, c.fuses.get())),
        ],
    );
    let o = c.oacs.get();
    f.list(
        "optional admin commands",
        "optional_admin_commands",
        &[
            ("security", has(oacs::SECURITY, o)),
            ("format", has(oacs::FORMAT, o)),
            ("firmware", has(oacs::FIRMWARE, o)),
            ("namespace management", has(oacs::NAMESPACE_MANAGEMENT, o)),
            ("self-test", has(oacs::SELF_TEST, o)),
            ("directives", has(oacs::DIRECTIVES, o)),
        ],
    );
    f.list(
        "subsystem may have",
        "multi_path",
        &[
            ("several ports", c.cmic & cmic::MULTI_PORT != 0),
            ("several controllers", c.cmic & cmic::MULTI_CONTROLLER != 0),
            ("asymmetric access", c.cmic & cmic::ANA != 0),
        ],
    );
    let cache = c.vwc & vwc::PRESENT != 0;
    f.add("volatile write cache", "volatile_write_cache", cache, if cache { "yes" } else { "no" });
    f
}

/// A namespace, with the identifiers that the descriptor list adds.
pub(crate) fn namespace(nsid: u32, n: &IdentifyNamespace, ids: Option<&NamespaceDescriptors>) -> Facts {
    let mut f = Facts::default();
    f.number("namespace", "nsid", nsid.into());
    let index = usize::from(n.flbas & flbas::INDEX) | usize::from(n.flbas >> 5 & 3) << 4;
    let format = n.lbaf[index];
    // Below 9 is not allowed by the specification, above 30 not plausible.
    let block = if (9..=30).contains(&format.lbads) { 1u64 << format.lbads } else { 0 };
    let blocks = n.nsze.get();
    f.add("size", "num_blocks", blocks, format!("{} ({blocks} blocks)", units::size(blocks.saturating_mul(block))));
    f.number("block size", "block_size", block);
    let md = format.ms.get();
    if md != 0 {
        let extended = n.flbas & flbas::EXTENDED != 0;
        f.add(
            "metadata per block",
            "metadata_size",
            md,
            format!("{md} B, {}", if extended { "interleaved" } else { "separate" }),
        );
        f.add("metadata interleaved", "metadata_interleaved", extended, if extended { "yes" } else { "no" });
    }
    let hex = |b: &[u8]| b.iter().map(|x| format!("{x:02x}")).collect::<String>();
    if n.nguid != [0; 16] {
        f.text("NGUID", "nguid", &hex(&n.nguid));
    }
    if n.eui64 != [0; 8] {
        f.text("EUI-64", "eui64", &hex(&n.eui64));
    }
    if let Some(uuid) = ids.and_then(|l| l.iter().find(|(kind, id)| *kind == nidt::UUID && id.len() == 16)) {
        let h = hex(uuid.1);
        f.text("UUID", "uuid", &format!("{}-{}-{}-{}-{}", &h[..8], &h[8..12], &h[12..16], &h[16..20], &h[20..]));
    }
    let shared = n.nmic & 1 != 0;
    f.add("shared", "shared", shared, if shared { "yes" } else { "no" });
    if n.anagrpid.get() != 0 {
        f.number("ANA group", "anagrpid", n.anagrpid.get().into());
    }
    f.list(
        "features",
        "features",
        &[
            ("thin provisioning", n.nsfeat & nsfeat::THIN != 0),
            ("deallocated blocks read zeroes", n.dlfeat & 7 == dlfeat::READ_ZEROES),
            ("optimal sizes given", n.nsfeat & nsfeat::OPTIMAL_PERFORMANCE != 0),
            ("write protected", n.nsattr & 1 != 0),
        ],
    );
    if n.noiob.get() != 0 {
        let bytes = u64::from(n.noiob.get()) * block;
        f.add("optimal I/O boundary", "optimal_io_boundary", bytes, units::size(bytes));
    }
    f
}

/// The object that `discover --json` prints.
pub(crate) fn discovery_json(h: &DiscoveryHeader, entries: &[DiscoveryEntry]) -> Value {
    json!({
        "schema": "longshore-perf/1",
        "kind": "discover",
        "version": env!("CARGO_PKG_VERSION"),
        "genctr": h.genctr.get(),
        "records": entries.iter().map(|e| discovery_entry(e).to_json()).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_nvme::wire::NqnField;
    use zerocopy::FromZeros;

    #[test]
    fn a_discovery_record_is_named_in_words() {
        let mut e = DiscoveryEntry::new_zeroed();
        (e.trtype, e.adrfam, e.subtype) = (trtype::TCP, adrfam::IPV4, subtype::NVM);
        e.set_traddr("192.0.2.1");
        e.set_trsvcid("4420");
        e.subnqn = NqnField::new("nqn.a").unwrap();
        let v = discovery_entry(&e).to_json();
        assert_eq!(
            (v["trtype"].as_str(), v["traddr"].as_str(), v["trsvcid"].as_str()),
            (Some("TCP"), Some("192.0.2.1"), Some("4420"))
        );
        assert_eq!((v["subnqn"].as_str(), v["subtype"].as_str()), (Some("nqn.a"), Some("NVM subsystem")));
        e.trtype = 77;
        assert_eq!(discovery_entry(&e).to_json()["trtype"], "unknown (77)");
    }

    #[test]
    fn whatever_a_target_answers_is_described_without_harm() {
        let (mut c, mut n) = (IdentifyController::new_zeroed(), IdentifyNamespace::new_zeroed());
        assert_eq!(controller(&c).to_json()["max_transfer"], Value::Null);
        assert_eq!(namespace(1, &n, None).to_json()["block_size"], 0);
        use zerocopy::IntoBytes;
        c.as_mut_bytes().fill(0xff);
        n.as_mut_bytes().fill(0xff);
        assert!(controller(&c).to_json()["model"].is_string());
        assert_eq!(namespace(1, &n, Some(&NamespaceDescriptors([0xff; 4096]))).to_json()["block_size"], 0);
    }

    #[test]
    fn a_namespace_shows_size_and_identity() {
        let mut n = IdentifyNamespace::new_zeroed();
        n.nsze = 2048.into();
        n.lbaf[0].lbads = 12;
        n.nguid = [0xab; 16];
        let ids = NamespaceDescriptors::of(&[(nidt::UUID, &[0x11; 16])]);
        let v = namespace(3, &n, Some(&ids)).to_json();
        assert_eq!(
            (v["nsid"].as_u64(), v["num_blocks"].as_u64(), v["block_size"].as_u64()),
            (Some(3), Some(2048), Some(4096))
        );
        assert_eq!(v["uuid"], "11111111-1111-1111-1111-111111111111");
        assert_eq!(v["nguid"], "ab".repeat(16));
    }
}
