"""Several runs in one picture."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot as plt

from a2d_lightning.cli import compare as module
from a2d_lightning.cli.compare import compare
from a2d_lightning.runtime.errors import SettingError

matplotlib.use("Agg")

RUN = """step,weight_updates,train/recent_game_score,val/score,val/score_low95,val/score_high95
100,10,-20,,,
200,40,-18,,,
300,70,-16,,,
150,,,-21,-21.5,-20.5
300,,,-15,-16,-14
"""


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Figures that were drawn, kept open."""
    figures: list[Any] = []
    monkeypatch.setattr(module.plt, "close", figures.append)
    yield figures
    plt.close("all")


def write_run(folder: Path, content: str = RUN) -> str:
    folder.mkdir()
    (folder / "metrics.csv").write_text(content)
    return str(folder)


def test_scores_are_drawn_per_step_and_per_update(tmp_path: Path, drawn: list[Any]) -> None:
    run_dir = write_run(tmp_path / "a2d")
    compare(["--run_dirs", f"[{run_dir}]", "--output", str(tmp_path / "out" / "both.png")])
    assert (tmp_path / "out" / "both.png").read_bytes().startswith(b"\x89PNG")
    (figure,) = drawn
    per_step, per_update = [[a for a in figure.axes if a.get_xlabel() == x] for x in X_LABELS]
    training, score = (axis.lines[1] for axis in per_step)
    assert training.get_xydata().tolist() == [[100, -20], [200, -18], [300, -16]]
    assert score.get_xydata().tolist() == [[150, -21], [300, -15]]
    # step 150 lies half-way between 10 and 40 updates
    assert per_update[1].lines[1].get_xydata().tolist() == [[25, -21], [70, -15]]
    band = per_step[1].collections[0].get_paths()[0].vertices
    assert {tuple(point) for point in band} >= {(150, -21.5), (150, -20.5), (300, -16), (300, -14)}


X_LABELS = ("environment steps", "weight updates")


def test_a_run_keeps_its_colour_where_another_has_no_data(tmp_path: Path, drawn: list[Any]) -> None:
    no_scores = "\n".join(line.rsplit(",", 3)[0] for line in RUN.splitlines()[:4])
    first, second = write_run(tmp_path / "first", no_scores), write_run(tmp_path / "second")
    compare(["--run_dirs", f"[{first},{second}]", "--labels", "[one,two]", "--output", str(tmp_path / "x.png")])
    training, score = drawn[0].axes[:2]
    assert [text.get_text() for text in training.get_legend().get_texts()] == ["one", "two"]
    colours = {line.get_color() for line in score.lines if len(line.get_xdata())}
    assert colours == {"C1"}


def test_what_is_logged_while_training_is_averaged_over_a_fiftieth_of_the_run(tmp_path: Path, drawn: list[Any]) -> None:
    rows = "\n".join(f"{step},{step},{(-1) ** step}" for step in range(100))
    run_dir = write_run(tmp_path / "a", f"step,weight_updates,train/recent_game_score\n{rows}\n")
    compare(["--run_dirs", f"[{run_dir}]", "--output", str(tmp_path / "x.png")])
    line = drawn[0].axes[0].lines[1]
    # a window of 1 + 100 / 50 = 3: means of (1, -1, 1) and (-1, 1, -1), at the middle step
    assert np.allclose(line.get_ydata(), [(-1) ** i / 3 for i in range(98)])
    assert np.allclose(line.get_xdata(), np.arange(1, 99))


def test_runs_without_a_label_each_and_without_scores_are_named(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "a")
    with pytest.raises(SettingError, match=r"--labels: 2 labels for 1 runs"):
        compare(["--run_dirs", f"[{run_dir}]", "--labels", "[a,b]", "--output", str(tmp_path / "x.png")])
    empty = write_run(tmp_path / "b", "step,loss/value\n1,2\n")
    with pytest.raises(SettingError, match="none of the runs has a score yet"):
        compare(["--run_dirs", f"[{empty}]", "--output", str(tmp_path / "x.png")])
