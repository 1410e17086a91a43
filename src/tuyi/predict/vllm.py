"""The vllm engine: rows to vLLM in a process below this one, prompts as our tokens, pictures at our size.

Source: vLLM 0.25.0, ``v1/engine/async_llm.py``, ``sampling_params.py`` and ``renderers/base.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import Field

from tuyi.config import Settings
from tuyi.data.example import Example
from tuyi.encode.encoded import Asked
from tuyi.encode.encoder import Encoder
from tuyi.errors import ConfigError, EngineError, LabelError, ModelError
from tuyi.model.folder import FolderInfo
from tuyi.model.tiny import NAMES
from tuyi.predict.asked import TokenBytes, predicted, spread, unpatchify
from tuyi.predict.decoded import END, Step
from tuyi.predict.engine import SizedRow, closed_labels
from tuyi.predict.in_flight import answers_as_they_come, cancelled
from tuyi.predict.prediction import Prediction
from tuyi.task.labels import LabelSet

__all__ = ["VllmEngine", "VllmSettings"]

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
    """Asks vLLM for the label of each row, its answer constrained to the labels.

    Args:
        model: A model folder or hub id.
        encoder: Of the same model, with its tasks.
        tokenizer: Of the same model.
        settings: How vLLM runs.
        info: Where the calibration temperatures come from.

    Raises:
        ConfigError: vLLM is not installed.
        ModelError: A built-in model, which has no files that vLLM could read.
        EngineError: vLLM does not start.
    """

    def __init__(
        self, model: str, encoder: Encoder, tokenizer: Any, settings: VllmSettings, *, info: FolderInfo | None = None
    ) -> None:
        if model in NAMES:
            raise ModelError(f"{model} is made on the spot; --engine vllm needs a model folder or a hub id")
        self._encoder, self._settings, self._info = encoder, settings, info
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
            EngineError: vLLM died, or refuses a row.
            ModelError: A row's task asks for more than a label.
        """
        return answers_as_they_come(self._loop, rows, self._answer, 2 * self._settings.in_flight)

    def close(self) -> None:
        """Stop vLLM's processes."""
        if not self._loop.is_closed():
            self._pool.shutdown(wait=False, cancel_futures=True)
            if self._llm is not None:
                self._loop.run_until_complete(_stop(self._llm))
            self._loop.close()

    async def _answer(self, row: Example) -> Prediction:
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        asked, prompt = await self._loop.run_in_executor(self._pool, self._prepare, row)
        labels = closed_labels(asked.task)
        async with self._requests:
            try:
                # rendered first and in vLLM's threads: generate() would do it here and hold up every other row
                (rendered,) = await self._llm.renderer.render_cmpl_async([prompt])
                outputs = [output async for output in self._llm.generate(rendered, _sampling(labels), row.id)]
            except EngineDeadError as error:
                raise EngineError(f"vLLM died, see its messages above; last asked: id {row.id}") from error
            except (ValueError, EngineGenerateError) as error:
                said = str(error.__cause__ or error)[:300]
                raise EngineError(f"id {row.id}: vLLM refused the row: {said}") from error
        return self._read(asked, labels, outputs[-1])

    def _prepare(self, row: Example) -> tuple[Asked, dict[str, Any]]:
        from PIL import Image as Pillow

        asked = self._encoder.ask(row)
        closed_labels(asked.task)
        prompt: dict[str, Any] = {"prompt_token_ids": list(asked.ids)}
        if asked.pictures:
            pictures = [Pillow.fromarray(unpatchify(one, self._encoder.spec)) for one in asked.pictures]
            prompt["multi_modal_data"] = {"image": pictures}
        return asked, prompt

    def _read(self, asked: Asked, labels: LabelSet, output: Any) -> Prediction:
        answer = output.outputs[0]
        steps = self._steps(answer)
        text = b"".join(step.chosen for step in steps if step.chosen != END).decode(errors="replace")
        try:
            label = labels.canonical(text)
        except LabelError as error:
            raise EngineError(f"id {asked.id}: expected a label from vLLM, found {text[:200]!r}") from error
        answers = self._bytes.answers(self._encoder.labels(asked.task))
        masses = spread(answers, label, text, steps)
        cost = {"tokens": len(output.prompt_token_ids), "calls": 1, "output_tokens": len(answer.token_ids)}
        if cost["tokens"] != asked.tokens:
            cost["tokens_expected"] = asked.tokens
        return predicted(asked, masses.best if masses else label, masses, self._info, cost)

    def _steps(self, answer: Any) -> list[Step]:
        return [
            Step(self._bytes[token], {self._bytes[option]: found.logprob for option, found in options.items()})
            for token, options in zip(answer.token_ids, answer.logprobs, strict=True)
        ]


def _arguments(model: str, encoder: Encoder, settings: VllmSettings) -> dict[str, Any]:
    """Arguments of vLLM's engine."""
    budgets = [task.budget for task in encoder.tasks]
    pixels = max(budget.max_pixels for budget in budgets)
    return {
        "model": model,
        "dtype": "bfloat16",
        "max_model_len": max(budget.max_tokens for budget in budgets) + 256,
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


def _sampling(labels: LabelSet) -> Any:
    """The likeliest answer among the labels; room for the longest one, be it cut into single bytes."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    return SamplingParams(
        temperature=0.0,
        max_tokens=max(len(name.encode()) for name in labels.names) + 1,
        logprobs=_OPTIONS,
        structured_outputs=StructuredOutputsParams(choice=list(labels.names)),
        output_kind=RequestOutputKind.FINAL_ONLY,
        detokenize=False,  # it would decode every alternative of every token, in the thread that all rows wait for
    )
