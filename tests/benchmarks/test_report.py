"""New measurements replace the same part's earlier ones, and are read back unchanged."""

from pathlib import Path

from benchmarks import report
from benchmarks.rows import counted, paired

ORDER = ["layers", "memory"]
SLOW = paired("layers", "ours", "theirs", "ms", [(3.0, 2.0), (3.0, 1.0), (4.0, 2.0)], limit=1.0)
FAST = paired("layers", "ours", "theirs", "ms", [(1.0, 2.0), (1.0, 2.0)], limit=1.0)
FREE = counted("memory", "kept", "before", "MB", 1.0, 2.0)


def test_a_part_measured_again_replaces_what_it_said(tmp_path: Path) -> None:
    report.write(report.results_of("memory", [FREE]), ORDER, tmp_path)
    report.write(report.results_of("layers", [SLOW]), ORDER, tmp_path)
    before = (tmp_path / "performance.md").read_text()
    assert before.index("## Layers") < before.index("## Memory")
    assert "| ours | theirs | 3 ms | 2 ms | 2.00 (1.75–2.50) | ≤ 1 | MISSED |" in before
    assert "| kept | before | 1 MB | 2 MB | 0.50 |  |  |" in before
    assert "1 targets, 1 missed" in before
    report.write(report.results_of("layers", [FAST]), ORDER, tmp_path)
    after = (tmp_path / "performance.md").read_text()
    assert "MISSED" not in after
    assert "| kept | before | 1 MB | 2 MB | 0.50 |  |  |" in after
    assert (tmp_path / "performance.png").stat().st_size > 5_000


def test_labels_of_the_picture_tell_rows_apart() -> None:
    two, four = (
        paired(f"a sum, {ranks} ranks of 1 thread", "exchange", "gloo", "ms", [(1.0, 2.0)] * 2, limit=1.0)
        for ranks in (2, 4)
    )
    assert report._labels([two, four, SLOW]) == [
        "exchange, 2 ranks of 1 thread\n÷ gloo",
        "exchange, 4 ranks of 1 thread\n÷ gloo",
        "ours\n÷ theirs",
    ]
