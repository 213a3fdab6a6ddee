"""One file a metric; each registers itself in `mtgen.evaluation.metric.METRICS`."""
