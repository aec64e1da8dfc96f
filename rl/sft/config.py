"""Configuration of the supervised stage, without a heavy import."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

Beta = Annotated[float, Field(ge=0, lt=1)]


class SftConfig(BaseModel):
    """How long the supervised stage goes, and its optimisers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: int = Field(2_500_000, ge=1, description="Budget: tokens in all, those of the context included.")
    seconds: float | None = Field(
        None, gt=0, description="The budget in time: whichever is used up first ends the stage, and times the rates."
    )
    batch_tokens: int = Field(2400, ge=1, description="Tokens of one optimiser step.")
    microbatch_tokens: int = Field(8192, ge=1, description="Tokens of one packed forward pass, at most.")
    context: int | None = Field(None, ge=2, description="A longer conversation is left out; none: the model's context.")
    lr: float = Field(3e-3, ge=0, description="AdamW's learning rate, for what is not Muon's.")
    muon_lr: float | None = Field(
        0.02, ge=0, description="Muon's learning rate, for the hidden matrices; 0 or none leaves them to AdamW."
    )
    betas: tuple[Beta, Beta] = Field((0.9, 0.95), description="AdamW's.")
    weight_decay: float = Field(0.0, ge=0, description="Of both optimisers.")
    warmup: float = Field(0.02, ge=0, le=1, description="Share of the budget over which the rates rise.")
    decay: float = Field(0.7, ge=0, le=1, description="Share of the budget over which they fall to 0, at its end.")
    max_grad_norm: float = Field(1.0, gt=0, description="The gradient is clipped to this norm.")
    seed: int = Field(0, description="Of the order of conversations.")
    device: str = Field("cpu", description='"cpu" or "cuda".')
    threads: int = Field(2, ge=1, description="torch threads on a CPU, of every replica.")
    replicas: int = Field(
        1, ge=1, description="Of a small model, work side by side on parts of a batch; float32 on a CPU."
    )
    checkpoint_seconds: float = Field(60, gt=0, description="Seconds between savings of what is not finished.")

    @model_validator(mode="after")
    def _trapezoid(self) -> "SftConfig":
        if self.warmup + self.decay > 1:
            raise ValueError(f"warmup {self.warmup:g} and decay {self.decay:g} together are more than the budget")
        return self

    def used(self, tokens: int, seconds: float) -> float:
        """Share of the budget; the stage ends at 1."""
        return max(tokens / self.tokens, seconds / self.seconds if self.seconds else 0.0)

    def rate(self, share: float) -> float:
        """The factor on both learning rates when `share` of the budget is used: a trapezoid."""
        rise = share / self.warmup if share < self.warmup else 1.0
        fall = (1 - share) / self.decay if share > 1 - self.decay else 1.0
        return max(0.0, min(rise, fall))
