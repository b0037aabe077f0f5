#!/usr/bin/env bash
# Measures on a machine with an NVIDIA card, from a checkout, in one call:
#   bash calibration/on_gpu.sh [MINUTES]
# MINUTES (default 10) are shared out: to points that fit the card, to points at the edge of 15, 24, 40 and 80 GB of it,
# to the planner's choices beside what they left, and to our trainer beside plain TRL and Transformers. Then what the
# records would change of the fitted constants and of the ranges is printed, and the tests that need a GPU are run;
# nothing is changed. Records and the machine's facts go to $OUT, or to calibration/records. What is in a file of the
# same name there is not measured again, so that a second call goes on. Where torch, transformers, peft and accelerate
# are installed but nothing can be downloaded, wheels of what else pyproject.toml names are taken from .whl/.
set -uo pipefail
cd "$(dirname "$0")/.."
records=${OUT:-calibration/records}
minutes=${1:-10}
[[ $minutes =~ ^[0-9]+(\.[0-9]+)?$ ]] || { echo "error: MINUTES is '$minutes', but it must be a number" >&2; exit 2; }
part() { python3 -c 'import sys; print(float(sys.argv[1]) * float(sys.argv[2]))' "$minutes" "$1"; }
failed=0
step() { printf '\n== %s ==\n' "$1"; shift; "$@" || failed=1; }
told() { local file=$1; shift; "$@" | tee "$file"; }
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

name=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | tr '[:upper:]' '[:lower:]' | tr -cs 'a-z0-9\n' '-')
[[ -n $name ]] || { echo "error: nvidia-smi shows no card, and this measures one" >&2; exit 1; }
if compgen -G '.whl/*.whl' >/dev/null; then
  site=$(mktemp -d)
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" .whl/*.whl || exit 1
  export PYTHONPATH=$site:$PYTHONPATH
fi
file=$records/$name
{ nvidia-smi && python3 -m pip list; } >"$file-machine.txt"

step "points that fit" python3 -m planner.cli calibrate --minutes "$(part 0.3)" --output "$file.jsonl"
recorded=(--records "$file.jsonl")
# A cap that the card does not have would be refused.
mapfile -t caps < <(python3 -c 'from profiles.detect import detect_gpu
for size in (15, 24, 40, 80):
    if size << 30 < detect_gpu().profile.memory_bytes: print(f"--cap={size}GB")')
if ((${#caps[@]})); then
  capped=$file-capped.jsonl
  step "points at the edge" python3 -m planner.cli calibrate --minutes "$(part 0.25)" "${caps[@]}" --output "$capped"
  step "verdicts at the edge" told "$file-edge.txt" python3 -m calibration.edge --records "$capped"
  recorded+=(--records "$capped")
fi
step "the planner's choices" told "$file-plans.txt" \
  python3 -m calibration.plan_quality --minutes "$(part 0.3)" --output "$file-plans.jsonl"
step "beside plain TRL and Transformers" told "$file-versus.txt" \
  python3 -m calibration.versus --minutes "$(part 0.15)" --output "$file-versus.jsonl"
step "what would be fitted" told "$file-fit.txt" python3 -m calibration.fit "${recorded[@]}"
step "what the ranges would be" told "$file-ranges.txt" python3 -m calibration.residuals "${recorded[@]}"
# Other tests need packages that are for developers only.
mapfile -t tests < <(grep -rl --include='*.py' 'mark\.gpu' tests)
step "tests that need a GPU" python3 -m pytest -q -m gpu "${tests[@]}"
exit $failed
