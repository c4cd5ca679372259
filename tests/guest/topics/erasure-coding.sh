# A file system on an erasure-coded array of 4+2 loses nothing when two members are pulled while a tree is copied to it, nor
# when, after these were replaced and rebuilt, two others are.
. ./harness.sh
skip_on_nvmet 'it has no erasure coding'
add_member() { add_file_bdev "$1" $((24 * MIB)); }
pull() { rpc bdev_uring_delete '{"name":"'"$1"'"}'; }
replace() { rpc bdev_ec_replace_base_bdev '{"ec_name":"array","slot":'"$1"',"new_bdev_name":"'"$2"'"}'; }
rebuild_at() { rpc bdev_ec_set_rebuild_qos '{"ec_name":"array","max_stripes_per_sec":'"$1"'}'; }
rebuilds() { rpc bdev_ec_get_bdevs '{"name":"array"}' | grep '"rebuild_in_progress":true'; }
members_normal() { [ "$(rpc bdev_ec_get_bdevs '{"name":"array"}' | grep -o '"state":"normal"' | wc -l)" = "$1" ]; }
scrub() {
  rpc bdev_ec_start_scrub '{"ec_name":"array","max_stripes_per_sec":0}' && until_true 120 scrubbed > /dev/null && cat /tmp/scrub &&
    grep '"mismatches":0' /tmp/scrub | grep '"unchecked":0'
}
scrubbed() { rpc bdev_ec_get_scrub_progress '{"ec_name":"array"}' > /tmp/scrub && grep '"state":"finished"' /tmp/scrub; }
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
TREE=(/usr/lib/python3.*/[a-dl]*) SECOND=(/usr/lib/python3.*/[m-s]*) THIRD=(/usr/lib/python3.*/[t-w]*)
mkdir -p /mnt/fs
check 'mkfs.ext4' mkfs.ext4 -q -F "$D"
check 'mount' mount "$D" /mnt/fs
start_copy "${TREE[@]}"
check 'copy a tree' under_way "$D" 100
check 'pull a member' pull member1
check 'the copy goes on' eval 'under_way "$D" 100 && goes_on'
check 'pull another' pull member4
check 'the array knows that two are gone' members_normal 4
check 'the copy goes on' eval 'under_way "$D" 100 && goes_on'
check 'the copy ends without error' ends_well
must checksums "${TREE[@]}"
check 'fsck is clean and all checksums are equal' intact
add_member new1
add_member new4
start_copy "${SECOND[@]}"
check 'copy a second tree' under_way "$D" 100
check 'rebuild slowly, so that it takes as long as the copy' rebuild_at 5
check 'replace the first that was pulled' replace 1 new1
check 'replace the other' replace 4 new4
check 'the copy goes on while they are rebuilt' eval 'under_way "$D" 100 && goes_on && rebuilds'
check 'rebuild faster' rebuild_at 0
check 'the rebuilds end' until_true 120 members_normal 6
check 'the copy ends without error' ends_well
check 'a scrub finds that all strips fit' scrub
start_copy "${THIRD[@]}"
check 'copy a third tree' under_way "$D" 100
check 'pull two of those that were not pulled before' eval 'pull member0 && pull member3'
check 'the array knows that two are gone' members_normal 4
check 'the copy goes on' eval 'under_way "$D" 100 && goes_on'
check 'the copy ends without error' ends_well
must checksums "${TREE[@]}" "${SECOND[@]}" "${THIRD[@]}"
check 'fsck is clean and all checksums are equal' intact
check 'unmount' umount /mnt/fs
check 'disconnect' nvme disconnect -n $NQN
