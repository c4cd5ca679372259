# Sourced by every topic: the control channel, connecting, waiting for conditions, reporting.
set -u
NQN=nqn.2024-01.io.longshore:guest
HOSTNQN=nqn.2014-08.org.nvmexpress:uuid:6c6f6e67-0000-4000-8000-000000000001
HOSTID=6c6f6e67-0000-4000-8000-000000000001
MIB=$((1 << 20))
if [ "$TARGET" = nvmet ]; then ADDR=127.0.0.1; else ADDR=10.0.2.2; fi
LISTEN='"listen_address":{"trtype":"TCP","adrfam":"IPv4","traddr":"127.0.0.1","trsvcid":"'$PORT'"}'

# check SENTENCE COMMAND...: the topic ends at the first sentence that does not hold.
check() {
  local sentence=$1
  shift
  if "$@" > /tmp/check.out 2>&1; then
    echo "  ok: $sentence"
  else
    echo "  NOT: $sentence (exit status $? of: $*)"
    tail -25 /tmp/check.out | sed 's/^/    /'
    exit 1
  fi
}

# skip_on_nvmet REASON: the kernel's own target cannot do this.
skip_on_nvmet() { [ "$TARGET" != nvmet ] || { echo "  not possible on nvmet: $1"; exit 0; }; }

# until_true SECONDS COMMAND...: asks again until it holds.
until_true() {
  local end=$((SECONDS + $1))
  shift
  until "$@" 2>/dev/null; do
    [ "$SECONDS" -le "$end" ] || { echo "still not so: $*"; return 1; }
    sleep 0.05
  done
}

# ask VERB ARGUMENTS: one request to the machine outside; prints the answer.
control_device() {
  local p
  for p in /sys/class/virtio-ports/*; do
    [ "$(cat "$p/name" 2>/dev/null)" = control ] && echo "/dev/${p##*/}" && return
  done
  return 1
}
ask() {
  local answer
  if [ "$TARGET" = nvmet ]; then
    answer=$(python3 /share/nvmet.py "$@" 2>&1 | tail -1)
  else
    # opened once per request and never by two at a time: the port admits one opener
    exec 8> /run/control.lock && flock 8
    exec 9<> "$(control_device)" && echo "$*" >&9 && IFS= read -r answer <&9
    exec 9>&- 8>&-
  fi
  echo "${answer#* }"
  [ "${answer%% *}" = ok ] || { echo "refused: ask $*" >&2; return 1; }
}
rpc() { ask rpc "$@"; }
# Without these there is no topic to run.
must() { "$@" > /tmp/must.out 2>&1 || { echo "  NOT: set up: $*"; sed 's/^/    /' /tmp/must.out; exit 1; }; }

# serve BYTES [PARAMETERS]: a fresh daemon with one subsystem that has a file of so many bytes as namespace 1.
serve() {
  serve_empty "${2:-}"
  add_file_bdev file1 "$1"
  must add_ns 1 file1
}
# serve_empty [PARAMETERS]: the same without a namespace.
serve_empty() {
  must ask fresh
  must rpc nvmf_create_transport '{"trtype":"TCP"}'
  must rpc nvmf_create_subsystem '{"nqn":"'$NQN'","allow_any_host":true,"serial_number":"LSGUEST1","max_namespaces":16'"${1:-}"'}'
  must rpc nvmf_subsystem_add_listener '{"nqn":"'$NQN'",'"$LISTEN"'}'
}
add_file_bdev() {
  local path
  path=$(ask file "$1" "$2") || { echo "  NOT: set up: file $1: $path"; exit 1; }
  must rpc bdev_uring_create '{"filename":"'"$path"'","name":"'"$1"'","block_size":512}'
}
add_ns() { rpc nvmf_subsystem_add_ns '{"nqn":"'$NQN'","namespace":{"nsid":'"$1"',"bdev_name":"'"$2"'"'"${3:-}"'}}'; }
remove_ns() { rpc nvmf_subsystem_remove_ns '{"nqn":"'$NQN'","nsid":'"$1"'}'; }

