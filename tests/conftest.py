"""Shared by all rooms: tiny models of the three families, each beside a plain transformers model of equal weights."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tuyi.data.example import Example, Image, Text, Turn, Video
from tuyi.task.catalog import TaskSet, parse_tasks

if TYPE_CHECKING:
    from torch import Tensor

    from tuyi.encode.encoder import Encoder
    from tuyi.model.load import Model

MODELS = {"qwen2_vl": "builtin:tiny", "qwen2_5_vl": "builtin:tiny-qwen2.5", "qwen3_vl": "builtin:tiny-qwen3"}

BUDGET = {"max_pixels": 16 * 1024, "min_pixels": 1024, "max_tokens": 2048, "video_fps": 5, "video_max_pixels": 8192}
TASKS = {
    "name": "small",
    "tasks": [
        {
            "name": "colour",
            "prompt": "看图答题：\n{content}\n只答一个标签：{labels}",
            "labels": ["A", "AB", "红", "红色", "红色（深）", "红色(浅)", "Ｂ类 other colour"],
            "turn": "(用户|客服) *[:：]",
            "budget": BUDGET,
        },
        {
            "name": "shape",
            "prompt": "{content} Which shape? {labels}",
            "labels": {"round": "no corners", "square": "four corners", "z": "none of these"},
            "budget": BUDGET,
        },
        {"name": "talk", "answer": "open", "budget": BUDGET},
    ],
}
TEXTS = [
    "看图答题：只答一个标签：红色（深） 红色(浅) 用户: 你好，这个红色的能用吗？ 客服: 可以的，亲。",
    "Which shape? round square none of these, four corners. The colour of this picture is red.",
    "<1.5 seconds><0.3 seconds><12.7 seconds> 1 2 3 4 5 6 7 8 9 0",
] * 3


@dataclass(frozen=True, eq=False)
class Twin:
    """A tiny model, and transformers' own model and processor with the same weights, never adapted.

    The processor has its default backend, whose pixels are ours; its video frames come sampled and resized.
    """

    model: Model
    encoder: Encoder
    reference: Any
    processor: Any

    def conversation(self, example: Example, answer: str | None) -> str:
        """The text that transformers' chat template makes of a row."""
        turns = (*example.history, Turn("user", self.encoder.tasks.of(example).ask(example).parts()))
        messages = [{"role": turn.role, "content": [_content(part) for part in turn.parts]} for turn in turns]
        text: str = self.processor.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text if answer is None else f"{text}{answer}<|im_end|>"

    def inputs(self, example: Example, answer: str | None = None) -> dict[str, Tensor]:
        """What transformers' processor makes of a row."""
        from PIL import Image as Pillow

        sources = [image.source for image in example.images]
        files = [io.BytesIO(source) if isinstance(source, bytes) else source for source in sources]
        images = [Pillow.open(file).convert("RGB") for file in files]
        clips = [self._clip(video) for video in example.videos]
        metadata = {"video_metadata": [data for _, data in clips]} if clips else {}
        out: dict[str, Tensor] = self.processor(
            text=[self.conversation(example, answer)],
            images=images or None,
            videos=[frames for frames, _ in clips] or None,
            videos_kwargs={"do_resize": False, "do_sample_frames": False, "return_metadata": True, **metadata},
            return_tensors="pt",
        )
        return {key: value for key, value in out.items() if key != "video_metadata"}

    def logprobs(self, example: Example, answer: str | None = None) -> Tensor:
        """Log-probabilities (T, V) of the row, alone, in the plain model."""
        import torch

        with torch.inference_mode():
            logits: Tensor = self.reference(**self.inputs(example, answer)).logits[0]
        return logits.float().log_softmax(-1)

    def _clip(self, video: Video) -> tuple[Any, Any]:
        import numpy as np
        from PIL import Image as Pillow
        from transformers.video_utils import VideoMetadata

        from tuyi.vision.resample import resample
        from tuyi.vision.video import frame_indices, probe_video, video_grid
        from tuyi.vision.video_file import read_frames

        spec, budget = self.model.spec, self.encoder.tasks.tasks[0].budget
        info = probe_video(video)
        _, h, w = video_grid(info, spec, budget)
        indices = frame_indices(info, spec, budget)
        size = (w * spec.patch_size, h * spec.patch_size)
        resized = [resample(Pillow.fromarray(frame), size) for frame in read_frames(video, indices)]
        data = VideoMetadata(
            total_num_frames=info.frames, fps=info.fps, duration=info.duration, frames_indices=indices,
            height=size[1], width=size[0],
        )  # fmt: skip
        return np.stack([np.asarray(frame) for frame in resized]), data


def _content(part: Text | Image | Video) -> dict[str, str]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    return {"type": "image" if isinstance(part, Image) else "video"}


@pytest.fixture(scope="session")
def tasks() -> TaskSet:
    """Two closed tasks and an open one; labels that begin alike, of one token, with brackets of both widths."""
    return parse_tasks(TASKS, "small")


@pytest.fixture(scope="session")
def twins(tasks: TaskSet) -> Callable[[str], Twin]:
    """The twin of a family, made once."""
    import torch

    torch.set_num_threads(1)  # faster for models this small, and much faster where other jobs share the cores
    made: dict[str, Twin] = {}

    def of(family: str) -> Twin:
        if family not in made:
            made[family] = _twin(family, tasks)
        return made[family]

    return of


