"""Compilation of the C++ files on first use, and a cache of the library."""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

SOURCES = tuple(Path(__file__).with_name(name) for name in ("native.cpp", "channels.cpp", "one_shot.cpp"))
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
_LOG = logging.getLogger(__name__)


def load() -> ctypes.CDLL | str:
    """Load the library, compiled first unless this user has done so on such a machine; or why there is none."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return "no C++ compiler was found: install g++ or clang++, or name one in CXX"
    try:
        library = cache_folder() / f"native-{_fingerprint(compiler)}.so"
        if not library.exists():
            _compile(compiler, library)
        return ctypes.CDLL(str(library))
    except subprocess.CalledProcessError as error:
        return f"{compiler} failed:\n{error.stderr}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)


def cache_folder() -> Path:
    """Folder of the libraries; only the user may write to it, since its files are executed."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(root) / "syncbn"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{folder} must belong to this user and be writable by nobody else: chmod 700 {folder}")
    return folder


def _compile(compiler: str, library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:  # ranks may compile at once: the last one wins
        output = Path(folder) / library.name
        command = [compiler, *_FLAGS, *_openmp(), *map(str, SOURCES), "-o", str(output)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        os.replace(output, library)
    _LOG.debug("compiled %s", library)


def _openmp() -> list[str]:
    """Flags for OpenMP, with torch's own runtime if it has one: two runtimes would each have a thread pool."""
    bundled = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    bundled += sorted(Path(torch.__file__).parent.parent.glob("torch.libs/libgomp*.so*"))
    return ["-fopenmp", "-Wl,--as-needed", *map(str, bundled[:1])]


def _fingerprint(compiler: str) -> str:
    """Fingerprint of all that the library depends on, since machines of several kinds may share a home folder."""
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True, timeout=60).stdout
    parts = [
        *(source.read_text() for source in SOURCES),
        *_FLAGS,
        *_openmp(),
        version,
        platform.machine(),
        _processor(),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _processor() -> str:
    """Features of this machine's processor, as listed by Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
