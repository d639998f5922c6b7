from .result import Profile as Profile
from .run import profile as profile
