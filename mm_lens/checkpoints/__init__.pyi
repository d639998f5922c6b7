from . import (
    formats as formats,
)
from . import (
    hub as hub,
)
from . import (
    pickles as pickles,
)
from . import (
    shards as shards,
)
from . import (
    weights as weights,
)
from .conversion import convert as convert
from .formats import CheckpointFormat as CheckpointFormat
from .shards import ConversionPlan as ConversionPlan
from .shards import TensorSource as TensorSource
