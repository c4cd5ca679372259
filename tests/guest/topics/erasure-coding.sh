# A file system on an erasure-coded array of 4+2 loses nothing when two members are pulled while a tree is copied to it.
. ./harness.sh
skip_on_nvmet 'it has no erasure coding'
add_member() { add_file_bdev "$1" $((40 * MIB)); }
pull() { rpc bdev_uring_delete '{"name":"'"$1"'"}'; }
array_says() { rpc bdev_ec_get_bdevs '{"name":"array"}' | grep -q "$1"; }
# start_copy TREE...: copies to the file system in the background, each file durable before the next. Sets COPY to its process.
start_copy() {
  find "$@" -name __pycache__ -prune -o -type f -print | (
    while read -r file; do
      cp --parents --preserve=mode,timestamps "$file" /mnt/fs && sync "/mnt/fs$file" || exit 1
    done
  ) > /tmp/copy.out 2>&1 &
  COPY=$!
}
goes_on() { kill -0 $COPY || { cat /tmp/copy.out; return 1; }; }
ends_well() { wait $COPY || { cat /tmp/copy.out; return 1; }; }
# checksums TREE...: of the originals, relative to /
checksums() { find "$@" -name __pycache__ -prune -o -type f -print0 | xargs -0 sha256sum | sed 's: /: :' > /tmp/checksums; }
# All of the file system is read again from the array.
intact() {
  umount /mnt/fs && e2fsck -f -n "$D" && echo 3 > /proc/sys/vm/drop_caches && mount "$D" /mnt/fs &&
    (cd /mnt/fs && sha256sum --check --quiet /tmp/checksums)
}

serve_empty
for slot in 0 1 2 3 4 5; do add_member "member$slot"; done
MEMBERS='"member0","member1","member2","member3","member4","member5"'
must rpc bdev_ec_create '{"name":"array","data_chunk_count":4,"parity_chunk_count":2,"strip_size_kb":32,"base_bdevs":['$MEMBERS']}'
must add_ns 1 array
check 'connect' connect
check 'the array appears as namespace 1' until_true 30 disk_of 1
D=$(disk_of 1)
TREE=(/usr/lib/python3.*/[c-j]*)
mkdir -p /mnt/fs
check 'mkfs.ext4' mkfs.ext4 -q -F "$D"
check 'mount' mount "$D" /mnt/fs
start_copy "${TREE[@]}"
check 'copy a tree' under_way "$D" 100
check 'pull a member' pull member1
check 'the copy goes on' eval 'under_way "$D" 100 && goes_on'
check 'pull another' pull member4
check 'the array knows that two are gone' array_says '"failed_count":2'
check 'the copy goes on' eval 'under_way "$D" 100 && goes_on'
check 'the copy ends without error' ends_well
must checksums "${TREE[@]}"
check 'fsck is clean and all checksums are equal' intact
check 'unmount' umount /mnt/fs
check 'disconnect' nvme disconnect -n $NQN
