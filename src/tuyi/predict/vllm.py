"""The vllm engine: rows to vLLM in a process below this one, prompts as our tokens, pictures at our size.

Source: vLLM 0.25.0, ``v1/engine/async_llm.py``, ``sampling_params.py`` and ``renderers/base.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Any

from pydantic import Field

from tuyi.config import Settings
from tuyi.data.example import Example
from tuyi.encode.encoded import Asked
from tuyi.encode.encoder import Encoder
from tuyi.errors import AnswerError, ConfigError, EngineError, ModelError, TuyiError
from tuyi.model.folder import FolderInfo
from tuyi.model.tiny import NAMES
from tuyi.predict.asked import Cost, TokenBytes, Written, answered, predicted, spread, unpatchify
from tuyi.predict.decoded import END, Step
from tuyi.predict.engine import SizedRow
from tuyi.predict.in_flight import answers_as_they_come, cancelled
from tuyi.predict.prediction import Prediction
from tuyi.predict.written import AnswerForm, WrongAnswerError

__all__ = ["VllmEngine", "VllmSettings"]

_ENDS = (END, b"<|endoftext|>")
_OPTIONS = 64  # alternatives a token; those that the labels allow are first, for all others are masked


class VllmSettings(Settings):
    """How vLLM runs; the defaults are the fastest found on one H200."""

    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of the GPU's memory that vLLM takes."""
    tensor_parallel: int = Field(default=1, gt=0)
    """GPUs that share one model."""
    in_flight: int = Field(default=96, gt=0)
    """Rows that are asked together; twice as many are prepared."""
    max_num_batched_tokens: int = Field(default=8192, gt=0)
    """Most tokens of one step."""
    renderer_workers: int = Field(default=12, gt=0)
    """Threads that make vLLM's pixel values."""
    workers: int = Field(default=4, gt=0)
    """Threads that read and resize pictures."""
    prefix_caching: bool = False
    """Whether prompts that begin alike are computed once; costs time where none do."""
    eager: bool = False
    """Start without compiling: a minute sooner, at about the same speed."""


