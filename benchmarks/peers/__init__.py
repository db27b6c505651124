"""Other ways to keep the union of intervals, each checked to be right before it is timed."""
