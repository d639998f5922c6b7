from .catalogue import RECIPES as RECIPES
from .catalogue import run as run
from .catalogue import table as table
from .recipe import Recipe as Recipe
from .recipe import Result as Result
