"""Post-training quantization: a recipe of steps, run in one fixed order, from statistics to finished parameters."""

from __future__ import annotations

from mixq.ptq.calibrate import Calibrate
from mixq.ptq.prepare import DEFAULT_RECIPE, check_recipe, prepare

__all__ = ["DEFAULT_RECIPE", "Calibrate", "check_recipe", "prepare"]
