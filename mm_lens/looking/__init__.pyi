from . import attention as attention
from . import logit_lens as logit_lens
from . import token_values as token_values
from .attention import attention_map as attention_map
from .logit_lens import Readout as Readout
from .logit_lens import visual_logit_lens as visual_logit_lens
from .probes import Probe as Probe
from .probes import fit_probe as fit_probe
from .probes import probe_table as probe_table
from .token_tensor import TokenValues as TokenValues
from .token_values import (
    cosine_to_mean as cosine_to_mean,
)
from .token_values import (
    find_words as find_words,
)
from .token_values import (
    linearity_error as linearity_error,
)
from .token_values import (
    norms as norms,
)
from .written import Written as Written
from .written import read_written as read_written
