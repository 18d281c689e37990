"""One module per step, in the order of their numbers; a step that has landed is never edited."""
