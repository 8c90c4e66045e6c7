"""Parts of a sweep on a Dask cluster: each worker computes parts on its own devices and writes them to the folder.

The scheduler runs the parts of a killed worker again on another one; parts that it had finished are on the disk and
stay as they are. Every worker must see the folder under the same path.
"""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from watos_jax.sweeps.build import build
from watos_jax.sweeps.description import description
from watos_jax.sweeps.files import StoreError
from watos_jax.sweeps.keep import Keep
from watos_jax.sweeps.points import Plan
from watos_jax.sweeps.run import Outcome, outcomes
from watos_jax.sweeps.space import Space
from watos_jax.sweeps.store import Store

PARTS_PER_TASK: Final = 4
"""Parts that one task computes, so that one is written while the next is computed."""
TASKS_PER_WORKER: Final = 2
"""Tasks that wait at or run on each worker."""
_ONE_AT_A_TIME = threading.Lock()


def distribute(store: Store, numbers: list[int], address: str, *, chunk: int | None = None) -> Iterator[Outcome]:
    """Compute parts on a cluster, in any order.

    Args:
        store: the open folder.
        numbers: of the parts.
        address: of the Dask scheduler, such as `tcp://node1:8786`.
        chunk: points of a tile.

    Returns:
        The outcome of each part once it is on the disk, without its rows.

    Raises:
        StoreError: Dask is not installed, nothing answers at the address, or a worker cannot use the folder.
    """
    try:
        from distributed import Client, as_completed
    except ModuleNotFoundError:
        raise StoreError("cluster needs Dask, which is not installed: pip install 'watos_jax[cluster]'") from None
    _check_address(address)
    plan = store.plan
    tasks = iter([numbers[i : i + PARTS_PER_TASK] for i in range(0, len(numbers), PARTS_PER_TASK)])
    with Client(address, set_as_default=False) as client:
        waiting = as_completed()

        def submit() -> None:
            block = next(tasks, None)
            if block is not None:
                name = f"sweep-{plan.digest[:16]}-{block[0]}"
                waiting.add(
                    client.submit(
                        work, plan.space, plan.keep, str(store.path.resolve()), block, chunk, key=name, pure=False
                    )
                )

        workers = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
        for _ in range(workers * TASKS_PER_WORKER):
            submit()
        for future in waiting:
            done: list[int] = future.result()
            submit()
            for number in done:
                yield store.outcome(number)


def _check_address(address: str) -> None:
    # a client that cannot connect says so in many lines, and again when the process ends
    from distributed import Security
    from distributed.comm.core import connect

    async def greet() -> None:
        comm = await connect(address, **Security().get_connection_args("client"))
        await comm.close()

    try:
        with ThreadPoolExecutor(1) as thread:  # a notebook has a loop of its own
            thread.submit(asyncio.run, greet()).result()
    except (OSError, ValueError) as error:
        raise StoreError(f"cluster is {address!r}: it must be the address of a Dask scheduler ({error})") from None


def work(space: Space, keep: Keep, path: str, numbers: list[int], chunk: int | None) -> list[int]:
    """Compute and write some parts in the process that calls it, a worker of a cluster.

    Args:
        space: what is covered.
        keep: what is answered.
        path: the folder.
        numbers: of the parts; those that are finished are left alone.
        chunk: points of a tile.

    Returns:
        The numbers, all finished.
    """
    with _ONE_AT_A_TIME:
        store = Store.join(Path(path), _plan(_Key(space, keep)))
        finished = store.finished()
        for outcome in outcomes(store.plan, [n for n in numbers if n not in finished], chunk=chunk):
            store.write(outcome)
    return numbers


class _Key:
    # a space is told apart by its description: its records hold arrays, which cannot be hashed

    def __init__(self, space: Space, keep: Keep):
        self.space, self.keep, self.text = space, keep, repr(description(space, keep))

    def __hash__(self) -> int:
        return hash(self.text)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _Key) and self.text == other.text


@lru_cache(maxsize=2)
def _plan(key: _Key) -> Plan:
    return build(key.space, key.keep)
