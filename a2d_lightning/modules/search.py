"""Stage 2 (Sec. 4.4, Alg. 1): weights and alpha of the supernet, by a scheme, a way to sample and a cost."""

from collections import deque
from dataclasses import asdict
from typing import Any, cast

import torch
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt
from tensordict import TensorDict
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import CatMetric

from a2d_lightning.agent_files import AgentCard
from a2d_lightning.models.macs import count_macs
from a2d_lightning.models.networks import ActorCritic, make_backbone
from a2d_lightning.models.normalization import inference_normalization, recalibrate, with_normalization
from a2d_lightning.modules.actor_critic import ActorCriticModule, Metrics
from a2d_lightning.nas.architecture import Architecture
from a2d_lightning.nas.costs import CostEstimator, cost_of
from a2d_lightning.nas.derivation import Argmax, Derivation
from a2d_lightning.nas.gradient_noise import GradientNoise
from a2d_lightning.nas.needed_callbacks import check_callbacks
from a2d_lightning.nas.sampling import Sampling
from a2d_lightning.nas.schemes import DrawnRollout, OneLevel, OneLevelPerFrame, SearchScheme, UnrolledBiLevel
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.nas.supernet import Supernet, inherit_weights
from a2d_lightning.runtime.distributed import all_gather_objects, this_rank
from a2d_lightning.runtime.errors import SettingError
from a2d_lightning.runtime.nonfinite import check_finite

RECALIBRATION_ROLLOUTS = 8


