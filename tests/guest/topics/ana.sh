# The host sees an asymmetric access state change as it happens, and holds I/O while no path is usable.
. ./harness.sh
serve $((32 * MIB)) ',"ana_reporting":true'
state_is() { [ "$(cat "$(path_of 1)/ana_state")" = "$1" ]; }
set_state() { rpc nvmf_subsystem_listener_set_ana_state '{"nqn":"'$NQN'",'"$LISTEN"',"ana_state":"'"$1"'"}'; }
says() { nvme list-subsys "$(disk_of 1)" | grep -q "live $1"; }
check 'connect' connect
check 'namespace 1 appears' until_true 30 disk_of 1
D=$(disk_of 1)
check 'it is optimized at first' until_true 30 state_is optimized
check 'make it non-optimized' set_state non_optimized
check 'the host sees non-optimized' until_true 30 state_is non-optimized
check 'nvme list-subsys says so' says non-optimized
check 'it still reads' dd if="$D" of=/dev/null bs=64k count=16 iflag=direct
check 'make it inaccessible' set_state inaccessible
check 'the host sees inaccessible' until_true 30 state_is inaccessible
dd if="$D" of=/dev/null bs=4k count=1 iflag=direct 2> /tmp/held &
held=$!
check 'a read is held' until_true 30 grep -q 'State:.*D' /proc/$held/status
check 'make it optimized' set_state optimized
check 'the host sees optimized' until_true 30 state_is optimized
check 'the read that was held ends without error' wait $held
