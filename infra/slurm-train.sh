#!/bin/bash
# Trains one route on two nodes with eight GPUs each: sbatch infra/slurm-train.sh shadow
# params.yaml has train.launch: {processes: 8, nodes: 2, strategy: fsdp}; this folder is on a shared file system.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --signal=TERM@120
set -eu
. .venv/bin/activate
route=${1:-shadow}
model=base
if [ "$route" != shadow ]; then model=instruct; fi
exec srun --kill-on-bad-exit=1 shadowft train --route "$route" --model "work/pair/$model" \
  --instruct work/pair/instruct --data work/data --out "work/tuned/$route"
