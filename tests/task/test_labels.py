"""Labels: one spelling out of many, and the nearest one for a wrong one."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tuyi.errors import LabelError
from tuyi.task.labels import LabelSet, fold


@pytest.fixture
def labels() -> LabelSet:
    return LabelSet.model_validate(
        {"红色（深）": "dark", "实物拍摄(含售后)": "", "Other Picture": None, "账单/账户页面": "x"}
    )


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("红色（深）", "红色（深）"),
        ("红色(深)", "红色（深）"),
        (" 红色 ( 深 )\n", "红色（深）"),
        ("实物拍摄（含售后）", "实物拍摄(含售后)"),
        ("other picture", "Other Picture"),
        ("OTHERPICTURE", "Other Picture"),
        ("Ｏther　Ｐicture", "Other Picture"),
        ("账单／账户页面", "账单/账户页面"),
    ],
)
def test_width_case_and_spaces_do_not_matter(labels: LabelSet, spelling: str, expected: str):
    assert spelling in labels
    assert labels.canonical(spelling) == expected


def test_a_label_outside_the_set_names_the_nearest(labels: LabelSet):
    assert "红色（浅）" not in labels
    with pytest.raises(
        LabelError, match="label '红色（浅）' is not one of the task's 4 labels; the nearest is '红色（深）'"
    ):
        labels.canonical("红色（浅）")
    assert labels.nearest("实物拍摄") == "实物拍摄(含售后)"
    assert labels.nearest("zzz") is None
    with pytest.raises(LabelError, match=r"label 'zzz' is not one of the task's 4 labels$"):
        labels.canonical("zzz")


def test_a_distribution_is_in_the_order_of_the_labels_and_makes_1(labels: LabelSet):
    found = labels.distribution({"OTHER picture": 0.3995, "红色(深)": 0.6})
    assert found == pytest.approx((0.6 / 0.9995, 0, 0.3995 / 0.9995, 0))
    assert sum(found) == pytest.approx(1, abs=1e-12)
    with pytest.raises(LabelError, match="soft labels: '红色（深）' stands there twice, as '红色（深）' too"):
        labels.distribution({"红色(深)": 0.5, "红色（深）": 0.5})
    with pytest.raises(LabelError, match="label '红色（浅）' is not one of"):
        labels.distribution({"红色（浅）": 1.0})


def test_labels_keep_their_order_and_definitions(labels: LabelSet):
    assert labels.names == ("红色（深）", "实物拍摄(含售后)", "Other Picture", "账单/账户页面")
    assert [label.definition for label in labels.labels] == ["dark", "", "", "x"]
    assert len(labels) == 4
    assert LabelSet.model_validate(labels.model_dump()) == labels
    assert LabelSet.model_validate_json(labels.model_dump_json()).canonical("红色(深)") == "红色（深）"
    assert LabelSet.model_validate([1, True, "x"]).names == ("1", "True", "x")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["a"], "at least 2 labels, found 1"),
        ([], "at least 2 labels, found 0"),
        (["a", "  "], "a label is empty"),
        (
            ["红色（深）", "红色(深)"],
            "'红色\\(深\\)' and '红色（深）' are the same label but for width, case or spaces",
        ),
        (["A b", "ab"], "same label but for width, case or spaces"),
    ],
)
def test_a_set_that_cannot_be_told_apart_is_refused(value: list[str], message: str):
    with pytest.raises(ValidationError, match=message):
        LabelSet.model_validate(value)


def test_folding_twice_changes_nothing():
    for text in ("（ＡＢｃ） ｱ", "账单/账户 页面", "ß Straße", "①", "", " \n"):
        assert fold(fold(text)) == fold(text)
