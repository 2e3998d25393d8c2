"""gloo ranks run under SCHED_BATCH, unless another policy is set."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from lightning.pytorch import LightningModule

from syncbn.training import ddp
from tests.ranks import Ranks
from tests.training import fits

POLICIES = """
import os, threading
from syncbn.launch.scheduling import let_threads_finish
let_threads_finish()
found = []
thread = threading.Thread(target=lambda: found.append(os.sched_getscheduler(0)))
thread.start()
thread.join()
print(os.sched_getscheduler(0), *found)
"""


@pytest.mark.parametrize(("before", "after"), [(os.SCHED_OTHER, os.SCHED_BATCH), (os.SCHED_IDLE, os.SCHED_IDLE)])
def test_a_process_and_its_threads_have_the_policy(before: int, after: int) -> None:
    code = f"import os; os.sched_setscheduler(0, {before}, os.sched_param(0)){POLICIES}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(after)] * 2


class Module(LightningModule):
    def test_step(self, *_: object) -> None:
        self.policy = os.sched_getscheduler(0)


def policy_of_a_rank(batch_scheduling: bool) -> int:
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    module = Module()
    with fits.launched():
        trainer = fits.trainer(strategy=ddp(batch_scheduling=batch_scheduling))
        trainer.test(module, fits.digits(), verbose=False)
    return module.policy


@pytest.mark.distributed
@pytest.mark.parametrize(("wanted", "policy"), [(True, os.SCHED_BATCH), (False, os.SCHED_OTHER)])
def test_the_trainers_ranks_have_it_unless_it_is_unwanted(
    ranks: Callable[[int], Ranks], wanted: bool, policy: int
) -> None:
    assert ranks(2).run(policy_of_a_rank, wanted) == [policy] * 2
