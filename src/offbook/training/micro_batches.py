"""A step's micro-batches, made smaller where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from offbook.engine.batching import Step
from offbook.engine.memory import deterministic, is_out_of_memory, release_cached
from offbook.errors import MemoryPlanError
from offbook.monitor import SmallerMicroBatches
from offbook.runs.checkpoint import Progress
from offbook.tokens.examples import Example
from offbook.training.advice import Case, advise
from offbook.training.distributed import Processes
from offbook.training.interrupt import Stopped
from offbook.training.log import Log
from offbook.training.memory import Memory
from offbook.training.plan import least_memory
from offbook.training.setup import LoadedRun


@dataclass(frozen=True)
class MicroBatches:
    """Computes steps of a run in micro-batches that fit in memory.

    Attributes:
        loaded: model, engine and plan of the run.
        progress: has the size of its micro-batches.
        log: receives a line where they get smaller.
        announce: receives messages for the user.
        asked_to_stop: whether this process is.
        processes: that train together.
    """

    loaded: LoadedRun
    progress: Progress
    log: Log
    announce: Callable[[str], None]
    asked_to_stop: Callable[[], bool]
    processes: Processes

    def compute(self, examples: Sequence[Example], work: Callable[[Step], float | None]) -> float:
        """Call `work` on micro-batches of a share of `examples`, smaller when memory runs out.

        Returns:
            Its result.

        Raises:
            Stopped: when it returns None.
            MemoryPlanError: when memory is not enough for a single row.
        """
        engine, inputs = self.loaded.engine, self.loaded.inputs
        device, sharded = inputs.device, inputs.sharded
        mine = self.processes.share([len(example) for example in examples])
        while True:
            tokens = self.progress.micro_batch_tokens
            step = engine.make_step(examples, tokens, device, mine, sharded)
            if sharded:
                step = self._as_others(step)
            try:
                with deterministic(inputs.config.train.deterministic):
                    loss = work(step)
                if loss is None:
                    raise Stopped
                return loss
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the except block, where the error still holds the tensors of what failed.
            self.loaded.model.zero_grad(set_to_none=True)
            release_cached(device)
            self._halve(step)

    @property
    def should_stop(self) -> Callable[[], bool]:
        """Asked before a micro-batch; of a sharded base, `_as_others` asks before a step."""
        return (lambda: False) if self.loaded.inputs.sharded else self.asked_to_stop

    def _as_others(self, step: Step) -> Step:
        """A step with as many micro-batches as that of the process with most.

        Raises:
            Stopped: in all processes, when one is asked to stop.
        """
        told = self.processes.gather([len(step.micro_batches), bool(self.asked_to_stop())])
        if any(stop for _, stop in told):
            raise Stopped
        return step.filled(max(count for count, _ in told))

    def _halve(self, failed: Step) -> None:
        longest = max(len(batch.input_ids) for batch in failed.micro_batches) + len(failed.prefix)
        single = all(len(batch.lengths) == 1 for batch in failed.micro_batches)
        if single or self.loaded.inputs.sharded:
            what = "a single row" if single else "a micro-batch"
            raise MemoryPlanError(
                f"memory is not enough for {what} of {longest} tokens; "
                f"planned: {self.loaded.inputs.plan.describe()}",
                fix="close other programs and continue with --resume; or start again with "
                f"--overwrite and {self._advice(longest)}",
            )
        tokens = min(self.progress.micro_batch_tokens, longest) // 2
        self.progress.micro_batch_tokens = tokens
        step = self.progress.step + 1
        self.log(SmallerMicroBatches(step, tokens))
        self.announce(f"step {step}: not enough memory; micro-batches have {tokens} tokens now")

    def _advice(self, longest: int) -> str:
        inputs = self.loaded.inputs
        memory = Memory(inputs.plan.available, inputs.plan.process)
        case = Case(inputs.config, inputs.shape, longest, inputs.dtype, inputs.device, memory)
        return ", ".join(map(str, advise(case, least_memory))) or "a smaller base"
