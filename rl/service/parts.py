"""What the routes share: where the runs are, and what is kept between two requests."""

from dataclasses import dataclass, field
from pathlib import Path as Directory
from typing import Annotated

from fastapi import Depends, Path, Query, Request

from rl.service import models, runs
from rl.service.auth import Doorkeeper, Role
from rl.service.charts import Gallery
from rl.service.compare import Evaluations
from rl.service.guard import LOGINS, Buckets
from rl.service.history import Histories
from rl.service.launch import Launcher
from rl.service.live import Hub
from rl.service.vocabulary import Vocabulary

_SIDE = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}(:(before|after))?$"


@dataclass
class Parts:
    """What the routes of one service share."""

    root: Directory
    door: Doorkeeper
    launcher: Launcher
    hub: Hub = field(default_factory=Hub)
    histories: Histories = field(default_factory=Histories)
    gallery: Gallery = field(default_factory=Gallery)
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    evaluations: Evaluations = field(default_factory=Evaluations)
    wrong_tokens: Buckets = field(default_factory=lambda: Buckets(LOGINS / 60, LOGINS))


def _parts(request: Request) -> Parts:
    found: Parts = request.app.state.parts
    return found


Service = Annotated[Parts, Depends(_parts)]


RunName = Annotated[str, Path(description="The run's name.", examples=["nano"])]


def _found(service: Service, run: RunName) -> Directory:
    return runs.find(service.root, run)


Run = Annotated[Directory, Depends(_found)]
"""The directory of the run that a path names."""
Asked = Annotated[models.EpisodeQuery, Query()]
Number = Annotated[int, Path(ge=0, le=10**15, examples=[1])]
SideName = Annotated[str, Query(max_length=80, pattern=_SIDE, examples=["nano:after"])]
TaskId = Annotated[str, Query(max_length=500, examples=["math-2-held_out-0/17"])]


def may_operate(request: Request) -> bool:
    """Whether who asks may start and stop runs."""
    return request.state.role is Role.OPERATE
