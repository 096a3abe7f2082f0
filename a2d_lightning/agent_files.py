"""Files of agents and teachers: safetensors weights with a JSON card, or checkpoints of training runs.

Loading a file never executes code: safetensors files hold only tensors, and checkpoints load with ``weights_only``.
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
IDENTITY = ("game", "network", "frame_shape", "num_actions", "normalization", "plan", "operators", "operator_names")


@dataclass(frozen=True)
class AgentCard:
    """Metadata of an agent's weights: enough to rebuild the network and to check which agents it can teach."""

    game: str
    network: str
    """Name of a hand-designed backbone, ``derived`` or ``supernet``."""
    frame_shape: FrameShape
    num_actions: int
    env_steps: int
    architecture: dict[str, Any] | None = None
    """Architecture of a derived network, or plan of a supernet; None for hand-designed backbones."""
    normalization: Normalization = "batch"
    frames: dict[str, Any] | None = None
    """Preprocessing of images (:class:`~a2d_lightning.rollouts.games.FrameSettings`); None in files that lack it."""

    @staticmethod
    def from_dict(content: dict[str, Any], source: str) -> "AgentCard":
        """Build a card from a dict, checking each field.

        Args:
            content: Fields of the card, as from :meth:`to_dict`; other keys are ignored.
            source: Name of the file, for error messages.

        Raises:
            SettingError: If a field is missing or has a wrong type or value.
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
            frames=content.get("frames"),
        )

    def identity(self) -> tuple[Any, ...]:
        """Return the fields that must be equal for weights to be interchangeable, in the order of :data:`IDENTITY`."""
        architecture = json.loads(json.dumps(self.architecture or {}))  # tuples as lists
        return (
            *(without_module(self.game), self.network, self.frame_shape, self.num_actions, self.normalization),
            *(architecture.get(name) for name in ("plan", "operators", "operator_names")),
        )

    def check_settings(self, mine: "AgentCard") -> None:
        """Compare this card, from a checkpoint, with the card of the agent built from a run's settings.

        Args:
            mine: Card of the agent built from the settings.

        Raises:
            SettingError: If the cards differ.
        """
        for name, its, ours in zip(IDENTITY, self.identity(), mine.identity(), strict=True):
            if its != ours:
                raise SettingError(
                    f"ckpt_path: the checkpoint's {name} is {its}, but the settings give {ours}; use the config that "
                    "the checkpoint was trained with."
                )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON and checkpoints."""
        return {**asdict(self), "frame_shape": list(self.frame_shape)}

    def build(self) -> ActorCritic:
        """Build the network with newly initialized weights.

        Raises:
            SettingError: If the network is a supernet or unknown, or its architecture is invalid.
        """
        if self.network == "supernet":
            raise SettingError(
                "a search checkpoint contains a supernet, which can be neither a teacher nor exported; retrain the "
                "derived architecture and use that checkpoint."
            )
        if self.network not in (*BACKBONES, "derived"):
            raise SettingError(
                f"network {self.network!r} is not one of {', '.join(BACKBONES)} or derived; such a checkpoint can be "
                "neither a teacher nor exported."
            )
        architecture = Architecture.from_dict(self.architecture, "card") if self.architecture else None
        backbone = build_backbone(self.network, architecture, self.frame_shape)
        return with_normalization(ActorCritic(backbone, self.frame_shape, self.num_actions), self.normalization)


def build_backbone(network: str, architecture: Architecture | None, frame_shape: FrameShape) -> nn.Module:
    """Build a backbone.

    Args:
        network: Name of a hand-designed backbone, or ``derived``.
        architecture: Architecture of a derived network; otherwise ignored.
        frame_shape: (stack, height, width) of an observation.

    Raises:
        SettingError: If ``network`` is ``derived`` and ``architecture`` is absent.
    """
    if network == "derived":
        if architecture is None:
            raise SettingError("network 'derived' needs an architecture.")
        return architecture.build(frame_shape)
    return make_backbone(network, frame_shape)


