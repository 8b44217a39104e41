"""Every name in a search space is checked when it is loaded, and what is wrong is told with file, line and rule."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest

from mixq.config import LayerScheme
from mixq.errors import InputError
from mixq.searcher.space import SearchSpace, check_space, load_space

ROOT = Path(__file__).parents[2]
YAML_FILES = sorted([*ROOT.glob("search_spaces/*.yaml"), *ROOT.glob("experiments/**/*.yaml")])
SHIPPED = [path for path in YAML_FILES if path.parent.name != "jobs"]
FIELDS = "activations, constraints, groups, objectives, overrides, precisions, recipes, rest, sampler, stages, training"
PRECISIONS = "Input should be 'fp32', 'fp16', 'bf16' or 'int8' (got 'int4')"


def loaded(folder: Path, text: str) -> SearchSpace:
    path = folder / "space.yaml"
    path.write_text(text, encoding="utf-8")
    return load_space(path)


def refusal(folder: Path, text: str) -> list[str]:
    """The lines of the message."""
    with pytest.raises(InputError) as error:
        loaded(folder, text)
    return str(error.value).splitlines()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_we_ship_can_be_loaded(path: Path) -> None:
    space = load_space(path)
    assert space.schemes("any layer")
    assert copy.deepcopy(space) == pickle.loads(pickle.dumps(space)) == space  # noqa: S301
    assert SearchSpace.model_validate_json(space.model_dump_json()) == space


def test_there_is_something_to_load() -> None:
    assert {path.parent.name for path in SHIPPED} >= {"search_spaces", "digits"}


def test_the_smallest_space(tmp_path: Path) -> None:
    space = loaded(tmp_path, "precisions: [int8]")
    assert [str(scheme) for scheme in space.schemes("a")] == ["int8"]
    assert (space.objectives, space.sampler, space.constraints.max_drop) == (("latency",), "guided", 0.005)
    assert [step.name for step in space.recipes["default"]] == ["calibrate", "bias_correction"]


def test_the_last_override_that_matches_decides(tmp_path: Path) -> None:
    space = loaded(
        tmp_path,
        """
precisions: [fp32, bf16, int8]
stages: [ptq, qat]
training: {steps: [1]}
overrides:
  - {layers: "block*", precisions: [int8]}
  - {layers: "block1.*", stages: [ptq]}
  - {layers: "*.head", precisions: [fp32]}
