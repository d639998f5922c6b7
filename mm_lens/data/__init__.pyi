from . import corruptions as corruptions
from . import datasets as datasets
from . import pictures as pictures
from .datasets import (
    DataSet as DataSet,
)
from .datasets import (
    EasyVQA as EasyVQA,
)
from .datasets import (
    ImageFolder as ImageFolder,
)
from .datasets import (
    Sample as Sample,
)
from .datasets import (
    Samples as Samples,
)
from .pictures import Picture as Picture
from .pictures import open_picture as open_picture
