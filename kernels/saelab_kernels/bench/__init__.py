"""The benchmark: operators, the training step against its bound and against other libraries, and how they scale.

`python -m saelab_kernels.bench --help`; needs torch alone. Every figure is a ratio measured round by round in one
run, each round running every variant once, because machines differ and are rarely quiet.
"""
