#!/bin/sh
# One session on a machine with a GPU: what the device can do, whether plans are right, how fast they are.
#
#     OUT=folder sh bench/gpu_session.sh [--dry-run] [part …]
#     sh bench/gpu_session.sh prepare
#
# Parts, by priority, with the seconds that each may take; all of them without a name:
PARTS="device:30 smoke:60 compile:150 tests:210 aims:190 counters:120 ladder:150 profile:60 gridtests:120 grid:90 long:150 cold:240 sanitizer:200 others:200 more:200"
# From the repository's root, with python3, torch and triton; nothing is installed. `tests` are those that need a GPU, and what
# nothing else runs there, `others` all the rest of the kernels'; they want pytest and hypothesis, and run side by side where
# there is pytest-xdist. Each part has a log and a limit, and one that fails does not stop the next. The
# grid regime's barrier may wait for ever where it is wrong, so its parts stand apart, and its speed is measured only after its
# tests have passed. Numbers are written as they are measured, and after every part all is packed into $OUT/session.tar.gz,
# with traces beside it: eight files at most, for machines from where no more come back. TOTAL (default 590) seconds are all
# that it takes: a part that does not fit any more waits for the next call. A short table comes last. Exits 1 where a part
# failed, and at once where torch finds no CUDA device. Killed, it stops the part that runs, and packs what there is.
#
# The next call goes on: on the same machine by itself, on another where it finds gpu-session/session.tar.gz, the archive of
# the call before. A part that was done is not done again, one that was stopped goes on.
#
# `prepare` is for the machine before, without a GPU: it writes gpu-session/, to be taken along, with the commit and with
# kernels compiled for sm_90, which the same triton of the same Python finds in place of compiling for minutes. Exits 3 where
# some could not be compiled, with the others in the folder.
#
# --dry-run does the same on a CPU, as far as one goes: small cases, tests collected but not run.
set -u
cd "$(dirname "$0")/.." || exit 1
OUT=${OUT:-gpu-session} TOTAL=${TOTAL:-590} PYTHON=${PYTHON:-python3} DRY=${DRY:-} BROUGHT=${BROUGHT:-gpu-session}
if [ "${1:-}" = --dry-run ]; then DRY=1; shift; fi
# A copy of a tree may come with a history that ends before it.
SGP_FAST_COMMIT=$(cat "$BROUGHT"/commit 2> /dev/null || git rev-parse HEAD 2> /dev/null)
WORK=${WORK:-/tmp/sgp-gpu-session-${SGP_FAST_COMMIT:-unknown}}
# Not in WORK: what is in it holds for every commit, and Triton keeps whole paths.
TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-/tmp/sgp-gpu-session-triton}
export OUT DRY PYTHON SGP_FAST_COMMIT WORK TRITON_CACHE_DIR
export PYTHONUNBUFFERED=1 PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1
unset TRITON_INTERPRET

# Tests by name: what repeats itself thousands of times has a part of its own, and so has the sanitizer.
LONG="ten_thousand or a_thousand_runs or memory_does_not_grow"
QUICK="not sanitizer and not ten_thousand and not a_thousand_runs and not memory_does_not_grow"

