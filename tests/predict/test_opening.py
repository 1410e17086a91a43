"""Which engine a run gets, and how its model is made ready."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tuyi.data.example import Example, Image, Text
from tuyi.encode.encoder import Encoder
from tuyi.errors import DataError, ModelError
from tuyi.model import fast, fp8
from tuyi.model.load import Frontend, Model, load_frontend
from tuyi.predict import api, cluster, devices, loading, opening, vllm, warm
from tuyi.predict.engine import SizedRow
from tuyi.predict.loading import Job, _is_compiled, open_local
from tuyi.predict.local import LocalEngine
from tuyi.predict.opening import _devices, open_engine
from tuyi.predict.settings import PredictSettings
from tuyi.task.catalog import TaskSet

NAME = "builtin:tiny"


@pytest.fixture(scope="module")
def frontend(tasks: TaskSet) -> Frontend:
    torch.set_num_threads(1)
    return load_frontend(NAME, [text for one in tasks for text in one.wording])


@pytest.fixture(scope="module")
def encoder(frontend: Frontend, tasks: TaskSet) -> Encoder:
    return Encoder(frontend.tokenizer, frontend.spec, tasks)


@pytest.fixture(scope="module")
def trial(encoder: Encoder, picture: Callable[..., Image]) -> list[SizedRow]:
    rows = [
        Example(id=f"r{i}", content=(picture(40 + 9 * i, 60, seed=i), Text("what?")), task=["colour", "shape"][i % 2])
        for i in range(12)
    ]
    return [(row, encoder.length(row, labelled=False).tokens) for row in rows]


def job(tasks: TaskSet, rows: int = 12, **settings: Any) -> Job:
    return Job(NAME, tasks, PredictSettings(**{"device": "cpu", "workers": 1, **settings}), rows)


@pytest.mark.parametrize(
    ("named", "gpus", "expected"),
    [
        (None, 0, ["cpu"]),
        (None, 1, ["cuda:0"]),
        (None, 3, ["cuda:0", "cuda:1", "cuda:2"]),
        ("cpu", 2, ["cpu"]),
        ("cuda", 2, ["cuda"]),
        ("cuda:1", 2, ["cuda:1"]),
        ("cuda:0, cuda:1", 2, ["cuda:0", "cuda:1"]),
    ],
)
def test_devices(named: str | None, gpus: int, expected: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert _devices(named) == expected


CHOICES: dict[str, tuple[dict[str, Any], Any, str]] = {
    "api": ({"engine": "api"}, api, "ApiEngine"),
    "vllm": ({"engine": "vllm"}, vllm, "VllmEngine"),
    "ray": ({"engine": "ray", "address": "there:1"}, cluster, "RayEngine"),
    "one device": ({}, loading, "LocalEngine"),
    "two devices": ({"device": "cpu,cpu"}, devices, "DevicesEngine"),
}


@pytest.mark.parametrize("case", CHOICES)
def test_the_engine_that_was_asked_for(
    case: str, tasks: TaskSet, encoder: Encoder, frontend: Frontend, monkeypatch: pytest.MonkeyPatch
):
    opened: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    for _, module, name in CHOICES.values():
        monkeypatch.setattr(module, name, lambda *args, name=name, **options: opened.append((name, args, options)))
    options, _, name = CHOICES[case]
    open_engine(job(tasks, **options), encoder, frontend)
    assert [found for found, _, _ in opened] == [name]
    _, args, _ = opened[0]
    if case == "two devices":
        assert ["cpu", "cpu"] in args
    if case == "ray":
        assert "there:1" in args
    if case == "vllm":
        assert NAME in args


@pytest.mark.parametrize(
    ("device", "rows", "compiled"),
    [("cuda:0,cuda:1", 1999, False), ("cuda:0,cuda:1", 2000, True), ("cpu,cpu", 5000, False)],
)
def test_devices_compile_where_each_has_rows_enough(
    device: str, rows: int, compiled: bool, tasks: TaskSet, encoder: Encoder, frontend: Frontend,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    given: list[PredictSettings] = []
    monkeypatch.setattr(devices, "DevicesEngine", lambda model, tasks, settings, *_: given.append(settings))
    open_engine(job(tasks, rows, device=device), encoder, frontend)
    open_engine(job(tasks, rows, device=device, compile=not compiled), encoder, frontend)
    assert [settings.compile for settings in given] == [compiled, not compiled]


@pytest.mark.parametrize(
    ("device", "rows", "settings", "compiled"),
    [
        ("cpu", 5000, {}, False),
        ("cpu", 1, {"compile": True}, True),
        ("cuda", 999, {}, False),
        ("cuda", 1000, {}, True),
        ("cuda", 5000, {"compile": False}, False),
        ("cuda", 1, {"precision": "fp8"}, True),
        ("cuda", 1, {"precision": "fp8", "compile": False}, False),
    ],
)
def test_compiling_where_it_pays(device: str, rows: int, settings: dict[str, Any], compiled: bool, tasks: TaskSet):
    model: Any = SimpleNamespace(device=torch.device(device))
    assert _is_compiled(job(tasks, rows, **settings), model) is compiled


def test_compiled_means_compiled_and_warmed_up(tasks: TaskSet, frontend: Frontend, monkeypatch: pytest.MonkeyPatch):
    done: list[str] = []
    monkeypatch.setattr(fast, "compile_blocks", lambda hf: done.append("compiled"))
    monkeypatch.setattr(warm, "warm_up", lambda model: done.append("warm") or 3.2)
    told: list[str] = []
    open_local(job(tasks, compile=True), frontend, tell=told.append).close()
    assert done == ["compiled", "warm"]
    assert told == ["compiled in 3 s"]
    open_local(job(tasks, rows=5000), frontend, tell=told.append).close()
    assert len(done) == 2, "not on a CPU by itself"


@pytest.mark.parametrize(
    ("precision", "dtype"), [(None, torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_precision(precision: Any, dtype: torch.dtype, tasks: TaskSet, frontend: Frontend, trial: list[SizedRow]):
    with closing(open_local(job(tasks, precision=precision), frontend)) as engine:
        assert {weight.dtype for weight in engine.model.hf.parameters()} == {dtype}
        found = [one for many in engine.predict(trial) for one in many]
    assert sorted(one.id for one in found) == sorted(row.id for row, _ in trial)


def test_a_frontend_is_loaded_where_none_is_given(tasks: TaskSet, trial: list[SizedRow], frontend: Frontend):
    with closing(open_local(job(tasks))) as one, closing(open_local(job(tasks), frontend)) as other:
        found, expected = ([x.logprobs for many in e.predict(trial[:3]) for x in many] for e in (one, other))
    assert found == expected


def test_bad_rows_go_where_the_job_says(tasks: TaskSet, frontend: Frontend, monkeypatch: pytest.MonkeyPatch):
    given: dict[str, Any] = {}
    monkeypatch.setattr(loading, "LocalEngine", lambda *args, **options: given.update(options))
    told: list[DataError] = []
    asked = Job(NAME, tasks, PredictSettings(device="cpu", workers=3, pack_tokens=77), 5, window=9, skip=told.append)
    open_local(asked, frontend)
    assert given["on_bad_row"] == told.append
    assert (given["window"], given["workers"], given["pack_tokens"], given["pool"]) == (9, 3, 77, None)


# --- fp8 --------------------------------------------------------------------------------------------------------------


def test_fp8_on_a_cpu_says_what_to_do(tasks: TaskSet, frontend: Frontend, trial: list[SizedRow]):
    for rows in ([], trial):
        with pytest.raises(ModelError, match=r"needs a GPU of compute capability 8\.9 or more.*; use bfloat16"):
            open_local(job(tasks, precision="fp8"), frontend, trial=rows)


def spoil(by: float) -> Callable[[Any], int]:
    def use_fp8(hf: Any) -> int:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in hf.model.language_model.layers.parameters():
                weight.add_(by * torch.randn(weight.shape, generator=generator).to(weight.dtype))
        return 21

    return use_fp8


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_is_compiled", lambda job, model: False)


@pytest.mark.usefixtures("uncompiled")
def test_fp8_that_changes_labels_is_refused_unless_forced(
    tasks: TaskSet, frontend: Frontend, trial: list[SizedRow], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fp8, "use_fp8", spoil(0.5))
    told: list[str] = []
    with pytest.raises(ModelError, match=r"keeps \d+\.\d\d% of the labels of 12 rows, expected 99\.5% or more; use bf"):
        open_local(job(tasks, precision="fp8"), frontend, trial=trial, tell=told.append)
    (line,) = told
    assert line.startswith("fp8 against bfloat16 on 12 rows: ")
    assert "100.00%" not in line
    open_local(job(tasks, precision="fp8", force_fp8=True), frontend, trial=trial, tell=told.append).close()
    assert told == [line, line], "said, and gone on"


@pytest.mark.usefixtures("uncompiled")
def test_fp8_that_keeps_labels_is_taken(
    tasks: TaskSet, frontend: Frontend, trial: list[SizedRow], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fp8, "use_fp8", spoil(0.0))
    told: list[str] = []
    with closing(open_local(job(tasks, precision="fp8"), frontend, trial=trial, tell=told.append)) as engine:
        assert isinstance(engine, LocalEngine)
        assert {weight.dtype for weight in engine.model.hf.parameters()} == {torch.bfloat16}
    assert told == [
        "fp8 against bfloat16 on 12 rows: 100.00% of the labels equal, probabilities differ by at most 0.000"
    ]
    told.clear()
    open_local(job(tasks, precision="fp8"), frontend, tell=told.append).close()
    assert told == [], "nothing to try it on"


@pytest.mark.parametrize("forced", [False, True])
def test_several_devices_try_fp8_once_on_the_first(
    forced: bool, tasks: TaskSet, encoder: Encoder, frontend: Frontend, trial: list[SizedRow],
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    tried: list[tuple[str | None, int]] = []
    given: list[PredictSettings] = []

    def local(job: Job, frontend: Frontend, *, trial: Any, tell: Any) -> Any:
        tried.append((job.settings.device, len(trial)))
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(opening, "open_local", local)
    monkeypatch.setattr(devices, "DevicesEngine", lambda model, tasks, settings, *_: given.append(settings))
    asked = job(tasks, precision="fp8", device="cuda:0,cuda:1", force_fp8=forced)
    open_engine(asked, encoder, frontend, trial=trial)
    assert tried == ([] if forced else [("cuda:0", 12)])
    assert given[0].force_fp8, "each device takes the first one's word"
    assert given[0].device == ("cuda:0,cuda:1" if forced else given[0].device)


def test_a_refused_trial_closes_its_engines(
    tasks: TaskSet, frontend: Frontend, trial: list[SizedRow], monkeypatch: pytest.MonkeyPatch
):
    closed: list[LocalEngine] = []
    close = LocalEngine.close
    monkeypatch.setattr(LocalEngine, "close", lambda self: closed.append(self) or close(self))
    with pytest.raises(ModelError, match="use bfloat16"):
        open_local(job(tasks, precision="fp8"), frontend, trial=trial)
    assert len(closed) == 1


def test_closed_engines_leave_the_model_as_it_was(twins: Callable[[str], Any], trial: list[SizedRow]):
    """Engines of one model follow each other, as in the trial; what watches the model goes with its engine."""
    model: Model = twins("qwen2_vl").model
    towers = (model.hf.model.visual, model.hf.model.language_model)
    before = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in towers]
    with closing(LocalEngine(model, twins("qwen2_vl").encoder, pack_tokens=400, workers=1)) as engine:
        assert sum(len(many) for many in engine.predict(trial)) == 12
    assert [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in towers] == before
