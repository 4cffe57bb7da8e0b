#!/bin/bash
# An elastic job on one machine: torchrun --nnodes=1:2, a second node that joins and is killed, and the end of the run.
#
#   scripts/elastic.sh OUT experiment=demo_cloc samples=8_000 trainer.checkpoint_every=256 …
#
# Arguments after OUT go to train.py, which trains on CPUs into OUT/run; take a run long enough that a node can join and
# be killed in it. Prints what happened, with the newest checkpoint at each time, and the hash of the final weights.
# PYTHON names the interpreter, PORT the port that the nodes meet at.
set -euo pipefail

usage() { sed -n '2,8s/^# \{0,1\}//p' "$0"; }
case "${1:-}" in
  -h | --help) usage; exit 0 ;;
  "" | -*) usage >&2; exit 1 ;;
esac
OUT=$(realpath -m "$1"); shift
ROOT=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
PORT=${PORT:-29531}
AGENTS=()
# torchrun of PyTorch 2.14 keeps the address of the first round of a job: a node that joins later would wait in vain.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# end AGENT: it and its processes, which have sessions of their own, as when a machine dies
end() { kill -9 $(pgrep -P "$1") "$1" 2>/dev/null && wait "$1" 2>/dev/null || true; }
stop() { for agent in "${AGENTS[@]}"; do end "$agent"; done; }
trap stop EXIT

newest() { compgen -G "$OUT/run/checkpoints/step-*.ckpt" | tail -n 1 || true; }
say() { printf '%4d s  %-34s %s\n' "$SECONDS" "$1" "$(basename "$(newest)")"; }
fail() { echo "$1; see $OUT/*.log" >&2; exit 1; }
# until_true SECONDS COMMAND …
until_true() {
  local end=$((SECONDS + $1)); shift
  until "$@"; do [ "$SECONDS" -lt "$end" ] || return 1; sleep 0.2; done
}
is_saved() { [ "$(newest)" != "$BEFORE" ]; }
are_two() { grep -qs "2 continue" "$OUT"/1.log "$OUT"/2.log; }
has_ended() { ! kill -0 "${AGENTS[0]}" 2>/dev/null; }

# join NUMBER ARGUMENTS …
join() {
  local number=$1; shift
  cd "$ROOT"
  OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} "$PYTHON" -m torch.distributed.run --nnodes=1:2 --nproc-per-node=1 \
    --max-restarts=3 --rdzv-id=elastic --rdzv-backend=c10d --rdzv-endpoint="127.0.0.1:$PORT" \
    --rdzv-conf=last_call_timeout=2 --local-addr=127.0.0.1 train.py "$@" trainer=ddp trainer.precision=32-true \
    trainer.accelerator=cpu trainer.devices=1 run_dir="$OUT/run" >"$OUT/$number.log" 2>&1 &
  AGENTS+=($!)
}

rm -rf "$OUT/run" "$OUT"/[12].log
mkdir -p "$OUT"
BEFORE=""
join 1 "$@"
until_true 300 is_saved || fail "the first node has not trained"
say "one node trains"
join 2 "$@"
until_true 300 are_two || fail "the second node has not joined"
BEFORE=$(newest)
until_true 300 is_saved || fail "two nodes have not trained"
say "two nodes train"
end "${AGENTS[1]}"
say "the second is killed"
until_true 600 has_ended || fail "the first node has not ended"
wait "${AGENTS[0]}" || fail "the first node has failed"
grep -q "2 processes trained it, 1 continue" "$OUT/1.log" || fail "the run ended before the second node was killed"
say "$(grep -o 'weights [0-9a-f]*' "$OUT/1.log" | tail -n 1)"
