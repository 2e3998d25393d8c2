"""Tests of what torch before 2.8 lacks are skipped there, with the reason; torch or this package refuses it by name."""

from collections.abc import Generator

import pytest
import torch

RECOMPUTE = 'memory="recompute" needs torch 2.8'
LACKS = {
    'memory="recompute" needs torch._C._autograd._top_saved_tensors_default_hooks, which torch': RECOMPUTE,
    "UserDefinedObjectVariable(Recomputed)": RECOMPUTE,  # when compiled
    "'Stream' object has no attribute 'record_event'": "FSDP2 of torch 2.6 needs a GPU",
}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the failed report of a test that was refused so, on a rank perhaps, into a skipped one."""
    report = yield
    if report.failed and torch.__version__ < "2.8":  # which compares versions, not strings
        for message, reason in LACKS.items():
            if message in str(report.longrepr):
                report.outcome, report.longrepr = "skipped", (str(item.path), 0, reason)
    return report
