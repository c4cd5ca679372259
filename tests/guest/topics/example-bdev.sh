# The example of a block device of one's own, embedded target and all, serves a Linux host.
. ./harness.sh
skip_on_nvmet 'it is about a program of ours'
ADDR=127.0.0.1 PORT=4421
mkfifo /run/example.in
exec 7<> /run/example.in
/share/custom_bdev "$ADDR:$PORT" < /run/example.in > /run/example.out 2>&1 7>&- &
example=$!
check 'it says what it serves' until_true 30 grep -q 'subsystem nqn' /run/example.out
NQN=$(sed -n 's/.*subsystem //p' /run/example.out)
check 'connect' connect
check 'its namespace appears' until_true 30 disk_of 1
D=$(disk_of 1)
reads() { [ "$(dd if="$D" bs=4096 skip="$1" count=1 iflag=direct 2>/dev/null | od -An -t u8 -v -w8 | sort -u | tr -d ' ')" = "$1" ]; }
check 'block 0 reads as the example says' reads 0
check 'block 1000 too' reads 1000
check 'a write is refused' eval '! dd if=/dev/zero of="$D" bs=4096 count=1 oflag=direct'
check 'disconnect' nvme disconnect -n "$NQN"
exec 7>&-
check 'it ends with status 0 at the end of its input' wait $example
