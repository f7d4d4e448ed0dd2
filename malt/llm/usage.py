"""Tally: what a run asked for, got and paid, by role."""

from dataclasses import dataclass, field

from malt.config.roles import PLAYERS, Role


@dataclass
class Usage:
    """What one role asked for and got. Tokens and cost count this run's new completions, and answers in batches that
    were billed and could not be read.
    """

    requests: int = 0
    completions: int = 0
    cached_completions: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = 0.0
    """None as soon as one completion's cost is unknown."""

    def add(self, other: "Usage") -> None:
        """Add up, keeping an unknown cost unknown."""
        self.requests += other.requests
        self.completions += other.completions
        self.cached_completions += other.cached_completions
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        known = self.cost_usd is not None and other.cost_usd is not None
        self.cost_usd = (self.cost_usd or 0.0) + (other.cost_usd or 0.0) if known else None


@dataclass
class Tally:
    """Usage by role; what is counted here is counted in the tally above it too."""

    roles: dict[Role, Usage] = field(default_factory=lambda: {role: Usage() for role in Role})
    above: "Tally | None" = None
    run: str = ""
    """Whose usage it is."""

    def add(self, role: Role, usage: Usage) -> None:
        self.roles[role].add(usage)
        if self.above is not None:
            self.above.add(role, usage)

    def merge(self, other: "Tally") -> None:
        for role, usage in other.roles.items():
            self.add(role, usage)

    @property
    def answers(self) -> int:
        """Completions of the trained roles, new and stored."""
        return sum(self.roles[role].completions + self.roles[role].cached_completions for role in PLAYERS)

    @property
    def total(self) -> Usage:
        total = Usage()
        for usage in self.roles.values():
            total.add(usage)
        return total
