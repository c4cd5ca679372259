# The daemon runs in the guest, on a device that records the order in which writes became durable. What this host was
# told is durable (a flush or a FUA write that was acknowledged) is in the record before the mark that follows it.
# The record is replayed and compared by the machine outside (replay.py), when the guest is off.
. ./harness.sh
ADDR=127.0.0.1
disk_with_serial() { for d in /sys/block/vd*; do [ "$(cat "$d/serial")" = "$1" ] && echo "/dev/${d##*/}"; done; }
must modprobe dm-log-writes
DATA=$(disk_with_serial data) LOG=$(disk_with_serial log)
must dmsetup create recorded --table "0 $(blockdev --getsz "$DATA") log-writes $DATA $LOG"
must dmsetup mknodes    # no udev here
if [ "$TARGET" = nvmet ]; then
  must ask fresh
  must rpc nvmf_create_subsystem '{"nqn":"'$NQN'"}'
  ln -s /dev/mapper/recorded /run/nvmet/recorded
  must rpc bdev_uring_create '{"filename":"/run/nvmet/recorded","name":"recorded"}'
  must add_ns 1 recorded
  must rpc nvmf_subsystem_add_listener '{"nqn":"'$NQN'",'"$LISTEN"'}'
else
  PORT=4420
  cat > /run/config.json <<C
{"subsystems":[
 {"subsystem":"bdev","config":[{"method":"bdev_uring_create","params":{"name":"recorded","filename":"/dev/mapper/recorded","block_size":512}}]},
 {"subsystem":"nvmf","config":[
  {"method":"nvmf_create_transport","params":{"trtype":"TCP"}},
  {"method":"nvmf_create_subsystem","params":{"nqn":"$NQN","allow_any_host":true,"serial_number":"LSGUEST1"}},
  {"method":"nvmf_subsystem_add_ns","params":{"nqn":"$NQN","namespace":{"nsid":1,"bdev_name":"recorded"}}},
  {"method":"nvmf_subsystem_add_listener","params":{"nqn":"$NQN","listen_address":{"trtype":"TCP","adrfam":"IPv4","traddr":"127.0.0.1","trsvcid":"$PORT"}}}]}]}
C
  /share/longshore -r /run/longshore.sock -m 0x3 -c /run/config.json > /share/daemon-in-guest.log 2>&1 &
  daemon=$!
  listens() { kill -0 $daemon && ss -Hltn "sport = :$PORT" | grep -q .; }
  check 'the daemon serves in the guest' until_true 60 listens
fi
check 'connect' connect
check 'namespace 1 appears' until_true 30 disk_of 1
D=$(disk_of 1)
head_of() { echo "/sys/block/$(basename "$1")/queue"; }
check 'the device says that it has a volatile cache' grep -q 'write back' "$(head_of "$D")/write_cache"
check 'and that it knows FUA' grep -q 1 "$(head_of "$D")/fua"
check 'write, flush and mark' python3 ordered_writes.py "$D" recorded /share/durability.journal 40
cat /tmp/check.out
check 'disconnect' nvme disconnect -n $NQN
if [ "$TARGET" = nvmet ]; then
  must rpc nvmf_delete_subsystem '{"nqn":"'$NQN'"}'
else
  check 'the daemon ends with status 0 on SIGTERM' eval "kill $daemon; wait $daemon"
fi
check 'the record is complete' dmsetup remove recorded
