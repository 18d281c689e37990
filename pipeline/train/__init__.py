"""What `catvec train` does: a dual encoder learns from a catalog's own image-title pairs.

`pairs` reads the catalog, `pixels` decodes each image once, `start` has the model to begin with and `tune` what of it
may change, `tokens` its titles, `loss` compares, `augment` varies, `objective` is what one step computes, `trainer`
repeats it, `recall` judges on products kept apart, `curves`, `card` and `result` leave what came out, `work` is what
a training keeps on disk meanwhile, and `training` does it all in order.
"""
