# nvme reset under load loses nothing.
. ./harness.sh
serve $((64 * MIB))
check 'connect' connect
check 'namespace 1 appears' until_true 30 disk_of 1
D=$(disk_of 1)
start_load "$D" 8M
for round in 1 2 3; do
  check 'the load is under way' under_way "$D"
  check "reset $round" nvme reset "/dev/$(controller)"
  check 'the controller is live' until_true 60 live
  check 'the load goes on' goes_on
done
check 'every fio ended with no error and no miscompare' stop_load
