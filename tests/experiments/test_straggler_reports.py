"""Straggler reports of traces, end to end on few simulated ones."""

import json

from experiments.delays import straggler_reports


def test_report(tmp_path, monkeypatch):
    monkeypatch.setattr(straggler_reports, "SIZES", ((100, 4),))
    monkeypatch.setattr(straggler_reports, "NUM_ROUNDS", (300,))
    straggler_reports.report(traces=4, out=tmp_path)
    for name in ("job_1", "job_4", "uneven_seconds"):
        assert (tmp_path / f"report_{name}.md").read_text().startswith("```text\n")
        assert (tmp_path / f"report_{name}.png").stat().st_size > 10_000
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["speed"]["sizes"][0]["rounds"] == 100
    for row in written["simulated"]["rows"]:
        independent, _ = row["cells"]
        # Plain ones are always named, and nobody else is.
        assert independent["right"] == 1
        assert independent["others"] == 0
        if row["kind"] != "steady":
            assert abs(independent["reported"] / independent["true"] - 1) < 0.3
