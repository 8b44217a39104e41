"""Quantizer: runs recipes, each of them once; what they leave serves every configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mixq.config import RecipeStep
from mixq.graph.model import Graph
from mixq.ptq.recipe import DEFAULT_RECIPE, check_recipe
from mixq.ptq.state import Material, Prepared

Recipe = tuple[RecipeStep, ...]


class Quantizer:
    """Post-training quantization of one graph.

    A recipe is run for INT8 in all layers, whatever mix asks for it, so that a search pays for it once: the range,
    weight and bias that it leaves for a layer are the layer's in every mix.
    """

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
        for done in range(1, len(wanted) + 1):
            if wanted[:done] not in self._known:
                self._known[wanted[:done]] = steps[done - 1].apply(self._known[wanted[: done - 1]], material)
        return self._known[wanted]
