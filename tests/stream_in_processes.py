"""One of two processes that train on a stream. It writes what it has read and seen.

It is a program of its own, since a process joins others before it uses its devices.
Arguments: a folder for the results, the port of process 0, and the number of the process.
"""

import json
import pathlib
import sys

import numpy as np

from experiments.engine import processes
from experiments.engine.config import RunConfig
from tests.test_streams import counting_run, numbered


def main(folder, port, number):
    config = RunConfig(
        folder / "run",
        coordinator=f"127.0.0.1:{port}",
        num_processes=2,
        process_id=int(number),
    )
    reads = []
    with processes.joined(config) as own:
        seen = np.asarray(counting_run(own.workdir, numbered(reads)))
    found = {"reads": reads, "seen": seen.tolist()}
    (folder / f"{number}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), *sys.argv[2:])
