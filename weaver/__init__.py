"""The training framework: data configs, reading, feeding, training, export."""
