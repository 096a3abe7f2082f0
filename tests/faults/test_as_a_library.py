"""In a script or a notebook a signal ends ``fit``, never Python, and handlers are the script's own afterwards."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[2]

SCRIPT = """
import os, signal, sys, time
sys.path.insert(0, "tests")
import lightning as L
from toy_game import CATCH, SIZE, register, tiny_backbone
from a2d_lightning.data import RolloutDataModule
from a2d_lightning.rollouts.games import FrameSettings
from a2d_lightning.runtime.signals import INTERRUPTION, Interrupted
from a2d_lightning.modules import TeacherModule
from a2d_lightning.callbacks import RunCheckpoint

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts jobs in the background without it
INTERRUPTION.grace_seconds = 0.5
HOW = sys.argv[2]
register()


class Interrupts(L.Callback):
    rollouts = 0

    def on_train_batch_end(self, trainer, module, *_):
        self.rollouts += 1
        if HOW == "never":
            return
        if self.rollouts == 2:
            os.kill(os.getpid(), signal.SIGINT)
            while not INTERRUPTION.received:
                time.sleep(0.01)
            if HOW == "twice":
                os.kill(os.getpid(), signal.SIGINT)


data = RolloutDataModule(
    CATCH, num_envs=4, rollout_length=5, total_env_steps=200, env_steps_per_epoch=200,
    frames=FrameSettings(size=42, stack=4, skip=1),
)
settings = {name: getattr(data, name) for name in ("game", "frame_shape", "num_actions", "total_env_steps")}
trainer = L.Trainer(
    accelerator="cpu", max_epochs=-1, limit_val_batches=0, logger=False, default_root_dir=sys.argv[1],
    enable_progress_bar=False, enable_model_summary=False, callbacks=[RunCheckpoint(), Interrupts()],
)
before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
try:
    trainer.fit(TeacherModule("four_conv", **settings), datamodule=data)
    print("done")
except (Interrupted, SystemExit) as error:  # Lightning makes the second Ctrl-C a SystemExit
    print(type(error).__name__)
assert {s: signal.getsignal(s) for s in before} == before
time.sleep(1.5)  # longer than the grace of the command line
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
except KeyboardInterrupt:
    print("mine")
time.sleep(1.5)
print("alive")
"""


@pytest.mark.parametrize(
    ("how", "said"), [("once", "Interrupted"), ("twice", "SystemExit"), ("never", "done")], ids=str
)
def test_a_signal_ends_fit_and_not_python(tmp_path: Path, how: str, said: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path), how]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [said, "mine", "alive"]
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()
