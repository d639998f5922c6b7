"""OmniFusion (AIRI, 2024): the model in the transformers way, its processor and its family.

Importing this package registers configuration, models and processor with transformers' Auto
classes; `mm_lens` imports it through the entry point group `mm_lens.adapters`.
"""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from .adapter import OmniFusionArchitectureAdapter, OmniFusionFamily
from .configuration import IMAGE_TOKEN, MARKERS, OmniFusionConfig
from .modeling import OmniFusionForConditionalGeneration, OmniFusionModel
from .processing import OmniFusionProcessor, add_markers

AutoConfig.register(OmniFusionConfig.model_type, OmniFusionConfig)
AutoModel.register(OmniFusionConfig, OmniFusionModel)
AutoModelForImageTextToText.register(OmniFusionConfig, OmniFusionForConditionalGeneration)
AutoProcessor.register(OmniFusionConfig, OmniFusionProcessor)

__all__ = [
    "IMAGE_TOKEN",
    "MARKERS",
    "OmniFusionArchitectureAdapter",
    "OmniFusionConfig",
    "OmniFusionFamily",
    "OmniFusionForConditionalGeneration",
    "OmniFusionModel",
    "OmniFusionProcessor",
    "add_markers",
]
