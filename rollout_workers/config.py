"""Configuration of this floor's parts. The whole is composed in `rl.config`."""

from pydantic import BaseModel, ConfigDict, Field

from rollout_workers.engine import EngineConfig
from rollout_workers.sandbox.select import Backend


class SandboxConfig(BaseModel):
    """Where model-written code runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: Backend = Field(
        "auto",
        description="`auto` takes docker, else bubblewrap, and says which; `gvisor` is docker with the runtime runsc. "
        "With none the run does not start.",
    )
    image: str = Field("cwm-rl-base:local", description="Docker image of tasks that name none; needs python3.")
    runtime: str | None = Field(None, description="Another runtime of the engine, by its name there.")
    warm: int = Field(
        0, ge=0, description="Sandboxes each worker keeps ready; pays where a start takes long, as with docker."
    )


class RolloutConfig(BaseModel):
    """How many workers there are and how each runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    workers: int = Field(1, ge=1, description="Rollout actors, each with an engine of its own.")
    slots: int = Field(16, ge=1, description="Episodes that run at once in one worker.")
    cpus: float = Field(1, gt=0, description="CPUs Ray reserves for one worker.")
    gpus: float = Field(0, ge=0, description="GPUs Ray reserves for one worker.")
    reasoning: bool = Field(
        True, description="Open replies inside <think> where the system message mentions </think>; false never does."
    )
    temperature: float = Field(1.0, gt=0, description="Sampling temperature; the learner's is the same.")
    grading_seconds: float = Field(
        300, gt=0, description="Deadline of one grading; a verifier's own limits, whose end is scored, come before it."
    )
    engine: EngineConfig = EngineConfig()
    sandbox: SandboxConfig = SandboxConfig()
