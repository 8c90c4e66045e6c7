"""Training of operator predictors: on samples of the mapper, whose weights ship, and on measured kernels."""