class VllmEngine:
    """Asks vLLM for the answer to each row, constrained to the form that the row's task asks for.

    Args:
        model: A model folder or hub id.
        encoder: Of the same model, with its tasks.
        tokenizer: Of the same model.
        settings: How vLLM runs.
        info: Where the calibration temperatures come from.
        skip: Called with what is wrong with a row that cannot be asked or is not answered; such a row stops everything
            where not given.

    Raises:
        ConfigError: vLLM is not installed.
        ModelError: A built-in model, which has no files that vLLM could read.
        EngineError: vLLM does not start.
    """

    def __init__(
        self, model: str, encoder: Encoder, tokenizer: Any, settings: VllmSettings, *,
        info: FolderInfo | None = None, skip: Callable[[TuyiError], None] | None = None,
    ) -> None:  # fmt: skip
        if model in NAMES:
            raise ModelError(f"{model} is made on the spot; --engine vllm needs a model folder or a hub id")
        self._encoder, self._settings, self._info, self._skip = encoder, settings, info, skip
        self._bytes = TokenBytes(tokenizer)
        self._loop = asyncio.new_event_loop()
        self._pool = ThreadPoolExecutor(settings.workers)
        self._requests = asyncio.Semaphore(settings.in_flight)
        self._llm: Any = None
        try:
            self._llm = self._loop.run_until_complete(_start(_arguments(model, encoder, settings)))
        except BaseException:
            self.close()
            raise

    def predict(self, rows: Iterable[SizedRow]) -> Generator[list[Prediction], None, None]:
        """Predictions of a stream of rows, as the answers come.

        Raises:
            DataError: A row shows a video, which this engine does not send.
            AnswerError: vLLM refuses a row, or does not answer it as its task asks.
            EngineError: vLLM died.
        """
        return answers_as_they_come(self._loop, rows, self._answer, 2 * self._settings.in_flight, self._skip)

    def close(self) -> None:
        """Stop vLLM's processes."""
        if not self._loop.is_closed():
            self._pool.shutdown(wait=False, cancel_futures=True)
            if self._llm is not None:
                self._loop.run_until_complete(_stop(self._llm))
            self._loop.close()

    async def _answer(self, row: Example) -> Prediction:
        asked, prompt = await self._loop.run_in_executor(self._pool, self._prepare, row)
        form = AnswerForm.of(asked.task)
        cost = Cost()

        async def write(start: str, left: AnswerForm) -> Written:
            cost.calls += 1
            name = row.id if cost.calls == 1 else f"{row.id} {cost.calls}"
            ids = [*prompt["prompt_token_ids"], *self._bytes.tokens(start)]
            one = await self._write(row.id, name, {**prompt, "prompt_token_ids": ids}, left)
            cost.count(one)
            return one

        async with self._requests:
            try:
                answer = await answered(form, write)
            except WrongAnswerError as error:
                raise AnswerError(f"id {row.id}: vLLM's answer: {error}", row.id) from error
        masses = spread(self._bytes.answers(form), answer) if form.labels else None
        return predicted(asked, answer, masses, cost, self._info)

    async def _write(self, row: str, name: str, prompt: dict[str, Any], form: AnswerForm) -> Written:
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        try:
            # rendered first and in vLLM's threads: generate() would do it here and hold up every other row
            (rendered,) = await self._llm.renderer.render_cmpl_async([prompt])
            outputs = [output async for output in self._llm.generate(rendered, self._sampling(form), name)]
        except EngineDeadError as error:
            raise EngineError(f"vLLM died, see its messages above; last asked: id {row}") from error
        except (ValueError, EngineGenerateError) as error:
            said = str(error.__cause__ or error)[:300]
            raise AnswerError(f"id {row}: vLLM refused the row: {said}", row) from error
        answer = outputs[-1].outputs[0]
        steps = self._steps(answer)
        text = b"".join(step.chosen for step in steps if step.chosen not in _ENDS).decode(errors="replace")
        is_cut = answer.finish_reason == "length"
        return Written(text, steps, len(outputs[-1].prompt_token_ids), len(answer.token_ids), is_cut)

    def _prepare(self, row: Example) -> tuple[Asked, dict[str, Any]]:
        from PIL import Image as Pillow

        asked = self._encoder.ask(row)
        prompt: dict[str, Any] = {"prompt_token_ids": list(asked.ids)}
        if asked.pictures:
            pictures = [Pillow.fromarray(unpatchify(one, self._encoder.spec)) for one in asked.pictures]
            prompt["multi_modal_data"] = {"image": pictures}
        return asked, prompt

    def _sampling(self, form: AnswerForm) -> Any:
        """The likeliest answer of a form; room for the longest label, be it cut into single bytes."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

        constraint = {"choice": list(form.spelled)} if form.answer.is_plain else {"regex": form.regex}
        return SamplingParams(
            temperature=0.0,
            max_tokens=form.first_room(self._bytes.tokens),
            logprobs=_OPTIONS if form.labels else None,
            structured_outputs=None if form.is_open else StructuredOutputsParams(**constraint),
            output_kind=RequestOutputKind.FINAL_ONLY,
            detokenize=False,  # it would decode every alternative of every token, in the thread that all rows wait for
        )

    def _steps(self, answer: Any) -> list[Step]:
        return [
            Step(self._bytes[token], {self._bytes[option]: found.logprob for option, found in options.items()})
            for token, options in zip(answer.token_ids, answer.logprobs or repeat({}))
        ]


def _arguments(model: str, encoder: Encoder, settings: VllmSettings) -> dict[str, Any]:
    """Arguments of vLLM's engine."""
    budgets = [task.budget for task in encoder.tasks]
    pixels = max(budget.max_pixels for budget in budgets)
    return {
        "model": model,
        "dtype": "bfloat16",
        "max_model_len": max(task.budget.max_tokens + AnswerForm.of(task).room for task in encoder.tasks) + 64,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "tensor_parallel_size": settings.tensor_parallel,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "max_num_seqs": settings.in_flight,
        "enable_prefix_caching": settings.prefix_caching,
        "enforce_eager": settings.eager,
        "renderer_num_workers": settings.renderer_workers,
        "mm_processor_cache_gb": 0,  # several renderer threads and the cache exclude each other
        "limit_mm_per_prompt": {"video": 0},
        # pictures come at their size; the largest that can come is what memory is set aside for
        "mm_processor_kwargs": {
            "do_resize": False,
            "size": {"shortest_edge": encoder.spec.factor**2, "longest_edge": pixels},
        },
        "max_logprobs": _OPTIONS,
        "logprobs_mode": "raw_logprobs",
        "disable_log_stats": True,
    }


async def _start(arguments: dict[str, Any]) -> Any:
    """Start vLLM inside the running loop, which its sockets belong to."""
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise ConfigError(f"--engine vllm needs vLLM (pip install 'tuyi[vllm]'): {error}") from error
    try:
        return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
    except (ValueError, RuntimeError, OSError) as error:
        raise EngineError(f"vLLM does not start with {arguments['model']}: {str(error)[:500]}") from error


async def _stop(llm: Any) -> None:
    """Stop vLLM's processes, and what it left running in the loop."""
    llm.shutdown()
    await cancelled()
