"""The generator and the predictor as MLflow models: logged, registered, served."""
