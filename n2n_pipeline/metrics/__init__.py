"""Arrays in, numbers out: how good a denoised movie is, with a truth and without one."""