class FrozenTeacher(nn.Module):
    """Trained agent, frozen in evaluation mode without gradients.

    Args:
        agent: Agent to freeze.
    """

    def __init__(self, agent: ActorCritic) -> None:
        super().__init__()
        self.agent = agent.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the teacher's outputs.

        Args:
            pixels: uint8 ``[B, stack, h, w]``.

        Returns:
            Logits ``[B, actions]`` and values ``[B]``.
        """
        return self.agent(pixels)

    def train(self, mode: bool = True) -> "FrozenTeacher":
        """Keep evaluation mode, whatever ``mode`` is."""
        return super().train(False)


def bundled_teachers() -> dict[str, Path]:
    """Return the paths of the bundled teachers by name."""
    return {path.stem: path for path in sorted(BUNDLED.glob("*.safetensors"))}


def load_teacher(teacher: str, game: str, frame_shape: FrameShape, num_actions: int) -> FrozenTeacher:
    """Load a teacher for a game.

    Args:
        teacher: Name of a bundled teacher, path of a ``.safetensors`` file next to its card (``.json``), or path of a
            ``.ckpt`` file.
        game: Game to teach.
        frame_shape: (stack, height, width) of the observations shown to the teacher.
        num_actions: Number of actions of the game.

    Raises:
        SettingError: If there is no such teacher, its file is damaged, its weights are not finite, or it does not fit
            the game or the frames.
    """
    path = bundled_teachers().get(teacher) or Path(teacher)
    if not path.is_file():
        names = ", ".join(bundled_teachers()) or "none"
        raise SettingError(
            f"model.teacher: {teacher!r} is neither a file nor a bundled teacher (bundled: {names}); train one with "
            f"`python -m a2d_lightning fit --config configs/teacher.yaml --data.game {game}` and pass its checkpoint."
        )
    card, weights = read_agent(path)
    check_teacher(card, teacher, game, frame_shape, num_actions)
    agent = card.build()
    load_weights(agent, weights, str(path))
    if broken := [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]:
        raise SettingError(f"model.teacher: {teacher!r} has non-finite weights ({broken[0]}); choose another.")
    return FrozenTeacher(agent)


def check_teacher(card: AgentCard, teacher: str, game: str, frame_shape: FrameShape, num_actions: int) -> None:
    """Check that a teacher fits the game and the frames.

    Game, number of actions and stack must be equal. Height and width of the frames must be the same multiple of the
    teacher's.

    Args:
        card: Card of the teacher.
        teacher: Name or path of the teacher, for error messages.
        game: Game to teach.
        frame_shape: (stack, height, width) of the observations shown to the teacher.
        num_actions: Number of actions of the game.

    Raises:
        SettingError: If the teacher does not fit.
    """
    if without_module(card.game) != without_module(game):
        raise SettingError(
            f"model.teacher: {teacher!r} plays {card.game}, not {game}; train one with `python -m a2d_lightning fit "
            f"--config configs/teacher.yaml --data.game {game}` and pass its checkpoint."
        )
    if card.num_actions != num_actions:
        raise SettingError(
            f"model.teacher: {teacher!r} has {card.num_actions} actions, but data.game has {num_actions}; choose "
            "another."
        )
    stack, height, width = card.frame_shape
    fits = frame_shape[0] == stack and frame_shape[1] % height == 0 and frame_shape[2] % width == 0
    if not fits or frame_shape[1] // height != frame_shape[2] // width:
        raise SettingError(
            f"model.teacher: {teacher!r} needs {stack} frames of {height}x{width} and cannot use {frame_shape[0]} "
            f"frames of {frame_shape[1]}x{frame_shape[2]}; set data.frames.size to a multiple of {height} "
            f"(model.agent_frame_size gives the student smaller frames) and data.frames.stack to {stack}."
        )


def read_agent(path: Path) -> tuple[AgentCard, dict[str, Tensor]]:
    """Read card and weights from a ``.safetensors`` file with its ``.json`` card, or from a training checkpoint.

    Raises:
        SettingError: If the file is damaged or contains no agent, or the card is missing.
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
                raise SettingError(f"{path}: contains no agent; the file was not written by a2d_lightning.")
            content = checkpoint.get("agent_card")
            if isinstance(content, dict):
                content = {**content, "frames": _frames_of_run(checkpoint)}
            weights = {
                name.removeprefix("agent."): tensor
                for name, tensor in checkpoint.get("state_dict", {}).items()
                if name.startswith("agent.")
            }
    except FileNotFoundError as error:
        raise SettingError(
            f"{path}: the card {path.with_suffix('.json').name} is missing from the same folder."
        ) from error
    except (SafetensorError, ValueError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise SettingError(
            f"{path}: not a readable agent file ({type(error).__name__}); export the agent again."
        ) from error
    if not isinstance(content, dict):
        raise SettingError(f"{path}: contains no agent card; the file was not written by a2d_lightning.")
    return AgentCard.from_dict(content, str(path)), weights


def _frames_of_run(checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """Return the preprocessing of a run, from the state of its data module in a checkpoint."""
    data = checkpoint.get("RolloutDataModule")
    settings = data.get("settings") if isinstance(data, dict) else None
    prefix = "data.frames."
    if not isinstance(settings, dict):
        return None
    return {name.removeprefix(prefix): value for name, value in settings.items() if name.startswith(prefix)} or None


def _check_sums(path: Path) -> None:
    """Verify the checksum of each record in a checkpoint, which torch does not.

    Raises:
        SettingError: If the file is damaged or not a checkpoint.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            altered = archive.testzip()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        raise SettingError(f"{path}: is truncated or not a checkpoint ({error}); use an earlier one.") from error
    if altered is not None:
        raise SettingError(f"{path}: is damaged (checksum of {altered}); use an earlier one.")


def _check_hash(path: Path, card: Any) -> None:
    """Compare the hash of the weights with the card; cards of earlier versions have no hash.

    Raises:
        SettingError: If the hashes differ.
    """
    expected = card.get("weights_sha256") if isinstance(card, dict) else None
    if expected is not None and hashlib.sha256(path.read_bytes()).hexdigest() != expected:
        raise SettingError(f"{path}: is damaged, or the card {path.with_suffix('.json').name} belongs to another file.")


def load_weights(agent: ActorCritic, weights: dict[str, Tensor], source: str) -> None:
    """Copy ``weights`` into ``agent``.

    Args:
        agent: Network built from the card.
        weights: State dict of the agent.
        source: Name of the file, for error messages.

    Raises:
        SettingError: If names or shapes differ.
    """
    try:
        agent.load_state_dict(weights)
    except RuntimeError as error:
        raise SettingError(f"{source}: the weights do not fit the network described by the card.") from error


def load_network(source: str | Path, option: str) -> tuple[AgentCard, ActorCritic]:
    """Load the card and the network of an agent.

    Args:
        source: Bundled name, ``.safetensors`` file or training checkpoint.
        option: Name of the setting, for error messages.

    Raises:
        SettingError: If there is no such agent, the file is damaged, or it contains a supernet.
    """
    path = bundled_teachers().get(str(source)) or Path(source)
    if not path.is_file():
        raise SettingError(
            f"{option}: there is no agent {str(source)!r}; give a path or a bundled name "
            f"({', '.join(bundled_teachers())})."
        )
    card, weights = read_agent(path)
    network = card.build()
    load_weights(network, weights, str(path))
    return card, network


def write_agent(path: Path, agent: nn.Module, card: dict[str, Any]) -> None:
    """Write an agent's weights and its card.

    Args:
        path: Path of the ``.safetensors`` file; the card is written next to it as ``.json``.
        agent: Agent whose weights are written.
        card: Fields of an :class:`AgentCard`, and any others.

    Raises:
        SettingError: If the files cannot be written.
    """
    try:
        weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in agent.state_dict().items()})
        card = {**card, "weights_sha256": hashlib.sha256(weights).hexdigest()}
        write_atomically(path, weights)
        write_atomically(path.with_suffix(".json"), (json.dumps(card, indent=2) + "\n").encode())
    except OSError as error:
        raise SettingError(f"{path}: cannot be written ({error.strerror}); choose another --output.") from error


def check_checkpoint(checkpoint: dict[str, Any], card: AgentCard, state: dict[str, Any]) -> None:
    """Check that a run can be resumed from a checkpoint.

    Args:
        checkpoint: Content of the file.
        card: Card of the agent that the settings describe.
        state: State dict of the module that the settings describe.

    Raises:
        SettingError: If the checkpoint is not of this package, or belongs to another game or network.
    """
    if "weight_updates" not in checkpoint or "agent_card" not in checkpoint:
        raise SettingError("ckpt_path: the checkpoint was not written by a2d_lightning; choose another.")
    AgentCard.from_dict(checkpoint["agent_card"], "ckpt_path").check_settings(card)
    for name, tensor in checkpoint.get("state_dict", {}).items():
        expected = list(state[name].shape) if name in state else "absent"
        found = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        if found != expected:
            raise SettingError(f"ckpt_path: the checkpoint's {name} is {found} and not {expected}; choose another.")


def newest_intact(folder: Path) -> Path | None:
    """Return the newest intact checkpoint of a folder, and print a warning for each damaged one that is newer.

    Returns:
        Path of the checkpoint; None if the folder has no checkpoints.

    Raises:
        SettingError: If all checkpoints are damaged.
    """
    found = kept(folder)
    for path in found:
        try:
            read_agent(path)
        except SettingError as error:
            rank_zero_info(f"warning: {error}")
        else:
            if path != found[0]:
                rank_zero_info(f"resuming from {path}, an earlier checkpoint")
            return path
    if found:
        raise SettingError(f"--ckpt_path: every checkpoint in {str(folder)!r} is damaged; give the path of another.")
    return None
