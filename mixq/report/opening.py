"""How to open the exported model so that it runs as it was measured."""

from __future__ import annotations

from mixq.report.markup import Markup, el

_READ = 'how = json.load(open("certificate.json"))["open"]'

_SNIPPETS = {
    "openvino": f"""import json

import openvino

{_READ}
options = {{"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": how["threads"], **how["options"]}}
model = openvino.Core().read_model("best.onnx")
model.reshape({{"NAME": [1, ...]}})  # the shapes that you will run: static ones are what the fast kernels need
compiled = openvino.Core().compile_model(model, "CPU", options)
outputs = compiled({{"NAME": array}})
""",
    "onnxruntime": f"""import json

import onnxruntime

{_READ}
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = how["threads"]
for key, value in how["options"].items():
    options.add_session_config_entry(key, value)
session = onnxruntime.InferenceSession("best.onnx", options, providers=["CPUExecutionProvider"])
outputs = session.run(None, {{"NAME": array}})
""",
}

_ANY = f"""import json
from pathlib import Path

from mixq.runtimes import get_runtime

{_READ}
model = Path("best.onnx").read_bytes()
executable = get_runtime(how["runtime"]).compile(model, how["threads"], how["options"])
outputs = executable.run({{"NAME": array}})
"""


def how_to_open(runtime: str) -> Markup:
    """Without mixq where the runtime is known here; else through mixq, which knows them all."""
    said = (
        "best.onnx holds the very bytes that were measured; certificate.json says how to open them. "
        "mixq verify checks both on the machine that it runs on."
    )
    return el("section", el("h2", "Open the model"), el("p", said), el("pre", _SNIPPETS.get(runtime, _ANY)))