""",
    )
    names = {layer: [str(s) for s in space.schemes(layer)] for layer in ("stem", "block2.a", "block1.a", "block1.head")}
    assert names == {
        "stem": ["fp32", "bf16", "int8", "int8-qat"],
        "block2.a": ["int8", "int8-qat"],
        "block1.a": ["int8"],
        "block1.head": ["fp32"],
    }


def test_numbers_may_be_written_as_people_write_them(tmp_path: Path) -> None:
    """To YAML 1.1, 1e-5 is a word."""
    space = loaded(tmp_path, "precisions: [int8]\nstages: [qat]\ntraining: {learning_rate: [1e-5, 0.001]}")
    assert space.training is not None
    assert space.training.learning_rate == (1e-5, 0.001)
    assert space.schemes("a") == [LayerScheme.parse("int8-qat")]


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("precisions: [int8]\nprecision: x", 2, [f"precision: unknown field; known: {FIELDS}"]),
        (
            "precisions: [int8]\nconstraints:\n  drop: 1",
            3,
            ["constraints.drop: unknown", "known: confidence, max_drop, max_lat"],
        ),
        (
            "precisions: [int8]\noverrides:\n- {layers: a, rest: [fp32]}",
            3,
            ["overrides.0.rest: unknown", "layers, prec"],
        ),
        (
            "precisions: [int8]\ntraining:\n  epochs: 3",
            3,
            ["epochs: unknown field; known: bank, hints, learning_rate,"],
        ),
        ("rest: [fp32]", 1, ["precisions: required, but missing"]),
        ("# a comment\n\nprecisions: [fp32, int4]", 3, [f"precisions.1: {PRECISIONS}"]),
        ("precisions: [fp32]\noverrides:\n- layers: a\n  precisions: [int4]", 4, [PRECISIONS]),
        ("precisions: [int8]\nrest: [int8]", 2, ["rest.0: Input should be 'fp32', 'fp16' or 'bf16' (got 'int8')"]),
        ("precisions: int8", 1, ["precisions: must be a list, e.g. [a, b], got 'int8'"]),
        ("precisions: []", 1, ["precisions: Tuple should have at least 1 item"]),
        ("precisions: [int8]\nobjectives: [latency, latency]", 2, ["objectives: a value is listed twice; keep one"]),
        (
            "precisions: [int8]\nobjectives: [speed]",
            2,
            ["objectives.0: Input should be 'latency', 'size' or"],
        ),
        ("precisions: [int8]\nobjectives: [train_seconds]", 2, ["FP32 trains fastest; put latency or size before it"]),
        ("precisions: [int8]\nsampler: best", 2, ["'guided', 'tpe' or 'gp' (got 'best')"]),
        ("precisions: [int8]\nstages: [qat]", 1, ["stage qat needs `training:` with steps and learning_rate"]),
        ("precisions: [int8]\noverrides: [{layers: a, stages: [qat]}]", 1, ["stage qat needs `training:`"]),
        ("precisions: [int8]\ntraining: {steps: [0]}", 2, ["training: steps must be at least 1 and learning rates"]),
        ("precisions: [int8]\ntraining: {learning_rate: [2]}", 2, ["learning rates between 0 and 1"]),
        ("precisions: [int8]\ntraining: {seed: -1}", 2, ["training.seed", "greater than or equal to 0 (got -1)"]),
        ("precisions: [int8]\nconstraints: {max_drop: -1}", 2, ["constraints.max_drop", "greater than or equal to 0"]),
        ("precisions: [int8]\nconstraints: {max_drop: .nan}", 2, ["constraints.max_drop", "finite number"]),
        ("precisions: [int8]\nconstraints: {max_size_mb: 0}", 2, ["constraints.max_size_mb", "greater than 0"]),
        ("precisions: [int8]\nconstraints: 3", 2, ["constraints: must be a mapping of names to values, got int"]),
        ("precisions: [int8]\nrecipes: {}", 2, ["recipes: Dictionary should have at least 1 item"]),
        (
            "precisions: [int8]\nrecipes: {a: []}",
            2,
            ["recipes: a: a recipe has calibrate, each step once, in the order equalize → calibrate"],
        ),
        (
            "precisions: [int8]\nrecipes:\n  a: [{name: magic}]",
            2,
            ["recipes: a: recipe step 'magic' is unknown; known: equalize, calibrate"],
        ),
        (
            "precisions: [int8]\nrecipes:\n  a: [{name: calibrate, params: {activations: magic}}]",
            2,
            [
                "recipe step 'calibrate': ",
                "activations: 'magic' is unknown; known: minmax, percentile, mse, entropy, best",
            ],
        ),
        (
            "precisions: [int8]\nrecipes:\n  a: [{name: calibrate, params: {weights: magic}}]",
            2,
            ["'magic' is unknown; known: minmax, mse"],
        ),
        (
            "precisions: [int8]\nrecipes:\n  a: [{name: calibrate, params: {weight: mse}}]",
            2,
            ["recipe step 'calibrate' has no parameter ['weight']; known: activations, weights"],
        ),
        ("precisions: [int8]\nrecipes:\n  a: [{step: calibrate}]", 3, ["recipes.a.0.name: required, but missing"]),
        ("1: x\nprecisions: [int8]", 1, ["1: Keys should be strings"]),
    ],
)
def test_what_is_wrong_is_told_with_its_line(text: str, line: int, told: list[str], tmp_path: Path) -> None:
    said = refusal(tmp_path, text)
    assert said[0].startswith(f"{tmp_path}/space.yaml line {line}: "), said
    assert all(part in said[0] for part in told), said


def test_of_many_mistakes_the_first_are_told(tmp_path: Path) -> None:
    said = refusal(tmp_path, "precisions: [a, b, c]\nd: 1\ne: 2")
    assert len(said) == 3
    assert "precisions.0: Input" in said[0]
    assert said[-1] == "and 3 more"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("precisions: [int8", r"space\.yaml line 1: not valid YAML: expected ',' or '\]'"),
        ("precisions: [int8]\n  rest: [fp32]", r"space\.yaml line 2: not valid YAML: "),
        ("precisions: *those", r"space\.yaml line 1: not valid YAML: found undefined alias 'those'"),
        ("precisions: [int8]\n---\na: b", r"space\.yaml line 2: not valid YAML: "),
        ("precisions: \x00", r"space\.yaml: not valid YAML: unacceptable character"),
        ("precisions: 2024-13-45", r"space\.yaml: not valid YAML: month must be in 1\.\.12"),
        ("rest: [fp32]\nprecisions: [int8]\nrest: [bf16]", r"space\.yaml line 3: rest is given twice; keep one"),
        ("overrides: [{layers: a, layers: b}]", r"space\.yaml line 1: layers is given twice"),
        *((text, "a search space is a mapping with at least `precisions:`") for text in ("", "# x", "- a", "int8")),
    ],
)
def test_what_is_no_yaml_mapping_is_refused(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=told) as error:
        loaded(tmp_path, text)
    assert "\n" not in str(error.value)


def test_what_is_no_file_of_text_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.yaml"):
        with pytest.raises(InputError, match=rf"cannot read the search space {path}: .*; see search_spaces/cpu\.yaml"):
            load_space(path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is no text"):
        load_space(tmp_path / "binary")


def test_a_space_without_a_file_names_its_source(tmp_path: Path) -> None:
    space = loaded(tmp_path, "precisions: [int8]")
    assert check_space(space.model_dump(), "arguments") == space
    with pytest.raises(InputError, match=r"^arguments: sampler: Input should be 'guided', .* \(got 'best'\)$"):
        check_space({**space.model_dump(), "sampler": "best"}, "arguments")
