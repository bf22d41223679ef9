#!/usr/bin/env bash
# Trains a world on a GPU machine that has Python 3.12 and torch but no network, in calls of less than 10 minutes.
#
#   training/gpu_train.sh pack WHEELS               where pip works: fetch what that machine lacks, about 45 MB
#   training/gpu_train.sh WHEELS OUT [-o KEY=VALUE ...]  there: install, train on CoinRun, evaluate, bench, pack
#
# WHEELS "" stands for "all is installed already", as in a rehearsal on a CPU:
#   MINUTES=1 CLIPS=4 HORIZON=8 training/gpu_train.sh "" /tmp/out -o train.batch_size=2
#
# MINUTES  of training in all, shared by the stages as the recipe shares its own (7)
# LIMIT    minutes that the training of this call may take at most (9); a run that is not over then goes on in the next call
# CARRIED  the OUT of the call before, to go on from
# RECIPE   (training/recipes/platformer.toml)     PYTHON  (python3)
# CLIPS, HORIZON  of the evaluation (256, 60)     BATCHES  of the bench (1,64,256,1024)
#
# OUT gets few files of at most 15 MiB: run.tar.aa, ab, ... (the checkpoint), world.tar, report.tar, report.json,
# bench.json (and .png), log.jsonl and train.log. The world is unpacked with `tar -xf world.tar`.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
PART=15m

pack() { # the wheels, and of EnvPool and Qt only what CoinRun needs: whole they are larger than may travel
  local wheels temporary
  wheels=$1 temporary=$(mktemp -d)
  local pip=("$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12
    --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64
    --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64)
  mkdir -p "$wheels"
  # Pydantic takes exactly one version of its core, so this one wheel names the other.
  "${pip[@]}" -d "$wheels" 'pydantic<3' annotated-types typing-inspection 'gymnasium>=1.1,<2' farama-notifications \
    'pettingzoo>=1.27' dm-env dm-tree optree glfw packaging types-protobuf
  "${pip[@]}" -d "$wheels" "pydantic-core$(unzip -p "$wheels"/pydantic-2*.whl '*/METADATA' |
    sed -n 's/^Requires-Dist: pydantic-core *(\{0,1\}\(==[0-9.]*\).*/\1/p')"
  "${pip[@]}" -d "$temporary" 'envpool>=1.2.5,<2' 'envpool-assets<0.4' PyQt5-Qt5
  for wheel in "$temporary"/*.whl; do unzip -q "$wheel" -d "$temporary/site"; done
  (
    cd "$temporary/site"
    find envpool -mindepth 1 -maxdepth 1 -type d ! -name procgen ! -name python -exec rm -r {} +
    sed -i '/^import envpool\./{/procgen/!d}' envpool/entry.py # which imports every family
    tar -cJf - envpool envpool.libs envpool-*.dist-info envpool_assets/__init__.py envpool_assets/procgen \
      PyQt5/Qt5/lib/lib{icudata,icuuc,icui18n,Qt5Core,Qt5Gui}.so.5*
  ) >"$wheels/coinrun.tar.xz"
  rm -rf "$temporary"
  du -ch "$wheels"/* | tail -n 1
}

stage_minutes() { # one override per stage, so that they last $2 minutes in all
  "$PYTHON" - "$1" "$2" <<'PYTHON'
import sys, tomllib
stages = tomllib.load(open(sys.argv[1], "rb"))["train"]["stages"]
share = float(sys.argv[2]) / sum(stage["minutes"] for stage in stages)
for stage in stages:
    print(f"-o train.stages.{stage['name']}.minutes={stage['minutes'] * share:.4f}")
PYTHON
}

if [ "${1:-}" = pack ] && [ $# = 2 ]; then
  pack "$2"
  exit
fi
if [ $# -lt 2 ]; then
  sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
wheels=$1 out=$2
shift 2
minutes=${MINUTES:-7} recipe=${RECIPE:-training/recipes/platformer.toml}
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
run=$work/run
mkdir "$run"
export PYTHONPATH="$work/site:$PWD:$PWD/training:$PWD/agents${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

if [ -n "$wheels" ]; then
  "$PYTHON" -m pip install --quiet --no-index --no-deps --target "$work/site" "$wheels"/*.whl
  if [ -e "$wheels/coinrun.tar.xz" ]; then tar -xJf "$wheels/coinrun.tar.xz" -C "$work/site"; fi
fi
if [ -n "${CARRIED:-}" ]; then cat "$CARRIED"/run.tar.* | tar -xf - -C "$run"; fi

lengths=$(stage_minutes "$recipe" "$minutes")
code=0
# shellcheck disable=SC2086  # the overrides are separate words
timeout --kill-after=20 "${LIMIT:-9}m" "$PYTHON" -m lwm_env.cli -v train "$recipe" --out "$run" \
  -o train.checkpoint_minutes=1 $lengths "$@" 2>&1 | tee "$out/train.log" || code=${PIPESTATUS[0]}
if [ "$code" != 0 ] && [ "$code" != 124 ]; then exit "$code"; fi

rm -rf "$(ls -d "$run"/checkpoints/step_* | head -n -1)" # the newest is enough
tar -cf - -C "$run" checkpoints log.jsonl | split -b "$PART" - "$out/run.tar."
cp "$run/log.jsonl" "$out/"
if [ "$code" = 124 ] && [ ! -e "$run/world/world.json" ]; then
  echo "the time of this call is over; go on with CARRIED=$out" >&2
  exit
fi
"$PYTHON" -m lwm_env.cli evaluate "$run/world" --clips "${CLIPS:-256}" --horizon "${HORIZON:-60}" \
  --out "$work/report" 2>&1 | tee -a "$out/train.log"
cp "$work/report/report.json" "$out/"
tar -cf "$out/report.tar" -C "$work" report
tar -cf "$out/world.tar" -C "$run" world
"$PYTHON" -m lwm_env.cli bench "$run/world" --batches "${BATCHES:-1,64,256,1024}" --seconds 3 --out "$out/bench.json" \
  2>&1 | tee -a "$out/train.log" || echo "the bench failed; all else is done" >&2
ls -l "$out"
