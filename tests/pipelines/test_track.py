"""Committed results in MLflow: numbers over length, picture and JSON beside them."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from benchmarks import track

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "long_context_h100.json"


def test_every_result_is_recorded(workspace: Path) -> None:
    """Whatever stands in it: of drift.py "rows" is a number."""
    results = [str(RESULT.with_name(f"{name}.json")) for name in ("drift_h200", "generation_h200", "mfcc_cpu")]
    track.main(results)
    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("benchmarks").experiment_id])  # type: ignore[union-attr]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len(runs) == len(results)


def test_a_result_is_recorded_with_its_picture(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    track.main([str(RESULT)])
    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    run = client.search_runs([client.get_experiment_by_name("benchmarks").experiment_id])[0]  # type: ignore[union-attr]
    assert run.info.run_id in capsys.readouterr().out
    assert run.data.params["hardware.gpu"] == "NVIDIA H100 80GB HBM3"
    history = client.get_metric_history(run.info.run_id, "segments/train/eager/tokens_per_second")
    assert {2**13, 2**24} <= {point.step for point in history}
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {RESULT.name, RESULT.stem + ".png"}
