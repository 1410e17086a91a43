"""The tab Label as a person uses it, by keys alone, in a headless Chromium."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from live_server import Running
from tab_servers import EVIL, rows_file, tab_server

from tuyi.data.example import Image
from tuyi.data.fingerprint import MediaDigests
from tuyi.data.source import read
from tuyi.distill.corrected import apply_corrections
from tuyi.distill.corrections import COLUMNS, fingerprint
from tuyi.serve.opening import Served
from tuyi.serve.web.labelling import Labelling

Open = Callable[..., Any]

ROW = ".tuyi-desk section.row"
TOLD = ".tuyi-desk .told"


@pytest.fixture
def data(tmp_path: Path, picture: Callable[..., Image]) -> Path:
    rows = [(f"r{number}", f"用户: what is {number}?\n客服: {EVIL}", None, None) for number in range(4)]
    shown = ("seen", "用户: and this?", None, picture(60, 40, seed=3))
    return rows_file(tmp_path / "rows.jsonl", [*rows, shown, ("known", "which?", "square", None)])


@pytest.fixture
def labelled(served: Served, data: Path) -> Iterator[Running]:
    with tab_server(served, labelling=Labelling.open(data, served.tasks)) as server:
        yield server


def begin(page: Any) -> str:
    """Open the tab by keys; the row that stands there with its suggestions."""
    page.get_by_role("tab", name="Label").press("Enter")
    return ready(page)


def ready(page: Any, but: str = "") -> str:
    """Wait for a row other than ``but`` and for what the model says of it."""
    page.wait_for_function(
        f"""but => document.querySelector('{ROW}') && document.querySelector('{ROW}').dataset.id !== but
            && document.querySelector('.tuyi-desk .list .share:not(:empty)')""",
        arg=but,
    )
    page.wait_for_timeout(400)  # keys rest for a moment after suggestions came
    return page.locator(ROW).get_attribute("data-id")


def press(page: Any, key: str) -> str:
    """Press a key; the row that stands there then."""
    before = page.locator(ROW).get_attribute("data-id")
    page.keyboard.press(key)
    return ready(page, before)


def told(data: Path) -> dict[str, dict[str, str]]:
    with data.with_name("rows.jsonl.corrections.csv").open(encoding="utf-8-sig", newline="") as stream:
        return {row["id"]: row for row in csv.DictReader(stream)}


def names(page: Any) -> list[str]:
    return page.locator(".tuyi-desk .list .name").all_inner_texts()


def test_three_rows_by_keys_alone_then_a_reload_an_undo_and_the_applied_data(labelled, opened: Open, data, served):
    page = opened(labelled.url)
    first = begin(page)
    ranked = names(page)
    second = press(page, "Enter")
    assert told(data)[first]["new_label"] == ranked[0]
    other = names(page)[1]
    third = press(page, "2")
    assert (told(data)[second]["action"], told(data)[second]["new_label"]) == ("change", other)
    assert other != told(data)[second]["suggested_label"]
    fourth = press(page, "d")
    assert told(data)[third]["action"] == "drop"
    assert "3 of" in page.locator(".tuyi-desk .how-far").inner_text()

    page.reload()
    assert begin(page) == fourth
    assert press(page, "u") == third
    assert page.locator(TOLD).inner_text() == "Taken back."
    assert third not in told(data)
    press(page, "k")
    assert told(data)[third]["action"] == "keep"
    corrections, new = data.with_name("rows.jsonl.corrections.csv"), data.with_name("new.jsonl")
    done = apply_corrections(data, corrections, new, tasks=served.tasks)
    assert (done.rows, done.changed, done.kept) == (6, 2, 1)
    labels = {one.id: one.label for one in read(done.out)}
    assert (labels[first], labels[second], labels[third]) == (ranked[0], other, None)


def test_rows_are_text_and_pictures_at_their_places(labelled, opened: Open):
    page = opened(labelled.url)
    here, seen = begin(page), {}
    while len(seen) < 5:
        seen[here] = page.locator(f"{ROW} .bubble p").all_text_contents()
        if here == "seen":
            assert page.locator(f"{ROW} .bubble img").count() == 1
            assert page.locator(f"{ROW} img").get_attribute("src").startswith("data:image/jpeg;base64,")
        if len(seen) < 5:
            here = press(page, "ArrowRight")
    assert seen["r1"] == ["what is 1?", EVIL]
    assert page.evaluate("window.evil") is None


def test_keys_find_labels_go_back_and_rest_while_somebody_types(labelled, opened: Open, data):
    page = opened(labelled.url)
    first = begin(page)
    page.keyboard.press("/")
    page.keyboard.type("kd1")
    assert page.locator(".tuyi-desk .nothing").inner_text() == "No label like this."
    assert page.locator(ROW).get_attribute("data-id") == first
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.className") == "tuyi-desk"
    page.keyboard.press("/")
    page.keyboard.type("FOUR CORN")  # of the definition
    assert names(page) == ["square"]
    second = press(page, "Enter")
    assert told(data)[first]["new_label"] == "square"
    assert page.evaluate("document.activeElement.className") == "tuyi-desk"
    assert press(page, "ArrowLeft") == first
    assert page.locator(".tuyi-desk .given .decided").inner_text() == "square"
    assert press(page, "s") == second
    page.keyboard.press("Control+d")
    page.keyboard.press("Alt+k")
    assert page.locator(ROW).get_attribute("data-id") == second
    page.get_by_role("tab", name="Classify").click()
    page.keyboard.press("d")
    page.wait_for_timeout(200)
    assert set(told(data)) == {first}


def test_two_people_and_a_decision_that_came_too_late(labelled, opened: Open, data):
    one, two = opened(labelled.url), opened(labelled.url)
    first, second = begin(one), begin(two)
    assert first != second
    press(one, "Enter")
    while one.locator(ROW).get_attribute("data-id") != second:
        # the first person comes to the second one's row by the second one's leaving it
        two.keyboard.press("s")
        ready(two, second)
        press(one, "s")
    two.keyboard.press("ArrowLeft")
    ready(two)
    two.wait_for_function(f"document.querySelector('{ROW}').dataset.id === '{second}'")
    press(one, "d")
    two.keyboard.press("1")
    two.wait_for_function(f"document.querySelector('{TOLD}').textContent.startsWith('Somebody else')")
    assert two.locator(".tuyi-desk .given .decided").inner_text() == "drop the row"
    assert told(data)[second]["action"] == "drop"


def test_a_file_that_was_spoilt_is_left_alone(labelled, opened: Open, data):
    page = opened(labelled.url)
    begin(page)
    file = data.with_name("rows.jsonl.corrections.csv")
    file.write_text("my notes", encoding="utf-8")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"{TOLD}.bad")
    assert "changed the corrections file" in page.locator(TOLD).inner_text()
    assert str(data.parent) not in page.locator("body").inner_text()
    assert file.read_text(encoding="utf-8") == "my notes"


def test_the_end_and_what_was_put_off(served, tmp_path, opened: Open):
    data = rows_file(tmp_path / "rows.jsonl", [("a", "what?", None, None), ("b", "which?", None, None)])
    with tab_server(served, labelling=Labelling.open(data, served.tasks)) as server, contextlib.ExitStack() as stack:
        page = opened(f"{server.url}?lang=zh", locale="zh-CN")
        stack.callback(page.close)
        page.get_by_role("tab", name="标注").press("Enter")
        first = ready(page)
        press(page, "s")
        page.keyboard.press("Enter")
        page.wait_for_selector(".tuyi-desk .end")
        assert "只剩下你暂缓的数据" in page.locator(".tuyi-desk .end").inner_text()
        page.keyboard.press("r")
        assert ready(page) == first
        page.keyboard.press("Enter")
        page.wait_for_selector(".tuyi-desk .end")
        assert "完成" in page.locator(".tuyi-desk .end").inner_text()
        assert "已定 2 / 2 条" in page.locator(".tuyi-desk .how-far").inner_text()


def test_without_rows_it_says_how_to_have_some(page_server: Running, opened: Open):
    page = opened(page_server.url)
    page.get_by_role("tab", name="Label").click()
    assert "--label rows.jsonl" in page.locator(".tuyi-desk .none").inner_text()


def test_what_an_audit_suggests_is_taken_by_a_key(served: Served, data: Path, opened: Open):
    known = next(one for one in read(data) if one.id == "known")
    (data.parent / "audit").mkdir()
    file = data.parent / "audit" / "corrections.csv"
    line = ["known", "shape", "square", "z", "0.8", "model", "", "", "ask Li", fingerprint(known, MediaDigests())]
    file.write_text(f"{','.join(COLUMNS)}\r\n{','.join(line)}\r\n", encoding="utf-8-sig", newline="")
    labelling = Labelling.open(data, served.tasks, audit=file.parent)
    with tab_server(served, labelling=labelling) as server, contextlib.ExitStack() as stack:
        page = opened(server.url)
        stack.callback(page.close)
        assert begin(page) == "known"
        assert page.locator(".tuyi-desk .why").inner_text() == "Suspected by the audit"
        press(page, "a")
        with file.open(encoding="utf-8-sig", newline="") as stream:
            (found,) = csv.DictReader(stream)
        assert (found["action"], found["new_label"], found["note"]) == ("change", "z", "ask Li")
