from . import overlay as overlay
from .explorer import Explorer as Explorer
from .explorer import explore as explore
from .overlay import draw_layout as draw_layout
from .overlay import draw_values as draw_values
