#!/bin/bash
# A recipe on a Slurm cluster: sbatch recipes/cluster/slurm.sh recipes/gpt2-124m.toml /shared/runs/gpt2 [--set KEY=VALUE ...]
# The folder must be on a disk that all nodes see, and so must the checkout or the installed package.
# The job is put back into the queue when it is preempted; the same command goes on from the last checkpoint, with as
# many nodes as it gets then.
#SBATCH --job-name=jielong
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=jielong-%j.log
set -euo pipefail

recipe=${1:?usage: sbatch recipes/cluster/slurm.sh RECIPE.toml FOLDER [options of jielong run]}
out=${2:?usage: sbatch recipes/cluster/slurm.sh RECIPE.toml FOLDER [options of jielong run]}
shift 2

# The first node is where the processes meet. The port follows from the job, so that two jobs on a node do not collide.
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / SLURM_GPUS_ON_NODE))

# One torchrun a node, which starts a process a GPU. --kill-on-bad-exit: when a node is lost the job ends, not waits.
srun --kill-on-bad-exit=1 \
    torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" \
    --nproc-per-node "$SLURM_GPUS_ON_NODE" \
    --rdzv-id "$SLURM_JOB_ID" \
    --rdzv-backend c10d \
    --rdzv-endpoint "$host:$port" \
    --max-restarts 3 \
    -m jielong run "$recipe" --out "$out" "$@"
