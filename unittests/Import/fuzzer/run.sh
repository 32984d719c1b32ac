#!/bin/sh
# Runs the import fuzzer: run.sh BUILD/bin [SECONDS]. Seeds are the models of the
# import tests. On a crash, the offending bytes are in the folder that it names.
set -eu
bin=$(cd "$1" && pwd)
seconds=${2:-60}
work=$(mktemp -d "${TMPDIR:-/tmp}/prefill-import-fuzzer.XXXXXX")
mkdir "$work/corpus"
cd "$work"
PREFILL_WRITE_SEEDS="$work/corpus" "$bin/ImportTests" \
  --gtest_filter='RoundTrip.*:External.*' >/dev/null
if "$bin/prefill-import-fuzzer" -max_total_time="$seconds" -max_len=8192 \
    -rss_limit_mb=2048 -timeout=20 corpus >log 2>&1; then
  tail -n 1 log
  rm -rf "$work"
else
  tail -n 40 log
  echo "import fuzzer: failed; the log and the model are in $work" >&2
  exit 1
fi
