"""A search without the command line: data, module, Trainer.

Usage: ``python examples/search_from_python.py [ENV_STEPS]``. 80,000 steps take a quarter of an hour on two cores.
"""

import sys

import lightning as L

from a2d_lightning import RolloutDataModule, SearchModule
from a2d_lightning.callbacks import ArchitectureCheckpoint, TemperatureAnnealing
from a2d_lightning.nas.derivation import MaxAlphaUnderMacs
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.rollouts.games import FrameSettings

env_steps = int(sys.argv[1]) if len(sys.argv) > 1 else 80_000
L.seed_everything(0)
data = RolloutDataModule(
    game="Pong", frames=FrameSettings(size=42), total_env_steps=env_steps, env_steps_per_epoch=env_steps
)
search = SearchModule(
    game=data.game,
    frame_shape=data.frame_shape,
    num_actions=data.num_actions,
    total_env_steps=data.total_env_steps,
    plan=Plan(cells_per_group=(2, 2, 2), channels=(8, 16, 32)),
    distillation="actor+critic",
    teacher="pong_four_conv_42",
    actor_distillation_coefficient=10.0,
    lambda_cost=0.0,
    derivation=MaxAlphaUnderMacs(1e6),
)
trainer = L.Trainer(
    accelerator="cpu",
    max_epochs=1,
    use_distributed_sampler=False,
    limit_val_batches=0,
    num_sanity_val_steps=0,
    default_root_dir="runs/from_python",
    callbacks=[TemperatureAnnealing(num_decays=80), ArchitectureCheckpoint()],
)
trainer.fit(search, datamodule=data)
print(search.derive())
