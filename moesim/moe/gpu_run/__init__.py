"""Everything that needs a GPU, in one command: `python -m moesim.moe.gpu_run`, see docs/gpu-run.md."""
