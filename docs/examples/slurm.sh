#!/usr/bin/env bash
# One run on several machines of a SLURM cluster. It requeues and resumes itself after preemption or at the time limit:
#   sbatch docs/examples/slurm.sh --config configs/search.yaml --run_dir /shared/search
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
srun --kill-on-bad-exit=0 python -m a2d_lightning fit --trainer.num_nodes "$SLURM_NNODES" \
  --trainer.devices "$SLURM_NTASKS_PER_NODE" --trainer.strategy ddp --ckpt_path auto "$@"
status=$?
# 0: done; 1: failed; 2: a setting is wrong; 75: stopped by a signal, and saved
[ "$status" -eq 75 ] && scontrol requeue "$SLURM_JOB_ID"
exit "$status"
