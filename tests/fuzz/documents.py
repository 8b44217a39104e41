"""One whole document of every kind that mixq reads."""

from __future__ import annotations

from typing import Any

RECIPE = [{"name": "calibrate", "params": {"activations": "mse", "weights": "mse"}}, {"name": "bias_correction"}]

CONFIG: dict[str, Any] = {
    "format": 1,
    "model": "0123456789abcdef",
    "schemes": {
        "first": {"precision": "int8", "stage": "qat", "activation": "static"},
        "second": {"precision": "int8", "stage": "ptq", "activation": "dynamic"},
        "head": {"precision": "fp32"},
    },
    "rest": "bf16",
    "recipe": RECIPE,
    "training": {"steps": 50, "learning_rate": 0.1, "seed": 0, "bank": 10, "scales": True},
}

SPACE: dict[str, Any] = {
    "precisions": ["fp32", "bf16", "int8"],
    "stages": ["ptq", "qat"],
    "activations": ["static", "weight_only"],
    "rest": ["fp32", "bf16"],
    "recipes": {"short": RECIPE, "long": [{"name": "equalize"}, *RECIPE[:1], {"name": "adaround"}]},
    "training": {"steps": [50, 200], "learning_rate": [0.1], "seed": 0, "bank": 10, "scales": False},
    "overrides": [{"layers": "head*", "precisions": ["fp32"]}, {"layers": "*query", "activations": ["dynamic"]}],
    "groups": ["encoder.*.query"],
    "objectives": ["latency", "size"],
    "constraints": {"max_drop": 0.005, "confidence": 0.9, "max_latency_ms": 5, "max_size_mb": 1.5},
    "sampler": "guided",
}

SUMMARY: dict[str, Any] = {
    "task": "task.py:Tiny",
    "study": "tiny",
    "runtime": "openvino",
    "threads": 1,
    "primary": "top1",
    "higher_is_better": True,
    "constraints": {"max_drop": 0.005, "confidence": 0.9},
    "baseline": {"metric": 0.9, "latency_ms": 1.5, "size_bytes": 100000},
    "best": {
        "metric": 0.9,
        "drop": 0.0,
        "drop_bound": 0.001,
        "latency_ms": 0.5,
        "speedup": 3.0,
        "size_bytes": 30000,
        "compression": 3.3,
        "config_id": "0123456789abcdef",
        "schemes": {"int8": 2, "fp32": 1},
        "rest": "fp32",
        "silent_layers": ["first"],
        "holdout": {"metric": 0.89, "drop": 0.01, "drop_interval": [-0.01, 0.02]},
    },
    "trials": {"complete": 10, "pruned": 2, "failed": 0},
    "wall_s": 12.5,
    "time_to_best_s": 3.25,
    "feasible": True,
}

CERTIFICATE: dict[str, Any] = {
    "format": 1,
    "config_id": "0123456789abcdef",
    "files": {name: {"sha256": 64 * "0", "size": 10} for name in ("best.onnx", "best.json", "probe.npz")},
    "open": {"runtime": "openvino", "version": "2026.4", "options": {"INFERENCE_PRECISION_HINT": "f32"}, "threads": 1},
    "inputs": [{"name": "image", "dtype": "float32", "row_shape": [3, 8, 8]}],
    "machine": {"cpu": "a CPU", "cores": 2},
    "versions": {"mixq": "0.1.0"},
    "measured": {"drop": 0.0, "latency_ms": {"median": 1.0}},
    "kernels": [],
    "extra": {},
}
