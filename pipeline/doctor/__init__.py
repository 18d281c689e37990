"""The use case behind `catvec doctor`: everything that could be wrong, with the cure. It changes nothing."""
