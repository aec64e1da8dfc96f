"""Every episode's life in one SQLite file: written by the driver alone (`Ledger`), read by anybody (`Reader`).

    dispatched ─► sampled ─► scored ─► trained(lineage, step)
         └────────────┴─────────┴────► dropped(reason)

At any moment, also after `kill -9`: dispatched = trained + dropped + pending. `rl.ledger.audit` adds it up.
"""

from rl.ledger.reader import Reader, Where
from rl.ledger.records import Counts, Fault, Record, Step
from rl.ledger.states import RETRIABLE, LedgerError, State
from rl.ledger.writer import Ledger
from rollout_workers.trajectory import DropReason

__all__ = [
    "RETRIABLE",
    "Counts",
    "DropReason",
    "Fault",
    "Ledger",
    "LedgerError",
    "Reader",
    "Record",
    "State",
    "Step",
    "Where",
]
