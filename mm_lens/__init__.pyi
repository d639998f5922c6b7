from . import (
    attribution as attribution,
)
from . import (
    causal as causal,
)
from . import check as check
from . import (
    checkpoints as checkpoints,
)
from . import (
    comparing as comparing,
)
from . import (
    data as data,
)
from . import (
    demo as demo,
)
from . import (
    dictionaries as dictionaries,
)
from . import (
    drawing as drawing,
)
from . import (
    errors as errors,
)
from . import (
    evaluating as evaluating,
)
from . import (
    heads as heads,
)
from . import (
    layout as layout,
)
from . import (
    looking as looking,
)
from . import (
    metrics as metrics,
)
from . import (
    model as model,
)
from . import (
    profiling as profiling,
)
from . import recipes as recipes
from . import (
    replacing as replacing,
)
from .causal import (
    Answers as Answers,
)
from .causal import (
    ablation as ablation,
)
from .causal import (
    answers as answers,
)
from .causal import (
    knockout as knockout,
)
from .causal import (
    patching as patching,
)
from .causal import (
    steering as steering,
)
from .checkpoints import convert as convert
from .comparing import Comparison as Comparison
from .comparing import compare as compare
from .comparing import relate as relate
from .data import corruptions as corruptions
from .data import datasets as datasets
from .drawing import overlay as overlay
from .errors import (
    DataError as DataError,
)
from .errors import (
    HookError as HookError,
)
from .errors import (
    InputError as InputError,
)
from .errors import (
    MMLensError as MMLensError,
)
from .errors import (
    MMLensWarning as MMLensWarning,
)
from .evaluating import Scores as Scores
from .evaluating import evaluate as evaluate
from .layout import TokenLayout as TokenLayout
from .layout import regions as regions
from .looking import attention as attention
from .looking import logit_lens as logit_lens
from .looking import token_values as token_values
from .model import (
    Inputs as Inputs,
)
from .model import (
    LayoutCache as LayoutCache,
)
from .model import (
    VisionLanguageBridge as VisionLanguageBridge,
)
from .model import (
    families as families,
)
from .model import (
    hooks as hooks,
)
from .model import (
    load as load,
)
from .model import (
    names as names,
)
from .model import (
    streams as streams,
)
from .profiling import Meter as Meter
from .profiling import Profile as Profile
from .profiling import measuring as measuring
from .profiling import profile as profile
