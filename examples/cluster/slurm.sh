#!/bin/bash
# Slurm: sbatch examples/cluster/slurm.sh CONFIG
# The settings' output_dir, the data and the base are on a file system that all nodes share.
#SBATCH --job-name=offbook
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --signal=TERM@120
#SBATCH --requeue

# The first node holds the address, and process 0, which writes the run.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR CONFIG="$1"
# Processors for the threads of one process; torchrun would take one.
export OMP_NUM_THREADS=$((${SLURM_CPUS_ON_NODE:-8} / ${SLURM_GPUS_ON_NODE:-8}))

# --resume starts the run where none has begun, so that a job that is requeued goes on.
srun bash -c 'torchrun \
  --nnodes "$SLURM_NNODES" --node-rank "$SLURM_NODEID" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
  --master-addr "$MASTER_ADDR" --master-port 29500 --max-restarts 3 --shutdown-timeout 120 \
  -m offbook train "$CONFIG" --resume --no-eval'
