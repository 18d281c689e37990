"""Which model, its identity, and how it runs here. The only room with torch and transformers."""
