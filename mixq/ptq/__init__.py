"""Post-training quantization: a recipe of steps, run in one fixed order, from statistics to finished parameters."""

from __future__ import annotations

from mixq.ptq.parameters import parameters
from mixq.ptq.quantizer import Quantizer
from mixq.ptq.recipe import DEFAULT_RECIPE, check_recipe
from mixq.ptq.state import Material, Prepared
from mixq.ptq.store import packed, unpacked

__all__ = [
    "DEFAULT_RECIPE",
    "Material",
    "Prepared",
    "Quantizer",
    "check_recipe",
    "packed",
    "parameters",
    "unpacked",
]
