"""The distribution along a decoded path, against the probabilities that the path was made from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pytest

from tuyi.predict.decoded import END, Step, label_masses


def step(chosen: bytes, options: Mapping[bytes, float]) -> Step:
    return Step(chosen, {token: math.log(chance) if chance else -math.inf for token, chance in options.items()})


def masses(labels: Sequence[str], decoded: str, *steps: Step) -> dict[str, float]:
    return dict(label_masses({label: [label.encode()] for label in labels}, decoded, steps).masses)


def test_labels_that_part_at_the_first_token():
    found = masses(["round", "square", "z"], "round", step(b"rou", {b"rou": 0.7, b"s": 0.2, b"z": 0.1}))
    assert found == pytest.approx({"round": 0.7, "square": 0.2, "z": 0.1})


def test_a_sibling_gets_the_path_so_far_times_its_branch():
    found = masses(
        ["退款", "退货", "商品"],
        "退款",
        step("退".encode(), {"退".encode(): 0.6, "商".encode(): 0.4}),
        step("款".encode(), {"款".encode(): 0.75, "货".encode(): 0.25}),
        step(END, {END: 1.0}),
    )
    assert found == pytest.approx({"退款": 0.45, "退货": 0.15, "商品": 0.4})


def test_a_shared_branch_is_split_evenly_and_known_as_shared():
    steps = [step("商".encode(), {"商".encode(): 0.3, "退".encode(): 0.7})]
    found = label_masses({name: [name.encode()] for name in ("退款", "退货", "商品")}, "商品", steps)
    assert found.masses == pytest.approx({"退款": 0.35, "退货": 0.35, "商品": 0.3})
    assert found.known == {"商品"}
    assert found.best == "商品", "nobody knows which of the other two it would be"


def test_the_best_label_can_be_another_than_the_greedy_one():
    answers = {name: [name.encode()] for name in ("退款", "退货", "商品")}
    steps = [
        step("退".encode(), {"退".encode(): 0.55, "商".encode(): 0.45}),
        step("款".encode(), {"款".encode(): 0.6, "货".encode(): 0.4}),
    ]
    found = label_masses(answers, "退款", steps)
    assert found.masses == pytest.approx({"退款": 0.33, "退货": 0.22, "商品": 0.45})
    assert found.best == "商品"


def test_a_label_that_begins_with_another():
    a = step(b"A", {b"A": 0.9, b"B": 0.1})
    assert masses(["A", "AB", "B"], "A", a, step(END, {END: 0.8, b"B": 0.2})) == pytest.approx(
        {"A": 0.72, "AB": 0.18, "B": 0.1}
    )
    assert masses(["A", "AB", "B"], "AB", a, step(b"B", {END: 0.2, b"B": 0.8})) == pytest.approx(
        {"A": 0.18, "AB": 0.72, "B": 0.1}
    )
    assert masses(["A", "AB", "B"], "A", a) == pytest.approx({"A": 0.9, "AB": 0, "B": 0.1}), "no terminator told"


def test_a_label_cut_into_tokens_in_several_ways():
    """The mass of both ways to begin a label is its own."""
    found = masses(["round", "square"], "round", step(b"rou", {b"rou": 0.5, b"r": 0.2, b"sq": 0.2, b"s": 0.1}))
    assert found == pytest.approx({"round": 0.7, "square": 0.3})


def test_a_token_that_is_a_whole_label_is_not_split_with_longer_ones():
    answers = {"红": ["红".encode()], "红色": ["红色".encode()], "A": [b"A"]}
    options = {"红色".encode(): 0.5, "红".encode(): 0.4, b"A": 0.1}
    found = label_masses(answers, "红色", [step("红色".encode(), options)])
    assert found.masses == pytest.approx({"红": 0.4, "红色": 0.5, "A": 0.1})
    assert found.known == {"红", "红色", "A"}
    answers["红色"] = ["红".encode(), "色".encode()]
    found = label_masses(answers, "A", [step(b"A", {b"A": 0.6, "红".encode(): 0.4})])
    assert found.masses == pytest.approx({"红": 0.2, "红色": 0.2, "A": 0.6})
    assert found.known == {"A"}


def test_tokens_that_end_inside_a_character():
    red, deep = "红色".encode(), "绿".encode()
    assert red[:1] == deep[:1]
    found = masses(
        ["红色", "绿", "A"],
        "红色",
        step(red[:1], {red[:1]: 0.9, b"A": 0.1}),
        step(red[1:2], {red[1:2]: 0.7, deep[1:2]: 0.3}),
    )
    assert found == pytest.approx({"红色": 0.63, "绿": 0.27, "A": 0.1})


def test_labels_that_no_option_covers_share_what_is_left():
    found = masses(["a", "b", "c", "d"], "a", step(b"a", {b"a": 0.8, b"b": 0.15}))
    assert found == pytest.approx({"a": 0.8, "b": 0.15, "c": 0.025, "d": 0.025})
    found = masses(["a", "b", "c"], "a", step(b"a", {b"a": 0.9, b"x": 0.01}))
    assert found["c"] == pytest.approx(0.01), "no token that was not shown is likelier than one that was"
    found = masses(["a", "b", "c"], "a", step(b"a", {b"a": 0.8, b"b": 0.2}))
    assert found["c"] == pytest.approx(0, abs=1e-12)


def test_masked_options_and_tokens_without_text_count_for_nothing():
    found = masses(["a", "b"], "a", step(b"", {b"": 1.0}), step(b"a", {b"a": 0.6, b"b": 0.4, b"": 0.0, b"zz": 0.0}))
    assert found == pytest.approx({"a": 0.6, "b": 0.4})


def test_a_decoder_that_is_exact_is_followed_exactly():
    """Against brute force: a random token tree, normalised at every step as constrained decoding does."""
    import random

    rng = random.Random(3)
    labels = ["aab", "aac", "ab", "b", "ba", "caa"]
    for _ in range(50):
        table: dict[str, dict[str, float]] = {}

        def chances(prefix: str) -> dict[str, float]:
            signs = {(label + "\xff")[len(prefix)] for label in labels if label.startswith(prefix)}
            raw = {sign: rng.random() for sign in sorted(signs)}
            return {sign: chance / sum(raw.values()) for sign, chance in raw.items()}

        for label in labels:
            for cut in range(len(label) + 1):
                table.setdefault(label[:cut], chances(label[:cut]))
        text, steps = "", []
        while not text.endswith("\xff"):
            best = max(table[text], key=table[text].__getitem__)
            options = {sign.encode("latin-1"): chance for sign, chance in table[text].items()}
            steps.append(step(best.encode("latin-1"), options))
            text += best
        found = label_masses({label: [sign.encode() for sign in label] for label in labels}, text[:-1], steps)
        assert sum(found.masses.values()) == pytest.approx(1)
        for label in found.known:
            exact = math.prod(table[label[:cut]][(label + "\xff")[cut]] for cut in range(len(label) + 1))
            assert found.masses[label] == pytest.approx(exact)
