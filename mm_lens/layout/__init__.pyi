from . import regions as regions
from .groups import (
    LAST as LAST,
)
from .groups import (
    Box as Box,
)
from .groups import (
    group_mask as group_mask,
)
from .groups import (
    last_position as last_position,
)
from .layout import (
    ImageGeometry as ImageGeometry,
)
from .layout import (
    TokenLayout as TokenLayout,
)
from .layout import (
    check_group as check_group,
)
from .matching import match_positions as match_positions
from .regions import AXES as AXES
from .regions import Grid as Grid
from .regions import Regions as Regions
from .regions import find_regions as find_regions
