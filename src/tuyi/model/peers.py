"""How other servers have to be started and asked, so that they see what the model was taught on.

Sources: vLLM 0.25.0, ``engine/arg_utils.py``, ``config/multimodal.py``, ``model_executor/models/qwen2_vl.py`` and
``entrypoints/openai/chat_completion/protocol.py``; SGLang, ``srt/server_args.py``,
``srt/multimodal/processors/qwen_vl.py`` and issue 20025 (``SGLANG_IMAGE_MAX_PIXELS``).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tuyi.data.example import Example, Image, Text, Turn
from tuyi.encode.answer import AnswerTokens
from tuyi.encode.template import ChatTemplate
from tuyi.model.folder import FolderInfo
from tuyi.task.answer import Choice, Free, Literal
from tuyi.task.catalog import TaskSet
from tuyi.task.task import Task

__all__ = ["Asking", "Serving", "limit_pictures", "pixels"]

_SLACK = 64  # tokens of a request beyond a row's budget
_ROW = "(the row's own text)"
_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"


def pixels(tasks: TaskSet) -> tuple[int, int]:
    """Smallest and largest area at which the pictures of any of the tasks are shown."""
    budgets = [task.budget for task in tasks]
    return min(budget.min_pixels for budget in budgets), max(budget.max_pixels for budget in budgets)


def limit_pictures(processor: Any, tasks: TaskSet) -> None:
    """Let a processor resize pictures as the tasks' budgets say, for readers that know no budgets.

    Videos are left as they are: families and readers mean different things by their limits.

    Args:
        processor: transformers processor; changed in place.
        tasks: The tasks.
    """
    least, most = pixels(tasks)
    processor.image_processor.size = {"shortest_edge": least, "longest_edge": most}


@dataclass(frozen=True, slots=True)
class Asking:
    """How one task is asked.

    Args:
        task: The task.
        tokenizer: The model's.
        has_pictures: Whether its rows show pictures.
    """

    task: Task
    tokenizer: Any
    has_pictures: bool

    @property
    def text(self) -> str:
        """A whole conversation as the model reads it, up to where it answers."""
        picture = (Image(b"", "picture"),) if self.has_pictures else ()
        row = Example("example", (*picture, Text(_ROW)), task=self.task.name)
        prompt = self.task.ask(row)
        pieces = ChatTemplate(self.tokenizer).pieces((*prompt.history, Turn("user", prompt.parts())))
        return "".join(_PICTURE if one.media is not None else self.tokenizer.decode(list(one.ids)) for one in pieces)

    @property
    def answers(self) -> list[str] | None:
        """Everything that it may answer; None where the model writes some of it."""
        if self.task.labels is None or self.task.answer.has_free:
            return None
        return [self.task.answer.render(name) for name in self.task.labels.names]

    @property
    def form(self) -> str:
        """The form of an answer, for people."""
        segments = self.task.answer.segments
        return "".join(part.literal if isinstance(part, Literal) else f"⟨{_name(part)}⟩" for part in segments)

    @property
    def max_tokens(self) -> int:
        """Room for the longest answer, its end included; where it is bound, be it written byte by byte."""
        if self.answers is not None:
            return 1 + max(len(answer.encode()) for answer in self.answers)
        template = ChatTemplate(self.tokenizer)
        return AnswerTokens(self.task, template.tokens, template.end_id).most

    @property
    def request(self) -> dict[str, Any]:
        """What the client has to know of it."""
        head, tail = self.task.wording
        return {
            "system": self.task.system,
            "before": head,
            "after": tail,
            "answers": self.answers,
            "max_tokens": self.max_tokens,
        }


@dataclass(frozen=True, slots=True)
class Serving:
    """How a folder is served and asked.

    Args:
        name: The folder's name, and that of the model in requests.
        info: What the model remembers.
        asking: Its tasks.
    """

    name: str
    info: FolderInfo
    asking: Sequence[Asking]

    @property
    def media(self) -> dict[str, int] | None:
        """Most pictures and videos of a row that it was trained on; None where nobody counted."""
        rows = self.info.data.get("train", {}).values()
        if not rows:
            return None
        return {"image": max(one.most_pictures for one in rows), "video": max(one.most_videos for one in rows)}

    @property
    def vllm(self) -> str:
        """The command line for vLLM."""
        words = ["vllm", "serve", f"./{self.name}", "--served-model-name", self.name, "--dtype", "bfloat16"]
        words += ["--max-model-len", str(self._tokens), "--generation-config", "vllm"]
        if self.media is not None:
            words += ["--limit-mm-per-prompt", json.dumps(self.media)]
            if not self.media["video"]:  # it would change the frames of videos, too
                least, most = pixels(self.info.tasks)
                size = {"shortest_edge": least, "longest_edge": most}
                words += ["--mm-processor-kwargs", json.dumps({"size": size})]
        return _lines(words)

    @property
    def sglang(self) -> str:
        """The command line for SGLang."""
        words = ["python", "-m", "sglang.launch_server", "--model-path", f"./{self.name}"]
        words += ["--served-model-name", self.name, "--dtype", "bfloat16", "--context-length", str(self._tokens)]
        words += ["--sampling-defaults", "openai"]
        if self.media is not None:
            words += ["--limit-mm-data-per-request", json.dumps(self.media)]
        return f"SGLANG_IMAGE_MAX_PIXELS={pixels(self.info.tasks)[1]} {_lines(words)}"

    @property
    def tuyi(self) -> str:
        """The command line for tuyi."""
        return shlex.join(["tuyi", "serve", f"./{self.name}"])

    @property
    def client(self) -> str:
        """A client for vLLM and SGLang, in Python."""
        requests = {one.task.name: one.request for one in self.asking}
        tasks = "".join(f"    {_python(name)}: {_python(request)},\n" for name, request in requests.items())
        first = self.asking[0]
        row = f'picture("page.jpg"), text("{_ROW}")' if first.has_pictures else f'text("{_ROW}")'
        return _CLIENT.format(model=_python(self.name), tasks=tasks, row=f"{_python(first.task.name)}, {row}")

    @property
    def _tokens(self) -> int:
        return max(one.task.budget.max_tokens + one.max_tokens for one in self.asking) + _SLACK


_CLIENT = '''import base64, io, json
from openai import OpenAI
from PIL import Image, ImageOps

SERVER, URL = "vllm", "http://127.0.0.1:8000/v1"
# SERVER, URL = "sglang", "http://127.0.0.1:30000/v1"
MODEL = {model}
TASKS = {{
{tasks}}}
client = OpenAI(base_url=URL, api_key="none")


def text(words):
    return {{"type": "text", "text": words}}


def picture(path):
    upright, file = ImageOps.exif_transpose(Image.open(path)).convert("RGB"), io.BytesIO()
    upright.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return {{"type": "image_url", "image_url": {{"url": "data:image/png;base64," + data}}}}


def bound(answers):
    """What makes a server answer one of these."""
    if answers is None:
        return {{}}
    if SERVER == "sglang":
        return {{"ebnf": "root ::= " + " | ".join(json.dumps(one, ensure_ascii=False) for one in answers)}}
    return {{"structured_outputs": {{"choice": answers}}}}


def ask(task, *row):
    """The answer to one row: its texts and pictures in their order."""
    one = TASKS[task]
    around = [text(one["before"])] if one["before"] else [], [text(one["after"])] if one["after"] else []
    messages = [] if one["system"] is None else [{{"role": "system", "content": one["system"]}}]
    reply = client.chat.completions.create(
        model=MODEL,
        messages=[*messages, {{"role": "user", "content": [*around[0], *row, *around[1]]}}],
        temperature=0,
        max_tokens=one["max_tokens"],
        extra_body={{"repetition_penalty": 1.0, **bound(one["answers"])}},
    )
    return reply.choices[0].message.content


if __name__ == "__main__":
    print(ask({row}))
'''


def _name(part: Free | Choice) -> str:
    return part.free if isinstance(part, Free) else part.choice


def _python(value: Any) -> str:
    """Plain data as Python writes it, on one line and in double quotes where they are texts."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_python(key)}: {_python(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_python, value)) + "]"
    return repr(value)


def _lines(words: Iterable[str]) -> str:
    """A command line, each option on a line of its own."""
    return " ".join(f"\\\n  {word}" if word.startswith("--") else shlex.quote(word) for word in words)
