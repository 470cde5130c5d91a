"""The sizes of the tasks, which are the same on each side of the comparison."""

IMAGES = 100  # that SNIP and GraSP score with
STEPS, BATCH = 4, 128
EVALUATED, EVALUATED_BATCH = 1024, 256
LEVEL_BATCH, LEVEL_EPOCHS, REWIND_ITERATION = 64, 8, 23
