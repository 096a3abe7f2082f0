"""The curves of a run, over all the times it was resumed."""

from pathlib import Path

import pytest

from a2d_lightning.cli.curves import PANELS, _matching, budget_outweighs_reward_at, curves, read_metrics
from a2d_lightning.runtime.errors import SettingError


def test_metrics_of_a_resumed_run_are_joined_in_order(tmp_path: Path) -> None:
    (tmp_path / "metrics-0.csv").write_text("step,loss/value,val/score\n100,1.5,\n200,,-20\n")
    (tmp_path / "metrics.csv").write_text("loss/value,step\n0.5,300\n")
    assert read_metrics(tmp_path) == {"loss/value": [(100, 1.5), (300, 0.5)], "val/score": [(200, -20)]}


def test_what_was_done_again_counts_once(tmp_path: Path) -> None:
    # stopped at 350 and resumed from a checkpoint at 200, before its evaluation
    (tmp_path / "metrics-0.csv").write_text("step,loss/value,val/score\n100,1.5,\n200,1.2,\n200,,-20\n350,1.0,\n")
    (tmp_path / "metrics.csv").write_text("step,loss/value,val/score\n200,,-19\n300,0.5,\n")
    expected = {"loss/value": [(100, 1.5), (200, 1.2), (300, 0.5)], "val/score": [(200, -19)]}
    assert read_metrics(tmp_path) == expected


def test_a_line_that_a_machine_wrote_half_of_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("loss/value,step\n1.5,100\n0.5,200\n0.25,30")  # of 300
    assert read_metrics(tmp_path) == {"loss/value": [(100, 1.5), (200, 0.5)]}


def test_a_picture_is_written(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,val/score,search/entropy_cell00\n100,-20,2.1\n200,-19,2.0\n")
    curves(["--run_dir", str(tmp_path)])
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("asked", "written"), [("lr0.1", "lr0.1.png"), ("a.svg", "a.svg"), ("plain", "plain.png")])
def test_a_picture_is_written_where_it_is_asked_for(tmp_path: Path, asked: str, written: str) -> None:
    (tmp_path / "metrics.csv").write_text("step,val/score\n100,-20\n")
    curves(["--run_dir", str(tmp_path), "--output", str(tmp_path / "out" / asked)])
    assert [path.name for path in (tmp_path / "out").iterdir()] == [written]


def test_metrics_of_the_derived_network_and_of_alphas_noise_have_their_panels() -> None:
    logged = ["search/alpha_snr_cell00", "search/alpha_snr_cell13", "search/argmax_macs", "search/derived_macs"]
    found = {panel: _matching(logged, patterns) for panel, patterns in PANELS.items()}
    assert {panel: names for panel, names in found.items() if names} == {
        "signal-to-noise ratio of alpha's gradient": logged[:2],
        "MACs": logged[2:],  # runs of before have the argmax's
    }


def test_a_folder_without_metrics_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"contains no metrics\.csv"):
        curves(["--run_dir", str(tmp_path)])


def gradients(cost: list[float], reward: list[float]) -> dict[str, list[tuple[float, float]]]:
    """Metrics of a search with these norms, every 10 environment steps."""
    return {
        f"gradient/alpha_{name}_norm": [(10.0 * i, value) for i, value in enumerate(values)]
        for name, values in (("cost", cost), ("reward", reward))
    }


def test_the_step_is_found_from_which_the_cost_outweighs_the_reward() -> None:
    # cost i / 50 passes reward 1 at i = 51; a window of 11 has its median at its sixth value, so from i = 46 on
    metrics = gradients([i / 50 for i in range(100)], [1.0] * 100)
    assert budget_outweighs_reward_at(metrics) == 460
    # single outliers do not count
    metrics = gradients([5.0 if i % 3 == 0 else 0.5 for i in range(100)], [1.0] * 100)
    assert budget_outweighs_reward_at(metrics) is None
    assert budget_outweighs_reward_at({"loss/policy": [(10.0, 1.0)]}) is None
