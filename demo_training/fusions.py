"""The fusions that demo models are trained with, by name."""

from demo_training.fusion import Fusion
from demo_training.llava_next import LlavaNextFusion
from demo_training.omnifusion import OmniFusionFusion

FUSIONS: dict[str, type[Fusion]] = {"llava-next": LlavaNextFusion, "omnifusion": OmniFusionFusion}
