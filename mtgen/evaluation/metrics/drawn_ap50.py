"""Whether the boxes that are drawn are those of the images, as a reader sees them that knows nothing of the model."""

from torch import Tensor

from mtgen.evaluation.metric import METRICS
from mtgen.evaluation.metrics.box_agreement import BoxAgreement
from mtgen.schema import Canvas, Prediction


@METRICS.register("generated/drawn_ap50")
class GeneratedAP(BoxAgreement):
    """Average precision at an overlap of 0.5 of an independent detector's reading of the generated images, taking the drawn boxes for true.

    The detector is trained on real training images; images are reduced to sides of 32 pixels. Over 10,000 images at most, a uniform choice.
    """

    name = "generated/drawn_ap50"
    numbers = {name: "higher"}
    quick = False
    independent = True

    def read(self, canvas: Canvas, prediction: Prediction) -> Tensor:
        return self.reference_models.predict_boxes(canvas.image)
