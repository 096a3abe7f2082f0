"""Lightning data module for on-policy rollouts and evaluation games."""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import lightning as L
import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt
from lightning.pytorch.utilities import rank_zero_info
from tensordict import TensorDict
from torch import Tensor, nn

from a2d_lightning.cpu.cores import affinity_offset, usable_cores
from a2d_lightning.rollouts.collection import (
    CollectionBackend,
    EnvSpec,
    LocalCollection,
    RolloutSource,
    derived_seed,
    restoring,
)
from a2d_lightning.rollouts.games import MAX_ENV_STEPS_PER_GAME, FrameSettings, canonical_game, without_module
from a2d_lightning.rollouts.ray_collection import RayCollection  # noqa: F401 (chosen in YAML by its name)
from a2d_lightning.runtime.distributed import all_gather_objects
from a2d_lightning.runtime.errors import SettingError
from a2d_lightning.runtime.machine_memory import check_fits
from a2d_lightning.runtime.reproducibility import differences, environment_fingerprint
from a2d_lightning.runtime.signals import INTERRUPTION

if TYPE_CHECKING:
    from a2d_lightning.rollouts.envs import GameEnv

EVALUATION_BATCH = 32
"""Games that are evaluated in parallel."""


class Learner(Protocol):
    """Attributes of a LightningModule that the data module reads."""

    agent: nn.Module
    env_steps: int
    """Environment steps so far, over all ranks."""


@runtime_checkable
class BetweenRollouts(Protocol):
    """Callback with a hook between two rollouts, where a checkpoint contains all work done so far.

    Lightning has no such hook.
    """

    def between_rollouts(self, trainer: Any) -> None:
        """Act before the next rollout is collected."""


class Rollouts:
    """One epoch of rollouts, each collected on demand with the agent's current weights.

    The length matters: Lightning prefetches one batch of an iterable without a length, and every rollout would be one
    update old.
    """

    def __init__(self, datamodule: "RolloutDataModule", collecting: RolloutSource) -> None:
        self.datamodule = datamodule
        self.collecting = collecting

    def __len__(self) -> int:
        return self.datamodule.rollouts_per_epoch

    def __iter__(self) -> Iterator[TensorDict]:
        for _ in range(len(self)):
            self.datamodule.between_rollouts()
            yield self.datamodule.for_learning(self.collecting.rollout())


class GameSeeds:
    """Batches of game seeds.

    Lightning would treat a list as several dataloaders, and would shard a DataLoader over the ranks with repeats.
    """

    def __init__(self, batches: Sequence[Tensor]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.batches)