# gpu_tests "names" arguments …
gpu_tests() {
    which=$1 && shift
    missing=$("$PYTHON" -c "
from importlib.util import find_spec
print(*(name for name in ('pytest', 'hypothesis') if find_spec(name) is None))")
    if [ -n "$missing" ]; then
        echo "not here: $missing"
        return 4
    fi
    if [ -n "$DRY" ]; then
        set -- --collect-only -qq "$@"
    elif "$PYTHON" -c "import xdist" 2> /dev/null; then
        set -- -n auto "$@"
    fi
    # These files alone: others want packages that are not everywhere, and one that cannot be imported stops them all. Ways
    # that are raced while others plan shall not be remembered.
    SGP_FAST_HOME="$WORK/home-of-tests" "$PYTHON" -m pytest -v -k "$which" --tb=short -p no:cacheprovider "$@"
}

device() {
    if [ -z "$DRY" ]; then
        nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem,temperature.gpu --format=csv || return 1
    fi
    "$PYTHON" -m bench.gpu_session device
}

tests() {
    gpu_tests "$QUICK" -m gpu tests/fused tests/kernels --ignore=tests/fused/test_grid.py
    rc=$?
    if [ $rc -ne 4 ]; then
        gpu_tests "$QUICK" -m "not slow and not gpu" tests/fused/test_relay.py tests/fused/test_ring.py \
            tests/fused/test_receding.py tests/fused/test_sampling.py tests/kernels/test_linear_columns.py \
            tests/kernels/test_linear_rows.py || rc=$?
        return $rc
    fi
    echo "a plain check of parity instead"
    "$PYTHON" -m bench.gpu_session parity
}

# Thousands of plans, replays and passes.
long() { gpu_tests "$LONG" -m gpu tests/fused tests/kernels; }

gridtests() { gpu_tests "$QUICK" -m gpu tests/fused/test_grid.py; }

others() {
    gpu_tests "$QUICK" -m "not slow and not gpu" tests/fused tests/kernels --ignore=tests/fused/test_grid.py \
        --ignore=tests/fused/test_relay.py --ignore=tests/fused/test_ring.py --ignore=tests/fused/test_receding.py \
        --ignore=tests/fused/test_sampling.py --ignore=tests/kernels/test_linear_columns.py \
        --ignore=tests/kernels/test_linear_rows.py --ignore=tests/kernels/test_cpu.py
}

# Where the hot kernels wait: by section, and instruction by instruction.
counters() {
    tool=$(PATH=$PATH:/usr/local/cuda/bin command -v ncu)
    if [ -z "$tool" ]; then
        echo "not run: there is no Nsight Compute here"
        [ -n "$DRY" ]
        return
    fi
    for what in "fused:tile 256 16384" "fused:grid 256 1" "fused:grid 1024 64" "fused:tile 256 1024" "fused:ring 256 1024" \
        "fused:relay 256 1" "fused:relay 1024 1"; do
        name=ncu-$(echo "$what" | tr ': ' '--')
        # shellcheck disable=SC2086
        "$tool" --clock-control none -k regex:"plan_kernel|grid_kernel|ring_kernel|relay_kernel" --launch-count 1 --set full -f -o "$WORK/$name" \
            "$PYTHON" -m bench.gpu_session hot $what || return 1
        "$tool" --import "$WORK/$name.ncu-rep" --page details > "$WORK/$name.log"
        "$tool" --import "$WORK/$name.ncu-rep" --page source --csv > "$WORK/$name.csv"
    done
}

sanitizer() {
    "$PYTHON" -m bench.gpu_session kernels || return 1  # compiles
    tool=$(PATH=$PATH:/usr/local/cuda/bin command -v compute-sanitizer)
    if [ -z "$tool" ]; then
        echo "not run: there is no compute-sanitizer here"
        [ -n "$DRY" ]
        return
    fi
    for what in memcheck racecheck; do
        echo "$what"
        # PyTorch probes for what a driver has, and errors that it expects are none of ours.
        set -- --tool $what --error-exitcode 1
        [ $what = racecheck ] || set -- "$@" --report-api-errors no
        "$tool" "$@" "$PYTHON" -m bench.gpu_session kernels || return 1
    done
}

# What comes back: the archive, whole at every moment, and traces that are not too long.
pack() {
    (cd "$WORK" && tar czf .session.tar.gz commit $(ls | grep -E '\.(log|jsonl|csv|done)$')) || return
    mv "$WORK/.session.tar.gz" "$OUT/.session.tar.gz" && mv "$OUT/.session.tar.gz" "$OUT/session.tar.gz"
    find "$WORK" -maxdepth 1 -name 'trace-*.json.gz' -size -15M -exec cp {} "$OUT/" \;
}

# limited SECONDS command …: the shell waits in a way that signals end, and `timeout` hands them on to all that it started.
limited() {
    seconds=$1 && shift
    timeout -k 10 "$seconds" "$@" &
    running=$!
    wait "$running"
}

stopped() {
    trap '' INT TERM HUP
    if [ -n "${running:-}" ]; then kill "$running" 2> /dev/null; wait "$running"; fi
    [ ! -e "$WORK/commit" ] || [ ! -d "$OUT" ] || pack
    echo "stopped; call again to go on" >&2
    exit 130
}

if [ -n "${STEP:-}" ]; then $STEP; exit $?; fi
trap stopped INT TERM HUP
if [ "${1:-}" = prepare ]; then
    mkdir -p "$BROUGHT" && git rev-parse HEAD > "$BROUGHT"/commit && rm -f "$BROUGHT"/session.tar.gz || exit 1
    mkdir -p "$TRITON_CACHE_DIR" && limited 4000 env TRITON_STORE_BINARY_ONLY=1 "$PYTHON" -m bench.gpu_session prepare
    rc=$?
    case $rc in 0 | 3) ;; *) exit 1 ;; esac
    tar czf "$BROUGHT"/triton.tar.gz -C "$TRITON_CACHE_DIR" . || exit 1
    ls -l "$BROUGHT"
    exit $rc
