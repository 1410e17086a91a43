from __future__ import annotations

import random
import time

import pytest

from tuyi.distill.reason_checks import CHECKS, Alike, ReasonChecks, look_at, trimmed

LABEL, DEFINITION = "是否好用", "买家咨询商品是否好用"


@pytest.mark.parametrize(
    ("reason", "check"),
    [
        ("用户问这款吸尘器吸力够不够,想知道值不值得买", None),
        ("", "empty"),
        (" 。😀\n", "empty"),
        ("买家咨询商品是否好用。", "repeats_label"),
        ("是否好用", "repeats_label"),
        ("用户咨询商品是否好用", "repeats_label"),
        ("好用", "repeats_label"),
        ("用户问吸力" * 11, "too_long"),
    ],
)
def test_what_is_wrong_with_a_reason(reason: str, check: str | None):
    found = look_at(reason, LABEL, DEFINITION, 50, ReasonChecks())
    assert (found.check if found else None) == check
    if check is not None:
        assert check in CHECKS
        assert look_at(reason, LABEL, DEFINITION, 50, ReasonChecks(**{check: False})) is None


def test_width_and_case_make_no_difference():
    assert look_at("THE  LABEL（ａ）!", "the label (a)", "", 50, ReasonChecks()) is not None
    assert look_at("the box in the picture is torn", "damaged", "arrived damaged", 50, ReasonChecks()) is None


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("  理由：用户问了价格 \n", "用户问了价格"),
        ('Reason: "it is torn"', "it is torn"),
        ("「图里是购物车」", "图里是购物车"),
        ('"a" and "b"', '"a" and "b"'),
        ("用户说\n“<image>”😀", "用户说\n“<image>”😀"),
        ('"', '"'),
    ],
)
def test_what_stands_around_a_reason_is_taken_off(answer: str, reason: str):
    assert trimmed(answer) == reason


def test_reasons_that_are_alike_are_grouped():
    groups = Alike(0.7)
    first = "用户询问这款电饭煲的内胆是什么材质做的，担心不耐用"
    assert groups.add("a", first) == (1, "a")
    assert groups.add("b", "图片里是一张订单详情，能看到收货地址和金额") == (1, "b")
    assert groups.add("c", first.replace("，", " ") + "！") == (2, "a")
    assert groups.add("d", first.replace("电饭煲", "电水煲")) == (3, "a")
    assert groups.add("e", "用户询问这款电饭煲能不能预约煮粥") == (1, "e")
    assert Alike(1.0).add("a", "") == (1, "a")


def exact(one: str, other: str) -> float:
    a, b = ({text[at : at + 3] for at in range(max(1, len(text) - 2))} for text in (one, other))
    return len(a & b) / len(a | b)


def test_the_index_finds_what_comparing_all_pairs_finds():
    rng = random.Random(0)
    signs = [chr(0x4E00 + n) for n in range(300)]
    texts: list[str] = []
    for _ in range(60):
        base = [rng.choice(signs) for _ in range(40)]
        for changes in (0, 1, 2, 4, 8):
            text = list(base)
            for at in rng.sample(range(40), changes):
                text[at] = rng.choice(signs)
            texts.append("".join(text))
    rng.shuffle(texts)
    groups, firsts, joined = Alike(0.6), dict[str, str](), 0
    for number, text in enumerate(texts):
        size, first = groups.add(str(number), text)
        expected = next((id for id, other in firsts.items() if exact(text, other) >= 0.6), str(number))
        assert first == expected
        joined += size > 1
        if size == 1:
            firsts[first] = text
    assert 100 < joined < 240


def test_time_grows_with_the_number_of_reasons_even_where_all_begin_alike():
    rng = random.Random(1)
    signs = [chr(0x4E00 + n) for n in range(2000)]
    began = time.process_time()
    groups = Alike(0.7)
    for number in range(2000):
        reason = "用户在对话里询问客服这款商品的" + "".join(rng.choices(signs, k=25))
        assert groups.add(str(number), reason) == (1, str(number))
    sizes = [groups.add(f"same {number}", "用户咨询商品的材质是什么")[0] for number in range(1000)]
    assert sizes == list(range(1, 1001))
    assert time.process_time() - began < 20
