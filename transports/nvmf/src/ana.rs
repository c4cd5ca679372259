//! Asymmetric Namespace Access: Base Specification, "Asymmetric Namespace Access Reporting".

use std::collections::BTreeMap;

use longshore_nvme::wire::log::{ANA_LSP_GROUPS_ONLY, AnaGroup, AnaHeader};
use zerocopy::IntoBytes;

use crate::controller::Controller;
use crate::view::SubsystemView;

/// The log page: the groups of the namespaces that the controller sees, with their states on its listener.
pub(crate) fn log(c: &Controller, sub: &SubsystemView, lsp: u8) -> Vec<u8> {
    let mut groups: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for n in sub.namespaces.values().filter(|n| n.visible_to(&c.who.hostnqn)) {
        groups.entry(n.anagrpid).or_default().push(n.nsid);
    }
    let listener = sub.listener(&c.access.listener);
    let count = sub.ana_changes + listener.map_or(0, |l| l.ana_changes);
    let header = AnaHeader { change_count: count.into(), groups: (groups.len() as u16).into(), ..AnaHeader::default() };
    let mut page = header.as_bytes().to_vec();
    for (group, nsids) in groups {
        let state = listener.map(|l| l.ana_state(group)).unwrap_or_default();
        let named: &[u32] = if lsp & ANA_LSP_GROUPS_ONLY == 0 { &nsids } else { &[] };
        let g = AnaGroup {
            group_id: group.into(),
            nsids: (named.len() as u32).into(),
            change_count: count.into(),
            state: state as u8,
            ..AnaGroup::default()
        };
        page.extend_from_slice(g.as_bytes());
        for n in named {
            page.extend_from_slice(&n.to_le_bytes());
        }
    }
    page
}
