"""Programs in processes of their own that have imported JAX already, and nothing of jaxloss.

An import of JAX takes two seconds, and one of jaxloss none. So one process imports JAX, and is forked for each program.
"""

import atexit
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import traceback


def run(code: str, *, path, folder=None, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a program prints that looks for modules in `path` first, before it in the folder that it runs in, if named."""
    with tempfile.TemporaryDirectory() as files:
        printed = [pathlib.Path(files, name) for name in ("stdout", "stderr")]
        task = {
            "code": code,
            "path": [*([""] if folder else []), str(path)],
            "folder": str(folder or files),
            "environment": {"PYTHONPATH": str(path), **environment},
            "printed": [str(file) for file in printed],
        }
        server = _server()
        print(json.dumps(task), file=server.stdin, flush=True)
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(code, status, *(file.read_text() for file in printed))


@functools.cache
def _server() -> subprocess.Popen:
    command = [sys.executable, "-P", "-W", "ignore", __file__]  # JAX warns of forks, but has no threads yet
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    server = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.communicate)  # which closes its input, and waits
    return server


def _serve() -> None:
    import jax  # noqa: F401

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _execute(**json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _execute(code, path, folder, environment, printed) -> None:
    """In the fork, which ends with it."""
    for place, file in enumerate(printed, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), place)
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:0] = path
    status = 0
    try:
        exec(code, {"__name__": "__main__"})
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    _serve()
