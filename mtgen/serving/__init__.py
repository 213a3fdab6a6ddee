"""The generator and the predictor as models of MLflow: logged, registered, served."""
