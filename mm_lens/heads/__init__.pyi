from .copying import copying_scores as copying_scores
from .reweighting import reweighting_hooks as reweighting_hooks
from .scores import head_scores as head_scores
from .scores import relative_attention as relative_attention
from .sinks import Sinks as Sinks
from .sinks import find_sinks as find_sinks
from .sinks import redistribution_hooks as redistribution_hooks
