"""What happens beside the steps of training; `mtgen.training.trainer.build_callbacks` has the list and its order."""
