#!/bin/sh
# One session on a machine with a GPU: what the device can do, whether plans are right, how fast they are.
#
#     OUT=folder sh bench/gpu_session.sh [--dry-run] [part …]
#
# Parts, by priority, with the seconds that each may take; all of them without a name:
PARTS="device:30 tests:170 aims:200 ladder:150 profile:50 cold:180 sanitizer:120 more:190"
# From the repository's root, with python3, torch and triton; nothing is installed. Each part has a log and a limit, and one
# that fails does not stop the next. Numbers go to $OUT/*.jsonl as they are measured; a part that was done is not done again,
# one that was stopped goes on: call the script again with the same $OUT. TOTAL (default 590) seconds are all that it takes:
# a part that does not fit any more waits for the next call. A short table comes last. Exits 1 where a part failed.
#
# --dry-run does the same on a CPU, as far as one goes: small cases, tests collected but not run.
set -u
cd "$(dirname "$0")/.." || exit 1
OUT=${OUT:-gpu-session} TOTAL=${TOTAL:-590} PYTHON=${PYTHON:-python3} DRY=${DRY:-}
if [ "${1:-}" = --dry-run ]; then DRY=1; shift; fi
mkdir -p "$OUT" || exit 1
export OUT DRY PYTHON PYTHONUNBUFFERED=1 PYTHONPATH=. PYTHONDONTWRITEBYTECODE=1
unset TRITON_INTERPRET
wanted=${*:-}
for name in $wanted; do
    case " $PARTS " in *" $name:"*) ;; *) echo "$name is no part; expected some of $PARTS" >&2; exit 2 ;; esac
done
began=$(date +%s) failed="" waiting=""

device() {
    if [ -z "$DRY" ]; then
        nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem,temperature.gpu --format=csv || return 1
    fi
    "$PYTHON" -m bench.gpu_session device
}

tests() {
    missing=$("$PYTHON" -c "
from importlib.util import find_spec
print(*(name for name in ('pytest', 'hypothesis') if find_spec(name) is None))")
    if [ -z "$missing" ]; then
        if [ -n "$DRY" ]; then set -- --collect-only; else set -- --maxfail=20; fi
        "$PYTHON" -m pytest -q -m gpu "$@" -p no:cacheprovider tests
        return
    fi
    echo "not here: $missing; a plain check of parity instead"
    "$PYTHON" -m bench.gpu_session parity
}

sanitizer() {
    if ! command -v compute-sanitizer > /dev/null; then
        echo "not run: there is no compute-sanitizer here"
        [ -n "$DRY" ] || return 1
        "$PYTHON" -m bench.gpu_session kernels
        return
    fi
    for tool in memcheck racecheck; do
        echo "$tool"
        compute-sanitizer --tool $tool --error-exitcode 1 "$PYTHON" -m bench.gpu_session kernels || return 1
    done
}

if [ -n "${STEP:-}" ]; then $STEP; exit $?; fi

for step in $PARTS; do
    name=${step%%:*} limit=${step##*:}
    case " ${wanted:-$name} " in *" $name "*) ;; *) continue ;; esac
    if [ -e "$OUT/$name.done" ]; then echo "== $name: was done"; continue; fi
    left=$((TOTAL - 20 - $(date +%s) + began))  # the table takes some
    if [ "$left" -lt $((limit / 2)) ]; then waiting="$waiting $name"; continue; fi
    [ "$left" -lt "$limit" ] && limit=$left
    echo "== $name, at most $limit s"
    case $name in
        device | tests | sanitizer) set -- env "STEP=$name" sh bench/gpu_session.sh ;;
        *) set -- "$PYTHON" -m bench.gpu_session "$name" $((limit - 20)) ;;  # torch is imported in some of it
    esac
    started=$(date +%s)
    timeout -k 10 "$limit" "$@" > "$OUT/$name.log" 2>&1
    rc=$?
    tail -n 12 "$OUT/$name.log"
    echo "== $name: exit $rc after $(($(date +%s) - started)) s"
    case $rc in
        0) : > "$OUT/$name.done" ;;
        3) waiting="$waiting $name" ;;
        *) failed="$failed $name" ;;
    esac
done
echo "== table"
"$PYTHON" -m bench.gpu_session table
[ -z "$waiting" ] || echo "no time left for:$waiting; call again with the same OUT"
[ -z "$failed" ] || { echo "failed:$failed"; exit 1; }
