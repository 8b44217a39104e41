"""One configuration is one frozen, hashable JSON value; what cannot be one is refused with what can."""

from __future__ import annotations

import copy
import json
import pickle
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mixq.config import (
    Activation,
    LayerScheme,
    MixedPrecisionConfig,
    Precision,
    RecipeStep,
    Scalar,
    Stage,
    Training,
    all_schemes,
    uniform,
)
from mixq.errors import InputError

INT8, FP32 = LayerScheme(precision=Precision.INT8), LayerScheme(precision=Precision.FP32)
QAT = LayerScheme(precision=Precision.INT8, stage=Stage.QAT)
FLOATS = (Precision.FP32, Precision.FP16, Precision.BF16)
VALID: dict[str, Any] = {"model": "m", "schemes": {"a": {"precision": "int8"}, "b": {"precision": "fp32"}}}

SCALARS: st.SearchStrategy[Scalar] = st.one_of(
    st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), st.text()
)
STEPS = st.builds(RecipeStep, name=st.text(), params=st.dictionaries(st.text(), SCALARS, max_size=3))
TRAININGS = st.builds(
    Training, steps=st.integers(1, 10**6), learning_rate=st.floats(1e-12, 1e3), seed=st.integers(0, 2**40)
)


@st.composite
def configs(draw: st.DrawFn) -> MixedPrecisionConfig:
    schemes = draw(st.dictionaries(st.text(), st.sampled_from(all_schemes()), max_size=5))
    trains = any(scheme.stage is Stage.QAT for scheme in schemes.values())
    return MixedPrecisionConfig(
        model=draw(st.text()),
        schemes=schemes,
        rest=draw(st.sampled_from(FLOATS)),
        recipe=tuple(draw(st.lists(STEPS, max_size=3))),
        training=draw(TRAININGS) if trains else None,
    )


def changed(**fields: Any) -> str:
    return json.dumps({**VALID, **fields})


@given(configs())
def test_json_gives_the_same_value_back(config: MixedPrecisionConfig) -> None:
    for text in (config.to_json(), config.to_json(indent=None)):
        back = MixedPrecisionConfig.from_json(text)
        assert back == config
        assert hash(back) == hash(config)
        assert back.id == config.id
        assert back.model_dump() == config.model_dump()
        assert back.to_json() == config.to_json()


@given(configs(), configs())
def test_equal_means_equal_json(left: MixedPrecisionConfig, right: MixedPrecisionConfig) -> None:
    assert (left == right) == (left.to_json() == right.to_json())
    assert len({left, right}) == (1 if left == right else 2)


@given(configs(), st.randoms(use_true_random=False))
def test_the_order_of_layers_does_not_matter(config: MixedPrecisionConfig, random: Any) -> None:
    content = json.loads(config.to_json())
    names = list(content["schemes"])
    random.shuffle(names)
    content["schemes"] = {name: content["schemes"][name] for name in names}
    shuffled = MixedPrecisionConfig.from_json(json.dumps(dict(reversed(content.items()))))
    assert shuffled.id == config.id
    assert list(shuffled.schemes) == sorted(names)


@given(configs())
def test_copies_and_pickles_are_the_same_value(config: MixedPrecisionConfig) -> None:
    assert copy.deepcopy(config) == config
    assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301
    assert {copy.deepcopy(step) for step in config.recipe} == set(config.recipe)


def test_equal_schemes_are_one_in_memory() -> None:
    """A long search holds a configuration for each trial, and a large network has a scheme for each of its layers."""
    first, second = (
        MixedPrecisionConfig.from_json(uniform("0" * 16, ["a", "b"], LayerScheme(precision=Precision.BF16)).to_json())
        for _ in range(2)
    )
    assert first.schemes["a"] is first.schemes["b"] is second.schemes["a"]


def test_the_order_of_the_recipe_matters() -> None:
    steps = RecipeStep(name="a"), RecipeStep(name="b")
    assert uniform("m", ["x"], INT8, recipe=steps) != uniform("m", ["x"], INT8, recipe=steps[::-1])


def test_it_is_unlike_any_other_kind_of_value() -> None:
    config = MixedPrecisionConfig.from_json(changed())
    assert config != config.to_json()
    assert len(config.id) == 16
    assert int(config.id, 16) >= 0


