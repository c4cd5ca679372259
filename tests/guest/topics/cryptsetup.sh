# What bdev_crypto writes, dm-crypt reads, and the other way round, bit for bit: `aes-xts-plain64`, blocks of 512 bytes as
# they are and of 4096 bytes with --sector-size 4096 --iv-large-sectors, keys of AES-128 and AES-256.
. ./harness.sh
skip_on_nvmet 'it does not encrypt'
export DM_DISABLE_UDEV=1    # there is none here
BYTES=$MIB
FAR=$((2 << 40))            # from here on, the number of a block of 512 bytes takes more than 32 bits
# of each kind: bits of an AES key, bytes of a block, offset of what is compared
declare -A KINDS=([aes128-512]='128 512 0' [aes128-4096]='128 4096 0' [aes256-512]='256 512 0' [aes256-4096]='256 4096 0'
  [aes256-512-far]="256 512 $((FAR - BYTES / 2))")
kinds() { printf '%s\n' "${!KINDS[@]}" | sort; }
# each KIND COMMAND...: for every kind, with $kind, $bits, $block and $at set
each() {
  for kind in $(kinds); do
    read -r bits block at <<< "${KINDS[$kind]}"
    "$@" || { echo "with $kind"; return 1; }
  done
}
hex() { od -An -v -tx1 | tr -d ' \n'; }
make_key() {
  local file=/tmp/$kind.key half=$((bits / 8))
  (umask 077; head -c $((2 * half)) /dev/urandom > "$file")
  rpc accel_crypto_key_create '{"name":"'$kind'","cipher":"AES_XTS","key":"'"$(head -c $half "$file" | hex)"'","key2":"'"$(tail -c $half "$file" | hex)"'"}'
}
make_base() {
  if [ "$at" = 0 ]; then
    rpc bdev_malloc_create '{"name":"base-'$kind'","block_size":'$block',"num_blocks":'$((BYTES / block))'}'
  else
    rpc bdev_uring_create '{"name":"base-'$kind'","block_size":'$block',"filename":"'"$(ask sparse "$kind" $((at + BYTES)))"'"}'
  fi
}
encrypt() { rpc bdev_crypto_create '{"name":"crypto-'$kind'","base_bdev_name":"base-'$kind'","key_name":"'$kind'"}'; }
stop_encrypting() { rpc bdev_crypto_delete '{"name":"crypto-'$kind'"}'; }
# Namespaces get numbers that were not used before, so that the host never takes one for another.
last=0
declare -A NSID DISK
offer() { last=$((last + 1)); NSID[$kind]=$last; add_ns $last "$1-$kind"; }
find_disk() { until_true 30 disk_of "${NSID[$kind]}" > /dev/null && DISK[$kind]=$(disk_of "${NSID[$kind]}"); }
withdraw() { remove_ns "${NSID[$kind]}" && until_true 30 lacks_ns "${NSID[$kind]}"; }
has_block_size() { [ "$(blockdev --getss "${DISK[$kind]}")" = "$block" ]; }
# Requests of 200 KiB go out and of 1 MiB come back, so that the same block is not always at the same place of a request.
put() { head -c $BYTES /dev/urandom > "/tmp/$kind.data" && dd if="/tmp/$kind.data" of="$1" bs=200k seek="$at" oflag=direct,seek_bytes conv=fsync,notrunc; }
get() { dd if="$1" bs=1M skip="$at" count=$BYTES iflag=direct,skip_bytes,count_bytes; }
put_disk() { put "${DISK[$kind]}"; }
disk_equals() { get "${DISK[$kind]}" | cmp - "/tmp/$kind.data"; }
disk_differs() { ! disk_equals; }
open_crypt() {
  local how=()
  [ "$block" = 512 ] || how=(--sector-size "$block" --iv-large-sectors)
  cryptsetup open --batch-mode --type plain --cipher aes-xts-plain64 --key-size $((2 * bits)) --key-file "/tmp/$kind.key" "${how[@]}" \
    "${DISK[$kind]}" "$kind"
}
crypt_equals() { get "/dev/mapper/$kind" | cmp - "/tmp/$kind.data"; }
put_crypt() { put "/dev/mapper/$kind"; }
close_crypt() { cryptsetup close "$kind"; }

must modprobe dm-crypt
serve_empty
must each make_key
must each make_base
must each encrypt
must each offer crypto
check 'connect' connect
check "namespaces of encrypting devices appear: $(kinds | paste -sd' ')" each find_disk
check 'with the block sizes of what is beneath' each has_block_size
check 'write through the encrypting devices' each put_disk
check 'what was written reads back' each disk_equals
check 'withdraw them' each withdraw
must each stop_encrypting
must each offer base
check 'the devices beneath appear' each find_disk
check 'what they hold is not what was written' each disk_differs
check 'cryptsetup opens them with the same keys' each open_crypt
check 'dm-crypt reads what was written through the encrypting devices' each crypt_equals
check 'write something else through dm-crypt' each put_crypt
check 'dm-crypt reads it back' each crypt_equals
check 'cryptsetup closes them' each close_crypt
check 'withdraw them too' each withdraw
must each encrypt
must each offer crypto
check 'the encrypting devices appear again' each find_disk
check 'they read what dm-crypt wrote' each disk_equals
check 'disconnect' nvme disconnect -n $NQN
