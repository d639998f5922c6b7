from .coders import Coder as Coder
from .coders import SparseCoder as SparseCoder
from .coders import load_coder as load_coder
from .features import feature_table as feature_table
from .features import feature_values as feature_values
from .splicing import splice_hooks as splice_hooks
