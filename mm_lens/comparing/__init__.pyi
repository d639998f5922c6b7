from . import findings as findings
from . import statements as statements
from .comparison import Comparison as Comparison
from .comparison import compare as compare
from .relation import Relation as Relation
from .relation import relate as relate
