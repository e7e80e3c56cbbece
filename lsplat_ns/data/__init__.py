"""From files to batches: posed videos, view sampling, crops, streams of examples, and demo scenes."""
