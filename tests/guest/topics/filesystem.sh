# A file system on the target is what was written to it.
. ./harness.sh
serve $((192 * MIB))
# shellcheck disable=SC2086  # several words
check "connect ${DIGESTS:-without digests}, 4 I/O queues" connect ${DIGESTS:-}
check 'the host has 4 I/O queues and the admin queue' test "$(cat "/sys/class/nvme/$(controller)/queue_count")" = 5
check 'namespace 1 appears' until_true 30 disk_of 1
D=$(disk_of 1)
mkdir -p /mnt/fs
check 'mkfs.ext4' mkfs.ext4 -q -F "$D"
check 'mount' mount "$D" /mnt/fs
check 'copy a tree' cp -a /usr/lib/python3* /usr/sbin /mnt/fs/
check 'the copy equals the tree' diff -r --no-dereference /usr/sbin /mnt/fs/sbin
check 'remove a part' rm -r /mnt/fs/sbin
check 'trim what is free' fstrim /mnt/fs
check 'unmount' umount /mnt/fs
check 'fsck is clean' e2fsck -f -n "$D"
check 'disconnect' nvme disconnect -n $NQN
# shellcheck disable=SC2086
check 'connect again' connect ${DIGESTS:-}
check 'namespace 1 appears again' until_true 30 disk_of 1
check 'mount again' mount -o ro "$(disk_of 1)" /mnt/fs
for tree in /mnt/fs/python3*; do
  check "what was copied reads back equal: ${tree##*/}" diff -r --no-dereference "$tree" "/usr/lib/${tree##*/}"
done
check 'unmount again' umount /mnt/fs
