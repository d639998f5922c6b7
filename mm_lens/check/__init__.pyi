from .suite import CHECKS as CHECKS
from .suite import Outcome as Outcome
from .suite import Table as Table
from .suite import run_suite as run_suite
