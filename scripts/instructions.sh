#!/bin/bash
# Instructions per request of the block layer, from callgrind: the difference of two runs of different lengths, less what the
# load generator itself takes, so that neither start-up nor the generator counts. Bounds, device state, statistics and the test
# for rate limits are on. The runs are simulated and single-threaded: the figures are the same each time.
#
# Arrays: a 4 KiB read that one member has, and a 4 KiB overwrite, records included, of an array 4+2 on six malloc devices. What they copy and
# compute is counted too (so these depend on the processor's kernels, and have wider limits).
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
  local few many n=100000
  case $1 in ec-*) n=10000 ;; esac
  few=$(collected "$1" $((n / 5)))
  many=$(collected "$1" $((n / 5 + n)))
  echo $(((many - few) * 100 / n))
}

generator=$(per_request generator)
failed=0
for case in null:90 passthru:150 ec-read:1600 ec-overwrite:60000; do
  kind=${case%:*} limit=${case#*:}
  n=$(($(per_request "$kind") - generator))
  verdict=ok
  # Less than a few is no measurement.
  { [ "$n" -ge 1000 ] && [ "$n" -le $((limit * 100)) ]; } || { verdict="OUTSIDE THE LIMITS"; failed=$((failed + 1)); }
  printf 'NOTE %s: %d.%02d instructions per request (limit %d): %s\n' "$kind" $((n / 100)) $((n % 100)) "$limit" "$verdict"
done
printf '(generator alone: %d.%02d)\n' $((generator / 100)) $((generator % 100))
echo "$((4 - failed)) passed, $failed failed"
[ "$failed" = 0 ]
