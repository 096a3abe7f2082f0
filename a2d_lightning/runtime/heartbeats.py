"""Detection of dead processes in a distributed run, independent of the collective operations in progress.

Own code: a collective waits half an hour for a process that was killed on another machine. Where the collective fails
at once, the error names a socket instead of a rank.
"""

import os
import socket
import sys
import threading
import time
from pathlib import Path

import torch.distributed as dist

from a2d_lightning.runtime.distributed import all_gather_objects

BEAT_SECONDS = 1.0


class Heartbeats:
    """Exchange of heartbeats with all other processes, in a background thread, through a shared store.

    A process that finds another one dead, silent for ``timeout_seconds`` or failed prints one line that names the rank
    and exits with status 1. All processes must create their instance together, since the constructor is collective.

    Args:
        timeout_seconds: Silence after which a process counts as dead. On the same machine (except under Windows) death
            is detected within a few seconds, whatever this value.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self.timeout_seconds = timeout_seconds
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.host = socket.gethostname()
        self.processes: list[tuple[str, int]] = all_gather_objects((self.host, os.getpid()))
        self._store = self._connect()
        self._store.set(f"beat{self.rank}", "0")
        dist.barrier()
        self._over = threading.Event()
        threading.Thread(target=self._beat, daemon=True, name="heartbeats").start()

    @property
    def listening(self) -> bool:
        """Return whether this process still monitors the others."""
        return not self._over.is_set()

    def stop(self) -> None:
        """Stop sending and checking heartbeats; a process that has not come this far would report this one as dead."""
        self._over.set()

    def fail(self, message: str) -> None:
        """Report a failure of this process to the others, after a wait in which a dead process would be detected.

        If another process is dead, the failure of this process is only a consequence. The background thread then ends
        this process, and the call does not return.

        Args:
            message: One line, which the other processes print.
        """
        several_machines = len({host for host, _ in self.processes}) > 1
        time.sleep(3 * BEAT_SECONDS + (self.timeout_seconds if several_machines else 0))
        self._store.set(f"failed{self.rank}", message)
        time.sleep(2 * BEAT_SECONDS)  # rank 0 hosts the store: let the others read the message before it exits
        self.stop()

    def _connect(self) -> dist.TCPStore:
        address = os.environ.get("MASTER_ADDR", "localhost")
        port = 0
        if self.rank == 0:
            store = dist.TCPStore(address, 0, None, is_master=True, wait_for_workers=False)
            port = store.port
        port = all_gather_objects(port)[0]
        return store if self.rank == 0 else dist.TCPStore(address, port, None, is_master=False)

    def _beat(self) -> None:
        seen = {rank: (b"0", time.monotonic()) for rank in range(self.world_size) if rank != self.rank}
        count = 0
        while not self._over.wait(BEAT_SECONDS):
            count += 1
            try:
                self._store.set(f"beat{self.rank}", str(count))
                for rank, (last, when) in seen.items():
                    beat = self._store.get(f"beat{rank}")
                    seen[rank] = (beat, time.monotonic()) if beat != last else (last, when)
                    if self._is_gone(rank):
                        self._end(rank, "was killed or crashed")
                    elif time.monotonic() - seen[rank][1] > self.timeout_seconds:
                        self._end(rank, f"sent no heartbeat for {self.timeout_seconds:g} s")
                    elif self._store.check([f"failed{rank}"]):
                        self._end(rank, f"failed: {self._store.get(f'failed{rank}').decode()}")
            except RuntimeError:
                self._end(0, "has ended, or its machine cannot be reached")

    def _is_gone(self, rank: int) -> bool:
        host, pid = self.processes[rank]
        if host != self.host or sys.platform == "win32":  # on Windows, os.kill ends the process
            return False
        status = Path(f"/proc/{pid}/stat")
        try:
            os.kill(pid, 0)
            return status.exists() and status.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
        except ProcessLookupError:
            return True
        except OSError:
            return False

    def _end(self, rank: int, how: str) -> None:
        if self._over.is_set():
            return
        host, pid = self.processes[rank]
        found = f"rank {rank} (process {pid} on {host}) {how}"
        print(f"error: {found}; rank {self.rank} ends too: resume with --ckpt_path last.", file=sys.stderr, flush=True)
        os._exit(1)
