"""A search space for one graph on one runtime: who decides what, and how parameters stand for configurations."""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixq.config import Activation, LayerScheme, MixedPrecisionConfig, Precision, RecipeStep, Stage
from mixq.errors import InputError
from mixq.graph import Graph, capture
from mixq.runtimes import NAMES, get_runtime
from mixq.runtimes.probes import scales_at_run_time
from mixq.searcher.choices import RATE, RECIPE, REST, STEPS, Choices, make_choices
from mixq.searcher.space import check_space
from tests.helpers import Net, images, ort_run
from tests.support.cases import Attention

LAYERS = ["stem", "left", "right", "head"]
MINMAX = (RecipeStep(name="calibrate", params={"activations": "minmax", "weights": "minmax"}),)
RECIPES = {"one": [{"name": "calibrate"}], "two": [step.model_dump() for step in MINMAX]}

ABLE = scales_at_run_time(type(get_runtime("openvino")))  # to quantize the inputs of dynamic layers


@cache
def network() -> Graph:
    net = Net(3, 8, 8)
    x = net.conv("x", 4, name="stem")
    x = net.op("Add", net.conv(x, 4, name="left"), net.conv(x, 4, name="right"))
    return net.graph(net.gemm(net.pooled(x), 4, 5, name="head"), example=images(2))


def choices(runtime: str = "openvino", graph: Graph | None = None, **space: Any) -> Choices:
    content = {"precisions": ["fp32", "int8"], **space}
    return make_choices(check_space(content, "test"), graph or network(), get_runtime(runtime), "m")


def decisions(found: Choices) -> dict[str, str]:
    """What is decided for layers: the name of each decision, and its values in one string."""
    return {unit.name: " ".join(found.categories()[unit.name]) for unit in found.units}


def first_of_each(found: Choices) -> dict[str, str]:
    return {name: values[0] for name, values in found.categories().items()}


def test_every_layer_decides_for_itself() -> None:
    found = choices()
    assert decisions(found) == dict.fromkeys(LAYERS, "fp32 int8")
    assert found.categories()[REST] == ["fp32"]
    assert found.categories()[RECIPE] == ["default"]
    assert (found.size, found.model, found.notes) == (16, "m", ())


def test_the_last_override_that_matches_decides() -> None:
    overrides = [
        {"layers": "*t", "precisions": ["int8"]},
        {"layers": "l*", "precisions": ["fp32"]},
        {"layers": "hea?", "precisions": ["fp32", "int8"]},
    ]
    found = decisions(choices(precisions=["int8"], overrides=overrides))
    assert found == {"stem": "int8", "left": "fp32", "right": "int8", "head": "fp32 int8"}


def test_what_an_override_leaves_out_stays() -> None:
    overrides = [{"layers": "*", "stages": ["qat"]}, {"layers": "stem", "precisions": ["int8"]}]
    found = decisions(choices(overrides=overrides, training={}))
    assert found == {"stem": "int8-qat", **dict.fromkeys(LAYERS[1:], "fp32 int8-qat")}


def test_a_group_shares_one_decision() -> None:
    found = choices(groups=["*t", "r*", "stem"])
    assert decisions(found) == dict.fromkeys(("group stem", "group *t", "head"), "fp32 int8")
    params = {**first_of_each(found), "group *t": "int8"}
    assert found.config(params).layers_with(Precision.INT8) == ["left", "right"]


def test_a_group_may_have_what_all_of_its_layers_may() -> None:
    overrides = [{"layers": "left", "precisions": ["int8", "bf16"]}]
    found = choices(precisions=["fp32", "int8"], groups=["*t"], overrides=overrides)
    assert decisions(found)["group *t"] == "int8"


@pytest.mark.parametrize("words", [{"groups": ["stems"]}, {"overrides": [{"layers": "stems", "stages": ["ptq"]}]}])
def test_a_glob_that_matches_nothing_is_refused(words: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="no layer matches 'stems' of the search space; layers: stem, left, right, he"):
        choices(**words)


def test_layers_with_nothing_in_common_cannot_share() -> None:
    overrides = [{"layers": "left", "precisions": ["int8"]}, {"layers": "right", "precisions": ["fp32"]}]
    told = r"no choice is left for group \*t: the space gives its layers no scheme in common; give it a precision"
    with pytest.raises(InputError, match=told):
        choices(groups=["*t"], overrides=overrides)


def test_what_the_runtime_cannot_run_is_left_out_and_noted_once() -> None:
    found = choices("onnxruntime", precisions=["fp32", "bf16", "fp16", "int8"], rest=["bf16", "fp32"])
    assert decisions(found) == dict.fromkeys(LAYERS, "fp32 int8")
    assert found.rest == (Precision.FP32,)
    assert len(found.notes) == len(set(found.notes)) == 3
    for note, scheme in zip(found.notes, ("bf16", "fp16", "rest: bf16"), strict=True):
        assert note.startswith(f"onnxruntime cannot run {scheme}: ONNX Runtime's CPU provider ")


def test_the_rest_stays_in_fp32_where_no_choice_is_left() -> None:
    found = choices("onnxruntime", rest=["bf16", "fp16"])
    assert found.rest == (Precision.FP32,)
    assert len(found.notes) == 2


def test_a_layer_with_no_choice_left_is_refused_with_the_reason() -> None:
    told = r"no choice is left for stem: onnxruntime cannot run bf16: ONNX .* no BF16 kernels; give it a precision"
    with pytest.raises(InputError, match=told):
        choices("onnxruntime", precisions=["bf16"])


