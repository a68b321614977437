#!/bin/sh
# One session on a machine with a GPU: what the device can do, whether plans are right, how fast they are.
#
#     OUT=folder sh bench/gpu_session.sh [part …]        parts: device tests ceilings speed; all of them without one
#
# From the repository's root, with python3, torch and triton; nothing is installed. Each part has a log and a time limit, and
# one that fails does not stop the next; together they stay under ten minutes. Numbers go to $OUT/*.jsonl, a line each with
# the kind of number first; a short table comes last. Exits 1 where a part failed.
set -u
cd "$(dirname "$0")/.." || exit 1
OUT=${OUT:-gpu-session}
mkdir -p "$OUT"
export OUT PYTHONUNBUFFERED=1 PYTHONPATH=. PYTHONDONTWRITEBYTECODE=1
unset TRITON_INTERPRET
failed=""

part() {  # name, seconds, command …
    name=$1 limit=$2
    shift 2
    case " $wanted " in *" $name "*) ;; *) return ;; esac
    echo "== $name"
    began=$(date +%s)
    timeout "$limit" "$@" > "$OUT/$name.log" 2>&1
    rc=$?
    tail -n 12 "$OUT/$name.log"
    echo "== $name: exit $rc after $(($(date +%s) - began)) s"
    [ $rc -eq 0 ] || failed="$failed $name"
}

device() {
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem,temperature.gpu --format=csv
    git rev-parse --short HEAD 2>/dev/null
    python3 - <<'PYTHON'
import json, os, platform, torch, triton
found = torch.cuda.get_device_properties(0)
facts = {
    "kind": "device", "name": found.name, "capability": f"{found.major}.{found.minor}",
    "multiprocessors": found.multi_processor_count, "l2": found.L2_cache_size, "bytes": found.total_memory,
    "shared": found.shared_memory_per_block_optin, "torch": torch.__version__, "cuda": torch.version.cuda,
    "triton": triton.__version__, "python": platform.python_version(),
}
print(json.dumps(facts, indent=1))
with open(os.path.join(os.environ["OUT"], "device.jsonl"), "w") as file:
    print(json.dumps(facts), file=file)
PYTHON
}

tests() {
    missing=$(python3 - <<'PYTHON'
from importlib.util import find_spec
print(*(name for name in ("pytest", "hypothesis") if find_spec(name) is None))
PYTHON
    )
    if [ -z "$missing" ]; then
        python3 -m pytest -q -m gpu -x --maxfail=20 -p no:cacheprovider tests/fused tests/kernels
        rc=$?
        [ $rc -ne 5 ] && return $rc  # 5: no test was found
        missing="a test marked gpu"
    fi
    echo "not here: $missing; a plain check of parity instead"
    python3 -m bench.gpu_session parity
}

wanted=${*:-device tests ceilings speed}
for step in device tests; do
    if [ "${STEP:-}" = "$step" ]; then $step; exit $?; fi
done
part device 60 env STEP=device sh bench/gpu_session.sh
part tests 240 env STEP=tests sh bench/gpu_session.sh
part ceilings 60 python3 -m bench.gpu_session ceilings
part speed 230 python3 -m bench.gpu_session speed
echo "== table"
python3 -m bench.gpu_session table
[ -z "$failed" ] || { echo "failed:$failed"; exit 1; }
