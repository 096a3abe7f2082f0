"""Stage 2 (Sec. 4.4, Alg. 1): weights and alpha of the supernet, updated together from one rollout."""

from dataclasses import asdict
from typing import Any, cast

import torch
from jsonargparse.typing import NonNegativeFloat
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.optim import Optimizer

from a2d_lightning import losses
from a2d_lightning.errors import SettingError
from a2d_lightning.macs import count_macs
from a2d_lightning.modules.actor_critic import ActorCriticModule
from a2d_lightning.networks import ActorCritic, initialize, make_backbone
from a2d_lightning.search_space import Architecture, Plan
from a2d_lightning.supernet import Supernet
from a2d_lightning.teachers import AgentCard


class SearchModule(ActorCriticModule):
    """One-level search: min over theta and alpha of L_total + lambda L_cost(alpha) (Eq. 9).

    theta gets L_total and alpha gets L_total + lambda L_cost, from one backward: the cost depends on alpha alone.

    Args:
        plan: groups, cells and channels of the supernet.
        lambda_cost: lambda. L_cost is the expected MACs divided by ResNet-20's at the same frames.
        alpha_learning_rate: of alpha's Adam (paper: 1e-3, constant); 0 freezes alpha, as a control.
        alpha_betas: of alpha's Adam (paper: momentum 0.9).
        seed: of the Gumbel draws; alike on all ranks.
    """

    def __init__(
        self,
        plan: Plan = Plan(),  # noqa: B008 (frozen)
        lambda_cost: NonNegativeFloat = 0.1,
        alpha_learning_rate: NonNegativeFloat = 1e-3,
        alpha_betas: tuple[float, float] = (0.9, 0.999),
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.lambda_cost = float(lambda_cost)
        self.alpha_learning_rate = float(alpha_learning_rate)  # a plain number, as in the base class
        self.alpha_betas = alpha_betas
        supernet = Supernet(plan, self.frame_shape)
        self.agent = initialize(ActorCritic(supernet, self.frame_shape, self.num_actions))
        reference = make_backbone("resnet20", self.frame_shape)
        self.reference_macs = count_macs(reference, torch.Size(self.frame_shape))
        self.gumbel_generator = torch.Generator().manual_seed(seed)
        self.supernet.draw(self.gumbel_generator)

    @property
    def supernet(self) -> Supernet:
        """The agent's backbone."""
        return cast(Supernet, self.agent.backbone)

    def weights(self) -> list[torch.nn.Parameter]:
        """theta: everything but alpha."""
        return [p for p in self.agent.parameters() if p is not self.supernet.alpha_logits]

    def configure_optimizers(self) -> list[Optimizer]:
        """The weights' optimizer, then alpha's."""
        try:
            alpha = torch.optim.Adam([self.supernet.alpha_logits], lr=self.alpha_learning_rate, betas=self.alpha_betas)
        except ValueError as error:
            raise SettingError(f"model.alpha_betas: {error}.") from error
        return [*super().configure_optimizers(), alpha]

    def on_train_start(self) -> None:
        """Alpha's rate is what the settings say, on resume too."""
        super().on_train_start()
        self.trainer.optimizers[1].param_groups[0]["lr"] = self.alpha_learning_rate

    def update(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """One step of weights and alpha on Eq. 9."""
        self._check_finite(terms)
        total = losses.total_loss(terms, self.coefficients)
        cost = self.supernet.expected_macs() / self.reference_macs
        weights_optimizer, alpha_optimizer = cast(list[LightningOptimizer], self.optimizers())
        weights_optimizer.zero_grad()
        alpha_optimizer.zero_grad()
        self.manual_backward(total + self.lambda_cost * cost)
        norm = self.clip_weights_gradient()
        alpha_norm = cast(Tensor, self.supernet.alpha_logits.grad).norm()
        self._check_finite({"gradient": norm, "gradient of alpha": alpha_norm})
        metrics = {
            "loss/total": total.detach(),
            "loss/cost": cost.detach(),
            "gradient/weights_norm": norm,
            **self._alpha_gradient_norms(),
        }
        weights_optimizer.step()
        alpha_optimizer.step()
        return metrics

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Draws the noise of the next rollout: the policy that acts on it is the one that is updated on it."""
        self.supernet.draw(self.gumbel_generator)

    def derive(self) -> Architecture:
        """The architecture that alpha implies now."""
        return self.supernet.derive(self.game, str(self.teacher_name or ""), self.env_steps)

    def macs(self) -> int:
        """Of the network that alpha implies now."""
        return self.supernet.argmax_macs()

    def card(self) -> AgentCard:
        """See the base class; a supernet is no teacher, so its card names no network that could be rebuilt."""
        plan = {"plan": asdict(self.supernet.plan)}
        return AgentCard(self.game, "supernet", self.frame_shape, self.num_actions, self.env_steps, plan)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the state of the Gumbel draws."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["gumbel_generator"] = self.gumbel_generator.get_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the state of the Gumbel draws."""
        super().on_load_checkpoint(checkpoint)
        self.gumbel_generator.set_state(checkpoint["gumbel_generator"].cpu())

    def _alpha_gradient_norms(self) -> dict[str, Tensor]:
        """Norms of the two parts of alpha's gradient: what lambda has to balance."""
        alpha = self.supernet.alpha_logits
        (of_cost,) = torch.autograd.grad(self.supernet.expected_macs() / self.reference_macs, alpha)
        of_cost = self.lambda_cost * of_cost
        assert alpha.grad is not None
        return {
            "gradient/alpha_cost_norm": of_cost.norm(),
            "gradient/alpha_reward_norm": (alpha.grad - of_cost).norm(),
        }
