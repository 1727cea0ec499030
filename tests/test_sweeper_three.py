"""Nine trials, of which one is impossible, one has no memory and one diverges."""

import csv
from pathlib import Path

import pytest

from mlx_ft import lora, step
from mlx_ft.main import main
from tests.jobs import job

POINTS = {
    **{f"rank_{rank}": f"lora: {{rank: {rank}}}" for rank in (2, 3, 4, 5, 6, 7)},
    "impossible": "lora: {rank: 0}",
    "no_memory": "lora: {rank: 64}",
    "diverging": "optimizer: {learning_rate: 10}\n"
                 "train: {spike_factor: 1.2, skip_patience: 1, max_steps: 16}\n"
                 "lora: {alpha: 64}",
}  # fmt: skip


@pytest.mark.slow
def test_three_that_fail_are_told_of_and_the_other_six_are_done(place, monkeypatch, capsys):
    genuine = step.summed_gradient

    def summed_gradient(model, *given, **more):
        gradient = genuine(model, *given, **more)
        large = lora.count(model) > 50_000

        def limited(*arrays, **cache):
            if large:
                raise RuntimeError("[malloc] Unable to allocate 1 bytes.")
            return gradient(*arrays, **cache)

        return limited

    monkeypatch.setattr(step, "summed_gradient", summed_gradient)
    folder = place / "points/experiment"
    folder.mkdir(parents=True)
    for name, text in POINTS.items():
        (folder / f"{name}.yaml").write_text(f"# @package _global_\n{text}\n")
    given = [text for text in job() if not text.startswith(("hydra.run.dir", "lora.rank",
                                                            "train.max_steps"))]  # fmt: skip
    code = main(["-m", "--config-dir", "points", *given, f"experiment={','.join(POINTS)}",
                 "sweep.name=nine"])  # fmt: skip
    said = capsys.readouterr()
    assert code == 1
    with (place / "outputs/sweeps/nine/trials.csv").open() as file:
        rows = {Path(row["run_dir"]).name: row for row in csv.DictReader(file)}
    found = {name.removeprefix("experiment="): row["status"] for name, row in rows.items()}
    failed = {"impossible", "no_memory", "diverging"}
    assert found == {name: "FAILED" if name in failed else "FINISHED" for name in POINTS}
    reasons = {
        "impossible": "lora.rank: found 0",
        "no_memory": "memory ran out on a single row",
        "diverging": "steps in a row",
    }
    page = (place / "outputs/sweeps/nine/report.html").read_text()
    table = (place / "outputs/sweeps/nine/trials.md").read_text()
    for name, reason in reasons.items():
        assert reason in rows[f"experiment={name}"]["error"]
        assert reason in page
        assert reason in table
        assert reason in said.out + said.err  # when it happened
    assert "rank: " in (place / "outputs/sweeps/nine/best.yaml").read_text()
