# Random writes over 4 queues read back as written.
. ./harness.sh
serve $((128 * MIB))
check 'connect' connect
check 'namespace 1 appears' until_true 30 disk_of 1
check 'each CPU has a queue of its own' test "$(cat "$(path_of 1)"/mq/*/cpu_list | sort | paste -sd' ')" = '0 1 2 3'
check 'no error and no miscompare' verify "$(disk_of 1)" 16M
must nvme disconnect -n $NQN
check 'connect with digests' connect --hdr-digest --data-digest
check 'namespace 1 appears' until_true 30 disk_of 1
check 'no error and no miscompare with digests' verify "$(disk_of 1)" 8M
