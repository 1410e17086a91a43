"""The page as a person uses it, in a headless Chromium."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from live_server import Running, data_url

from tuyi.data.example import Image, Video

Open = Callable[..., Any]
Picture = Callable[..., Image]

EDITOR = ".tuyi-editor"
CHAT = ".tuyi-chat textarea"


def file_of(image: Image, name: str) -> dict[str, Any]:
    return {"name": name, "mimeType": "image/png", "buffer": image.source}


def insert(page: Any, button: str, *files: dict[str, Any]) -> None:
    with page.expect_file_chooser() as chosen:
        page.get_by_role("button", name=button).first.click()
    chosen.value.set_files(list(files))


def drop(page: Any, target: str, image: Image, name: str) -> None:
    """A file dropped onto an element."""
    page.evaluate(
        """([target, name, text]) => {
            const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, {type: "image/png"}));
            const element = document.querySelector(target);
            const box = element.getBoundingClientRect();
            const where = {clientX: box.x + box.width / 2, clientY: box.y + box.height / 2};
            const settings = {dataTransfer: transfer, bubbles: true, cancelable: true, ...where};
            element.dispatchEvent(new DragEvent("drop", settings));
        }""",
        [target, name, base64.b64encode(image.source).decode()],
    )


def has_pictures(page: Any, count: int) -> None:
    page.wait_for_function(f"document.querySelectorAll('.tuyi-chip img').length === {count}")


def bars(page: Any) -> dict[str, str]:
    names, values = (page.locator(f".tuyi-bars .{part}").all_inner_texts() for part in ("name", "value"))
    return dict(zip(names, values, strict=True))


def shown(share: float) -> str:
    if 0 < share < 0.001:
        return "< 0.1%"
    return "> 99.9%" if 0.999 < share < 1 else f"{100 * share:.1f}%"


def classified(server: Running, **body: Any) -> dict[str, Any]:
    with server.client() as client:
        answer = client.post("/v1/classify", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_dialogue_with_two_pictures(page_server: Running, opened: Open, picture: Picture):
    one, two = picture(90, 60, seed=1), picture(60, 90, seed=2)
    page = opened(page_server.url)
    page.fill(EDITOR, "用户: 红的 <image> 还是\n这个 <image>？")
    assert page.locator(".tuyi-chip.empty").count() == 2
    insert(page, "Insert picture", file_of(one, "one.png"), file_of(two, "two.png"))
    has_pictures(page, 2)
    assert page.locator(".tuyi-chip .number").all_inner_texts() == ["1", "2"]
    page.press(EDITOR, "Control+Enter")
    page.wait_for_selector(".tuyi-label")
    parts = [
        {"text": "用户: 红的 "},
        {"image": data_url(one)},
        {"text": " 还是\n这个 "},
        {"image": data_url(two)},
        {"text": "？"},
    ]
    expected = classified(page_server, task="colour", parts=parts)
    assert page.inner_text(".tuyi-label") == expected["label"]
    assert bars(page) == {name: shown(share) for name, share in expected["probabilities"].items()}
    best_first = sorted(expected["probabilities"].values(), reverse=True)
    assert list(bars(page).values()) == [shown(share) for share in best_first]
    assert re.search(r"Took [\d.]+ s", page.inner_text(".tuyi-took"))

    page.select_option("#tuyi-task", "shape")
    page.get_by_role("button", name="Classify", exact=False).last.click()
    page.wait_for_function("document.querySelector('.tuyi-kind').textContent.includes('shape')")
    assert page.inner_text(".tuyi-label") == classified(page_server, task="shape", parts=parts)["label"]


def test_pictures_go_where_they_are_dropped_and_pasted(page_server: Running, opened: Open, picture: Picture):
    page = opened(page_server.url)
    page.click(EDITOR)
    page.keyboard.type("first <image> then")
    drop(page, ".tuyi-chip.empty", picture(seed=1), "dropped.png")
    has_pictures(page, 1)
    page.keyboard.press("Control+End")
    page.keyboard.type(" end")
    page.keyboard.press("Enter")
    page.keyboard.type("last")
    page.evaluate(  # at once after a key, before the browser has told of the caret's new place
        """(text) => {
            document.execCommand("insertText", false, " ");
            const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
            const data = new DataTransfer();
            data.items.add(new File([bytes], "pasted.png", {type: "image/png"}));
            const settings = {clipboardData: data, bubbles: true, cancelable: true};
            document.activeElement.dispatchEvent(new ClipboardEvent("paste", settings));
        }""",
        base64.b64encode(picture(seed=2).source).decode(),
    )
    has_pictures(page, 2)
    asked: list[Any] = []
    page.on("request", lambda request: asked.append(request.post_data_json) if "queue/join" in request.url else None)
    page.press(EDITOR, "Control+Enter")
    page.wait_for_selector(".tuyi-label")
    (one,) = [one for one in asked if one["event_data"]]
    parts = json.loads(one["event_data"]["body"])["parts"]
    assert [part.get("text", "▣") for part in parts] == ["first ", "▣", " then end\nlast ", "▣"]
    assert [part["image"] for part in parts if "image" in part] == [
        data_url(picture(seed=1)),
        data_url(picture(seed=2)),
    ]
    page.get_by_role("button", name="Remove Picture 1").click()
    assert page.locator(".tuyi-chip .number").all_inner_texts() == ["1"]


def test_what_is_wrong_is_said_at_its_place(page_server: Running, opened: Open, picture: Picture):
    page = opened(page_server.url)
    page.click("text=Classify >> nth=-1")
    page.get_by_role("button", name="Classify").click()
    assert "Write something" in page.inner_text(".tuyi-refusal")
    page.fill(EDITOR, "see <image> and <image>")
    page.press(EDITOR, "Control+Enter")
    assert "Picture 1 is still missing" in page.inner_text(".tuyi-refusal")
    broken = {"name": "broken.png", "mimeType": "image/png", "buffer": b"no picture"}
    insert(page, "Insert picture", file_of(picture(), "good.png"), broken)
    page.wait_for_selector(".tuyi-chip .broken")
    page.press(EDITOR, "Control+Enter")
    page.wait_for_selector(".tuyi-refusal details")
    assert "Picture 2 is broken" in page.inner_text(".tuyi-refusal")
    assert page.locator(".tuyi-chip.bad").count() == 1
    insert(page, "Insert picture", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"x"})
    page.wait_for_function("document.querySelector('.tuyi-refusal')?.textContent.includes('notes.txt')")


def test_a_server_that_is_lost_or_busy(page_server: Running, opened: Open):
    page = opened(page_server.url)
    page.fill(EDITOR, "hello")
    page.route("**/queue/join**", lambda route: route.abort())
    page.press(EDITOR, "Control+Enter")
    page.wait_for_selector("text=cannot be reached")
    page.unroute("**/queue/join**")
    page.wait_for_function(  # the page is loaded anew once the server is there, with what was written
        "!document.querySelector('.tuyi-refusal') && document.querySelector('.tuyi-editor')?.textContent === 'hello'"
    )
    busy = '{"error": {"message": "the queue is full", "code": "queue_full"}}'
    page.route("**/queue/join**", lambda route: route.fulfill(status=429, body=busy, content_type="application/json"))
    page.press(EDITOR, "Control+Enter")
    page.wait_for_selector("text=The server is busy")
    page.unroute("**/queue/join**")
    page.press(EDITOR, "Control+Enter")
    page.wait_for_selector(".tuyi-label")
    assert page.locator(".tuyi-refusal").count() == 0


def test_examples_and_labels_that_are_markup(page_server: Running, opened: Open):
    page = opened(page_server.url)
    page.locator(".tuyi-example").nth(2).click()
    has_pictures(page, 2)
    page.press(EDITOR, "Control+Enter")
    page.wait_for_selector(".tuyi-label")
    page.evaluate("""() => {
        const label = "<img src=x onerror=window.hurt=1>";
        const more = Object.fromEntries(Array.from({length: 30}, (_, at) => [`l${at}`, 0.01]));
        const old = tuyi.classify;
        document.querySelector(".tuyi-editor").textContent = "x";
        document.querySelector(".tuyi-ask .tuyi-main").click();
        old.told({ask: 2, answer: {task: "colour", label, probabilities: {[label]: 0.7, ...more}, rationale: label,
            notes: {dropped_turns: 3, cut_free: true}, timing: {total_ms: 1, model_ms: 1}}});
    }""")
    assert page.inner_text(".tuyi-label").startswith("<img")
    assert page.evaluate("window.hurt") is None
    assert page.inner_text(".tuyi-reason").startswith("<img")
    assert "first 3 turns" in page.inner_text(".tuyi-notes")
    assert page.locator(".tuyi-result > .tuyi-bars li").count() == 10
    assert page.inner_text(".tuyi-result summary") == "Show 21 more"


def test_another_language_keeps_what_was_written(page_server: Running, opened: Open, picture: Picture):
    page = opened(page_server.url, locale="zh-CN")
    page.wait_for_selector(EDITOR)
    assert page.get_by_role("tab").all_inner_texts() == ["分类", "对话", "报告", "标注"]
    assert "开始分类" in page.inner_text(".tuyi-ask .tuyi-main")
    page.fill(EDITOR, "写到一半 <image>")
    insert(page, "插入图片", file_of(picture(), "one.png"))
    has_pictures(page, 1)
    page.get_by_role("button", name="English").click()
    page.wait_for_url("**/?lang=en")
    has_pictures(page, 1)
    assert "写到一半" in page.inner_text(EDITOR)
    assert page.get_by_role("tab").all_inner_texts() == ["Classify", "Chat", "Report", "Label"]
    page.goto(page_server.url)  # it is remembered
    page.wait_for_selector(EDITOR)
    assert page.get_by_role("tab").first.inner_text() == "Classify"


def test_a_telephone_need_not_scroll_sideways(page_server: Running, opened: Open):
    page = opened(f"{page_server.url}/?lang=zh", viewport={"width": 390, "height": 800}, color_scheme="dark")
    for tab, content in {"分类": ".tuyi-editor", "对话": CHAT, "报告": ".tuyi-report", "标注": ".tuyi-desk"}.items():
        page.get_by_role("tab", name=tab).click()
        page.wait_for_selector(content)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab


def start_talk(page: Any, text: str, *, most: int) -> None:
    page.get_by_role("tab", name="Chat").click()
    page.click(".tuyi-chat > details > summary")
    page.fill(".tuyi-settings input[type=number]", str(most))
    page.fill(CHAT, text)


def said(page: Any, turns: int) -> list[str]:
    page.wait_for_function(f"document.querySelectorAll('.tuyi-turn.assistant:not(.writing)').length === {turns}")
    return page.locator(".tuyi-turn .said").all_inner_texts()


def test_a_talk_with_a_picture_a_video_and_a_follow_up(
    page_server: Running, opened: Open, picture: Picture, clip: Video
):
    page = opened(page_server.url)
    start_talk(page, "看", most=24)
    movie = clip.source.read_bytes()
    insert(
        page,
        "Add picture or video",
        file_of(picture(seed=5), "p.png"),
        {"name": "c.mp4", "mimeType": "video/mp4", "buffer": movie},
    )
    page.wait_for_selector(".tuyi-strip video")
    page.evaluate("""() => {
        window.steps = [];
        const log = document.querySelector(".tuyi-log");
        new MutationObserver(() => {
            const text = log.querySelector(".writing .said")?.textContent;
            if (text && window.steps.at(-1) !== text) window.steps.push(text);
        }).observe(log, {childList: true, subtree: true, characterData: true});
    }""")
    page.press(CHAT, "Enter")
    _, first = said(page, 1)
    steps = page.evaluate("window.steps")
    assert len(steps) > 3
    assert all(later.startswith(sooner) for sooner, later in pairwise(steps[1:]))
    video = "data:video/mp4;base64," + base64.b64encode(movie).decode()
    shown = [
        {"type": "image_url", "image_url": {"url": data_url(picture(seed=5))}},
        {"type": "video_url", "video_url": {"url": video}},
    ]
    messages: list[Any] = [{"role": "user", "content": [*shown, {"type": "text", "text": "看"}]}]
    answer = talked(page_server, messages)
    assert first == answer
    page.fill(CHAT, "再说")
    page.press(CHAT, "Enter")
    *_, second = said(page, 2)
    messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "再说"}]
    assert second == talked(page_server, messages)
    page.get_by_role("button", name="New talk").click()
    assert page.locator(".tuyi-turn").count() == 0


def talked(server: Running, messages: list[Any]) -> str:
    with server.client() as client:
        answer = client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 24})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def written(server: Running) -> float:
    """Tokens that the server has written."""
    with server.client() as client:
        found = re.search(r'tuyi_tokens_total\{kind="output"\} (\S+)', client.get("/metrics").text)
    return float(found[1]) if found else 0.0


@pytest.fixture(scope="module")
def endless(page_server: Running) -> str:
    """A message whose answer does not end by itself."""
    with page_server.client() as client:
        for number in range(40):
            message = f"go on and on {number}"
            body = {"messages": [{"role": "user", "content": message}], "max_tokens": 200}
            answer = client.post("/v1/chat/completions", json=body).json()["choices"][0]
            if answer["finish_reason"] == "length" and len(answer["message"]["content"]) > 150:
                return message
    pytest.fail("the model ends all answers soon")


def is_given_up(server: Running, before: float) -> bool:
    """Whether an answer of 3,000 tokens is not written to its end."""
    until = time.monotonic() + 12
    last = -1.0
    while time.monotonic() < until:
        now = written(server)
        if now == last:
            return now < before + 3000
        last = now
        time.sleep(0.6)
    return False


def test_an_answer_that_is_stopped(page_server: Running, opened: Open, endless: str):
    page = opened(page_server.url)
    before = written(page_server)
    start_talk(page, endless, most=3000)
    page.press(CHAT, "Enter")
    page.wait_for_function("document.querySelector('.writing .said')?.textContent.length > 12")
    page.get_by_role("button", name="Stop").click()
    assert "Stopped here" in page.inner_text(".tuyi-turn.assistant")
    assert is_given_up(page_server, before)
    page.fill(CHAT, "and now?")
    page.fill(".tuyi-settings input[type=number]", "4")
    page.press(CHAT, "Enter")
    said(page, 2)


def test_a_tab_that_is_closed(page_server: Running, opened: Open, endless: str):
    page = opened(page_server.url)
    before = written(page_server)
    start_talk(page, endless, most=3000)
    page.press(CHAT, "Enter")
    page.wait_for_function("document.querySelector('.writing .said')?.textContent.length > 12")
    page.close()
    assert is_given_up(page_server, before)


def test_a_server_that_cannot_chat(page_server: Running, opened: Open):
    def change(route: Any) -> None:
        found = route.fetch()
        route.fulfill(response=found, body=found.text().replace('"chats": true', '"chats": false'))

    page = opened(page_server.url, lambda page: page.route(f"{page_server.url}/", change))
    page.get_by_role("tab", name="Chat").click()
    page.wait_for_selector("text=none to talk with")
    assert page.locator(CHAT).count() == 0
