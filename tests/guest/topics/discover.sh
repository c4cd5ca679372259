# Discovery tells the host what it may connect to.
. ./harness.sh
serve $((16 * MIB))
discover() { nvme discover -t tcp -a "$ADDR" -s "$PORT" -q $HOSTNQN -I $HOSTID > /tmp/discovery && cat /tmp/discovery; }
says() { grep -qE "$1" /tmp/discovery || { cat /tmp/discovery; return 1; }; }
check 'nvme discover ends without error' discover
check 'the subsystem is in the log page' says "subnqn: +$NQN\$"
check 'its transport is tcp' says 'trtype: +tcp'
check 'its port is the listener'"'"'s' says "trsvcid: +$PORT\$"
must rpc nvmf_create_subsystem '{"nqn":"'$NQN'2","allow_any_host":true,"serial_number":"LSGUEST2"}'
must rpc nvmf_subsystem_add_listener '{"nqn":"'$NQN'2",'"$LISTEN"'}'
must rpc nvmf_delete_subsystem '{"nqn":"'$NQN'"}'
check 'nvme discover ends without error after a change' discover
check 'a new subsystem is in the log page' says "subnqn: +${NQN}2\$"
check 'a deleted subsystem is gone from the log page' eval "! says 'subnqn: +$NQN\$'"
