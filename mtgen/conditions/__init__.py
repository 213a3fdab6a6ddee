"""What images are generated from: each modality is one file that registers itself."""
