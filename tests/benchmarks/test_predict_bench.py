"""The prediction benchmark's own numbers: the floor against torch's operation counter, the rows against the shapes."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image as Pillow
from torch.utils.flop_counter import FlopCounterMode

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from engines import Result, capped_folder
from floor import RowWork, count_flops, floor_rate, row_work
from models import build_processor, config_of, make_model
from pictures import save_screenshot
from predict import rates
from tuyi.data.source import read
from tuyi.encode.encoder import Encoder
from tuyi.model.load import load_frontend
from tuyi.model.tasks import with_budget
from tuyi.model.tiny import build_weights
from tuyi.task import load_tasks
from tuyi.vision import VisionSpec, image_grid
from workload import draw_shapes, make_workload, texts


def test_floor_counts_what_torch_counts() -> None:
    frontend = load_frontend("builtin:tiny", texts())
    config = frontend.config
    config._attn_implementation = config.text_config._attn_implementation = "eager"
    config.vision_config._attn_implementation = "eager"
    model = build_weights(config, 0)
    grids, words = torch.tensor([[1, 4, 6], [1, 8, 4]]), 30
    patches = grids.prod(1)
    tokens = words + int(patches.sum()) // 4
    ids = torch.full((1, tokens), 40)
    ids[0, words - 1 :] = config.image_token_id
    ids[0, words - 1 + int(patches[0]) // 4] = 40  # two pictures never touch
    inputs = {
        "input_ids": ids,
        "pixel_values": torch.randn(int(patches.sum()), 3 * 2 * 14 * 14),
        "image_grid_thw": grids,
        "mm_token_type_ids": (ids == config.image_token_id).int(),
        "logits_to_keep": 1,
    }
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs)
    ours = count_flops(config, RowWork(tokens, tuple(patches.tolist())))
    head = 2 * config.text_config.hidden_size * config.text_config.vocab_size
    # torch's dense attention computes both halves of the causal square, the floor one
    expected = ours.sum + ours.language_attention + head
    assert counter.get_total_flops() == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(("max_pixels", "rows_per_second"), [(1_003_520, 26.4), (12_845_056, 7.54)])
def test_floor_of_the_challenge(max_pixels: int, rows_per_second: float) -> None:
    spec, config = VisionSpec("qwen2_vl"), config_of("7b")
    rows = []
    for shape in draw_shapes(1000):
        grids = [image_grid(width, height, spec, 3136, max_pixels) for width, height, _ in shape.pictures]
        patches = tuple(h * w for _, h, w in grids)
        tokens = int(0.65 * shape.prompt_chars) + 9 + sum(count // 4 + 2 for count in patches)
        rows.append(count_flops(config, RowWork(tokens, patches)))
    assert floor_rate(rows, 790e12) == pytest.approx(rows_per_second, rel=0.01)


@pytest.mark.parametrize(("size", "parameters"), [("2b", 2_208_985_600), ("7b", 8_291_375_616)])
def test_real_sizes(size: str, parameters: int) -> None:
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config_of(size))
    assert sum(weight.numel() for weight in model.parameters()) == parameters


def test_tokens_a_character() -> None:
    tokenizer = build_processor(texts()).tokenizer
    tasks = load_tasks("www2025")
    for text in (
        "".join(part for task in tasks for part in task.wording),
        "".join(label.name for task in tasks for label in task.labels.labels),
        "".join(texts()[4:200]),
    ):
        assert 0.55 < len(tokenizer(text).input_ids) / len(text) < 0.75
    assert len(tokenizer("<|image_pad|>").input_ids) == 1


def test_shapes_are_the_challenges() -> None:
    shapes = draw_shapes(1000)
    assert sum(shape.task == "scene" for shape in shapes) == 700
    pictures = [picture for shape in shapes for picture in shape.pictures]
    assert len(pictures) == 1037
    assert statistics.median(size for _, _, size in pictures) == 323_773
    assert statistics.median(width * height for width, height, _ in pictures) == pytest.approx(2.59e6, rel=0.01)
    assert {shape.task for shape in draw_shapes(20, tasks=["intent"])} == {"intent"}
    assert len(draw_shapes(2500)) == 2500


def test_pictures_take_the_bytes_of_real_ones(tmp_path: Path) -> None:
    sizes = [picture for shape in draw_shapes(24, seed=3) for picture in shape.pictures]
    names = [save_screenshot(tmp_path, str(number), size, number) for number, size in enumerate(sizes)]
    ratios = [(tmp_path / name).stat().st_size / size for name, (_, _, size) in zip(names, sizes)]
    assert 0.85 < statistics.median(ratios) < 1.2
    assert min(ratios) > 0.5
    assert max(ratios) < 2
    assert [Pillow.open(tmp_path / name).size for name in names] == [size[:2] for size in sizes]


def test_workload_has_its_shapes(tmp_path: Path) -> None:
    shapes = draw_shapes(20, seed=1, max_picture_pixels=20_000)
    data = make_workload(tmp_path, 20, seed=1, max_picture_pixels=20_000)
    rows, tasks = list(read(data)), load_tasks("www2025")
    assert [tasks.of(row).name for row in rows] == [f"www2025-{shape.task}" for shape in shapes]
    files = [image.source for row in rows for image in row.images]
    assert [Pillow.open(file).size for file in files] == [size[:2] for shape in shapes for size in shape.pictures]
    assert len({Path(str(file)).read_bytes() for file in files}) == len(files) >= 20
    for row, shape in zip(rows, shapes):
        if shape.task == "intent":
            assert len(row.text) == pytest.approx(shape.prompt_chars, abs=2)
            assert row.text.count("\n用户: ") + row.text.count("\n客服: ") == max(1, shape.turns)
    again = make_workload(tmp_path / "twice", 5, copies=2, max_picture_pixels=20_000)
    assert len(list(read(again))) == 10


def test_row_work_is_the_encoders(tmp_path: Path) -> None:
    data = make_workload(tmp_path, 12, seed=2, max_picture_pixels=20_000)
    frontend = load_frontend("builtin:tiny", texts())
    tasks = with_budget(load_tasks("www2025"), {"max_pixels": 12_544})
    encoder = Encoder(frontend.tokenizer, frontend.spec, tasks)
    work = row_work(data, frontend, tasks)
    assert len(work) == 12
    for row in read(data):
        encoded = encoder.encode(row, labelled=False)
        assert work[row.id].tokens == len(encoded)
        assert work[row.id].patches == tuple(h * w for item in encoded.media for _, h, w in [item.patches.grid])


def test_rates_leave_the_warm_up_out() -> None:
    work = {"a": 1e9, "b": 1e9, "c": 2e9, "d": 4e9}  # mean 2e9
    result = Result(host_seconds=1.0, finished=[(10.0, ["a", "b"]), (11.0, ["c"]), (13.0, ["d"])])
    found = rates(result, work)
    assert (found.rows, found.first_seconds) == (4, 10.0)
    assert found.whole == pytest.approx(4 / 14)
    assert found.flops == pytest.approx(6e9 / 3)
    assert found.steady == pytest.approx(1.0)
    alone = rates(Result(finished=[(2.0, ["a", "b", "c", "d"])]), work)
    assert alone.steady == pytest.approx(alone.whole) == pytest.approx(2.0)


def test_capped_folder(tmp_path: Path) -> None:
    from transformers import AutoProcessor

    model = make_model(tmp_path / "m", "tiny", texts())
    folder = capped_folder(model, tmp_path / "c", 50_176)
    processor = AutoProcessor.from_pretrained(folder)
    assert dict(processor.image_processor.size) == {"shortest_edge": 3136, "longest_edge": 50_176}
    assert json.loads((model / "processor_config.json").read_text())["image_processor"]["size"]["longest_edge"] > 50_176
    assert (folder / "model.safetensors").samefile(model / "model.safetensors")
