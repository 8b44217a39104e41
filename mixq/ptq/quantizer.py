"""Quantizer: runs recipes, each of them once; what they leave serves every configuration."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

from mixq.array_store import ArrayStore
from mixq.config import RecipeStep
from mixq.graph.model import Graph
from mixq.ptq.recipe import DEFAULT_RECIPE, check_recipe
from mixq.ptq.state import Material, Prepared, Step
from mixq.ptq.store import packed, unpacked

LONG = 1.0  # seconds: what took longer is kept in the store

Recipe = tuple[RecipeStep, ...]


class Quantizer:
    """Post-training quantization of one graph.

    A recipe is run for INT8 in all layers, whatever mix asks for it, so that a search pays for it once: the range,
    weight and bias that it leaves for a layer are the layer's in every mix. `store`: where to look first, if anywhere.
    """

    store: ArrayStore | None = None

    def __init__(self, graph: Graph, material: Material) -> None:
        self._material = material
        self._known: dict[Recipe, Prepared] = {(): Prepared(graph, material.observe(graph))}

    def prepared(self, recipe: Recipe = (), progress: Callable[[str], None] | None = None) -> Prepared:
        """The network after `recipe`, by default DEFAULT_RECIPE. Recipes share the work for what they begin with.

        progress is told what a long step does. Raises InputError for a recipe that is none.
        """
        material = replace(self._material, progress=progress)
        wanted = recipe or DEFAULT_RECIPE
        steps = check_recipe(wanted)
        for done, step in enumerate(steps, 1):
            if wanted[:done] not in self._known:
                self._known[wanted[:done]] = self._after(wanted[:done], step, material)
        return self._known[wanted]

    def _after(self, recipe: Recipe, last: Step, material: Material) -> Prepared:
        """The network after `recipe`, which ends with `last`: from the store, else made and stored."""
        start = self._known[()].graph
        key = " ".join(step.model_dump_json() for step in recipe)
        with self.store.making(key) if self.store else nullcontext():
            stored = self.store.load(key) if self.store else None
            if stored is not None:
                return unpacked(*stored, start)
            began = time.perf_counter()
            made = last.apply(self._known[recipe[:-1]], material)
            if self.store and time.perf_counter() - began > LONG:
                self.store.save(key, *packed(made, start))
            return made