fi
wanted=${*:-}
for name in $wanted; do
    case " $PARTS " in *" $name:"*) ;; *) echo "$name is no part; expected some of $PARTS" >&2; exit 2 ;; esac
done
began=$(date +%s) failed="" waiting=""
if [ -z "$DRY" ] && ! "$PYTHON" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    echo "torch of $PYTHON finds no CUDA device here, and every part wants one: run this on a machine with a GPU, or pass" \
        "--dry-run to try the parts on a CPU; prepare is the only one that is meant for a machine without" >&2
    exit 1
fi
mkdir -p "$OUT" "$TRITON_CACHE_DIR" || exit 1
if [ ! -e "$WORK/commit" ]; then
    mkdir -p "$WORK/brought" || exit 1
    if tar xzf "$BROUGHT"/session.tar.gz -C "$WORK/brought" 2> /dev/null; then
        if [ "$(cat "$WORK/brought/commit")" = "$SGP_FAST_COMMIT" ]; then mv "$WORK"/brought/* "$WORK"; fi
    fi
    echo "$SGP_FAST_COMMIT" > "$WORK/commit"
    [ -n "$DRY" ] || tar xzf "$BROUGHT"/triton.tar.gz -C "$TRITON_CACHE_DIR" 2> /dev/null
fi

for step in $PARTS; do
    name=${step%%:*} limit=${step##*:}
    case " ${wanted:-$name} " in *" $name "*) ;; *) continue ;; esac
    if [ -e "$WORK/$name.done" ]; then echo "== $name: was done"; continue; fi
    if [ "$name" = grid ] && [ ! -e "$WORK/gridtests.done" ]; then echo "== grid: not before its tests"; continue; fi
    left=$((TOTAL - 20 - $(date +%s) + began))  # the table takes some
    if [ "$left" -lt $((limit / 2)) ]; then waiting="$waiting $name"; continue; fi
    [ "$left" -lt "$limit" ] && limit=$left
    echo "== $name, at most $limit s"
    case $name in
        device | counters | tests | long | gridtests | sanitizer | others) set -- env "STEP=$name" sh bench/gpu_session.sh ;;
        smoke) set -- "$PYTHON" -m bench.gpu_session smoke ;;
        *) set -- "$PYTHON" -m bench.gpu_session "$name" $((limit - 20)) ;;  # torch is imported in some of it
    esac
    started=$(date +%s)
    limited "$limit" "$@" > "$WORK/$name.log" 2>&1
    rc=$?
    grep -aE '^FAILED|^E  ' "$WORK/$name.log" | awk '!seen[$0]++' | head -n 60
    tail -n 12 "$WORK/$name.log"
    echo "== $name: exit $rc after $(($(date +%s) - started)) s"
    case $rc in
        0) : > "$WORK/$name.done" ;;
        3) waiting="$waiting $name" ;;
        *) failed="$failed $name" ;;
    esac
    pack
done
echo "== table"
"$PYTHON" -m bench.gpu_session table
[ -z "$waiting" ] || echo "no time left for:$waiting; call again"
[ -z "$failed" ] || { echo "failed:$failed"; exit 1; }
