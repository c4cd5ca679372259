#!/bin/bash
# Instructions per request of the block layer, from callgrind: the difference of two runs of different lengths, less what the
# load generator itself takes, so that neither start-up nor the generator counts. Bounds, device state, statistics and the test
# for rate limits are on. The runs are simulated and single-threaded: the figures are the same each time.
#
# Usage: scripts/instructions.sh    (needs valgrind). Fails if a figure is above its limit.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/.."

cargo build -q --release --locked -p longshore-bdev --example hotpath
bin=${CARGO_TARGET_DIR:-target}/release/examples/hotpath
[ -x "$bin" ] || { echo "$bin was not built: set CARGO_TARGET_DIR where cargo is configured to build elsewhere"; exit 1; }
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# collected KIND COUNT: instructions of one run
collected() {
  timeout --kill-after=5 120 valgrind --tool=callgrind --callgrind-out-file="$out/cg" "$bin" "$1" "$2" 2> "$out/log" || { cat "$out/log" >&2; return 1; }
  sed -n 's/.*Collected : *\([0-9][0-9]*\)$/\1/p' "$out/log" | grep . || { cat "$out/log" >&2; return 1; }
}

# per_request KIND: hundredths of an instruction
per_request() {
  local few many
  few=$(collected "$1" 20000)
  many=$(collected "$1" 120000)
  echo $(((many - few) / 1000))
}

generator=$(per_request generator)
failed=0
for case in null:90 passthru:150; do
  kind=${case%:*} limit=${case#*:}
  n=$(($(per_request "$kind") - generator))
  verdict=ok
  # Less than a few is no measurement.
  { [ "$n" -ge 1000 ] && [ "$n" -le $((limit * 100)) ]; } || { verdict="OUTSIDE THE LIMITS"; failed=$((failed + 1)); }
  printf 'NOTE %s: %d.%02d instructions per request (limit %d): %s\n' "$kind" $((n / 100)) $((n % 100)) "$limit" "$verdict"
done
printf '(generator alone: %d.%02d)\n' $((generator / 100)) $((generator % 100))
echo "$((2 - failed)) passed, $failed failed"
[ "$failed" = 0 ]
