from . import overlay as overlay
from .components import draw_components as draw_components
from .components import draw_heads as draw_heads
from .components import draw_path as draw_path
from .explorer import Explorer as Explorer
from .explorer import explore as explore
from .overlay import draw_layout as draw_layout
from .overlay import draw_values as draw_values