# connect [OPTIONS]: as the host that the topics use; 4 I/O queues.
connect() {
  nvme connect -t tcp -a "$ADDR" -s "$PORT" -n $NQN -q $HOSTNQN -I $HOSTID -i 4 -c 1 -l 120 "$@" &&
    until_true 30 controller > /dev/null
}
# The first controller of this host on the subsystem, for instance nvme0.
controller() {
  local c
  for c in /sys/class/nvme/nvme*; do
    [ "$(cat "$c/subsysnqn" 2>/dev/null)" = $NQN ] && [ "$(cat "$c/hostnqn")" = "${1:-$HOSTNQN}" ] && echo "${c##*/}" && return
  done
  return 1
}
live() { [ "$(cat "/sys/class/nvme/$(controller)/state")" = live ]; }
# path_of NSID [HOSTNQN]: sysfs folder of a namespace on the controller, for instance .../nvme0/nvme0c0n1
path_of() {
  local c d
  c=$(controller "${2:-$HOSTNQN}") || return 1
  for d in /sys/class/nvme/"$c"/nvme*n*; do
    [ "$(cat "$d/nsid" 2>/dev/null)" = "$1" ] && echo "$d" && return
  done
  return 1
}
has_ns() { path_of "$@" > /dev/null; }
lacks_ns() { ! path_of "$@" > /dev/null; }
# disk_of NSID: the block device to use, for instance /dev/nvme0n1 (the multipath head hides the path)
disk_of() {
  local name
  name=$(path_of "$@") || return 1
  name=${name##*/}
  name=$(sed -E 's/c[0-9]+n/n/' <<< "$name")
  [ -b "/dev/$name" ] && echo "/dev/$name"
}
bytes_of() { echo $(($(cat "/sys/class/block/$(basename "$(disk_of "$1")")/size") * 512)); }
has_bytes() { [ "$(bytes_of "$1")" = "$2" ]; }
writes_done() { awk '{ print $5 }' "/sys/class/block/$(basename "$1")/stat"; }
writes_passed() { [ "$(writes_done "$1")" -gt "$2" ]; }

# verify DISK BYTES-PER-JOB: one fio: random writes from 4 CPUs, each block read back and compared (crc32c).
verify() {
  fio --name=verify --filename="$1" --rw=randwrite --bssplit=4k/60:16k/30:64k/10 --ioengine=libaio --iodepth=8 \
    --direct=1 --numjobs=4 --cpus_allowed=0-3 --cpus_allowed_policy=split --size="$2" --offset_increment="$2" \
    --verify=crc32c --verify_fatal=1 --verify_backlog=64 --randseed="${SEED:-1}" --group_reporting
}
# start_load DISK BYTES-PER-JOB: that, again and again in the background until stop_load. Sets LOAD to its process.
start_load() {
  rm -f /tmp/load.stop /tmp/load.out
  (
    # A write that this kernel sends on a connection which the target has closed raises SIGPIPE in whoever wrote,
    # although the write itself is retried. It is the host's affair; here it would end a fio that has no error.
    trap '' PIPE
    SEED=0
    while [ ! -e /tmp/load.stop ]; do
      SEED=$((SEED + 1))
      echo "pass $SEED"
      verify "$1" "$2" || exit 1
    done
  ) > /tmp/load.out 2>&1 &
  LOAD=$!
}
# Each fio must have ended without error or miscompare.
stop_load() { touch /tmp/load.stop; wait "$LOAD" || { grep -E 'err=|signal|verify:' /tmp/load.out; tail -n 12 /tmp/load.out; return 1; }; }
goes_on() { kill -0 "$LOAD" 2>/dev/null || { tail -n 12 /tmp/load.out; return 1; }; }
# under_way DISK [WRITES]: waits for so many more writes (200)
under_way() { local now; now=$(writes_done "$1"); until_true 90 writes_passed "$1" $((now + ${2:-200})); }
trap 'for job in $(jobs -p); do kill "$job" 2>/dev/null; done' EXIT
