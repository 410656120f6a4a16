#!/bin/bash
# Training on one GPU, in two parts of under nine minutes each: benchmarks/gpu.sh 1; benchmarks/gpu.sh 2
# benchmarks/gpu.sh --dry-run does both on the CPU with tiny shapes, in under three minutes.
# Results: benchmarks/results/gpu-CARD.jsonl (OUT sets another folder), one line an arm. A failed arm is a line, too.
set -u
cd "$(dirname "$0")/.." || exit 1
export PYTHONPATH=$PWD HF_HUB_OFFLINE=1 PYTHONWARNINGS=ignore
part=${1:-}
dry=
limit=  # seconds of each process; the dry run waits longer, for loaded machines
shapes=(1B 8B)
if [ "$part" = --dry-run ]; then dry=--dry-run; limit=300; part=12; shapes=(tiny tiny); export CUDA_VISIBLE_DEVICES=; fi
case $part in 1 | 2 | 12) ;; *) echo "usage: benchmarks/gpu.sh 1|2|--dry-run" >&2; exit 2 ;; esac
card=$(python -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-") if torch.cuda.is_available() else "none")')
if [ "$card" = none ] && [ -z "$dry" ]; then echo "benchmarks/gpu.sh: no CUDA device; use --dry-run" >&2; exit 1; fi
out=${OUT:-benchmarks/results}/gpu-$card.jsonl
[ "$part" = 2 ] || : > "$out"
failed=0

arm() {  # arm SECONDS SHAPE SWITCHES
  timeout -k 5 "${limit:-$1}" python -m benchmarks.gpu_arm "$2" "$3" $dry 2> "$out.log" | grep --line-buffered '^{"shape"' | tee -a "$out"
  local codes=("${PIPESTATUS[@]}")
  if [ "${codes[0]}" -ne 0 ]; then
    echo "{\"shape\": \"$2\", \"arm\": \"$3\", \"error\": \"exit code ${codes[0]}\"}" | tee -a "$out"
    tail -3 "$out.log" >&2
    failed=1
  fi
}

if [[ $part == *1* ]]; then
  timeout -k 5 "${limit:-150}" python -m benchmarks.gpu_check 2> "$out.log" | grep --line-buffered '^{"check"' | tee -a "$out"
  [ "${PIPESTATUS[0]}" -eq 0 ] || { tail -5 "$out.log" >&2; failed=1; }
  arms=(wide+det wide frozen frozen+pack frozen+pack+gc trl frozen+pack+liger wide+det)
  [ -z "$dry" ] || arms=(wide+det frozen frozen+pack trl)
  for switches in "${arms[@]}"; do arm 50 "${shapes[0]}" "$switches"; done
fi
if [[ $part == *2* ]]; then
  arms=(wide+det+b16 wide+det+b2 frozen+b2 frozen+pack+b2 frozen+pack+gc+b16 frozen+pack+gc+liger+b16 trl+b2 trl+gc+b16)
  [ -z "$dry" ] || arms=(frozen+pack+gc+b16 trl+gc+b16)
  for switches in "${arms[@]}"; do arm 65 "${shapes[1]}" "$switches"; done
fi
rm -f "$out.log"
exit $failed
