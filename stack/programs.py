"""What runs beside the servers: workers, beat, the deliverer of webhooks, the runner and Flower, told where all is."""

import os
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

from contracts.names import COMPRESSION_POOL
from contracts.settings import Settings
from stack import flower
from stack.aftermath import release_leases
from stack.layout import Layout
from stack.processes import Program
from stack.state import StackAddresses

WORKER, COMPRESSOR, BEAT, WEBHOOKS, RUNNER = "worker", "compressor", "beat", "webhooks", "runner"
_READY = "BATCHMILL_READY_FILE"


def environment(settings: Settings) -> dict[str, str]:
    """The environment in which a child process reads these same settings and finds these same packages.

    Paths become absolute, since a child has another working directory. Nothing is imported from that directory: a
    user's folder may well hold a `worker` or a `storage` of its own.
    """
    values = settings.model_dump(mode="json", exclude_none=True)
    values["home"] = str(Layout.of(settings.home).home)
    if settings.artifacts is not None and "://" not in settings.artifacts:
        values["artifacts"] = str(Path(settings.artifacts).absolute())
    paths = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    checkout = str(Path(__file__).resolve().parent.parent)
    if checkout not in (*paths, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        paths.insert(0, checkout)
    ours = {f"BATCHMILL_{name.upper()}": _spelled(value) for name, value in values.items()}
    for name in ("secret_key", "flower_password"):
        if (secret := getattr(settings, name)) is not None:
            ours[f"BATCHMILL_{name.upper()}"] = secret.get_secret_value()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BATCHMILL_")}
    return {**kept, **ours, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


def _spelled(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def programs_of(settings: Settings, addresses: StackAddresses) -> Sequence[Program]:
    """What runs on the servers, in the order in which to start it."""
    # Here: whoever only looks at a stack that runs has no use for a database's client.
    from storage import roles
    from storage.roles import as_role
    from storage.secrets import ensure_key_file

    layout = Layout.of(settings.home)
    ensure_key_file(layout.home)
    common = {
        **environment(settings),
        "BATCHMILL_DATABASE_URL": as_role(addresses.database_url, roles.WORKER),
        "BATCHMILL_BROKER_URL": addresses.broker_url,
    }
    common.setdefault("BATCHMILL_ARTIFACTS", str(layout.artifacts))
    programs = [
        _worker(WORKER, common, layout, addresses),
        Program(
            name=BEAT,
            command=(sys.executable, "-m", "worker.beat"),
            environment={**common, **_port(settings, 2)},
            folder=layout.home,
        ),
        Program(
            name=WEBHOOKS,
            command=(sys.executable, "-m", "worker.webhooks"),
            environment={
                **common,
                "BATCHMILL_DATABASE_URL": as_role(addresses.database_url, roles.WEBHOOKS),
                **_port(settings, 1),
            },
            folder=layout.home,
            stop_seconds=10.0,
        ),
        # The last: what they wait for is rare, and the others are to be ready soon.
        Program(
            name=RUNNER,
            command=(sys.executable, "-m", "producer.runs"),
            environment={
                **common,
                "BATCHMILL_DATABASE_URL": as_role(addresses.database_url, roles.PRODUCER),
                **_port(settings, 4),
            },
            folder=layout.home,
            stop_seconds=20.0,
            after=lambda pid: release_leases(addresses.database_url, pid),
        ),
        _worker(COMPRESSOR, {**common, "BATCHMILL_POOL": COMPRESSION_POOL, **_port(settings, 3)}, layout, addresses),
    ]
    seen = {**common, "BATCHMILL_DATABASE_URL": as_role(addresses.database_url, roles.READER)}
    if (watching := flower.program_of(settings, layout, seen)) is not None:
        programs.append(watching)
    return programs


def _worker(name: str, environment: Mapping[str, str], layout: Layout, addresses: StackAddresses) -> Program:
    ready = ready_file(layout, name)
    return Program(
        name=name,
        command=(sys.executable, "-m", "worker"),
        environment={**environment, _READY: str(ready)},
        folder=layout.home,
        stop_seconds=20.0,
        before=lambda: ready.unlink(missing_ok=True),
        after=lambda pid: release_leases(addresses.database_url, pid),
    )


def _port(settings: Settings, offset: int) -> dict[str, str]:
    """Where a program's metrics and probes are, so that no two of one host want the same port."""
    return {"BATCHMILL_METRICS_PORT": str(settings.metrics_port + offset)} if settings.metrics_port else {}


def ready_file(layout: Layout, name: str = WORKER) -> Path:
    """What a worker of that name touches once it consumes."""
    return layout.run / f"{name}.ready"
