"""Collects what every fault came to, for the table at the end of ``python -m pytest tests/faults -m ''``."""

from collections.abc import Callable

import pytest

OUTCOMES = pytest.StashKey[dict[str, list[bool]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[OUTCOMES] = {}


@pytest.fixture
def survived(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Notes one try of a fault and whether the run survived it; a try that did not fails the test."""

    def note(fault: str, ok: bool, why: str = "") -> None:
        request.config.stash[OUTCOMES].setdefault(fault, []).append(bool(ok))
        assert ok, f"{fault}: {why}"

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    outcomes = config.stash[OUTCOMES]
    if not outcomes:
        return
    width = max(map(len, outcomes))
    terminalreporter.write_line(f"\n{'fault':{width}} | tries | survived")
    terminalreporter.write_line(f"{'-' * width} | ----- | --------")
    for fault, tries in outcomes.items():
        terminalreporter.write_line(f"{fault:{width}} | {len(tries):5} | {sum(tries):8}")
