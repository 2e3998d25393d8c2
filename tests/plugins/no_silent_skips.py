"""Skipped tests fail in CI, except those that need a GPU."""

import os
from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skipped test's report into a failed one if `CI=true`."""
    report = yield
    if os.environ.get("CI") == "true" and report.skipped and not hasattr(report, "wasxfail"):
        fail_skip(report, has_gpu_marker=item.get_closest_marker("gpu") is not None)
    return report


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """The same for a module skipped as a whole (`importorskip`), which has no test reports."""
    if os.environ.get("CI") == "true" and report.skipped:
        fail_skip(report, has_gpu_marker=False)


def fail_skip(report: pytest.TestReport | pytest.CollectReport, *, has_gpu_marker: bool) -> None:
    """Make a skip a failure with its reason; tests marked `gpu` may skip."""
    if has_gpu_marker:
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"{reason}: skipped, and CI=true lets only tests marked gpu do so; install what is missing"
