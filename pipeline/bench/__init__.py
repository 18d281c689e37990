"""What `catvec bench` does: each limit of this machine alone, then all of it at once, on images of a real catalog.

`sample` chooses the images, `rates` turns moments into images per second, `stages` measures decoding, encoding and
writing by themselves, `stream` is the real engine fed for some seconds, `measurement` does it all in order.
"""
