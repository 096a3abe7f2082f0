"""Player of exported ONNX agents, without torch: ``python -m a2d_lightning.onnx_player agent.onnx --games 30``.

Everything comes from the file and its metadata: the network, the game, the preprocessing and the actions. The emulators
are ale-py's, so Atari games only.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

METADATA_KEY = "a2d_lightning"
ATARI_FRAMES_PER_GAME = 108_000


class OnnxAgent:
    """A network in an ONNX file, and its contract.

    Args:
        path: The file.
        num_threads: Threads of ONNX Runtime.

    Raises:
        ValueError: If the file is damaged or was not written by a2d_lightning, or its metadata contradict its graph.
    """

    def __init__(self, path: str | Path, num_threads: int = 1) -> None:
        import onnxruntime  # noqa: PLC0415 (an extra)

        if not Path(path).is_file():
            raise ValueError(f"{path}: there is no such file")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ValueError(f"{path}: not a readable ONNX file ({str(error).splitlines()[0]})") from error
        text = self.session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if text is None:
            raise ValueError(f"{path}: no metadata of a2d_lightning; export the agent with --format onnx")
        self.metadata: dict[str, Any] = json.loads(text)
        self.contract: dict[str, Any] = self.metadata["contract"]
        (given,), outputs = self.session.get_inputs(), self.session.get_outputs()
        found = {
            "input": [given.name, given.type, *given.shape[1:]],
            "logits": outputs[0].shape[1:],
        }
        promised = {
            "input": [self.contract["input"]["name"], "tensor(uint8)", *self.contract["input"]["shape"][1:]],
            "logits": [len(self.contract["actions"])],
        }
        if found != promised:
            raise ValueError(f"{path}: the metadata promise {promised}, but the graph has {found}")

    def evaluate(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return logits float32 ``[B, actions]`` and values float32 ``[B]`` of pixels uint8 ``[B, *shape]``."""
        logits, value = self.session.run(["logits", "value"], {"pixels": pixels})
        return logits, value

    def act(self, pixels: np.ndarray, generator: np.random.Generator | None = None) -> np.ndarray:
        """Return actions, int64 ``[B]``: sampled by ``generator``, or the most probable ones without it."""
        logits, _ = self.evaluate(pixels)
        if generator is not None:
            logits = logits + generator.gumbel(size=logits.shape)
        actions: np.ndarray = logits.argmax(-1)
        return actions


def play(agent: OnnxAgent, seeds: np.ndarray, generator: np.random.Generator | None = None) -> np.ndarray:
    """Play one full game for each seed.

    Args:
        agent: The agent.
        seeds: int64 ``[games]``.
        generator: Of sampled actions; greedy without it.

    Returns:
        Raw scores, float64 ``[games]``.

    Raises:
        ValueError: If the game is not one of ale-py's.
    """
    from ale_py.vector_env import AtariVectorEnv  # noqa: PLC0415 (slow to import)

    game, frames = agent.contract["game"], agent.contract["frames"]
    if "/" in game or ":" in game or not frames["gray"]:
        raise ValueError(f"the game {game!r} with these frames needs a2d_lightning itself: `test --ckpt_path FILE`")
    _, height, width = agent.contract["input"]["shape"][1:]
    games = len(seeds)
    vector = AtariVectorEnv(
        game,
        games,
        num_threads=1,
        max_num_frames_per_episode=ATARI_FRAMES_PER_GAME,
        repeat_action_probability=frames["sticky_action_probability"],
        img_height=height,
        img_width=width,
        grayscale=True,
        stack_num=frames["stack"],
        frameskip=frames["skip"],
        noop_max=agent.contract["noop_max"],
        episodic_life=False,
        life_loss_info=False,
        reward_clipping=False,
    )
    scores, playing = np.zeros(games), np.ones(games, dtype=bool)
    try:
        pixels, _ = vector.reset(seed=seeds)
        while playing.any():
            actions = np.zeros(games, dtype=np.int64)
            actions[playing] = agent.act(pixels[playing], generator)
            pixels, rewards, terminated, truncated, _ = vector.step(actions)
            scores[playing] += rewards[playing]
            playing &= ~(terminated | truncated)
    finally:
        vector.close()
    return scores


def main(args: list[str] | None = None) -> None:
    """Play games and print the mean score with its 95 % bootstrap interval."""
    parser = argparse.ArgumentParser(prog="python -m a2d_lightning.onnx_player", description=main.__doc__)
    parser.add_argument("agent", type=Path, help="ONNX file written by `export --format onnx`")
    parser.add_argument("--games", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of games and actions")
    parser.add_argument("--greedy", action="store_true", help="take the most probable action; sample otherwise")
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime")
    settings = parser.parse_args(args)
    try:
        agent = OnnxAgent(settings.agent, settings.threads)
        generator = np.random.default_rng(settings.seed)
        seeds = generator.integers(2**31, size=settings.games)
        scores = play(agent, seeds, None if settings.greedy else generator)
    except ModuleNotFoundError as error:
        _fail(f"{error.name} is missing; pip install {error.name}")
    except ValueError as error:
        _fail(str(error))
    means = generator.choice(scores, size=(10_000, len(scores))).mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    print(
        f"{agent.contract['game']}: mean score of {len(scores)} full games {scores.mean():.2f} (95 % interval "
        f"{low:.2f} to {high:.2f}), actions {'greedy' if settings.greedy else 'sampled'}"
    )


def _fail(line: str) -> NoReturn:
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
