"""Search spaces that cannot be used, through the real command line: the message has the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bad_input.refusal import refusal, says, search

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)

# What stands in the file, and what the message must say.
SPACES: dict[str, tuple[str, list[str]]] = {
    "empty": ("", ["a search space is a mapping with at least `precisions:`", "see search_spaces/cpu.yaml"]),
    "a list": ("- int8\n", ["a search space is a mapping", "see search_spaces/cpu.yaml"]),
    "a tab": ("precisions:\n\t- fp32\n", ["line 2: not valid YAML", "cannot start any token"]),
    "no precisions": ("stages: [ptq]\n", ["line 1: precisions: required, but missing"]),
    "none of them": ("precisions: []\n", ["line 1: precisions: ", "at least 1 item"]),
    "one precision": ("precisions: int8\n", ["line 1: precisions: must be a list, e.g. [a, b], got 'int8'"]),
    "a value twice": ("precisions: [int8, int8]\n", ["line 1: precisions: a value is listed twice; keep one"]),
    "a key twice": ("precisions: [int8]\nprecisions: [fp32]\n", ["line 2: precisions is given twice; keep one"]),
    "int4": ("precisions:\n- int4\n", ["line 2: precisions.0: ", "'fp32', 'fp16', 'bf16' or 'int8' (got 'int4')"]),
    "rest": ("precisions: [int8]\nrest: [int8]\n", ["line 2: rest.0: ", "'fp32', 'fp16' or 'bf16' (got 'int8')"]),
    "activations": (
        "precisions: [int8]\nactivations: [lazy]\n",
        ["line 2: activations.0: ", "'static', 'dynamic' or 'weight_only' (got 'lazy')"],
    ),
    "activations of an override": (
        "precisions: [int8]\noverrides:\n- layers: head\n  activations: [none]\n",
        ["line 4: overrides.0.activations.0: ", "'dynamic' or 'weight_only' (got 'none')"],
    ),
    "dynamic where it cannot run": (
        "precisions: [int8]\nactivations: [dynamic]\n",
        ["no choice is left for first", "OpenVINO quantizes at run time", "Conv"],
    ),
    "an override of no layer": (
        "precisions: [int8]\noverrides: [{layers: tail*, precisions: [fp32]}]\n",
        ["no layer matches 'tail*' of the search space", "layers: first, second, head"],
    ),
    "qat without training": ("precisions: [int8]\nstages: [qat]\n", ["stage qat needs `training:` with steps"]),
    "learning rate": (
        "precisions: [int8]\nstages: [qat]\ntraining: {learning_rate: [2]}\n",
        ["line 3: training: ", "learning rates between 0 and 1"],
    ),
    "an unknown step": (
        "precisions: [int8]\nrecipes: {a: [{name: magic}]}\n",
        ["line 2: recipes: a: recipe step 'magic' is unknown; known: equalize, calibrate"],
    ),
    "an unknown parameter": (
        "precisions: [int8]\nrecipes: {a: [{name: calibrate, params: {bits: 4}}]}\n",
        ["'calibrate' has no parameter ['bits']; known: activations, weights, granularity"],
    ),
    "an unknown observer": (
        "precisions: [int8]\nrecipes: {a: [{name: calibrate, params: {activations: magic}}]}\n",
        ["activations: 'magic' is unknown; known: minmax"],
    ),
    "another order": (
        "precisions: [int8]\nrecipes: {a: [{name: bias_correction}, {name: calibrate}]}\n",
        ["in the order equalize → calibrate → adaround → bias_correction"],
    ),
    "an unknown objective": ("precisions: [int8]\nobjectives: [joy]\n", ["line 2: objectives.0: ", "(got 'joy')"]),
    "training first": (
        "precisions: [int8]\nobjectives: [train_seconds]\n",
        ["put latency or size before it"],
    ),
    "no number": ("precisions: [int8]\nconstraints: {max_drop: .nan}\n", ["max_drop: ", "finite number (got nan)"]),
    "certainty": (
        "precisions: [int8]\nconstraints: {confidence: 1}\n",
        ["line 2: constraints.confidence: ", "less than 1"],
    ),
    "a number that is too large": (
        "precisions: [int8]\nconstraints: {max_drop: 1" + 400 * "0" + "}\n",
        ["a whole number of 1329 bits; give one of at most 64"],
    ),
    "a number of no end": ("precisions: [0x" + 5000 * "f" + "]\n", ["of 20000 bits; give one of at most 64"]),
    "aliases that explode": (LAUGHS, ["values, its aliases written out; give at most 100000"]),
    "a list that holds itself": ("precisions: &a [*a]\n", ["line 1: a value that holds itself; write it out"]),
    "depth": ("precisions: " + 5000 * "[", ["is nested more than 50 levels deep"]),
    "whole depth": ("precisions: " + 99 * "[" + 99 * "]", ["is nested more than 50 levels deep"]),
    "a Python object": (
        "precisions: !!python/object/apply:os.getcwd []\n",
        ["line 1: not valid YAML: could not determine a constructor for the tag", "python/object/apply:os.getcwd"],
    ),
    "a date that is none": ("precisions: 2020-99-99\n", ["not valid YAML: month must be in 1..12"]),
    "no number at all": ("precisions: !!int ''\n", ["not valid YAML", "see search_spaces/cpu.yaml"]),
    "half a character": ('precisions: ["\\ud800"]\n', ["half a character (a lone surrogate)", "write it anew"]),
    "what controls a terminal": ('precisions: ["\\e[31m\\n\\n\\n"]\n', ["line 1: precisions.0: ", r"(got '\x1b[31m\n"]),
    "a key that is no text": ("precisions: [int8]\n1: 2\n", ["line 2: 1: Keys should be strings"]),
    "a mapping as a key": ("? {a: 1}\n: 2\n", ["line 1: not valid YAML: found unhashable key"]),
}


@pytest.mark.parametrize("name", SPACES)
def test_a_space_that_cannot_be_used(name: str, files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text, told = SPACES[name]
    Path("bad.yaml").write_text(text, encoding="utf-8")
    assert says(
        refusal([*search(files), "--space", "bad.yaml"], capfd),
        ["bad.yaml", *told] if "layer" not in told[0] and "choice" not in told[0] else told,
    )


def test_a_space_that_is_no_text(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("bad.yaml").write_bytes(b"\xff\xfe\x00")
    told = refusal([*search(files), "--space", "bad.yaml"], capfd)
    assert says(told, ["the search space bad.yaml is no text (UTF-8)", "see search_spaces/cpu.yaml"])
