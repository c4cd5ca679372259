# The same, started empty and configured again by replaying the saved calls.
START=start-load
. ./topics/restart-config.sh
