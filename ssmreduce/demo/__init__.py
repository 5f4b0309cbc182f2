"""The demo: one classifier trained three times, at full size, reduced in training, and small."""
