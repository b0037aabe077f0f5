#!/usr/bin/env bash
# Measures on a machine with an NVIDIA card, from a checkout, in one call:
#   bash calibration/on_gpu.sh [MINUTES]
# MINUTES (default 10) are shared out: to points that fit the card, to points at the edge of 15, 24, 40 and 80 GB of it,
# to the planner's choices beside what they left, and to our trainer beside plain TRL and Transformers. At the end the
# verdicts at the edge and what the records would change of the fitted constants are printed; nothing is changed.
# Records and the machine's facts go to $OUT, or to calibration/records. What is in a file of the same name there is not
# measured again. Where torch, transformers, peft and accelerate are installed but nothing can be downloaded, wheels of
# what else pyproject.toml names are taken from .whl/.
set -uo pipefail
cd "$(dirname "$0")/.."
records=${OUT:-calibration/records}
part() { python3 -c 'import sys; print(float(sys.argv[1]) * float(sys.argv[2]))' "$minutes" "$1"; }
minutes=${1:-10}
part 1 >/dev/null || exit 2
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
if compgen -G '.whl/*.whl' >/dev/null; then
  site=$(mktemp -d)
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" .whl/*.whl || exit 1
  export PYTHONPATH=$site:$PWD
fi
name=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | tr '[:upper:]' '[:lower:]' | tr -cs 'a-z0-9\n' '-') || exit 1
{ nvidia-smi && python3 -m pip list; } >"$records/$name-machine.txt"

caps=()
for size in 15 24 40 80; do
  # A cap that the card does not have would be refused.
  if python3 -c "from profiles.detect import detect_gpu; import sys; sys.exit(detect_gpu().profile.memory_bytes <= $size << 30)"; then
    caps+=(--cap "${size}GB")
  fi
done
python3 -m planner.cli calibrate --minutes "$(part 0.3)" --output "$records/$name.jsonl"
measured=$?
files=(--records "$records/$name.jsonl")
if ((${#caps[@]})); then
  capped=$records/$name-capped.jsonl
  python3 -m planner.cli calibrate --minutes "$(part 0.25)" "${caps[@]}" --output "$capped" || measured=$?
  python3 -m calibration.edge --records "$capped" | tee "$records/$name-edge.txt"
  files+=(--records "$capped")
fi
python3 -m calibration.plan_quality --minutes "$(part 0.3)" --output "$records/$name-plans.jsonl" |
  tee "$records/$name-plans.txt"
python3 -m calibration.versus --minutes "$(part 0.15)" --output "$records/$name-versus.jsonl" |
  tee "$records/$name-versus.txt"
python3 -m calibration.fit "${files[@]}" | tee "$records/$name-fit.txt"
python3 -m pytest -q -m gpu tests || measured=$?
exit $measured
