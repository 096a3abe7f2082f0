"""Teachers as files: safetensors weights beside a JSON card, or any checkpoint of a training run.

Nothing here runs code from a file: safetensors holds tensors only, checkpoints load with ``weights_only``.
"""

import hashlib
import json
import pickle
import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from lightning.pytorch.utilities import rank_zero_info
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from a2d_lightning.models.layers import FrameShape
from a2d_lightning.models.networks import BACKBONES, ActorCritic, make_backbone
from a2d_lightning.models.normalization import Normalization, with_normalization
from a2d_lightning.nas.architecture import Architecture
from a2d_lightning.rollouts.games import without_module
from a2d_lightning.runtime.atomic_file import write_atomically
from a2d_lightning.runtime.checkpoints import kept
from a2d_lightning.runtime.errors import SettingError
from a2d_lightning.runtime.plain_checkpoints import load

BUNDLED = Path(__file__).parent / "bundled_teachers"
IDENTITY = ("game", "network", "frame_shape", "num_actions", "normalization", "plan", "operators")


@dataclass(frozen=True)
class AgentCard:
    """What a file of agent weights is: enough to rebuild the network and to know whom it can teach."""

    game: str
    network: str
    """A hand-made backbone's name, or ``derived``."""
    frame_shape: FrameShape
    num_actions: int
    env_steps: int
    architecture: dict[str, Any] | None = None
    """The derived network, where ``network`` is ``derived``; a supernet's plan."""
    normalization: Normalization = "batch"

    @staticmethod
    def from_dict(content: dict[str, Any], source: str) -> "AgentCard":
        """Checks types and presence of every field.

        Raises:
            SettingError: something is missing or of another type.
        """
        expected = {"game": str, "network": str, "frame_shape": list, "num_actions": int, "env_steps": int}
        for name, kind in expected.items():
            if not isinstance(content.get(name), kind):
                raise SettingError(f"{source}: the card's {name!r} is {content.get(name)!r}, not a {kind.__name__}.")
        shape = content["frame_shape"]
        if len(shape) != 3 or not all(isinstance(x, int) and x > 0 for x in shape):
            raise SettingError(f"{source}: the card's 'frame_shape' is {shape!r}; it must be [stack, height, width].")
        normalization = content.get("normalization", "batch")
        if normalization not in get_args(Normalization):
            raise SettingError(
                f"{source}: the card's 'normalization' is {normalization!r}, not one of "
                f"{', '.join(get_args(Normalization))}."
            )
        return AgentCard(
            game=content["game"],
            network=content["network"],
            frame_shape=(shape[0], shape[1], shape[2]),
            num_actions=content["num_actions"],
            env_steps=content["env_steps"],
            architecture=content.get("architecture"),
            normalization=normalization,
        )

    def identity(self) -> tuple[Any, ...]:
        """What two cards must share for one's weights to fit the other, named by :data:`IDENTITY`."""
        architecture = json.loads(json.dumps(self.architecture or {}))  # tuples as lists
        return (
            *(without_module(self.game), self.network, self.frame_shape, self.num_actions, self.normalization),
            *(architecture.get("plan"), architecture.get("operators")),
        )

    def check_settings(self, mine: "AgentCard") -> None:
        """Compare with the card of the agent that a run's settings make.

        Raises:
            SettingError: they differ.
        """
        for name, its, ours in zip(IDENTITY, self.identity(), mine.identity(), strict=True):
            if its != ours:
                raise SettingError(
                    f"ckpt_path: the checkpoint's {name} is {its}, the settings say {ours}; give the config it was "
                    "trained with."
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and checkpoints."""
        return {**asdict(self), "frame_shape": list(self.frame_shape)}

    def build(self) -> ActorCritic:
        """The network, with fresh weights."""
        if self.network == "supernet":
            raise SettingError(
                "a search's checkpoint holds a supernet, which can neither teach nor be exported; retrain its "
                "architecture and take that checkpoint."
            )
        if self.network not in (*BACKBONES, "derived"):
            raise SettingError(
                f"network {self.network!r} is not one of {', '.join(BACKBONES)} and derived; its checkpoint can "
                "neither teach nor be exported."
            )
        architecture = Architecture.from_dict(self.architecture, "card") if self.architecture else None
        backbone = build_backbone(self.network, architecture, self.frame_shape)
        return with_normalization(ActorCritic(backbone, self.frame_shape, self.num_actions), self.normalization)


def build_backbone(network: str, architecture: Architecture | None, frame_shape: FrameShape) -> nn.Module:
    """A backbone by hand-made name, or, for ``derived``, from its architecture."""
    if network == "derived":
        if architecture is None:
            raise SettingError("network 'derived' needs an architecture.")
        return architecture.build(frame_shape)
    return make_backbone(network, frame_shape)


class FrozenTeacher(nn.Module):
    """A trained agent that only answers: evaluation mode, no gradients.

    Args:
        agent: the teacher.
    """

    def __init__(self, agent: ActorCritic) -> None:
        super().__init__()
        self.agent = agent.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels uint8 ``[B, stack, h, w]`` to the teacher's logits ``[B, actions]`` and values ``[B]``."""
        return self.agent(pixels)

    def train(self, mode: bool = True) -> "FrozenTeacher":
        """Stays in evaluation mode whatever its owner does."""
        return super().train(False)


def bundled_teachers() -> dict[str, Path]:
    """Teachers that come with the package, by name."""
    return {path.stem: path for path in sorted(BUNDLED.glob("*.safetensors"))}


def load_teacher(teacher: str, game: str, frame_shape: FrameShape, num_actions: int) -> FrozenTeacher:
    """A teacher for ``game`` by bundled name, ``.safetensors`` path (its card beside it) or ``.ckpt`` path.

    Raises:
        SettingError: no such teacher, or one that cannot teach this game on these frames.
    """
    path = bundled_teachers().get(teacher) or Path(teacher)
    if not path.is_file():
        names = ", ".join(bundled_teachers()) or "none"
        raise SettingError(
            f"model.teacher: {teacher!r} is no file and no bundled teacher (bundled: {names}); train one with "
            f"`python -m a2d_lightning fit --config configs/teacher.yaml --data.game {game}` and name its checkpoint."
        )
    card, weights = read_agent(path)
    check_teacher(card, teacher, game, frame_shape, num_actions)
    agent = card.build()
    load_weights(agent, weights, str(path))
    if broken := [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]:
        raise SettingError(f"model.teacher: {teacher!r} has weights that are not finite ({broken[0]}); take another.")
    return FrozenTeacher(agent)


def check_teacher(card: AgentCard, teacher: str, game: str, frame_shape: FrameShape, num_actions: int) -> None:
    """Whether a teacher can teach: same game, actions and stack, frames a whole number of times its own size.

    Raises:
        SettingError: it cannot.
    """
    if without_module(card.game) != without_module(game):
        raise SettingError(
            f"model.teacher: {teacher!r} plays {card.game}, not {game}; train one with `python -m a2d_lightning fit "
            f"--config configs/teacher.yaml --data.game {game}` and name its checkpoint."
        )
    if card.num_actions != num_actions:
        raise SettingError(f"model.teacher: {teacher!r} has {card.num_actions} actions, data.game has {num_actions}.")
    stack, height, width = card.frame_shape
    fits = frame_shape[0] == stack and frame_shape[1] % height == 0 and frame_shape[2] % width == 0
    if not fits or frame_shape[1] // height != frame_shape[2] // width:
        raise SettingError(
            f"model.teacher: {teacher!r} sees {stack} frames of {height}x{width} and cannot be fed "
            f"{frame_shape[0]} of {frame_shape[1]}x{frame_shape[2]}; data.frames.size must be a multiple of {height} "
            f"(model.agent_frame_size gives the student smaller frames) and data.frames.stack {stack}."
        )


def read_agent(path: Path) -> tuple[AgentCard, dict[str, Tensor]]:
    """Card and weights of a ``.safetensors`` file (card: ``.json`` beside it) or of a training checkpoint.

    Raises:
        SettingError: the file is broken, not an agent's, or its card is missing.
    """
    try:
        if path.suffix == ".safetensors":
            weights = load_file(path)
            content = json.loads(path.with_suffix(".json").read_text())
            _check_hash(path, content)
        else:
            _check_sums(path)
            checkpoint = load(path)
            if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict", {}), dict):
                raise SettingError(f"{path}: holds no agent; it was not written by a2d_lightning.")
            content = checkpoint.get("agent_card")
            weights = {
                name.removeprefix("agent."): tensor
                for name, tensor in checkpoint.get("state_dict", {}).items()
                if name.startswith("agent.")
            }
    except FileNotFoundError as error:
        raise SettingError(f"{path}: its card {path.with_suffix('.json').name} is missing beside it.") from error
    except (SafetensorError, ValueError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise SettingError(f"{path}: not a readable agent file ({type(error).__name__}); export it again.") from error
    if not isinstance(content, dict):
        raise SettingError(f"{path}: holds no agent card; it was not written by a2d_lightning.")
    return AgentCard.from_dict(content, str(path)), weights


def _check_sums(path: Path) -> None:
    """Every record of a checkpoint against its check sum, which torch itself skips."""
    try:
        with zipfile.ZipFile(path) as archive:
            altered = archive.testzip()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        raise SettingError(f"{path}: is torn or no checkpoint ({error}); take an earlier one.") from error
    if altered is not None:
        raise SettingError(f"{path}: is damaged ({altered} is not as it was written); take an earlier one.")


def _check_hash(path: Path, card: Any) -> None:
    """The weights against the card; cards of before have no hash."""
    expected = card.get("weights_sha256") if isinstance(card, dict) else None
    if expected is not None and hashlib.sha256(path.read_bytes()).hexdigest() != expected:
        raise SettingError(f"{path}: is damaged, or its card {path.with_suffix('.json').name} is another file's.")


def load_weights(agent: ActorCritic, weights: dict[str, Tensor], source: str) -> None:
    """Copies ``weights`` into ``agent``.

    Raises:
        SettingError: names or shapes differ.
    """
    try:
        agent.load_state_dict(weights)
    except RuntimeError as error:
        raise SettingError(f"{source}: the weights do not fit the network that the card names.") from error


def write_agent(path: Path, agent: nn.Module, card: dict[str, Any]) -> None:
    """Writes ``path`` (.safetensors) and the card beside it (.json); ``card`` holds an :class:`AgentCard` and more.

    Raises:
        SettingError: the folder cannot be written.
    """
    try:
        weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in agent.state_dict().items()})
        card = {**card, "weights_sha256": hashlib.sha256(weights).hexdigest()}
        write_atomically(path, weights)
        write_atomically(path.with_suffix(".json"), (json.dumps(card, indent=2) + "\n").encode())
    except OSError as error:
        raise SettingError(f"{path}: cannot be written ({error.strerror}); choose another --output.") from error


def newest_intact(folder: Path) -> Path | None:
    """The newest of :func:`kept` that is whole; says what is wrong with those before it. None where none was saved.

    Raises:
        SettingError: there are some, and all are damaged.
    """
    found = kept(folder)
    for path in found:
        try:
            read_agent(path)
        except SettingError as error:
            rank_zero_info(f"warning: {error}")
        else:
            if path != found[0]:
                rank_zero_info(f"going on from {path}, saved before it")
            return path
    if found:
        raise SettingError(f"--ckpt_path: every checkpoint in {str(folder)!r} is damaged; name another.")
    return None
