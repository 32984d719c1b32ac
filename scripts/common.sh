# Shared by the scripts beside it; to be sourced. Defines the folders, `say`, and
# `logged NAME COMMAND...`, which shows one line per long step, keeps the output in
# build/logs/NAME.log and, on failure, prints the end of that file and its name.
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
BUILD="${PREFILL_BUILD:-$ROOT/build}"
LOGS="$BUILD/logs"
VENV="$BUILD/venv"
JOBS="${PREFILL_JOBS:-$(nproc)}"
mkdir -p "$LOGS"

say() { printf '[prefill] %s\n' "$*"; }

# Runs a command with its output in a log file; a dot every 10 s shows that it lives.
logged() {
  local name="$1"
  shift
  local log="$LOGS/$name.log" start=$SECONDS status=0 pid
  printf '[prefill] %s ' "$name"
  "$@" >"$log" 2>&1 &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    for _ in $(seq 20); do
      sleep 0.5
      kill -0 "$pid" 2>/dev/null || break
    done
    kill -0 "$pid" 2>/dev/null && printf '.'
  done
  wait "$pid" || status=$?
  if [ "$status" -ne 0 ]; then
    printf ' FAILED (%s s)\n' "$((SECONDS - start))"
    tail -n 40 "$log" >&2
    printf 'error: step "%s" failed with status %s; its log: %s\n' "$name" "$status" \
      "${log#"$ROOT/"}" >&2
    return "$status"
  fi
  printf ' done (%s s)\n' "$((SECONDS - start))"
}
