#!/bin/sh
# One training on several nodes of a Slurm cluster, a task a node, which starts a process for each of its GPUs:
#
#   sbatch --nodes=2 --gpus-per-node=4 conf/launch/slurm.sh run.name=big task=vqa model=blip
#
#SBATCH --job-name=vlatrain
#SBATCH --ntasks-per-node=1
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
set -eu
FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export FIRST NODES="$SLURM_JOB_NUM_NODES" PORT="${PORT:-29500}" PROCESSES="${PROCESSES:-gpu}"
# shellcheck disable=SC2016  # each task has a number of its own
exec srun sh -c 'exec torchrun --nnodes="$NODES" --node-rank="$SLURM_PROCID" --master-addr="$FIRST" --master-port="$PORT" \
    --nproc-per-node="$PROCESSES" -m vlatrain "$@"' launch "$@"
