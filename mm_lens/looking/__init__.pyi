from . import attention as attention
from . import logit_lens as logit_lens
from . import token_values as token_values
from .attention import attention_map as attention_map
from .lenses.curves import lens_curves as lens_curves
from .lenses.heads import head_lens as head_lens
from .lenses.jacobian import fit_jacobian_lens as fit_jacobian_lens
from .lenses.neighbours import Neighbours as Neighbours
from .lenses.neighbours import embedding_neighbours as embedding_neighbours
from .lenses.neighbours import latent_lens as latent_lens
from .lenses.patchscopes import patchscope as patchscope
from .lenses.text_index import TextIndex as TextIndex
from .lenses.text_index import build_text_index as build_text_index
from .lenses.tuned import TunedLens as TunedLens
from .lenses.tuned import fit_tuned_lens as fit_tuned_lens
from .logit_lens import Readout as Readout
from .logit_lens import visual_logit_lens as visual_logit_lens
from .probes import Probe as Probe
from .probes import fit_probe as fit_probe
from .probes import probe_table as probe_table
from .scatter import state_scatter as state_scatter
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
