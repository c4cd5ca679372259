#!/bin/bash
# In the guest: runs topics one after another. Arguments: TARGET PORT TOPIC...
# Writes `PASS topic` or `FAIL topic` lines to /share/results.
export TARGET=$1 PORT=$2
shift 2
modprobe -a nvme-tcp || exit 1
for topic; do
  start=$SECONDS
  echo "== $topic"
  dmesg --clear
  if timeout --kill-after=5 300 bash "topics/$topic.sh"; then verdict=PASS; else verdict=FAIL; fi
  if [ $verdict = FAIL ]; then
    echo "-- kernel log:"; dmesg | tail -40
    echo "-- controllers:"; nvme list-subsys
  fi
  if grep -qE 'BUG:|WARNING:|Oops|hung_task|blocked for more than' <(dmesg); then
    echo "-- the guest's kernel complains:"; dmesg | grep -E -A20 'BUG:|WARNING:|Oops|blocked for more than' | head -60
    verdict=FAIL
  fi
  for mounted in $(awk '$2 ~ "^/mnt" { print $2 }' /proc/mounts); do umount -f "$mounted"; done
  timeout 20 nvme disconnect-all
  echo "$verdict $topic" | tee -a /share/results
  echo "== $topic took $((SECONDS - start)) s"
done
