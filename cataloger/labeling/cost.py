"""What a unit of labelling cost, stage by stage; the sum is what a person watches and what MLflow keeps."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from threading import Lock
from time import perf_counter


class SharedClock:
    """Runs at 1/n of real time while n blocks are being timed with it, so that their durations add up to the real one."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.now, self.active, self.last = 0.0, 0, perf_counter()

    def enter(self) -> float:
        return self._change(1)

    def leave(self) -> float:
        return self._change(-1)

    def _change(self, active: int) -> float:
        with self.lock:
            time = perf_counter()
            self.now += (time - self.last) / max(1, self.active)
            self.last, self.active = time, self.active + active
            return self.now


@dataclass
class Cost:
    """Seconds are busy seconds of one process, so a stage of two actors can have two per second."""

    rows: int = 0
    """Rows read."""
    carried: int = 0
    """Rows whose label was taken over from the published run."""
    alone: int = 0
    """Distinct texts that words answered alone."""
    checked: int = 0
    """Of these, the ones of which the network was asked as well."""
    agreed: int = 0
    """Of these, the ones of which it said the same."""
    forwarded: int = 0
    """Distinct texts that went through the network."""
    tokens: int = 0
    """Tokens of these texts."""
    slots: int = 0
    """Tokens and padding that the model was given."""
    halvings: int = 0
    """How often the actor's GPU had run out of memory, each time halving the tokens per forward pass."""
    reading_seconds: float = 0.0
    words_seconds: float = 0.0
    tokenizing_seconds: float = 0.0
    forward_seconds: float = 0.0
    explaining_seconds: float = 0.0
    writing_seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        total = Cost(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))
        total.halvings = max(self.halvings, other.halvings)
        return total

    @property
    def padding_waste(self) -> float:
        """Share of what the model was given that was padding."""
        return 1 - self.tokens / self.slots if self.slots else 0.0

    @property
    def asked(self) -> int:
        """Distinct texts that the model answered, by words alone or with its network."""
        return self.alone + self.forwarded - self.checked

    @property
    def answered(self) -> dict[str, int]:
        """Distinct texts by who answered them, for the part of a unit."""
        by_words = {"alone": self.alone, "checked": self.checked, "agreed": self.agreed} if self.alone else {}
        return {"forwarded": self.forwarded, **by_words}

    @property
    def answered_per_second(self) -> float:
        """Distinct texts by the busy seconds of those who answered them, of one process each."""
        return self.asked / max(1e-9, self.words_seconds + self.forward_seconds)

    @contextmanager
    def timed(self, stage: str, clock: "SharedClock | None" = None) -> Iterator[None]:
        """Add the duration of the block to the stage's seconds; with a clock, its share of what several blocks took at once."""
        clock = clock or SharedClock()
        started = clock.enter()
        try:
            yield
        finally:
            name = f"{stage}_seconds"
            setattr(self, name, getattr(self, name) + clock.leave() - started)

    def describe(self, seconds: float) -> str:
        """One line for a log, after so many seconds."""
        stages = [name.removesuffix("_seconds") for name in vars(self) if name.endswith("_seconds")]
        shares = {stage: getattr(self, f"{stage}_seconds") / max(1e-9, seconds) for stage in stages}
        busy = ", ".join(f"{stage} {share:.0%}" for stage, share in shares.items() if share or stage != "explaining")
        carried = f", {self.carried / self.rows:.0%} carried over" if self.carried else ""
        if self.alone:
            carried += f", {self.alone / max(1, self.asked):.0%} of the rest by words alone"
        return (
            f"{self.tokens / max(1e-9, seconds):,.0f} tokens/s, {self.padding_waste:.1%} padding{carried}; busy: {busy}"
        )

    def metrics(self, seconds: float) -> dict[str, float]:
        """For MLflow."""
        counted = {field.name: float(getattr(self, field.name)) for field in fields(self) if field.name != "slots"}
        rates = {"padding_waste": self.padding_waste, "tokens_per_second": self.tokens / max(1e-9, seconds)}
        shares = {
            "carried_fraction": self.carried / max(1, self.rows),
            "alone_fraction": self.alone / max(1, self.asked),
        }
        return {**counted, **rates, **shares}
