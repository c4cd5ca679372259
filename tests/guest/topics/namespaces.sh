# A namespace added, resized and removed under load is seen without a rescan, and the load goes on.
. ./harness.sh
serve $((128 * MIB))
check 'connect' connect
check 'namespace 1 appears' until_true 30 disk_of 1
D=$(disk_of 1)
start_load "$D" 8M
check 'the load is under way' under_way "$D"
for round in 1 2; do
  add_file_bdev "file2-$round" $((16 * MIB))
  check "round $round: add" add_ns 2 "file2-$round"
  check 'the host sees it' until_true 30 disk_of 2
  check 'with its size' has_bytes 2 $((16 * MIB))
  must ask file "file2-$round" $((24 * MIB))
  check 'resize' rpc bdev_uring_rescan '{"name":"file2-'$round'"}'
  check 'the host sees the new size' until_true 30 has_bytes 2 $((24 * MIB))
  check 'the new part can be written' dd if=/dev/urandom of="$(disk_of 2)" bs=64k count=64 seek=256 oflag=direct conv=fsync
  # a writer that is cut off by the removal, and may fail; the daemon and the other load may not
  dd if=/dev/zero of="$(disk_of 2)" bs=16k count=1500 oflag=direct > /dev/null 2>&1 &
  writer=$!
  check 'remove, with a writer on it' remove_ns 2
  check 'the host sees it gone' until_true 30 lacks_ns 2
  wait $writer
  must rpc bdev_uring_delete '{"name":"file2-'$round'"}'
  check 'the load goes on' goes_on
done
check 'every fio ended with no error and no miscompare' stop_load
