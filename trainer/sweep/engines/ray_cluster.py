"""Each run as a task of Ray (https://docs.ray.io), on this machine or on those of a cluster.

Ray starts each task in a process of its own, and again, on whatever machine there is, when that process or its machine
dies. Only this process, Ray's driver, writes the results.
"""

import getpass
import hashlib
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ContinualLoraError
from ..parcels import Parcel, pack, unpack
from . import J, Place, R

OWN_STORE = 150 << 20  # bytes; on a single machine nothing is sent
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}  # what a run says it says in its result


@dataclass(frozen=True)
class RayCluster:
    """See the module.

    Attributes:
        address: of the cluster; empty starts Ray on this machine.
        cpus: cores that a run takes.
        gpus: GPUs that a run takes; a share of one lets several use it together.
        cache: folder on each machine for files that were sent and for work; None is one in the system's temporary one.
    """

    address: str = ""
    cpus: int = 1
    gpus: float = 0.0
    cache: Path | None = None

    def results(self, function: Callable[[J, Place], R], jobs: Sequence[J], place: Place) -> Iterator[tuple[J, R]]:
        """See `Engine`."""
        ray = _package()
        with self._connected(ray):
            self._check_room(ray)
            luggage = self._luggage(ray, place) if self.address else None
            make = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_calls=1, max_retries=-1)(_run)
            running = {make.remote(function, job, luggage or place): job for job in jobs}
            while running:
                (done,), _ = ray.wait(list(running), num_returns=1)
                yield running.pop(done), ray.get(done)

    @contextmanager
    def _connected(self, ray: Any) -> Iterator[None]:  # noqa: ANN401  (the package is optional)
        if self.address:
            _join(ray, self.address)
        else:
            ray.init("local", include_dashboard=False, object_store_memory=OWN_STORE, **QUIET)
        try:
            yield
        finally:
            ray.shutdown()

    def _check_room(self, ray: Any) -> None:  # noqa: ANN401
        """Raise where no machine could make even one run: Ray would wait for one forever."""
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(m.get("CPU", 0) >= self.cpus and m.get("GPU", 0) >= self.gpus for m in machines):
            has = "; ".join(f"{m.get('CPU', 0):g} and {m.get('GPU', 0):g}" for m in machines)
            raise ContinualLoraError(
                f"A machine should have the {self.cpus} cores and {self.gpus:g} GPUs that a run takes.",
                f"Those of the cluster have {has}.",
                'Lower "--cpus" or "--gpus", or add a machine.',
            )

    def _luggage(self, ray: Any, place: Place) -> "_Luggage":  # noqa: ANN401
        parcels = {name: pack(source, ray.put) for name, source in place.inputs.items()}
        return _Luggage(place, ray.get_runtime_context().get_node_id(), parcels, self.cache)


@dataclass(frozen=True)
class _Luggage:
    """What a task gets in the place of files: references to Ray's store, a few hundred bytes for each file.

    Attributes:
        place: on the driver's machine, whose files need not be sent.
        home: Ray's name of that machine.
        parcels: for the others.
        cache: see `RayCluster`.
    """

    place: Place
    home: str
    parcels: Mapping[str, Parcel]
    cache: Path | None

    def arrive(self, ray: Any) -> Place:  # noqa: ANN401
        """The place on the machine that the task runs on."""
        if ray.get_runtime_context().get_node_id() == self.home:
            return self.place
        cache = self.cache or Path(tempfile.gettempdir()) / f"continual_lora-{getpass.getuser()}"
        sweep = hashlib.sha256(f"{platform.node()}{self.place.work.absolute()}".encode()).hexdigest()
        inputs = {name: unpack(parcel, cache, ray.get) for name, parcel in self.parcels.items()}
        return Place(inputs, cache / "work" / sweep[:12])


def _run(function: Callable[[J, Place], R], job: J, where: Place | _Luggage) -> R:
    """The task."""
    return function(job, where.arrive(_package()) if isinstance(where, _Luggage) else where)


def _join(ray: Any, address: str) -> None:  # noqa: ANN401
    try:
        ray.init(address, **QUIET)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ContinualLoraError(
            f'"--address" should be that of a Ray cluster, not `{address}`.',
            f"Ray says: {error}.",
            "Start one with `ray start --head` and name the address that it prints, or leave the flag out.",
        ) from error


def _package() -> Any:  # noqa: ANN401
    """Ray, imported only here."""
    try:
        import ray
    except ImportError as error:
        raise ContinualLoraError(
            'The engine "ray" needs the package ray.',
            "It is not installed.",
            "Run `python -m pip install ray` on every machine, or leave `--engine` out.",
        ) from error
    return ray
