#!/usr/bin/env bash
# One run on several machines that share the run folder. Run on each machine, in the root of the repository:
#   MASTER=<address of machine 0> NODES=2 NODE=<0, 1, ...> PROCESSES=<per machine, one for each GPU> \
#     bash docs/examples/torchrun.sh --config configs/search.yaml --run_dir /shared/search --ckpt_path auto
set -euo pipefail
exec python -m torch.distributed.run --nnodes "$NODES" --node_rank "$NODE" --nproc_per_node "${PROCESSES:-1}" \
  --master_addr "$MASTER" --master_port "${PORT:-29500}" \
  -m a2d_lightning fit --trainer.num_nodes "$NODES" --trainer.devices "${PROCESSES:-1}" --trainer.strategy ddp "$@"
