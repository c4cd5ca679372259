# A namespace is seen by the hosts that it is made visible to, and by no other.
. ./harness.sh
skip_on_nvmet 'it shows every namespace to every host'
OTHER=nqn.2014-08.org.nvmexpress:uuid:6c6f6e67-0000-4000-8000-000000000002
serve $((16 * MIB))
add_file_bdev hidden $((16 * MIB))
must add_ns 2 hidden ',"no_auto_visible":true'
listed() { nvme list-ns "/dev/$(controller "${2:-$HOSTNQN}")" | grep -qiE ":0x0*$1\$"; }
check 'connect' connect
check 'connect as another host' nvme connect -t tcp -a "$ADDR" -s "$PORT" -n $NQN -q $OTHER -I "${OTHER##*:}" -i 1
check 'both see namespace 1' until_true 30 eval 'has_ns 1 && has_ns 1 $OTHER'
check 'no block device of the masked namespace' lacks_ns 2
check 'identify does not list it' eval '! listed 2'
check 'identify of it gives zeroes or an error' eval '! nvme id-ns "/dev/$(controller)" -n 2 --force | grep -qE "nsze +: 0x[1-9a-f]"'
check 'make it visible to this host' rpc nvmf_ns_add_host '{"nqn":"'$NQN'","nsid":2,"host":"'$HOSTNQN'"}'
check 'it appears without a rescan' until_true 30 disk_of 2
check 'identify lists it' listed 2
check 'it can be written' dd if=/dev/urandom of="$(disk_of 2)" bs=64k count=16 oflag=direct
check 'the other host does not see it' lacks_ns 2 $OTHER
check 'nor in identify' eval '! listed 2 $OTHER'
check 'mask it again' rpc nvmf_ns_remove_host '{"nqn":"'$NQN'","nsid":2,"host":"'$HOSTNQN'"}'
check 'it disappears without a rescan' until_true 30 lacks_ns 2
check 'namespace 1 is still there' has_ns 1
