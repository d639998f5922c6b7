from . import protocols as protocols
from .protocols import Protocol as Protocol
from .run import evaluate as evaluate
from .scores import Scores as Scores
