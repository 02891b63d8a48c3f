"""A process of steps that do what a file says, `BEHAVIOUR` in the parent's folder, so that tests need no model.

It maps positions of steps to what happens there at the first attempt. Later attempts, and other steps, write a file
that depends on the source and the step alone.
"""

import ctypes
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from contracts.compression import Report
from contracts.errors import InvalidRequest
from worker.compression.child import serve
from worker.compression.order import Order, Outcome, Progress
from worker.compression.wire import ORDER, OUTCOME

BEHAVIOUR = "behaviour.json"
WEIGHTS = "model.safetensors"


def work(request: dict[str, Any], progress: Progress) -> Any:
    if request["do"] == "evaluate":
        return evaluate(request)
    if "order" not in request:
        return behave(request["do"], progress, Path(request.get("folder", ".")))
    order = ORDER.validate_python(request["order"])
    position = order.scratch.parent.name
    tried = order.scratch / "tried"
    if not tried.exists():
        tried.touch()
        behaviour = json.loads((order.parent / BEHAVIOUR).read_text())
        behave(behaviour.get(position, "nothing"), progress, order.destination)
    return step(request["step"], order)


def step(wanted: dict[str, Any], order: Order) -> Any:
    """Weights that only the source and the step decide: 16 numbers of two bytes each."""
    content = (order.source / WEIGHTS).read_bytes() + json.dumps(wanted, sort_keys=True).encode()
    numbers = hashlib.sha256(content).digest()
    if wanted["step"] == "export":
        (order.destination / "model.onnx").write_bytes(b"a graph")
        (order.destination / "model.onnx.data").write_bytes(numbers)
    else:
        header = json.dumps({"weight": {"dtype": "BF16", "shape": [16], "data_offsets": [0, 32]}}).encode()
        (order.destination / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + numbers)
    (order.destination / "config.json").write_text("{}")
    notes = ["it was a stand-in", *([] if order.evaluate is None else order.evaluate.read_text().splitlines())]
    return OUTCOME.dump_python(Outcome(order.quantization, notes), mode="json")


def evaluate(request: dict[str, Any]) -> Any:
    about = request["about"]
    Path(request["page"]).write_text("<html></html>")
    report = Report(
        **{name: about[name] for name in ("job", "parent", "model", "results")},
        task=request["order"]["task"],
        recipe=request["order"]["recipe"],
        verdict="not evaluated",
        rows=0,
        stages=[],
        sensitivity=[],
        criteria=[],
        notes=[],
        machine={},
    )
    return json.loads(report.model_dump_json())


def behave(behaviour: str, progress: Progress, folder: Path) -> Any:
    match behaviour:
        case "sleep":
            (folder / "half").write_bytes(b"half an artifact")
            progress(0.5, "asleep")
            time.sleep(600)
        case "doze":
            progress(0.5, "asleep")
            time.sleep(1)
        case "vary":
            (folder / "chance").write_bytes(os.urandom(8))
        case "fork":  # something below it, which ends with it or outlives it
            below = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            progress(0.5, str(below.pid))
            time.sleep(600)
        case "leave":
            below = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            return below.pid
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "crash":
            ctypes.string_at(0)
        case "exit":
            sys.stdout.write("about to leave\n")
            sys.stdout.flush()
            os._exit(3)
        case "print":
            sys.stdout.write("a library prints\n")
            sys.stdout.flush()
            os.write(1, b"and writes to the descriptor\n")
            sys.stderr.write("and to stderr\n")
            return "the answer"
        case "fill":
            (folder / "half").write_bytes(b"half an artifact")
            with open("/dev/full", "wb") as full:
                full.write(bytes(100_000))
        case "refuse":
            raise InvalidRequest("the model\nhas no layers")
        case "break":
            raise KeyError("a defect")
        case "report":
            for tenth in range(11):
                progress(tenth / 10, f"{tenth} of 10")
                time.sleep(0.05)
            return "done"
    return None


if __name__ == "__main__":
    sys.exit(serve(work))
