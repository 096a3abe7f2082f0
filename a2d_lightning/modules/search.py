"""Stage 2 (Sec. 4.4, Alg. 1): search of an architecture with a supernet."""

from collections import deque
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
from a2d_lightning.nas.operators import OPERATORS, operators_of
from a2d_lightning.nas.sampling import Sampling
from a2d_lightning.nas.schemes import DrawnRollout, OneLevel, OneLevelPerFrame, SearchScheme, UnrolledBiLevel
from a2d_lightning.nas.search_space import Plan
from a2d_lightning.nas.supernet import Supernet, inherit_weights
from a2d_lightning.runtime.distributed import all_gather_objects, this_rank
from a2d_lightning.runtime.errors import SettingError
from a2d_lightning.runtime.lightning_compat import finds_unused_parameters
from a2d_lightning.runtime.nonfinite import check_finite

RECALIBRATION_ROLLOUTS = 8


class SearchModule(ActorCriticModule):
    """Search of an architecture: min over theta and alpha of L_total + lambda L_cost(alpha) (Eq. 9).

    Algorithm 1 with the scheme OneLevel. The code of each step has the same number:

    1. Collect a rollout; all its steps act under one Gumbel draw of the operators' weights (Eq. 10, 11).
    2. Compute the task losses L_policy, L_value and L_entropy (Eq. 3 to 5) under the same draw.
    3. Compute the distillation losses (Eq. 6, 7), and sum up L_total (Eq. 8).
    4. Backpropagate L_total, and add the gradient of lambda L_cost(alpha) to alpha's gradient (Eq. 9).
    5. Step theta on the gradient of L_total.
    6. Step alpha on the gradient of L_total + lambda L_cost.
    7. Anneal tau (a2d_lightning.callbacks.TemperatureAnnealing), and draw the Gumbel noise of the next rollout.

    PPO repeats steps 2 to 6 for each minibatch. BiLevel and UnrolledBiLevel step theta and alpha on different rollouts.

    Examples:
        >>> from a2d_lightning.nas.search_space import Plan
        >>> plan = Plan(cells_per_group=(1, 1), channels=(8, 16))
        >>> search = SearchModule(plan, game="pong", frame_shape=(4, 42, 42), num_actions=6, total_env_steps=80_000)
        >>> search.supernet.log_alpha().shape  # [cells, operators]
        torch.Size([2, 9])
        >>> len(search.derive().operators)
        2

    Args:
        plan: groups, cells, channels and strides of the supernet.
        operators: operators of each cell by name, with the class path of a builder of (in channels, out channels,
            stride), or null for one of the paper's; the paper's nine if absent.
        scheme: OneLevel (A2D, and if absent), OneLevelPerFrame, BiLevel or UnrolledBiLevel.
        sampling: SoftSum (paper, and if absent), HardStraightThrough, TopK or SinglePath.
        lambda_cost: lambda, the weight of L_cost. L_cost is the MACs of the searched cells, as estimated by ``cost``,
            divided by the MACs of ResNet-20 at the same frame size.
        derivation: rule that chooses the derived network's operators: Argmax (paper, and if absent) or
            MaxAlphaUnderMacs.
        cost: estimator of L_cost: expected (mean over alpha), drawn (of the current draw) or argmax (of the operators
            with the highest alpha, with a straight-through gradient).
        alpha_learning_rate: learning rate of alpha's Adam (paper: 1e-3, constant); 0 freezes alpha, as a control.
        alpha_betas: betas of alpha's Adam (paper: momentum 0.9).
        alpha_warmup_env_steps: environment steps at the start in which only the weights are trained.
        recompute_activations: store only the cells' inputs, and recompute each cell in the backward: a fraction of the
            memory for about 10 % more time (CPU).
        score_derived: evaluate the derived network, with weights from the supernet, in addition to the supernet.
        seed: seed of the Gumbel draws, the same on all ranks.
    """

    def __init__(
        self,
        plan: Plan = Plan(),  # noqa: B008 (frozen)
        operators: dict[str, str | None] | None = None,
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
        self.alpha_learning_rate = float(alpha_learning_rate)  # a plain float, as in the base class
        self.alpha_betas = alpha_betas
        self.alpha_warmup_env_steps = alpha_warmup_env_steps
        self.score_derived = score_derived
        self._check_recomputable(recompute_activations)
        if isinstance(self.scheme, OneLevelPerFrame) and sampling is not None and sampling.skips_operators:
            raise SettingError(
                f"model.sampling: {type(sampling).__name__} computes an operator for all frames or for none, but "
                "model.scheme OneLevelPerFrame mixes operators separately for each frame; choose SoftSum or another "
                "scheme."
            )
        builders = operators_of(operators)
        supernet = Supernet(plan, self.agent_frame_shape, sampling, recompute_activations, derivation, builders)
        supernet.derived_operators()  # raises if no network meets the limit
        self.agent = self.make_agent(supernet)
        self.alpha_gradient = GradientNoise(*supernet.alpha_logits.shape)
        if self.alpha_warmup_env_steps >= self.total_env_steps:
            raise SettingError(
                f"model.alpha_warmup_env_steps: {self.alpha_warmup_env_steps:,} leaves no steps for the search out of "
                f"data.total_env_steps {self.total_env_steps:,}; choose fewer."
            )
        reference = make_backbone("resnet20", self.agent_frame_shape)
        self.reference_macs = count_macs(reference, torch.Size(self.agent_frame_shape))
        self.gumbel_generator = torch.Generator().manual_seed(seed)
        self.supernet.draw(self.gumbel_generator)
        # a tuple: as a submodule, it would be among the module's parameters during evaluations only
        self._derived: tuple[ActorCritic, ...] = ()
        self.derived_scores = CatMetric()
        self._waiting: list[DrawnRollout] = []
        self._recent_frames: deque[Tensor] = deque(maxlen=RECALIBRATION_ROLLOUTS)

    @property
    def supernet(self) -> Supernet:
        """Return the supernet, the agent's backbone."""
        return cast(Supernet, self.agent.backbone)

    def weights(self) -> list[torch.nn.Parameter]:
        """Return theta: all parameters of the agent except alpha."""
        return [p for p in self.agent.parameters() if p is not self.supernet.alpha_logits]

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for pickle, with the Gumbel generator's state as bytes.

        As a tensor, ``ddp_spawn`` would put it into shared memory, which is released before the new process reads it.
        """
        return super().__getstate__() | {"gumbel_generator": bytes(self.gumbel_generator.get_state().tolist())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state that :meth:`__getstate__` returns."""
        super().__setstate__(state)
        self.gumbel_generator = torch.Generator()
        self.gumbel_generator.set_state(torch.tensor(list(state["gumbel_generator"]), dtype=torch.uint8))

    # --- set-up ---------------------------------------------------------------------------------------------------

    def _check_recomputable(self, recompute_activations: bool) -> None:
        """Reject settings under which the backward would recompute a cell differently."""
        if not recompute_activations:
            return
        if isinstance(self.scheme, UnrolledBiLevel):
            raise SettingError(
                "model.recompute_activations: UnrolledBiLevel's virtual weights no longer exist during "
                "recomputation; set it to false."
            )
        if self.normalization == "per_step":
            raise SettingError(
                "model.recompute_activations: per_step normalization has no time steps during recomputation; choose "
                "another model.normalization."
            )

    def configure_optimizers(self) -> list[Optimizer]:
        """Build the optimizer of the weights, then that of alpha.

        Raises:
            SettingError: If an optimizer rejects its arguments.
        """
        try:
            alpha = torch.optim.Adam([self.supernet.alpha_logits], lr=self.alpha_learning_rate, betas=self.alpha_betas)
        except ValueError as error:
            raise SettingError(f"model.alpha_betas: {error}.") from error
        return [*super().configure_optimizers(), alpha]

    def on_fit_start(self) -> None:
        """Check the settings against trainer and data.

        Raises:
            SettingError: If the checks of the base class fail, two callbacks set tau, an epoch has fewer rollouts than
                the scheme needs for one update, or DDP would wait for gradients of operators that are not computed.
        """
        super().on_fit_start()
        check_callbacks(cast(Any, self.trainer).callbacks, float(self.supernet.tau))
        data: Any = cast(Any, self.trainer).datamodule
        needed = self.scheme.rollouts_per_update
        if data is not None and data.rollouts_per_epoch < needed:
            raise SettingError(
                f"model.scheme: {type(self.scheme).__name__} takes {needed} rollouts per update, but an epoch has "
                f"{data.rollouts_per_epoch}; raise data.env_steps_per_epoch to "
                f"{needed * data.env_steps_per_rollout:,}."
            )
        skips = self.supernet.sampling.skips_operators
        if self.trainer.world_size > 1 and skips and not finds_unused_parameters(self.trainer):
            raise SettingError(
                f"trainer.strategy: with {type(self.supernet.sampling).__name__} some operators get no gradient; use "
                "ddp_find_unused_parameters_true."
            )

    def on_train_start(self) -> None:
        """Set alpha's learning rate to the settings' value, also on resume."""
        super().on_train_start()
        self.trainer.optimizers[1].param_groups[0]["lr"] = self.alpha_learning_rate

    # --- learning -------------------------------------------------------------------------------------------------

    def learn(self, rollout: TensorDict) -> Metrics:
        """Store the rollout until the scheme has all it needs for one update, then update.

        During the warm-up, the scheme is OneLevel, which then leaves alpha unchanged.

        Args:
            rollout: ``[num_envs, T]``.

        Returns:
            The metrics to log; empty if the rollout is only stored.
        """
        if self.score_derived:
            self._recent_frames.append(rollout["pixels"].flatten(0, 1).clone())
        scheme = self.scheme if self.alpha_is_trained else OneLevel()
        if len(self._waiting) + 1 < scheme.rollouts_per_update:
            # a copy, because the collector writes the next rollout into the same memory
            self._waiting.append(DrawnRollout(rollout.clone(), self.supernet.current_draw()))
            return {}
        rollouts = [*self._waiting, DrawnRollout(rollout, self.supernet.current_draw())]
        self._waiting.clear()
        return scheme.learn(self, rollouts)

    @property
    def alpha_is_trained(self) -> bool:
        """Return whether the warm-up of the weights is over."""
        return self.env_steps >= self.alpha_warmup_env_steps

    @property
    def search_progress(self) -> float:
        """Return the spent fraction of the search's environment steps, counted from the end of the warm-up.

        Negative during the warm-up.
        """
        warmup = self.alpha_warmup_env_steps
        return (self.env_steps - warmup) / (self.total_env_steps - warmup)

    def step_both(self, total: Tensor) -> Metrics:
        """Step theta on L_total and alpha on L_total + lambda L_cost, from one backward.

        Alpha is not stepped during the warm-up.

        Args:
            total: the scalar L_total.

        Returns:
            The metrics to log.

        Raises:
            NonFiniteError: If a gradient is not finite; theta and alpha are then unchanged.
        """
        weights_optimizer, alpha_optimizer = self.zeroed_optimizers()
        self.manual_backward(total)  # 4.
        metrics = self._add_cost_gradient()  # 4. before 5., because it checks that alpha's gradient is finite
        metrics |= self.apply_weights_gradient(weights_optimizer)  # 5.
        if self.alpha_is_trained:
            alpha_optimizer.step()  # 6.
        return metrics

    def step_alpha(self, total: Tensor) -> Metrics:
        """Step alpha on L_total + lambda L_cost, and return the metrics to log."""
        _, alpha_optimizer = self.zeroed_optimizers()
        self.manual_backward(total)
        metrics = self._add_cost_gradient()
        alpha_optimizer.step()
        return metrics

    def step_weights(self, total: Tensor) -> Metrics:
        """Step theta on L_total, and return the metrics to log."""
        weights_optimizer, _ = self.zeroed_optimizers()
        self.manual_backward(total)
        return self.apply_weights_gradient(weights_optimizer)

    def _add_cost_gradient(self) -> Metrics:
        """Add the gradient of lambda L_cost to alpha's gradient, and return the metrics to log.

        L_cost depends only on alpha and the draw, so its gradient is the same on all ranks and needs no reduction.
        """
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
        """Draw the Gumbel noise of the next rollout, for acting and for the update on it."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        self.supernet.draw(self.gumbel_generator)  # 7. after the callbacks, which anneal tau

    # --- the derived network --------------------------------------------------------------------------------------

    def derive(self) -> Architecture:
        """Derive the architecture from the current alpha, by the rule ``derivation``."""
        return self.supernet.derive(self.game, str(self.teacher_name or ""), self.env_steps)

    def derived_agent(self) -> ActorCritic:
        """Build the derived network with the supernet's weights, and recalibrate batch norm on the latest rollouts."""
        architecture = self.derive()
        # the initial weights are overwritten, and must not advance the generator that shuffles minibatches
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
        """Build the derived network to score, if there are frames to recalibrate it on.

        There are none before the first rollout, or if ``score_derived`` is off.
        """
        super().on_validation_start()
        self._derived = (self.derived_agent(),) if self._recent_frames else ()
        for derived in self._derived:
            self.share_buffers(derived)

    def validation_step(self, game_seeds: Tensor, batch_idx: int) -> None:
        """Play the games with the supernet, and again with the derived network.

        If draws sample single operators and the rule of derivation is Argmax, the two networks differ in evaluation
        only in running statistics, because the supernet's mix all sampled paths. The derived network's games then
        score both.
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
        """Log the scores of the supernet and of the derived network."""
        super().on_validation_epoch_end()
        if self._derived:
            self.log_scores("val/derived_", self.derived_scores)
            self._derived = ()

    def macs(self) -> int:
        """Count the MACs of the network that :meth:`derive` returns now."""
        return self.supernet.derived_macs()

    def scored_macs(self) -> int:
        """Count the MACs of the supernet in evaluation, because tests play the supernet."""
        return self.supernet.evaluation_macs()

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def card(self) -> AgentCard:
        """Return the supernet's card, with the plan and the teacher's name for ``python -m a2d_lightning derive``.

        A supernet cannot be a teacher, so the card names no network that can be rebuilt.
        """
        content = {"plan": self.supernet.plan.to_dict(), "teacher": str(self.teacher_name or "")}
        if self.supernet.operator_names != tuple(OPERATORS):
            content["operator_names"] = list(self.supernet.operator_names)
        return self.agent_card("supernet", content)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state of the Gumbel generator, the stored rollouts and the frames for recalibration."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["waiting_rollouts"] = all_gather_objects([drawn.to_dict() for drawn in self._waiting])
        checkpoint["recent_frames"] = all_gather_objects([frames.cpu() for frames in self._recent_frames])
        checkpoint["gumbel_generator"] = self.gumbel_generator.get_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what :meth:`on_save_checkpoint` adds."""
        super().on_load_checkpoint(checkpoint)
        self.gumbel_generator.set_state(checkpoint["gumbel_generator"].cpu())
        waiting = this_rank(checkpoint.get("waiting_rollouts", [])) or []
        frames = this_rank(checkpoint.get("recent_frames", [])) or []
        self._recent_frames.extend(frame.to(self.device) for frame in frames)
        self._waiting = [DrawnRollout.from_dict(drawn, self.device) for drawn in waiting]
