# The daemon is killed in the middle of fio and started again with its saved configuration: the host reconnects
# by itself, and fio ends without error or miscompare.
. ./harness.sh
serve $((64 * MIB))
must ask save
check 'connect' connect
check 'namespace 1 appears' until_true 30 disk_of 1
D=$(disk_of 1)
start_load "$D" 8M
for round in 1 2; do
  check 'the load is under way' under_way "$D"
  check "kill -9, time $round" ask kill9
  check 'the host notices' until_true 60 eval '! live'
  check "start again: ${START:-start-config}" ask "${START:-start-config}"
  check 'the host is connected again' until_true 60 live
  check 'the load goes on' goes_on
done
check 'the same device serves the namespace' test "$(disk_of 1)" = "$D"
check 'every fio ended with no error and no miscompare' stop_load