@pytest.fixture(params=list(MODELS))
def twin(request: pytest.FixtureRequest, twins: Callable[[str], Twin]) -> Twin:
    """Each family's twin in turn."""
    return twins(request.param)


def _twin(family: str, tasks: TaskSet) -> Twin:
    import copy

    from transformers import AutoModelForImageTextToText
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    from tuyi.encode.encoder import Encoder
    from tuyi.model.load import load_frontend, load_model

    frontend = load_frontend(MODELS[family], TEXTS)
    plain = AutoModelForImageTextToText.from_config(copy.deepcopy(frontend.config)).eval()
    model = load_model(frontend, device="cpu", dtype="float32", seed=3)
    _stir(model.hf)
    plain.load_state_dict(model.hf.state_dict())
    assert plain.config._attn_implementation == "sdpa"
    theirs = frontend.processor
    pixels = {"shortest_edge": BUDGET["min_pixels"], "longest_edge": BUDGET["max_pixels"]}
    spec = frontend.spec
    images = Qwen2VLImageProcessor(
        patch_size=spec.patch_size, image_mean=list(spec.mean), image_std=list(spec.std), size=pixels
    )
    processor = type(theirs)(
        image_processor=images,
        tokenizer=theirs.tokenizer,
        video_processor=theirs.video_processor,
        chat_template=theirs.tokenizer.chat_template,
    )
    return Twin(model, Encoder(frontend.tokenizer, spec, tasks), plain, processor)


def _stir(model: Any) -> None:
    """Weights that make every mistake visible: attention far from even, no bias at 0, no norm at 1."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim > 1:
                weight.copy_(noise / weight[0].numel() ** 0.5)
            else:
                weight.add_(0.2 * noise)


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image]:
    """Makes a random picture of a size, as PNG bytes; equal seeds, equal pictures."""

    def make(width: int = 70, height: int = 90, seed: int = 0) -> Image:
        import numpy as np
        from PIL import Image as Pillow

        coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        file = io.BytesIO()
        Pillow.fromarray(coarse).resize((width, height), Pillow.Resampling.BICUBIC).save(file, "PNG")
        return Image(file.getvalue(), f"{width}x{height}-{seed}.png")

    return make


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Video:
    """A video of 1.3 seconds."""
    import av
    import numpy as np

    file: Path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    rng = np.random.default_rng(0)
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for _ in range(13):
            pixels = np.kron(rng.integers(0, 256, (4, 6, 3)), np.ones((16, 16, 1))).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return Video(file)


@pytest.fixture(scope="session")
def rows(picture: Callable[..., Image], clip: Video) -> dict[str, Example]:
    """One labelled row of every shape."""

    def row(
        name: str, *content: Any, task: str = "colour", label: str = "红色", history: Sequence[Turn] = ()
    ) -> Example:
        parts = tuple(Text(part) if isinstance(part, str) else part for part in content)
        return Example(id=name, content=parts, task=task, label=label, history=tuple(history))

    one, two, three = picture(seed=1), picture(200, 40, seed=2), picture(33, 150, seed=3)
    system = Turn("system", (Text("你是一个客服专家。"),))
    earlier = (
        Turn("user", (Text("Look: "), two, Text(" what is it?"))),
        Turn("assistant", (Text("It is red,\n 红色。"),)),
        Turn("user", (Text("真的吗？"),)),
        Turn("assistant", (Text("真的"),)),
    )
    made = [
        row("text", "用户: 你好，这个红色的能用吗？\n客服: 可以的  亲 😀"),
        row("image", "看：", one, " 这是什么颜色", label="A"),
        row("image-first", one, "colour?", label="红色（深）"),
        row("image-last", "  what colour  ", two, task="shape", label="round"),
        row("images", one, two, "和", three, "\n\n哪个", task="shape", label="square"),
        row("history", "还有这个", three, history=earlier, label="红色(浅)"),
        row("system", "用户: 你好", history=(system, *earlier[2:]), task="shape", label="z"),
        row("video", "看视频", clip, "答", label="AB"),
        row("mixed", clip, one, "两个", clip, three, task="shape", label="z"),
    ]
    return {example.id: example for example in made}


@pytest.fixture
def eight_bit_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without an 8-bit matrix unit computes what one does."""
    import torch

    def product(values: Any, weight: Any, *, scale_a: Any, scale_b: Any, **options: Any) -> Any:
        assert values.dtype is weight.dtype is torch.float8_e4m3fn
        assert (scale_a.shape, scale_b.shape) == ((len(values), 1), (1, weight.shape[1]))
        assert scale_a.dtype is scale_b.dtype is torch.float32
        assert scale_b.is_contiguous()
        assert weight.stride(0) == 1, "the unit wants the weight column by column"
        return ((values.float() * scale_a) @ (weight.float() * scale_b)).to(options["out_dtype"])

    monkeypatch.setattr(torch, "_scaled_mm", product)


@pytest.fixture(scope="session")
def hopper() -> None:
    """A GPU where fused products run."""
    import torch

    from tuyi.model.products import refused

    if not torch.cuda.is_available() or refused(torch.device("cuda")) is not None:
        pytest.skip("needs Hopper and quack")