class RolloutDataModule(L.LightningDataModule):
    """Rollouts for training and full games for evaluation.

    A training batch is a TensorDict ``[num_envs, rollout_length]``. All entries but pixels have this shape.

    - ``pixels``: uint8 ``[num_envs, rollout_length, *frame_shape]``
    - ``action`` int64, ``log_prob`` float32 (of the action)
    - ``next``: ``pixels`` as above; ``reward`` float32, clipped to its sign if ``clip_rewards`` is set; ``game_score``
      float32, not clipped; and the flags, all bool: ``terminated`` (no bootstrap value: the game terminated, or a life
      was lost and ``life_loss_terminal`` is set), ``game_over`` (terminated or truncated) and ``done`` (end of the
      trace: either of the two)

    A checkpoint contains the state of the games and random generators of all processes; a resumed run continues them.

    An evaluation batch is an int64 tensor of game seeds; the games are split over the ranks without repeats.

    Examples:
        >>> data = RolloutDataModule("Pong", num_envs=4, rollout_length=5, total_env_steps=100, env_steps_per_epoch=100)
        >>> data.frame_shape, data.num_actions
        ((4, 84, 84), 6)

    Args:
        game: Atari game (``Pong``, ``space_invaders``, ``ALE/SpaceInvaders-v5``), or any Gymnasium environment with
            images and discrete actions, as ``Id`` (``CarRacing-v3``) or ``module:Id``.
        num_envs: Number of environments in each process.
        rollout_length: Environment steps L of each environment between two updates (paper: 5).
        total_env_steps: Environment steps of the run, over all processes. The run ends with the rollout that reaches
            this number.
        env_steps_per_epoch: Environment steps between two evaluations, over all processes, rounded up to whole
            rollouts. The run also ends with an evaluation.
        frames: Preprocessing of images.
        life_loss_terminal: Whether a lost life is terminal for the learning targets. The game continues either way.
        clip_rewards: Whether to learn from the signs of rewards. Scores are never clipped.
        wrappers: Gymnasium wrappers around each environment, the first one innermost. Each is a class path, or a dict
            of ``class_path`` and ``init_args`` (not for Atari).
        max_env_steps_per_game: Steps after which a game is truncated if the environment has no time limit (not for
            Atari, whose limit is 108,000 frames).
        noop_max: No-op actions at the start of a game are drawn from 0 to ``noop_max - 1`` (Atari only).
        evaluation_games: Full games per evaluation or test, over all processes.
        num_env_threads: Emulator threads of each process; 0 divides the cores among this machine's processes. If the
            emulator threads of all processes occupy every core, each is pinned to its core.
        env_timeout_seconds: Seconds that one step of the environments may take; a longer step ends the run with an
            error.
        collection: LocalCollection (in this process; the default) or RayCollection (workers of a Ray cluster).
        seed: Seed of environments and action sampling, combined with the rank.

    Raises:
        SettingError: If a setting is out of range, the rollouts do not fit into memory, or the game cannot be played.
    """

    def __init__(
        self,
        game: str = "Pong",
        num_envs: PositiveInt = 16,
        rollout_length: PositiveInt = 5,
        total_env_steps: PositiveInt = 30_000_000,
        env_steps_per_epoch: PositiveInt = 500_000,
        frames: FrameSettings = FrameSettings(),  # noqa: B008 (frozen)
        wrappers: list[str | dict[str, Any]] | None = None,
        max_env_steps_per_game: PositiveInt = MAX_ENV_STEPS_PER_GAME,
        life_loss_terminal: bool = True,
        clip_rewards: bool = True,
        noop_max: PositiveInt = 30,
        evaluation_games: PositiveInt = 30,
        num_env_threads: NonNegativeInt = 0,
        env_timeout_seconds: PositiveFloat = 120.0,
        collection: CollectionBackend | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        for name in ("size", "stack", "skip"):
            value = getattr(frames, name)
            if value is not None and value <= 0:
                raise SettingError(f"data.frames.{name}: {value} must be positive.")
        if not 0.0 <= frames.sticky_action_probability <= 1.0:
            raise SettingError(
                f"data.frames.sticky_action_probability: {frames.sticky_action_probability} is outside [0, 1]."
            )
        self.game = canonical_game(game)
        # plain ints: tensor shapes keep jsonargparse's restricted types, which weights_only loading rejects
        self.num_envs = int(num_envs)
        self.rollout_length = int(rollout_length)
        self.total_env_steps = total_env_steps
        self.env_steps_per_epoch = env_steps_per_epoch
        self.frames = frames
        self.wrappers = tuple(wrappers or ())
        self.max_env_steps_per_game = int(max_env_steps_per_game)
        self.life_loss_terminal = life_loss_terminal
        self.clip_rewards = clip_rewards
        self.noop_max = int(noop_max)
        self.evaluation_games = evaluation_games
        self.num_env_threads = num_env_threads
        self.env_timeout_seconds = float(env_timeout_seconds)
        self.seed = seed
        self.collection = collection or LocalCollection()
        self.collection.check(self.num_envs)
        self.collecting: RolloutSource | None = None
        self._saved: dict[str, Any] = {}
        self._check_memory(frames.stack * (frames.size or 1) ** 2)  # before building an environment of this size
        probe = self.make_env(1, seed=0)
        self.num_actions = probe.num_actions
        self.frame_shape = cast(tuple[int, int, int], probe.frame_shape)
        # fail before training starts if an environment cannot reset or step
        probe.reset_games(np.ones(1, dtype=np.bool_))
        probe.step_games(np.zeros(1, dtype=np.int64))
        probe.close()
        self._check_memory(math.prod(self.frame_shape))

    def _check_memory(self, frame_bytes: int) -> None:
        """Check that rollouts fit into memory: no signal can interrupt an emulator's constructor that fills it.

        Raises:
            SettingError: If they do not.
        """
        of_game = 100_000  # bytes, the smallest measured memory of a game of any kind
        check_fits(
            self.num_envs * (frame_bytes * (self.rollout_length + 1) + of_game),
            f"data.num_envs {self.num_envs} with data.rollout_length {self.rollout_length} and frames of "
            f"{frame_bytes:,} bytes (data.frames)",
        )

    def games(self, num_envs: int, seed: int) -> EnvSpec:
        """Return the specification of games with this module's settings.

        Args:
            num_envs: Number of games.
            seed: Seed from which the seeds of all games are drawn.
        """
        local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "0")) or max(1, self._num_local_ranks())
        threads = self.num_env_threads or max(1, min(num_envs, usable_cores() // local_ranks))
        trainer = self.trainer
        return EnvSpec(
            game=self.game,
            num_envs=num_envs,
            frames=self.frames,
            noop_max=self.noop_max,
            num_threads=threads,
            timeout_seconds=self.env_timeout_seconds,
            seed=seed,
            owner=f"rank {trainer.global_rank if trainer is not None else 0}",
            affinity_offset=affinity_offset(threads, trainer.local_rank if trainer is not None else 0, local_ranks),
            wrappers=self.wrappers,
            max_env_steps_per_game=self.max_env_steps_per_game,
        )

    def make_env(self, num_envs: int, seed: int) -> "GameEnv":
        """Build an environment of ``num_envs`` games in this process; see :meth:`games`."""
        return self.games(num_envs, seed).build()

    def _num_local_ranks(self) -> int:
        return self.trainer.num_devices if self.trainer is not None else 1

    @property
    def rollouts_per_epoch(self) -> int:
        """Return the number of rollouts of a process in an epoch; the run's last epoch may have fewer."""
        return -(-self.env_steps_per_epoch // self.env_steps_per_rollout)

    @property
    def env_steps_per_rollout(self) -> int:
        """Return the number of environment steps of one rollout, over all processes."""
        world_size = self.trainer.world_size if self.trainer is not None else 1
        return self.num_envs * self.rollout_length * world_size

    def setup(self, stage: str) -> None:
        """Check settings that depend on the number of processes.

        Raises:
            SettingError: If there are fewer evaluation games than processes, which would block the evaluation.
        """
        if self.trainer is not None and self.evaluation_games < self.trainer.world_size:
            raise SettingError(
                f"data.evaluation_games: {self.evaluation_games} games for {self.trainer.world_size} processes; each "
                "process needs at least one."
            )

    def train_dataloader(self) -> Iterable[TensorDict]:
        """Build the collector for the module's agent, and restore games and random generators from a checkpoint.

        Raises:
            SettingError: If the state in the checkpoint cannot be restored.
        """
        trainer = self.trainer
        assert trainer is not None
        self._shut_down()  # the collector of an earlier dataloader
        learner = cast(Learner, trainer.lightning_module)
        device = trainer.strategy.root_device
        # seeds must differ between ranks, and after a resume that starts new games
        seed = derived_seed(self.seed, trainer.global_rank, learner.env_steps)
        with restoring():
            state = self._state_to_resume(trainer.global_rank, device)
        games = self.games(self.num_envs, seed)
        rank_zero_info(
            f"{usable_cores()} usable cores: {torch.get_num_threads()} threads of torch (OMP_NUM_THREADS), "
            f"{games.num_threads} of the games (data.num_env_threads)"
        )
        self.collecting = self.collection.start(games, learner.agent, self.rollout_length, device, state)
        if state:
            with restoring():
                torch.set_rng_state(state["torch_generator"].cpu())
        return Rollouts(self, self.collecting)

    def between_rollouts(self) -> None:
        """Call the ``between_rollouts`` hook of all callbacks that have it; without one, check for a stop signal.

        Raises:
            Interrupted: If the run received a stop signal.
        """
        told = [each for each in cast(Any, self.trainer).callbacks if isinstance(each, BetweenRollouts)]
        for callback in told:
            callback.between_rollouts(self.trainer)
        if not told:
            INTERRUPTION.check()

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the state of games and random generators of all processes; a collective call."""
        if self.collecting is None:
            return {}
        mine = {**self.collecting.state(), "torch_generator": torch.get_rng_state()}
        return {
            "settings": self._settings_of_games(),
            "circumstances": environment_fingerprint(cast(L.Trainer, self.trainer).strategy.root_device),
            "processes": all_gather_objects(mine),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Store the state until the environments are built."""
        self._saved = state_dict

    def _settings_of_games(self) -> dict[str, Any]:
        """Return the settings that must be equal for games to be restored."""
        return {
            "data.game": without_module(self.game),
            "data.num_envs": self.num_envs,
            "data.noop_max": self.noop_max,
            "data.wrappers": list(self.wrappers),
            "data.max_env_steps_per_game": self.max_env_steps_per_game,
            **{f"data.frames.{name}": value for name, value in asdict(self.frames).items()},
            "data.collection": self.collection.description(),
            "number of processes": self.trainer.world_size if self.trainer is not None else 1,
            "kind of device": self.trainer.strategy.root_device.type if self.trainer is not None else "cpu",
        }

    def _state_to_resume(self, rank: int, device: torch.device) -> dict[str, Any]:
        saved, self._saved = self._saved, {}
        if not saved:
            return {}
        if changed := differences(saved["settings"], self._settings_of_games()):
            rank_zero_info(f"starting new games with newly seeded random numbers, because {', '.join(changed)}")
            return {}
        if changed := differences(saved["circumstances"], environment_fingerprint(device)):
            rank_zero_info(f"results may differ in the last bits, because {', '.join(changed)}")
        elif device.type != "cpu":
            rank_zero_info("results may differ in the last bits, because some GPU kernels do not sum in a fixed order")
        mine = cast(dict[str, Any], saved["processes"][rank])
        longest = max(len(part["games"]["journal"]["actions"]) for part in mine.get("workers", [mine]))
        rank_zero_info(f"replaying the last {longest:,} steps of the games")
        return mine

    def for_learning(self, rollout: TensorDict) -> TensorDict:
        """Convert the collector's TensorDict to a training batch, in the layout that the class describes."""
        after = rollout["next"]
        game_over = after["done"][..., 0]
        terminated = after["terminated"][..., 0]
        if self.life_loss_terminal:
            terminated = terminated | after["life_lost"][..., 0]
        reward = after["reward"][..., 0]
        return TensorDict(
            {
                "pixels": rollout["pixels"],
                "action": rollout["action"],
                "log_prob": rollout["log_prob"],
                "next": {
                    "pixels": after["pixels"],
                    "reward": reward.sign() if self.clip_rewards else reward,
                    "terminated": terminated,
                    "done": game_over | terminated,
                    "game_over": game_over,
                    "game_score": after["game_score"][..., 0],
                },
            },
            rollout.batch_size,
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Return rollouts unchanged: they are on the device already, and traversing them would take a millisecond."""
        if isinstance(batch, TensorDict):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def val_dataloader(self) -> GameSeeds:
        """Return seeds of the evaluation games during training, the same in every evaluation."""
        return self._game_seeds(stream=1)

    def test_dataloader(self) -> GameSeeds:
        """Return seeds of the games of the final test, drawn independently of the validation seeds."""
        return self._game_seeds(stream=2)

    def _game_seeds(self, stream: int) -> GameSeeds:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        seeds = np.random.default_rng([self.seed, stream]).integers(2**31, size=self.evaluation_games)
        mine = torch.from_numpy(seeds)[rank::world_size]
        return GameSeeds(mine.split(EVALUATION_BATCH) if len(mine) else [])

    def teardown(self, stage: str) -> None:
        """Close the emulators."""
        self._shut_down()

    def on_exception(self, exception: BaseException) -> None:
        """Close the emulators: Lightning does not call ``teardown`` after exceptions."""
        self._shut_down()

    def _shut_down(self) -> None:
        if self.collecting is not None:
            self.collecting.shutdown()
            self.collecting = None
