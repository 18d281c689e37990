"""What `catvec evaluate` does: how well a model finds products by words, measured on what the database holds.

Nothing is decoded again: images are judged by their stored vectors, texts are encoded by the stored model. `gallery`
has what is judged, `ranking` the ranks of texts among products and back, `metrics` the numbers and how sure they are;
`retrieval`, `zero_shot`, `compare` and `ann` are the four questions, `examples` and `page` what of it people look at.
"""