@pytest.mark.parametrize("name", MixedPrecisionConfig.model_fields)
def test_it_cannot_be_changed(name: str) -> None:
    config = MixedPrecisionConfig.from_json(changed())
    with pytest.raises(ValidationError, match="frozen"):
        setattr(config, name, None)


def test_its_mappings_cannot_be_changed() -> None:
    config = uniform("m", ["a"], INT8, recipe=(RecipeStep(name="calibrate", params={"weights": "mse"}),))
    mappings: tuple[Any, ...] = (config.schemes, config.recipe[0].params)
    for mapping in mappings:
        with pytest.raises(TypeError, match="does not support item assignment"):
            mapping["a"] = FP32


def test_it_does_not_share_its_mapping_with_who_made_it() -> None:
    schemes = {"a": INT8}
    config = MixedPrecisionConfig(model="m", schemes=schemes)
    schemes["b"] = INT8
    assert list(config.schemes) == ["a"]


def test_it_counts_and_lists_layers() -> None:
    config = MixedPrecisionConfig(
        model="m", schemes={"a": QAT, "b": INT8, "c": INT8, "d": FP32}, training=Training(steps=1, learning_rate=1e-5)
    )
    assert config.counts() == {"fp32": 1, "int8": 2, "int8-qat": 1}
    assert config.layers_with(Precision.INT8) == ["a", "b", "c"]
    assert config.qat_layers == ["a"]


@pytest.mark.parametrize("scheme", all_schemes(), ids=str)
def test_a_scheme_can_be_written_and_read(scheme: LayerScheme) -> None:
    assert LayerScheme.parse(str(scheme)) == scheme
    assert len({str(other) for other in all_schemes()}) == len(all_schemes()) == 7


@given(st.text())
def test_no_other_text_is_a_scheme(text: str) -> None:
    if text in {str(scheme) for scheme in all_schemes()}:
        return
    with pytest.raises(InputError) as error:
        LayerScheme.parse(text)
    assert repr(text) in str(error.value)
    assert all(str(scheme) in str(error.value) for scheme in all_schemes())


@pytest.mark.parametrize("activation", [Activation.DYNAMIC, Activation.WEIGHT_ONLY])
def test_what_is_trained_is_static(activation: Activation) -> None:
    with pytest.raises(ValidationError, match=f"learns calibrated scales; {activation} layers have stage ptq"):
        LayerScheme(precision=Precision.INT8, stage=Stage.QAT, activation=activation)
    trained = [scheme for scheme in all_schemes() if scheme.stage is Stage.QAT]
    assert list(map(str, trained)) == ["int8-qat"]
    assert str(LayerScheme.parse("int8-qat").untrained) == "int8"


@pytest.mark.parametrize("precision", FLOATS)
@pytest.mark.parametrize(
    "words", [{"stage": Stage.QAT}, {"activation": Activation.DYNAMIC}, {"activation": Activation.WEIGHT_ONLY}]
)
def test_stage_and_activation_are_for_int8(precision: Precision, words: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"for int8 layers only, not for {precision}"):
        LayerScheme(precision=precision, **words)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (changed(scheme={}), ["scheme: unknown field", "known: format, model, recipe, rest, schemes, training"]),
        (changed(schemes={"a": {"precision": "int4"}}), ["schemes.a.precision", "'fp32', 'fp16', 'bf16' or 'int8'"]),
        (changed(schemes={"a": {"precision": "int8", "bits": 8}}), ["schemes.a.bits: unknown", "known: activation"]),
        (changed(schemes={"a": {"precision": "int8", "stage": "x"}}), ["schemes.a.stage", "'ptq' or 'qat' (got 'x')"]),
        (changed(schemes={"a": {"precision": "int8", "activation": "x"}}), ["'static', 'dynamic' or 'weight_only'"]),
        (changed(schemes={"a": {"precision": "fp16", "stage": "qat"}}), ["schemes.a: stage and activation are for"]),
        (changed(schemes={"a": "int8"}), ["schemes.a: must be a mapping", "got str"]),
        (changed(schemes={"a": {}}), ["schemes.a.precision: required, but missing"]),
        (changed(rest="int8"), ["rest: Input should be 'fp32', 'fp16' or 'bf16' (got 'int8')"]),
        (changed(recipe=[{"name": "x", "parameters": {}}]), ["recipe.0.parameters: unknown", "known: name, params"]),
        (changed(recipe=[{"name": "x", "params": {"p": [1]}}]), ["recipe.0.params.p"]),
        (changed(recipe=[{"name": "x", "params": {"p": float("nan")}}]), ["recipe.0.params.p", "finite number"]),
        (changed(recipe="mse"), ["recipe: must be a list, e.g. [a, b], got 'mse'"]),
        (changed(format=2), ["format: Input should be 1 (got 2)"]),
        (changed(training={"steps": 0, "learning_rate": 1}), ["training.steps", "greater than or equal to 1 (got 0)"]),
        (changed(training={"steps": 1, "learning_rate": float("inf")}), ["training.learning_rate", "finite number"]),
        ("[1]", ["(top level): must be a mapping", "got list"]),
        ("{}", ["model: required, but missing; schemes: required, but missing"]),
    ],
)
def test_what_is_wrong_is_refused_with_what_is_known(text: str, told: list[str]) -> None:
    with pytest.raises(InputError) as error:
        MixedPrecisionConfig.from_json(text, "my.json")
    said = str(error.value)
    assert said.startswith("my.json: ")
    assert "\n" not in said
    assert all(part in said for part in told), said


