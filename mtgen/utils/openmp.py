"""How the threads of a command wait for each other: spinning is quicker on free CPUs, and slow beside other work.

Threads of GNU OpenMP spin for some milliseconds before they sleep. On busy CPUs a spinning thread takes the time of the
one that it waits for: a command with two threads beside three busy processes took 151 s, and 65 s with threads that
sleep; on free CPUs it took 20 s, and 26 s with threads that sleep. So it depends on what is free when a command starts.
"""

import os

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Environment variables by which users decide themselves."""


def choose_wait_policy(load: float | None = None, cpus: int | None = None) -> None:
    """Let the threads of this process and its children sleep while they wait, if other work leaves too few CPUs.

    Has to be called before torch is imported, which reads the variable.

    Args:
        load: processes that compute at present; default: the average of the last minute.
        cpus: CPUs that this process may use; default: as the system says.
    """
    if any(name in os.environ for name in SETTINGS):
        return
    cpus = cpus or len(os.sched_getaffinity(0))
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = min(int(given), cpus) if given.isdigit() else cpus
    load = os.getloadavg()[0] if load is None else load
    if threads > 1 and load + threads > cpus + 0.5:  # half a process: the load of a desktop that nobody uses
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
