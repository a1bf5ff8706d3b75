"""The benchmark: operators, the training step against its bound and against other libraries, and how they scale.

    python -m saelab_kernels.bench --help
    python -m saelab_kernels.bench --d-in 768 --d-sae 16384                    the processor, backend "cpu"
    python -m saelab_kernels.bench --device cuda --d-in 768 --d-sae 32768 --batch 8192 --k 64
    TRITON_INTERPRET=1 python -m saelab_kernels.bench --backend triton --d-in 4 --d-sae 8 --k 2 --batch 4 --rounds 1

Needs torch alone. Every figure is a ratio measured round by round in one run, each round running every variant
once, because machines differ and are rarely quiet. Operators and scaling run in the process of the benchmark; each
variant of the step, the parts of its bound too, in a process of its own with the same number of threads.

Which variants of the step there are is said in `variants`: on the processor one that may select by bfloat16 products
(to the float32 result) and one in float32 throughout, on CUDA plain calls and a CUDA graph. The last command only
shows that the GPU's benchmark runs: times in Triton's interpreter mean nothing, and larger sizes take minutes.
"""
