"""Image reference → bytes (fetch) → pixels at the model's input size (decode)."""