@cache
def upsampling() -> Graph:
    """A convolution and a transposed one, for which ONNX Runtime has no integer kernel."""
    net = Net(3, 8, 8)
    x = net.conv("x", 4, name="conv")
    net.op("ConvTranspose", x, net.weight("up.weight", 4, 4, 3, 3), name="up")
    return net.graph("up", example=images(2), ranks=[4])


def test_what_can_run_depends_on_the_layer() -> None:
    found = choices("onnxruntime", upsampling())
    assert decisions(found) == {"conv": "fp32 int8", "up": "fp32"}
    assert found.notes == (
        "onnxruntime cannot run int8: ONNX Runtime's CPU provider has no integer kernel for ConvTranspose",
    )
    shared = choices("onnxruntime", upsampling(), groups=["*"])
    assert decisions(shared) == {"group *": "fp32"}


@pytest.mark.parametrize("name", NAMES)
def test_choices_are_what_the_runtime_can_run(name: str) -> None:
    space: dict[str, Any] = {"activations": list(Activation), "stages": list(Stage), "training": {}}
    runtime, found = get_runtime(name), choices(name, precisions=list(Precision), **space)
    for unit in found.units:
        (layer,) = unit.layers
        assert all(runtime.refusal(scheme, network().by_name[layer]) is None for scheme in unit.schemes)
    assert decisions(found)["stem"].startswith("fp32 ")
    assert len(found.notes) == len(set(found.notes)) >= 1


@cache
def trained() -> Choices:
    """Two layers in a group, and two of everything that is decided once."""
    return choices(
        stages=["ptq", "qat"],
        groups=["*t"],
        rest=["fp32", "fp16"],
        recipes=RECIPES,
        training={"steps": [5, 50], "learning_rate": [1e-5, 0.001], "seed": 3},
    )


@st.composite
def parameters(draw: st.DrawFn) -> dict[str, str]:
    return {name: draw(st.sampled_from(values)) for name, values in trained().categories().items()}


def test_every_decision_is_a_category_of_strings() -> None:
    assert trained().categories() == {
        **{unit: ["fp32", "int8", "int8-qat"] for unit in ("stem", "group *t", "head")},
        REST: ["fp32", "fp16"],
        RECIPE: ["one", "two"],
        STEPS: ["5", "50"],
        RATE: ["1e-05", "0.001"],
    }
    assert trained().size == 27 * 2 * 2 * 2 * 2


@given(parameters())
def test_parameters_stand_for_a_configuration(params: dict[str, str]) -> None:
    config = trained().config(params)
    layers = {"stem": params["stem"], "head": params["head"]} | dict.fromkeys(("left", "right"), params["group *t"])
    assert {name: str(scheme) for name, scheme in config.schemes.items()} == layers
    assert (config.model, config.rest.value) == ("m", params[REST])
    if any(scheme != "fp32" for scheme in layers.values()):
        assert config.recipe == trained().recipes[params[RECIPE]]
    else:
        assert config.recipe == ()
    if "int8-qat" in layers.values():
        assert config.training is not None
        assert (str(config.training.steps), repr(config.training.learning_rate)) == (params[STEPS], params[RATE])
        assert config.training.seed == 3
    else:
        assert config.training is None
    assert MixedPrecisionConfig.from_json(config.to_json()) == config


def test_what_does_not_matter_does_not_make_another_configuration() -> None:
    """Recipe and training are parameters always, but of the configuration only where a layer needs them."""
    names, values = zip(*trained().categories().items(), strict=True)
    configs = [trained().config(dict(zip(names, chosen, strict=True))) for chosen in product(*values)]
    assert len(configs) == trained().size
    float_only, only_ptq = 1, 2**3 - 1  # sets of schemes of the three units
    assert len(set(configs)) == 2 * (float_only + only_ptq * 2 + (27 - 2**3) * 2 * 4)


def test_training_that_the_space_has_not_is_refused() -> None:
    params = {**first_of_each(trained()), "stem": "int8-qat", STEPS: "7"}
    with pytest.raises(InputError, match="no training with 7 steps at 1e-05 in the space"):
        trained().config(params)


def test_a_configuration_is_for_the_layers_of_the_graph() -> None:
    found = choices()
    config = found.config({**first_of_each(found), "head": "int8"})
    config.check_for("m", network().layer_names)
    assert config.schemes["head"] == LayerScheme.parse("int8")


@cache
def transformer() -> Graph:
    return capture(Attention().eval(), {"ids": np.zeros((3, 12), np.int64)}, ort_run)


@pytest.mark.parametrize("name", NAMES)
def test_readers_of_one_tensor_decide_together_and_embeddings_are_codes(name: str) -> None:
    found = decisions(choices(name, transformer(), activations=["static", "dynamic"]))
    products = "fp32" if name == "openvino" else "fp32 int8 int8-dynamic"
    matrices = "fp32 int8 int8-dynamic" if name != "openvino" or ABLE else "fp32 int8"
    assert found == {
        "embedding": "fp32 int8-weight_only",
        "query, key, value": matrices,
        "node_matmul": products,
        "node_matmul_1": products,
        "out": matrices,
    }


def test_what_was_left_out_is_said_once_for_all_layers() -> None:
    notes = choices("openvino", transformer(), activations=["static", "dynamic"]).notes
    assert len([note for note in notes if "int8-dynamic" in note]) == (1 if ABLE else 2)  # of products, of matrices
    assert len([note for note in notes if "openvino cannot run int8:" in note]) == 1


def test_a_group_of_the_user_goes_before_readers_of_one_tensor() -> None:
    found = decisions(choices("openvino", transformer(), groups=["value", "*"]))
    assert list(found) == ["group *", "group value"]
