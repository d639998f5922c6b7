from .meter import Meter as Meter
from .meter import measuring as measuring
from .result import Profile as Profile
from .run import profile as profile
