//! Who this daemon is to remote controllers.

use std::path::Path;

use longshore::nvme::host::set_process_hostid;
use uuid::Uuid;

/// What identifies the machine: 32 hexadecimal digits (machine-id(5)).
const MACHINE: &str = "/etc/machine-id";

/// Gives the daemon a host identifier that is the same whenever it is started again on this machine with the same path, of its RPC socket. A
/// target then recognises it, and lets nothing that it sent before the end of its former life land after what it sends now.
/// Without a machine's identity it is a new host each time, which is logged.
pub(crate) fn settle(path: &Path) {
    let text = std::fs::read_to_string(MACHINE);
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match text.map_err(|e| e.to_string()).and_then(|t| of(&t, &path)) {
        Ok(id) => {
            set_process_hostid(id.into_bytes());
        }
        Err(why) => tracing::warn!(
            "{MACHINE}: {why}: to remote controllers this daemon is a new host at each start, which they cannot recognise: \
             write it with systemd-machine-id-setup, or give bdev_nvme_attach_controller a hostnqn"
        ),
    }
}

/// The identifier of the daemon with this path on the machine with this identity. The machine's own does not follow from it.
fn of(machine: &str, path: &Path) -> Result<Uuid, String> {
    let machine = machine.trim();
    let id = Uuid::try_parse(machine).ok().filter(|id| !id.is_nil());
    let id =
        id.ok_or_else(|| format!("not 32 hexadecimal digits: {:?}", machine.chars().take(40).collect::<String>()))?;
    let name = [b"longshore ", path.as_os_str().as_encoded_bytes()].concat();
    Ok(Uuid::new_v5(&id, &name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_keeps_its_identity_and_shares_it_with_no_other() {
        let (a, b) = ("3d1219c7c4c5404aaa1f6d2a48adfda4\n", "3d1219c7c4c5404aaa1f6d2a48adfda5\n");
        let (x, y) = (Path::new("/var/tmp/spdk.sock"), Path::new("/run/other.sock"));
        assert_eq!(of(a, x), of(a, x));
        let all = [of(a, x).unwrap(), of(a, y).unwrap(), of(b, x).unwrap(), Uuid::try_parse(a.trim()).unwrap()];
        let different: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
        for none in ["", "uninitialized\n", "00000000000000000000000000000000\n"] {
            assert!(of(none, x).unwrap_err().contains(none.trim()), "{none}");
        }
    }
}
