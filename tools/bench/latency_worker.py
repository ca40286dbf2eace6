"""One process of a latency benchmark: it loads a graph and times runs of it whenever it is told to.

    python tools/bench/latency_worker.py GRAPH BATCH THREADS TURN_SECONDS

Prints `ready`, and for each line on its input the seconds that one run took. Turns of one thread are timed in processor
time of that thread, those of more in wall time.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort


def main() -> None:
    path, batch, threads, turn_seconds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the others have their turn meanwhile
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    shape = [batch, *session.get_inputs()[0].shape[1:]]
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    clock = time.thread_time if threads == 1 else time.perf_counter
    session.run(None, {"input": x})
    start = clock()
    session.run(None, {"input": x})
    runs = max(1, round(turn_seconds / max(clock() - start, 1e-6)))
    print("ready", flush=True)
    for _ in sys.stdin:
        session.run(None, {"input": x})  # caches are cold after the turns of others
        start = clock()
        for _ in range(runs):
            session.run(None, {"input": x})
        print((clock() - start) / runs, flush=True)


if __name__ == "__main__":
    main()