class SearchModule(ActorCriticModule):
    """Searches an architecture: min over theta and alpha of L_total + lambda L_cost(alpha) (Eq. 9).

    Args:
        plan: groups, cells and channels of the supernet.
        scheme: OneLevel (A2D's, and if absent), OneLevelPerFrame, BiLevel or UnrolledBiLevel.
        sampling: SoftSum (paper, and if absent), HardStraightThrough, TopK or SinglePath.
        lambda_cost: lambda. L_cost is the MACs of the derived network's cells, as ``cost`` estimates them, divided by
            ResNet-20's at the same frames.
        derivation: rule that chooses the derived network's operators: Argmax (paper, and if absent) or
            MaxAlphaUnderMacs.
        cost: estimator of L_cost: expected (over alpha), drawn (of the current draw) or argmax (straight-through).
        alpha_learning_rate: of alpha's Adam (paper: 1e-3, constant); 0 freezes alpha, as a control.
        alpha_betas: of alpha's Adam (paper: momentum 0.9).
        alpha_warmup_env_steps: environment steps during which only the weights learn.
        recompute_activations: keep only the cells' inputs for the backward and compute each cell again in it: a
            fraction of the memory for some 10 % more time (CPU).
        score_derived: evaluate the derived network, too, with weights from the supernet, beside the supernet.
        seed: of the Gumbel draws; alike on all ranks.
    """

    def __init__(
        self,
        plan: Plan = Plan(),  # noqa: B008 (frozen)
        scheme: SearchScheme | None = None,
        sampling: Sampling | None = None,
        lambda_cost: NonNegativeFloat = 0.1,
        derivation: Derivation | None = None,
        cost: CostEstimator = "expected",
        alpha_learning_rate: NonNegativeFloat = 1e-3,
        alpha_betas: tuple[float, float] = (0.9, 0.999),
        alpha_warmup_env_steps: NonNegativeInt = 0,
        recompute_activations: bool = False,
        score_derived: bool = True,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.scheme = scheme or OneLevel()
        self.lambda_cost = float(lambda_cost)
        self.cost = cost
        self.alpha_learning_rate = float(alpha_learning_rate)  # a plain number, as in the base class
        self.alpha_betas = alpha_betas
        self.alpha_warmup_env_steps = alpha_warmup_env_steps
        self.score_derived = score_derived
        self._check_recomputable(recompute_activations)
        if isinstance(self.scheme, OneLevelPerFrame) and sampling is not None and sampling.skips_operators:
            raise SettingError(
                f"model.sampling: {type(sampling).__name__} computes an operator for all frames or for none, and "
                "model.scheme OneLevelPerFrame mixes them for each frame; take SoftSum, or another scheme."
            )
        supernet = Supernet(plan, self.agent_frame_shape, sampling, recompute_activations, derivation)
        supernet.derived_operators()  # refuses a limit that no network meets
        self.agent = self.make_agent(supernet)
        self.alpha_gradient = GradientNoise(*supernet.alpha_logits.shape)
        if self.alpha_warmup_env_steps >= self.total_env_steps:
            raise SettingError(
                f"model.alpha_warmup_env_steps: {self.alpha_warmup_env_steps:,} leaves nothing of data.total_env_steps "
                f"{self.total_env_steps:,} to search in."
            )
        reference = make_backbone("resnet20", self.agent_frame_shape)
        self.reference_macs = count_macs(reference, torch.Size(self.agent_frame_shape))
        self.gumbel_generator = torch.Generator().manual_seed(seed)
        self.supernet.draw(self.gumbel_generator)
        # in a tuple: as a submodule it would be among the module's parameters during evaluations alone
        self._derived: tuple[ActorCritic, ...] = ()
        self.derived_scores = CatMetric()
        self._waiting: list[DrawnRollout] = []
        self._recent_frames: deque[Tensor] = deque(maxlen=RECALIBRATION_ROLLOUTS)

    @property
    def supernet(self) -> Supernet:
        """The agent's backbone."""
        return cast(Supernet, self.agent.backbone)

    def weights(self) -> list[torch.nn.Parameter]:
        """theta: everything but alpha."""
        return [p for p in self.agent.parameters() if p is not self.supernet.alpha_logits]

    def __getstate__(self) -> dict[str, Any]:
        """Give pickle the generator's state as bytes: ``ddp_spawn`` shares tensors, and that one is gone too soon."""
        return super().__getstate__() | {"gumbel_generator": bytes(self.gumbel_generator.get_state().tolist())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take it back."""
        super().__setstate__(state)
        self.gumbel_generator = torch.Generator()
        self.gumbel_generator.set_state(torch.tensor(list(state["gumbel_generator"]), dtype=torch.uint8))

    # --- set-up ---------------------------------------------------------------------------------------------------

    def _check_recomputable(self, recompute_activations: bool) -> None:
        """The backward must find a cell as its forward left it."""
        if not recompute_activations:
            return
        if isinstance(self.scheme, UnrolledBiLevel):
            raise SettingError("model.recompute_activations: UnrolledBiLevel's virtual weights are gone by then.")
        if self.normalization == "per_step":
            raise SettingError(
                "model.recompute_activations: per_step normalization does not know its time steps by then; take "
                "another model.normalization."
            )

    def configure_optimizers(self) -> list[Optimizer]:
        """The weights' optimizer, then alpha's."""
        try:
            alpha = torch.optim.Adam([self.supernet.alpha_logits], lr=self.alpha_learning_rate, betas=self.alpha_betas)
        except ValueError as error:
            raise SettingError(f"model.alpha_betas: {error}.") from error
        return [*super().configure_optimizers(), alpha]

    def on_fit_start(self) -> None:
        """Checks what only the trainer knows.

        Raises:
            SettingError: two schedules of tau, epochs too short for the scheme, or processes that would wait for
                operators not computed.
        """
        super().on_fit_start()
        check_callbacks(cast(Any, self.trainer).callbacks, float(self.supernet.tau))
        data: Any = cast(Any, self.trainer).datamodule
        needed = self.scheme.rollouts_per_update
        if data is not None and data.rollouts_per_epoch < needed:
            raise SettingError(
                f"model.scheme: {type(self.scheme).__name__} takes {needed} rollouts an update and an epoch has "
                f"{data.rollouts_per_epoch}; raise data.env_steps_per_epoch to {needed * data.env_steps_per_rollout:,}."
            )
        finds_unused = getattr(self.trainer.strategy, "_ddp_kwargs", {}).get("find_unused_parameters", False)
        if self.trainer.world_size > 1 and self.supernet.sampling.skips_operators and not finds_unused:
            raise SettingError(
                f"trainer.strategy: with {type(self.supernet.sampling).__name__} some operators get no gradient; use "
                "ddp_find_unused_parameters_true."
            )

    def on_train_start(self) -> None:
        """Alpha's rate is what the settings say, on resume too."""
        super().on_train_start()
        self.trainer.optimizers[1].param_groups[0]["lr"] = self.alpha_learning_rate

    # --- learning -------------------------------------------------------------------------------------------------

    def learn(self, rollout: TensorDict) -> Metrics:
        """Keeps the rollout until the scheme has as many as it takes."""
        if self.score_derived:
            self._recent_frames.append(rollout["pixels"].flatten(0, 1).clone())
        scheme = self.scheme if self.alpha_is_trained else OneLevel()
        if len(self._waiting) + 1 < scheme.rollouts_per_update:
            # a copy: the collector writes the next rollout into the same memory
            self._waiting.append(DrawnRollout(rollout.clone(), self.supernet.current_draw()))
            return {}
        rollouts = [*self._waiting, DrawnRollout(rollout, self.supernet.current_draw())]
        self._waiting.clear()
        return scheme.learn(self, rollouts)

    @property
    def alpha_is_trained(self) -> bool:
        """Whether the warm-up of the weights is over."""
        return self.env_steps >= self.alpha_warmup_env_steps

    @property
    def search_progress(self) -> float:
        """Part of the search's environment steps that is spent, from the end of the warm-up."""
        warmup = self.alpha_warmup_env_steps
        return (self.env_steps - warmup) / (self.total_env_steps - warmup)

    def step_both(self, total: Tensor) -> Metrics:
        """One step of theta on L_total and of alpha on L_total + lambda L_cost, from one backward."""
        weights_optimizer, alpha_optimizer = self.zeroed_optimizers()
        self.manual_backward(total)
        metrics = self._add_cost_gradient()  # before the weights move: a gradient that is not finite moves nothing
        metrics |= self.apply_weights_gradient(weights_optimizer)
        if self.alpha_is_trained:
            alpha_optimizer.step()
        return metrics

    def step_alpha(self, total: Tensor) -> Metrics:
        """One step of alpha on L_total + lambda L_cost."""
        _, alpha_optimizer = self.zeroed_optimizers()
        self.manual_backward(total)
        metrics = self._add_cost_gradient()
        alpha_optimizer.step()
        return metrics

    def step_weights(self, total: Tensor) -> Metrics:
        """One step of theta on L_total."""
        weights_optimizer, _ = self.zeroed_optimizers()
        self.manual_backward(total)
        return self.apply_weights_gradient(weights_optimizer)

    def _add_cost_gradient(self) -> Metrics:
        """Adds lambda L_cost's gradient to alpha's, which is alike on all ranks as it depends on alpha alone."""
        supernet = self.supernet
        cost = cost_of(supernet, self.cost, supernet.macs_table / self.reference_macs)
        (of_cost,) = torch.autograd.grad(cost, supernet.alpha_logits)
        of_reward = cast(Tensor, supernet.alpha_logits.grad)
        check_finite({"gradient of alpha": of_reward.norm()}, self.env_steps)
        metrics: Metrics = {
            "loss/cost": cost.detach(),
            "gradient/alpha_reward_norm": of_reward.norm(),
            "gradient/alpha_cost_norm": (self.lambda_cost * of_cost).norm(),
        }
        supernet.alpha_logits.grad = of_reward + self.lambda_cost * of_cost
        self.alpha_gradient.observe(supernet.alpha_logits.grad)
        return metrics | self.alpha_gradient.metrics()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Draws the noise of the next rollout: the policy that acts on it is the one that is updated on it."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        self.supernet.draw(self.gumbel_generator)

    # --- the derived network --------------------------------------------------------------------------------------

    def derive(self) -> Architecture:
        """Derive the architecture from alpha as it is now, by the rule ``derivation``."""
        return self.supernet.derive(self.game, str(self.teacher_name or ""), self.env_steps)

    def derived_agent(self) -> ActorCritic:
        """The derived network with the supernet's weights, batch norm recalibrated on the latest rollouts."""
        architecture = self.derive()
        # the fresh weights, which nobody keeps, must not draw from the generator that shuffles minibatches
        with torch.random.fork_rng(devices=[]):
            backbone = architecture.build(self.agent_frame_shape)
            agent = ActorCritic(backbone, self.agent_frame_shape, self.num_actions)
        with_normalization(agent, inference_normalization(self.normalization))
        inherit_weights(backbone, self.supernet, architecture.operators)
        agent.actor.load_state_dict(self.agent.actor.state_dict())
        agent.critic.load_state_dict(self.agent.critic.state_dict())
        agent.to(self.device)
        recalibrate(agent, list(self._recent_frames))
        return agent

    def on_validation_start(self) -> None:
        """Derive the network to score; before any rollout there are no frames to recalibrate it on."""
        super().on_validation_start()
        self._derived = (self.derived_agent(),) if self._recent_frames else ()
        for derived in self._derived:
            self.share_buffers(derived)

    def validation_step(self, game_seeds: Tensor, batch_idx: int) -> None:
        """Play the games with the supernet, and again with the derived network.

        Where a draw samples single operators and the derived network has the highest alphas, the two are one network in
        evaluation, but for the supernet's running statistics, which mix all sampled paths: the derived network's play
        then scores both.
        """
        if not self._derived:
            super().validation_step(game_seeds, batch_idx)
            return
        (derived,) = self._derived
        scores = self.play(game_seeds, lambda pixels, generator: self.actions_of(derived, pixels, generator))
        self.derived_scores.update(scores)
        if self.supernet.sampling.skips_operators and isinstance(self.supernet.derivation, Argmax):
            self.game_scores.update(scores)
        else:
            super().validation_step(game_seeds, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log both scores."""
        super().on_validation_epoch_end()
        if self._derived:
            self.log_scores("val/derived_", self.derived_scores)
            self._derived = ()

    def macs(self) -> int:
        """Compute the MACs of the network that :meth:`derive` gives now."""
        return self.supernet.derived_macs()

    def scored_macs(self) -> int:
        """Compute the supernet's MACs in evaluation, since a test plays the supernet."""
        return self.supernet.evaluation_macs()

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def card(self) -> AgentCard:
        """See the base class; a supernet is no teacher, so its card names no network that could be rebuilt.

        The plan and the teacher's name are what ``python -m a2d_lightning derive`` reads.
        """
        return self.agent_card(
            "supernet", {"plan": asdict(self.supernet.plan), "teacher": str(self.teacher_name or "")}
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state of the Gumbel draws, and the rollouts that are still needed."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["waiting_rollouts"] = all_gather_objects([drawn.to_dict() for drawn in self._waiting])
        checkpoint["recent_frames"] = all_gather_objects([frames.cpu() for frames in self._recent_frames])
        checkpoint["gumbel_generator"] = self.gumbel_generator.get_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores them."""
        super().on_load_checkpoint(checkpoint)
        self.gumbel_generator.set_state(checkpoint["gumbel_generator"].cpu())
        waiting = this_rank(checkpoint.get("waiting_rollouts", [])) or []
        frames = this_rank(checkpoint.get("recent_frames", [])) or []
        self._recent_frames.extend(frame.to(self.device) for frame in frames)
        self._waiting = [DrawnRollout.from_dict(drawn, self.device) for drawn in waiting]