def test_truncated_json_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    whole, path = uniform("m", ["a", "b"], INT8).to_json(), tmp_path / "best.json"
    for end in range(len(whole)):
        path.write_text(whole[:end], encoding="utf-8")
        with pytest.raises(InputError, match=rf"{path} is not valid JSON \(line \d+: .*may be truncated: write it"):
            MixedPrecisionConfig.load(path)
    path.write_text(whole, encoding="utf-8")
    assert MixedPrecisionConfig.load(path) == uniform("m", ["a", "b"], INT8)


def test_what_is_no_file_of_text_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.json"):
        with pytest.raises(InputError, match=rf"cannot read the configuration {path}: .*; give a best\.json that a"):
            MixedPrecisionConfig.load(path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is no text"):
        MixedPrecisionConfig.load(tmp_path / "binary")


def test_training_is_given_exactly_with_qat() -> None:
    training = Training(steps=10, learning_rate=1e-5)
    assert uniform("m", ["a"], QAT, training=training).qat_layers == ["a"]
    for scheme, given_training in ((QAT, None), (INT8, training), (FP32, training)):
        with pytest.raises(ValidationError, match="training is given exactly when a layer has stage qat"):
            uniform("m", ["a"], scheme, training=given_training)


def test_a_training_says_what_is_not_the_default() -> None:
    assert str(Training(steps=50, learning_rate=0.1)) == "50 steps at 0.1"
    whole = Training(steps=50, learning_rate=0.1, bank=100, scales=False, hints=0.5, seed=2)
    want = "50 steps at 0.1, from a shared start of 100 steps, scales as calibrated, hints 0.5, seed 2"
    assert str(whole) == want


def test_a_file_from_before_hints_is_of_a_training_without() -> None:
    known = json.loads(uniform("m", ["a"], QAT, training=Training(steps=10, learning_rate=0.1)).to_json())
    del known["training"]["hints"]
    training = MixedPrecisionConfig.from_json(json.dumps(known)).training
    assert training is not None
    assert training.hints == 0


LAYERS = ("first", "second", "head")


def misfit(config: MixedPrecisionConfig, layers: Iterable[str] = LAYERS) -> str | None:
    """Why `config` is refused for the model m; None where it fits."""
    try:
        config.check_for("m", layers)
    except InputError as error:
        return str(error)
    return None


def test_it_fits_the_model_that_it_is_for() -> None:
    assert misfit(uniform("m", LAYERS, INT8)) is None
    assert misfit(uniform("m", LAYERS, INT8), reversed(LAYERS)) is None


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (uniform("m", (*LAYERS, "tail"), INT8), r"unknown layers \['tail'\]; known: first, second, head"),
        (uniform("m", LAYERS[:2], INT8), r"no scheme for the layers \['head'\]; every layer needs one"),
        (uniform("n", LAYERS, INT8), "is for the model n, this one is m: .*; search again, or use the task"),
        (uniform("n", ["other"], INT8), r"unknown layers \['other'\]"),
    ],
)
def test_it_fits_no_other_model(config: MixedPrecisionConfig, told: str) -> None:
    assert re.search(told, misfit(config) or "it fits")
