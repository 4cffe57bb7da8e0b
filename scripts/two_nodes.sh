#!/bin/bash
# Two nodes on one machine: two network namespaces joined by a veth pair, torchrun in each, trained over that link alone.
#
#   sudo scripts/two_nodes.sh OUT experiment=demo_cloc samples=1_024 trainer.checkpoint_every=256 …
#
# Arguments after OUT go to train.py. Three things are shown, each by the hash of the final weights on both nodes:
#   whole      a run that nothing disturbs
#   shared     node 1 is killed (kill -9) after the first checkpoint, both are launched again; one run folder
#   separate   the same, each node with a run folder of its own: node 1 gets the checkpoint from node 0
# Needs root, iproute2 and a run long enough that node 1 can be killed in it. PYTHON names the interpreter.
set -euo pipefail

usage() { sed -n '2,12s/^# \{0,1\}//p' "$0"; }
case "${1:-}" in
  -h | --help) usage; exit 0 ;;
  "" | -*) usage >&2; exit 1 ;;
esac
OUT=$(realpath -m "$1"); shift
ROOT=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
ID=cloc$$
PORT=29500
PIDS=()

# kill_node NODE: everything that runs on it, as when a machine dies; torchrun starts its processes in sessions of their own
kill_node() { ip netns pids "$ID-$1" 2>/dev/null | xargs -r kill -9 2>/dev/null || true; }

stop() {
  for node in 0 1; do kill_node $node; done
  for node in 0 1; do ip netns delete "$ID-$node" 2>/dev/null || true; done
}
trap stop EXIT

for node in 0 1; do ip netns add "$ID-$node"; done
ip link add link0 netns "$ID-0" type veth peer name link1 netns "$ID-1"
for node in 0 1; do
  ip -n "$ID-$node" address add "10.99.0.$((node + 1))/24" dev "link$node"
  ip -n "$ID-$node" link set "link$node" up
  ip -n "$ID-$node" link set lo up
done

# launch NODE LOG FOLDER …: torchrun of one node
launch() {
  local node=$1 log=$2 folder=$3; shift 3
  cd "$ROOT"
  GLOO_SOCKET_IFNAME=link$node OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} \
    setsid ip netns exec "$ID-$node" "$PYTHON" -m torch.distributed.run --nnodes=2 --node-rank="$node" \
    --nproc-per-node=1 --master-addr=10.99.0.1 --master-port=$PORT \
    train.py "$@" trainer=ddp trainer.precision=32-true trainer.accelerator=cpu trainer.devices=1 trainer.num_nodes=2 \
    run_dir="$folder" >>"$log" 2>&1 &
  PIDS[node]=$!
}

fail() { echo "two_nodes: $1" >&2; tail -n 30 "$OUT"/*.log >&2; exit 1; }

# both NAME FOLDER0 FOLDER1 …: launch both nodes and wait for them
both() {
  local name=$1 first=$2 second=$3; shift 3
  PORT=$((PORT + 1))
  launch 0 "$OUT/$name-0.log" "$first" "$@"
  launch 1 "$OUT/$name-1.log" "$second" "$@"
}

finish() { wait "${PIDS[0]}" && wait "${PIDS[1]}"; }

hash_of() { sed -n 's/.*process [01] of 2, weights \([0-9a-f]*\).*/\1/p' "$OUT/$1-$2.log" | tail -n 1; }

# compare NAME: both nodes' hashes must be those of the undisturbed run
compare() {
  local zero one
  zero=$(hash_of "$1" 0) one=$(hash_of "$1" 1)
  printf '%-9s node 0 %s   node 1 %s\n' "$1" "$zero" "$one"
  [ -n "$zero" ] && [ "$zero" = "$one" ] && [ "$zero" = "$(hash_of whole 0)" ] || fail "$1: the weights differ"
}

# kill_and_resume NAME FOLDER0 FOLDER1 …
kill_and_resume() {
  local name=$1 first=$2 waited=0; shift 1
  both "$name" "$@"
  until compgen -G "$first/checkpoints/step-*.ckpt" >/dev/null; do
    kill -0 "${PIDS[1]}" 2>/dev/null || fail "$name: ended before its first checkpoint"
    sleep 0.2
  done
  kill_node 1
  until ! kill -0 "${PIDS[0]}" 2>/dev/null; do  # without its peer node 0 fails; a launcher would end it as well
    [ $((waited += 1)) -lt 150 ] || kill_node 0
    sleep 0.2
  done
  wait "${PIDS[0]}" 2>/dev/null && fail "$name: finished before node 1 was killed; give more samples"
  both "$name" "$@"
  finish || fail "$name: failed after node 1 was killed"
  grep -q 'continues at sample' "$OUT/$name-0.log" || fail "$name: did not continue from a checkpoint"
  compare "$name"
}

rm -rf "$OUT/whole" "$OUT/shared" "$OUT/node0" "$OUT/node1" "$OUT"/*.log
mkdir -p "$OUT"
both whole "$OUT/whole" "$OUT/whole" "$@"
finish || fail "whole: failed"
compare whole
kill_and_resume shared "$OUT/shared" "$OUT/shared" "$@"
kill_and_resume separate "$OUT/node0" "$OUT/node1" "$@"
echo "two nodes: equal weights on both; killed and resumed equals undisturbed, in one run folder and in two"
