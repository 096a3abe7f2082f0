"""Base module of the three stages: updates on rollouts (Eq. 8), step counter, evaluation, checkpoints."""

import time
from abc import abstractmethod
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, Self, cast

import torch
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, PositiveFloat
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_info
from tensordict import TensorDict
from torch import Tensor
from torch.optim import Optimizer

from a2d_lightning.agent_files import AgentCard, FrozenTeacher, check_checkpoint, load_teacher
from a2d_lightning.models.layers import FrameShape
from a2d_lightning.models.macs import count_macs
from a2d_lightning.models.networks import ActorCritic, initialize, scaled_frame_shape
from a2d_lightning.models.normalization import Normalization, update_running_stats, with_normalization
from a2d_lightning.modules.evaluated import EvaluatedModule
from a2d_lightning.modules.loading import load_module
from a2d_lightning.nas.schemes import Metrics
from a2d_lightning.rl import losses
from a2d_lightning.rl.advantages import AdvantageEstimator, TDError
from a2d_lightning.rl.algorithms import A2C, Algorithm, Minibatch, joint_forward
from a2d_lightning.rl.diagnostics import update_diagnostics
from a2d_lightning.rl.distillation import DistillationMode, distillation_terms, trains_critic
from a2d_lightning.rl.schedules import CoefficientSchedules, PiecewiseLinear
from a2d_lightning.rollouts.policy import ActionChoice
from a2d_lightning.runtime.errors import NonFiniteError, SettingError
from a2d_lightning.runtime.lightning_compat import evaluate_before_training, is_logged, resumes_at_evaluation
from a2d_lightning.runtime.loggers import OnEnvSteps
from a2d_lightning.runtime.nonfinite import check_finite, dump_rollout
from a2d_lightning.runtime.optimizer_settings import OptimizerSettings, without_parser

RECENT_GAMES = 100

METRICS_SECONDS = 1.0
"""Maximum age of the metrics shown in the terminal, in seconds."""


def rmsprop(params: Any) -> Optimizer:
    """Build RMSProp with the paper's learning rate 1e-3, and A2C's smoothing 0.99 and eps 1e-5.

    DQN's eps of 0.01 would exceed nearly every weight's gradient, since gradients are clipped to norm 0.5. The update
    would then be plain SGD.

    Args:
        params: parameters or parameter groups.
    """
    return torch.optim.RMSprop(params, lr=1e-3, alpha=0.99, eps=1e-5, foreach=True)


