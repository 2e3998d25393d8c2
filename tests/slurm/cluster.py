"""A real SLURM of two nodes on this machine: Debian's daemons, started from nothing, without systemd or cgroups."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
INSTALL = "apt-get install slurmctld slurmd slurm-client munge"
NODES = ("syncbn-node1", "syncbn-node2")
_HOSTS = Path("/etc/hosts")

_CONF = """\
ClusterName=syncbn
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A job that is requeued waits until the credential of its last start has expired: two minutes by default.
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=10
MinJobAge=3600
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Why the cluster can't be started here."""
    if os.geteuid() != 0:
        return "SLURM's daemons need root"
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    return f"no {', '.join(missing)}: {INSTALL}" if missing else None


class Cluster:
    """Daemons and commands of the cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}

    def start(self) -> None:
        """Start the cluster; returns when both nodes accept jobs.

        Raises:
            RuntimeError: they don't within half a minute; with the daemons' logs.
        """
        (self.folder / "state").mkdir(parents=True)
        self.folder.chmod(0o755)
        _take_back_names()  # left by a killed cluster
        with _HOSTS.open("a") as hosts:
            hosts.writelines(f"127.0.0.1 {node}\n" for node in NODES)
        controller, *ports = _free_ports(1 + len(NODES))
        host = socket.gethostname().partition(".")[0]
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=8 State=UNKNOWN"
            for node, port in zip(NODES, ports, strict=True)
        )
        (self.folder / "slurm.conf").write_text(
            _CONF.format(host=host, port=controller, folder=self.folder, nodes=nodes)
        )
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        self._start_munge()
        self.run("slurmctld", "-i")
        for node in NODES:
            (self.folder / f"spool-{node}").mkdir()
            self.run("slurmd", "-N", node)
        deadline = time.monotonic() + 30
        while self.run("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split() != list(NODES):
            if time.monotonic() > deadline:
                logs = "\n".join(log.read_text()[-2000:] for log in self.folder.glob("*.log"))
                raise RuntimeError(f"the nodes don't come up:\n{logs}")
            time.sleep(0.2)

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        places = {"key-file": "key", "socket": "sock", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        self.run("munged", "--force", *(f"--{option}={self.folder}/munge.{end}" for option, end in places.items()))

    def stop(self) -> None:
        """End all jobs and daemons, and remove the nodes' names."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self.run("scancel", "--user=root", "--signal=KILL", "--full")
            self.run("scancel", "--user=root")
        _end([self.folder / f"{name}.pid" for name in (*(f"slurmd-{node}" for node in NODES), "slurmctld", "munge")])
        _take_back_names()

    def run(self, *command: str, **options: object) -> str:
        """Run a command; returns its output."""
        done = subprocess.run(
            command,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            **options,
        )
        return str(done.stdout)

    def state(self, job: str) -> str:
        """State of a job, such as COMPLETED."""
        return _field(self.run("scontrol", "show", "job", job), "JobState")

    def wait(self, job: str, *states: str, timeout_s: float = 200) -> str:
        """Wait for a job's final state, or the first of `states`.

        Raises:
            TimeoutError: it reaches none in time.
        """
        ends = states or ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        deadline = time.monotonic() + timeout_s
        while (state := self.state(job)) not in ends:
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job} is {state} after {timeout_s} s")
            time.sleep(0.2)
        return state

    def restarts(self, job: str) -> int:
        """Number of times a job was requeued."""
        return int(_field(self.run("scontrol", "show", "job", job), "Restarts"))


def _field(text: str, name: str) -> str:
    return next(word.partition("=")[2] for word in text.split() if word.startswith(f"{name}="))


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def _take_back_names() -> None:
    lines = _HOSTS.read_text().splitlines(keepends=True)
    _HOSTS.write_text("".join(line for line in lines if line.split()[-1:] not in [[node] for node in NODES]))


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(server.getsockname()[1]) for server in sockets]


def _end(pid_files: list[Path]) -> None:
    """End the daemons together: each takes seconds."""
    pids = [int(file.read_text()) for file in pid_files if file.exists()]
    for signum, patience_s in ((signal.SIGTERM, 10), (signal.SIGKILL, 1)):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)
        deadline = time.monotonic() + patience_s
        while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.05)
