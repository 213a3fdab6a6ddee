"""Agreement of generated boxes with the boxes that a reference detector predicts on the generated images."""

from torch import Tensor

from mtgen.evaluation.metric import METRICS
from mtgen.evaluation.metrics.box_agreement import BoxAgreement
from mtgen.schema import Canvas, Prediction


@METRICS.register("generated/drawn_ap50")
class GeneratedBoxAP(BoxAgreement):
    """Average precision at an IoU of 0.5 of the reference detector's boxes, with the generated boxes as ground truth.

    The detector is trained on real training images. Images are reduced to sides of 32 pixels. Computed over a uniform
    subsample of at most 10,000 images.
    """

    name = "generated/drawn_ap50"
    numbers = {name: "higher"}
    quick = False
    needs_reference_models = True

    def predict(self, canvas: Canvas, prediction: Prediction) -> Tensor:
        return self.reference_models.predict_boxes(canvas.image)