class ActorCriticModule(EvaluatedModule):
    """Actor-critic learning with distillation, on rollouts that the module's own agent collected.

    Args:
        game: canonical name of the game; set from the data.
        frame_shape: (stack, height, width) of the observations; set from the data.
        num_actions: number of actions; set from the data.
        total_env_steps: budget in environment steps over all ranks, at which schedules end; set from the data.
        algorithm: A2C (paper, and if absent) or PPO.
        advantage: TDError (paper, and if absent), NStep or GAE.
        gamma: discount factor per step.
        optimizer: optimizer of the weights.
        learning_rate_schedule: factor of the optimizer's learning rate over the budget; constant if absent.
        gradient_clip_norm: norm to which the weights' gradient is clipped.
        value_coefficient: coefficient of L_value (Eq. 5).
        entropy_coefficient: alpha_1, coefficient of L_entropy.
        distillation: mode of Table 2: none, actor, actor+teacher_critic or actor+critic.
        teacher: bundled name, or path of a .safetensors or .ckpt file; required unless ``distillation`` is none.
        actor_distillation_coefficient: alpha_2, coefficient of Eq. 6.
        critic_distillation_coefficient: alpha_3, coefficient of Eq. 7.
        coefficient_schedules: factors of the loss coefficients over the budget.
        normalization: normalization of the agent's layers: batch (paper), running, per_step, group or none.
        agent_frame_size: height and width in pixels of the frames that the agent's network takes, where a teacher needs
            larger ones; must divide the data's frame size, which is used if absent.
        evaluation_actions: choice of actions in evaluations and tests: sampled (as in training) or greedy.
        on_nan: reaction to a loss or gradient that is not finite: stop the run, or skip the update and count it.
    """

    def __init__(
        self,
        game: str,
        frame_shape: FrameShape,
        num_actions: int,
        total_env_steps: int,
        algorithm: Algorithm | None = None,
        advantage: AdvantageEstimator | None = None,
        gamma: ClosedUnitInterval = 0.99,
        optimizer: OptimizerCallable = rmsprop,
        learning_rate_schedule: PiecewiseLinear | None = None,
        gradient_clip_norm: PositiveFloat = 0.5,
        value_coefficient: NonNegativeFloat = 1.0,
        entropy_coefficient: NonNegativeFloat = 1e-2,
        distillation: DistillationMode = "none",
        teacher: str | None = None,
        actor_distillation_coefficient: NonNegativeFloat = 1e-1,
        critic_distillation_coefficient: NonNegativeFloat = 1e-3,
        coefficient_schedules: CoefficientSchedules = CoefficientSchedules(),  # noqa: B008 (frozen)
        normalization: Normalization = "batch",
        agent_frame_size: int | None = None,
        evaluation_actions: ActionChoice = "sampled",
        on_nan: Literal["stop", "skip"] = "stop",
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.game = game
        self.frame_shape = frame_shape
        self.agent_frame_shape = scaled_frame_shape(frame_shape, agent_frame_size)
        self.num_actions = num_actions
        self.normalization: Normalization = normalization
        self.total_env_steps = total_env_steps
        self.algorithm = algorithm or A2C()
        self.advantage = advantage or TDError()
        # plain floats: weights_only loading rejects jsonargparse's restricted types, and optimizer states hold these
        self.gamma = float(gamma)
        self.optimizer = without_parser(optimizer)
        self.learning_rate_schedule = learning_rate_schedule
        self.gradient_clip_norm = float(gradient_clip_norm)
        self.coefficients = {
            "policy": 1.0,
            "value": value_coefficient,
            "entropy": entropy_coefficient,
            "actor_distillation": actor_distillation_coefficient,
            "critic_distillation": critic_distillation_coefficient,
        }
        self.coefficient_schedules = coefficient_schedules
        self.distillation = distillation
        self.teacher_name = teacher
        self.evaluation_actions = evaluation_actions
        if distillation != "none" and teacher is None:
            raise SettingError(
                f"model.teacher: distillation {distillation!r} needs a teacher; set model.teacher, or set "
                "--model.distillation none."
            )
        self.on_nan = on_nan
        self.weight_updates = 0
        self.skipped_updates = 0
        self._learning_rates: list[float] = []
        self._optimizer_settings = OptimizerSettings()
        self._logged_at = 0.0
        # a tuple keeps the teacher out of the parameters, DDP and checkpoints
        self._teacher: tuple[FrozenTeacher, ...] = ()
        # games of this rank only: ranks finish games at different times, so a reduction over ranks would deadlock
        self.recent_game_scores: deque[float] = deque(maxlen=RECENT_GAMES)

    def make_agent(self, backbone: torch.nn.Module) -> ActorCritic:
        """Build an agent around ``backbone`` with the configured normalization, and initialize its weights."""
        agent = ActorCritic(backbone, self.agent_frame_shape, self.num_actions)
        return initialize(with_normalization(agent, self.normalization))

    # --- set-up ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def card(self) -> AgentCard:
        """Return the card that describes the agent in checkpoints and exports."""

    def agent_card(self, network: str, architecture: dict[str, Any] | None = None) -> AgentCard:
        """Build the card of this module's agent.

        Args:
            network: name of the agent's backbone.
            architecture: plain values that describe a searched backbone; absent for a hand-designed one.
        """
        return AgentCard(
            game=self.game,
            network=network,
            frame_shape=self.agent_frame_shape,
            num_actions=self.num_actions,
            env_steps=self.env_steps,
            architecture=architecture,
            normalization=self.normalization,
        )

    def setup(self, stage: str) -> None:
        """Freeze a critic that is not trained, and load the teacher for training.

        Args:
            stage: the teacher is loaded for ``fit`` only.

        Raises:
            SettingError: If the teacher cannot be loaded or does not fit the game and the frames.
        """
        if not trains_critic(self.distillation):
            # DDP would wait for the critic's gradient, which is never computed
            self.agent.critic.requires_grad_(False)
        if stage == "fit" and self.distillation != "none":
            teacher = load_teacher(str(self.teacher_name), self.game, self.frame_shape, self.num_actions)
            self._teacher = (teacher,)

    def on_fit_start(self) -> None:
        """Check the settings against trainer and data, and move the teacher to the agent's device.

        Raises:
            SettingError: If acting and updating would differ at the trainer's precision, the rollouts do not suit the
                algorithm or the normalization, or the optimizer does not fit the checkpoint's optimizer state.
        """
        if self.trainer.precision not in ("32-true", "bf16-mixed"):
            raise SettingError(
                f"trainer.precision: {self.trainer.precision} is not supported; use 32-true or bf16-mixed."
            )
        # set on the agent, because the collector calls it outside Lightning's autocast context
        self.agent.autocast_dtype = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else None
        data: Any = cast(Any, self.trainer).datamodule
        if data is not None:
            self.algorithm.check(self.agent, data.num_envs, data.rollout_length)
            if self.normalization == "per_step" and data.num_envs < 2:
                raise SettingError(
                    "model.normalization: per_step normalizes over the games of one time step, but data.num_envs is "
                    "1; increase it, or choose another normalization."
                )
        for teacher in self._teacher:
            teacher.to(self.device)
        self._optimizer_settings.keep(self.trainer.optimizers)
        for logger in self.trainer.loggers:
            if isinstance(logger, OnEnvSteps):
                logger.clock = lambda: self.env_steps

    def on_train_start(self) -> None:
        """Restore the optimizers' settings, and end a run whose budget is spent.

        A run that was stopped before its last evaluation first completes that evaluation.
        """
        self._optimizer_settings.restore(self.trainer.optimizers)
        if resumes_at_evaluation(self.trainer) and self._is_spent:
            evaluate_before_training(self.trainer)
        else:
            self.trainer.should_stop = self._is_spent

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End the run after the rollout that spends the budget; Lightning then evaluates."""
        if self._is_spent:
            self.trainer.should_stop = True

    def on_validation_end(self) -> None:
        """End a run that was resumed before its last evaluation."""
        if self._is_spent:
            self.trainer.should_stop = True

    @property
    def _is_spent(self) -> bool:
        return self.env_steps >= self.total_env_steps

    def weights(self) -> list[torch.nn.Parameter]:
        """Return theta: the parameters that the weights' optimizer updates and whose gradient is clipped."""
        return list(self.agent.parameters())

    def configure_optimizers(self) -> list[Optimizer]:
        """Build the optimizer of the weights.

        Raises:
            SettingError: If the optimizer rejects its arguments.
        """
        try:
            optimizer = self.optimizer(self.weights())
        except (ValueError, TypeError) as error:
            raise SettingError(f"model.optimizer: {error}.") from error
        self._learning_rates = [group["lr"] for group in optimizer.param_groups]
        return [optimizer]

    # --- learning -------------------------------------------------------------------------------------------------

    def training_step(self, rollout: TensorDict, batch_idx: int) -> None:
        """Update on a rollout that the agent has just collected.

        Args:
            rollout: ``[num_envs, T]``.
            batch_idx: number of the rollout in the epoch.

        Raises:
            NonFiniteError: If a loss or gradient is not finite and ``on_nan`` is stop.
        """
        self._set_learning_rate()
        try:
            metrics = self.learn(rollout)
        except NonFiniteError as error:
            metrics = self._without(rollout, error)
        update_running_stats(self.agent, lambda x: self.trainer.strategy.reduce(x, reduce_op="mean"))
        self._count(rollout)
        # logging some twenty values takes Lightning 3 ms: log at the loggers' steps, and by time for the terminal
        due = batch_idx == 0 or is_logged(self.trainer)
        if due or time.monotonic() - self._logged_at >= METRICS_SECONDS:
            self._logged_at = time.monotonic()
            self._log_training(metrics)

    def learn(self, rollout: TensorDict) -> Metrics:
        """Update on a rollout ``[num_envs, T]``, and return the metrics to log.

        Raises:
            NonFiniteError: If a loss or gradient is not finite.
        """
        metrics: Metrics = {}
        for total, found in self.losses(rollout, self.agent):
            metrics |= found | self.step_weights(total)
        return metrics

    def _without(self, rollout: TensorDict, error: NonFiniteError) -> Metrics:
        """Save the rollout that led to ``error`` in the run's folder, then skip the update or raise (``on_nan``)."""
        path = Path(self.trainer.default_root_dir) / f"nonfinite-step{self.env_steps}-rank{self.global_rank}.pt"
        dump_rollout(rollout, error, path)
        if self.on_nan == "stop":
            raise NonFiniteError(f"{error}; the rollout is saved in {path}") from error
        self.skipped_updates += 1
        rank_zero_info(f"warning: {error}; this update is skipped, and the rollout is saved in {path}")
        self.zeroed_optimizers()
        return {}

    def losses(self, rollout: TensorDict, student: torch.nn.Module) -> Iterator[tuple[Tensor, Metrics]]:
        """Yield L_total (Eq. 8) and the metrics to log for each minibatch of a rollout.

        A minibatch is computed only when it is requested, so after the caller's step on the minibatch before it.

        Args:
            rollout: ``[num_envs, T]``.
            student: pixels to (logits, values): the agent, or the agent with other weights or under another draw.

        Yields:
            The scalar L_total, and the metrics.

        Raises:
            NonFiniteError: If a loss term is not finite.
        """
        teacher_logits, teacher_value, teacher_next_value = self._ask_teacher(rollout)

        def estimate(value: Tensor, next_value: Tensor) -> tuple[Tensor, Tensor]:
            if not trains_critic(self.distillation):
                value, next_value = teacher_value, teacher_next_value
            after = rollout["next"]
            return self.advantage(self.gamma, value, next_value, after["reward"], after["done"], after["terminated"])

        coefficients = self.current_coefficients()
        for update, batch in enumerate(self.algorithm.minibatches(student, rollout, estimate)):
            metrics: Metrics = dict(update_diagnostics(batch)) if update == 0 else {}
            terms = self.loss_terms(batch)  # 2. of Alg. 1, numbered as in SearchModule
            if self.distillation != "none":
                terms |= distillation_terms(  # 3. Eq. 6 and 7
                    self.distillation,
                    batch,
                    teacher_logits.flatten(0, 1)[batch.rows],
                    teacher_value.flatten()[batch.rows],
                )
            check_finite(terms, self.env_steps)
            total = losses.total_loss(terms, coefficients)  # 3. Eq. 8
            metrics |= {f"loss/{name}": term.detach() for name, term in terms.items()}
            metrics["loss/total"] = total.detach()
            yield total, metrics

    def loss_terms(self, batch: Minibatch) -> dict[str, Tensor]:
        """Compute the terms of L_policy + L_value + alpha_1 L_entropy.

        Returns:
            Scalars by the names of their coefficients, without ``value`` if the student's critic is not trained.
        """
        terms = {"policy": self.algorithm.policy_loss(batch), "entropy": losses.entropy_loss(batch.logits)}
        if trains_critic(self.distillation):
            terms["value"] = losses.value_loss(batch.value, batch.value_target)
        return terms

    def current_coefficients(self) -> dict[str, float]:
        """Return the coefficients of Eq. 8's terms at the current environment step."""
        progress = self.env_steps / self.total_env_steps
        schedules = self.coefficient_schedules
        return {name: value * schedules.factor(name, progress) for name, value in self.coefficients.items()}

    def step_weights(self, total: Tensor) -> Metrics:
        """Step the weights down the gradient of ``total``, and return the metrics to log."""
        (optimizer,) = self.zeroed_optimizers()
        self.manual_backward(total)
        return self.apply_weights_gradient(optimizer)

    def zeroed_optimizers(self) -> list[LightningOptimizer]:
        """Clear all gradients, and return the optimizers, the weights' first."""
        found = self.optimizers()
        optimizers = cast(list[LightningOptimizer], found if isinstance(found, list) else [found])
        for optimizer in optimizers:
            optimizer.zero_grad()
        return optimizers

    def apply_weights_gradient(self, optimizer: LightningOptimizer) -> Metrics:
        """Clip theta's gradient to ``gradient_clip_norm``, and step.

        Args:
            optimizer: optimizer of the weights.

        Returns:
            The gradient's norm before clipping, as a metric.

        Raises:
            NonFiniteError: If the norm is not finite; theta is then unchanged.
        """
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        norm = torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        check_finite({"gradient": norm}, self.env_steps)
        if norm > self.gradient_clip_norm:  # saves clip_grad_norm_'s multiplication by 1
            torch.nn.utils.clip_grads_with_norm_(weights, self.gradient_clip_norm, norm)
        optimizer.step()
        optimizer.zero_grad()  # free gradients now; otherwise they fragment the heap and raise peak memory
        self.weight_updates += 1
        return {"gradient/weights_norm": norm}

    def _ask_teacher(self, rollout: TensorDict) -> tuple[Tensor, Tensor, Tensor]:
        if not self._teacher:
            nothing = torch.empty(0)
            return nothing, nothing, nothing
        (teacher,) = self._teacher
        if not trains_critic(self.distillation):
            return joint_forward(teacher, rollout)
        logits, value = teacher(rollout["pixels"].flatten(0, 1))
        return logits.unflatten(0, rollout.shape), value.unflatten(0, rollout.shape), torch.empty(0)

    def _set_learning_rate(self) -> None:
        schedule = self.learning_rate_schedule
        factor = schedule(self.env_steps / self.total_env_steps) if schedule is not None else 1.0
        # rates of the settings, not of the optimizer's state: a resumed run follows its current settings
        for group, rate in zip(self.trainer.optimizers[0].param_groups, self._learning_rates, strict=True):
            group["lr"] = rate * factor

    def _count(self, rollout: TensorDict) -> None:
        self.env_steps += rollout.numel() * self.trainer.world_size
        self.recent_game_scores.extend(rollout["next", "game_score"][rollout["next", "game_over"]].tolist())

    def _log_training(self, metrics: Metrics) -> None:
        metrics["weight_updates"] = float(self.weight_updates)
        if self.skipped_updates:
            metrics["skipped_updates"] = float(self.skipped_updates)
        metrics["learning_rate"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        if self.recent_game_scores:
            metrics["train/recent_game_score"] = fmean(self.recent_game_scores)
        self.log("step", self.clock())
        self.log_dict(metrics)

    def macs(self) -> int:
        """Count the multiply-accumulates of the backbone for one observation, without heads."""
        return count_macs(self.agent.backbone, torch.Size(self.agent_frame_shape))

    def scored_macs(self) -> int:
        """Count the MACs of the network that plays in evaluations."""
        return self.macs()

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the counters, the recent scores and the agent's card as plain values, for ``weights_only`` loading."""
        checkpoint["env_steps"] = self.env_steps
        checkpoint["weight_updates"] = self.weight_updates
        checkpoint["skipped_updates"] = self.skipped_updates
        checkpoint["agent_card"] = self.card().to_dict()
        checkpoint["recent_game_scores"] = list(self.recent_game_scores)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, map_location: Any = "cpu", **changes: Any) -> Self:  # type: ignore[override]
        """Build the module of a run from ``run_dir/checkpoints/x.ckpt`` and ``run_dir/config.yaml``.

        Args:
            checkpoint_path: checkpoint file.
            map_location: device of the module.
            changes: constructor arguments that replace those of the run. Without ``config.yaml``, all required ones
                except game, frame_shape and num_actions.

        Raises:
            SettingError: If the file is not a checkpoint of this package, or belongs to another class or network.
        """
        return load_module(cls, Path(checkpoint_path), map_location, changes)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the counters and the recent scores.

        Raises:
            SettingError: If the checkpoint is not of this package, or belongs to another game or network.
        """
        check_checkpoint(checkpoint, self.card(), self.state_dict())
        self._optimizer_settings.read(checkpoint)
        self.env_steps = checkpoint["env_steps"]
        self.weight_updates = checkpoint["weight_updates"]
        self.skipped_updates = checkpoint.get("skipped_updates", 0)
        self.recent_game_scores.extend(checkpoint.get("recent_game_scores", []))
