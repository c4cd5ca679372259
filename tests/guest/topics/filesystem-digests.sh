# The same with header and data digests, checked by both sides.
DIGESTS='--hdr-digest --data-digest'
. ./topics/filesystem.sh
