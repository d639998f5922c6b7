from . import corruptions as corruptions
from . import datasets as datasets
from . import pictures as pictures
from .datasets import (
    ImageFolder as ImageFolder,
)
from .pictures import Picture as Picture
from .pictures import open_picture as open_picture
from .samples import (
    DataSet as DataSet,
)
from .samples import (
    Sample as Sample,
)
from .samples import (
    Samples as Samples,
)
from .sets.easy_vqa import EasyVQA as EasyVQA
