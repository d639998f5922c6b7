from . import ablation as ablation
from . import answers as answers
from . import directions as directions
from . import knockout as knockout
from . import patching as patching
from . import steering as steering
from .ablation import (
    ablation_hooks as ablation_hooks,
)
from .ablation import (
    ablation_table as ablation_table,
)
from .ablation import (
    mean_activation as mean_activation,
)
from .ablation import (
    mean_embedding_hooks as mean_embedding_hooks,
)
from .answers import Answers as Answers
from .directions import (
    difference_of_means as difference_of_means,
)
from .directions import (
    principal_directions as principal_directions,
)
from .effects import EffectTable as EffectTable
from .knockout import knockout_table as knockout_table
from .region_result import RegionPatching as RegionPatching
from .rewriting import Rewritten as Rewritten
from .rewriting import write_without as write_without
from .steering import steering_hooks as steering_hooks
