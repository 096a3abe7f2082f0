"""Export of an agent to ONNX, verified against torch on frames that the agent played itself."""

import copy
import io
import itertools
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from a2d_lightning.agent_files import AgentCard
from a2d_lightning.deploy.contract import NOOP_MAX, frames_of, input_contract
from a2d_lightning.models.networks import ActorCritic
from a2d_lightning.rollouts.envs import make_env
from a2d_lightning.rollouts.policy import select_actions
from a2d_lightning.runtime.atomic_file import write_atomically
from a2d_lightning.runtime.errors import SettingError

OPSET = 20

METADATA_KEY = "a2d_lightning"
"""Key of the contract among the file's metadata, as JSON."""

TOLERANCE = 1e-4
"""Largest difference from torch, relative to the largest absolute output, or absolute below 1."""

FRAMES = 256
"""Observations on which a file is verified."""


def export_onnx(card: AgentCard, agent: ActorCritic, path: Path, content: dict[str, Any]) -> None:
    """Write an ONNX file, and check it by ONNX Runtime at batch sizes 1, 7 and :data:`FRAMES`.

    Args:
        card: Card of the agent.
        agent: Network with its weights.
        path: Target.
        content: Card's fields for the metadata: score, MACs, parameters, licence.

    Raises:
        SettingError: If onnx, onnxscript or onnxruntime is not installed, or the file's outputs differ from torch's. No
            file is left then.
    """
    onnx, runtime = _libraries()
    network = folded(agent)
    pixels = torch.zeros(2, *card.frame_shape, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            network,
            (pixels,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=["pixels"],
            output_names=["logits", "value"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    assert program is not None
    model = program.model_proto
    metadata = {**content, "opset": OPSET, "contract": input_contract(card)}
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata)})
    onnx.checker.check_model(model)
    stream = io.BytesIO()
    onnx.save_model(model, stream)
    observations = played_frames(card, agent, FRAMES)
    session = runtime.InferenceSession(stream.getvalue(), providers=["CPUExecutionProvider"])
    difference = largest_difference(session, agent, observations)
    if difference > TOLERANCE:
        raise SettingError(
            f"--format onnx: the outputs differ from torch's by {difference:.1e} on {FRAMES} frames of {card.game}, "
            f"more than {TOLERANCE:.0e}; the file was not written. Please report this."
        )
    write_atomically(path, stream.getbuffer())


def folded(agent: ActorCritic) -> ActorCritic:
    """Return a copy in evaluation mode, with each batch norm folded into the convolution before it."""
    agent = copy.deepcopy(agent).eval().requires_grad_(False)
    for module in list(agent.modules()):
        if isinstance(module, nn.Sequential):
            layers = list(module)
            for i, (layer, following) in enumerate(itertools.pairwise(layers)):
                if isinstance(layer, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
                    module[i] = fuse_conv_bn_eval(layer, following)
                    module[i + 1] = nn.Identity()
    return agent


def played_frames(card: AgentCard, agent: ActorCritic, count: int, seed: int = 0) -> Tensor:
    """Return observations that the agent sees while it plays, uint8 ``[count, *frame_shape]``.

    Args:
        card: Card of the agent.
        agent: Network; it is set to evaluation mode.
        count: Number of observations.
        seed: Of games and actions.
    """
    agent.eval()
    num_envs = 8
    env = make_env(card.game, num_envs, frames_of(card), seed, num_threads=1, noop_max=NOOP_MAX)
    generator = torch.Generator().manual_seed(seed)
    found: list[np.ndarray] = []
    try:
        pixels = env.reset_games(np.ones(num_envs, dtype=np.bool_))
        while len(found) * num_envs < count:
            found.append(pixels.copy())
            with torch.no_grad():
                logits, _ = agent(torch.from_numpy(pixels))
            step = env.step_games(select_actions(logits, "sampled", generator).numpy())
            pixels = env.reset_games(step.done) if step.done.any() else step.pixels
    finally:
        env.close()
    return torch.from_numpy(np.concatenate(found)[:count])


def largest_difference(session: Any, agent: ActorCritic, observations: Tensor) -> float:
    """Return the largest difference between a session's and torch's outputs, see :data:`TOLERANCE`.

    Args:
        session: onnxruntime's InferenceSession.
        agent: Network in evaluation mode.
        observations: uint8 ``[n, *frame_shape]``.
    """
    largest = 0.0
    for batch in (1, 7, len(observations)):
        for part in observations.split(batch):
            with torch.no_grad():
                expected = agent(part)
            for found, torchs in zip(session.run(["logits", "value"], {"pixels": part.numpy()}), expected, strict=True):
                scale = max(1.0, float(torchs.abs().max()))
                largest = max(largest, float((torch.from_numpy(found) - torchs).abs().max()) / scale)
    return largest


def _libraries() -> tuple[Any, Any]:
    try:
        import onnx  # noqa: PLC0415 (an extra)
        import onnxruntime  # noqa: PLC0415
        import onnxscript  # noqa: F401, PLC0415
    except ModuleNotFoundError as error:
        raise SettingError(f"--format onnx needs {error.name}; pip install a2d-lightning[onnx].") from error
    return onnx, onnxruntime
