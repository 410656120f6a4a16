#!/bin/bash
# Trains one route on two nodes with eight GPUs each: sbatch infra/slurm-train.sh shadow
# A further route that tunes the Base needs its model, too: sbatch infra/slurm-train.sh ROUTE base
# Needs train.launch: {processes: 8, nodes: 2, strategy: fsdp} in params.yaml, and this folder on a shared file system.
# A job that is started again resumes from the last checkpoint.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --signal=TERM@120
set -eu
. .venv/bin/activate
route=${1:-shadow}
if [ "$route" = shadow ]; then model=base; else model=${2:-instruct}; fi
exec srun --kill-on-bad-exit=1 shadowft train --route "$route" --model "work/pair/$model" \
  --instruct work/pair/instruct --data work/data --out "work/tuned/$route"
